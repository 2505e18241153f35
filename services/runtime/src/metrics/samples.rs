//! Metrics that are not counted where they happen: a source gives their present values at each
//! scrape.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;

use super::{Kind, TABLE};

/// The sources of metrics on the page.
static SOURCES: Mutex<Vec<Source>> = Mutex::new(Vec::new());

type Source = Box<dyn Fn(&mut Samples) + Send>;

/// Values by metric, in the order of their names.
#[derive(Debug, Default)]
pub struct Samples(BTreeMap<&'static str, String>);

/// Adds the metrics of `source` to every page from now on.
pub fn also(source: impl Fn(&mut Samples) + Send + 'static) {
    let mut sources = SOURCES.lock().expect("no source panics");
    sources.push(Box::new(source));
}

/// The metrics of all sources now.
pub(super) fn page() -> String {
    let mut samples = Samples::default();
    for source in SOURCES.lock().expect("no source panics").iter() {
        source(&mut samples);
    }
    samples.render()
}

impl Samples {
    /// Adds a value for a number of [`TABLE`]. The labels are those of the table; their values are
    /// names whose form was checked, so they need no escapes.
    pub fn add(&mut self, name: &'static str, labels: &[(&str, &str)], value: f64) {
        let lines = self.0.entry(name).or_default();
        let labels: Vec<String> = labels
            .iter()
            .map(|(label, value)| format!("{label}=\"{value}\""))
            .collect();
        let written = match labels.is_empty() {
            true => writeln!(lines, "{name} {value}"),
            false => writeln!(lines, "{name}{{{}}} {value}", labels.join(",")),
        };
        written.expect("a string takes every line");
    }

    /// The text form of Prometheus.
    pub fn render(&self) -> String {
        let mut page = String::new();
        for (name, lines) in &self.0 {
            let metric = TABLE.iter().find(|metric| metric.name == *name);
            let metric = metric.expect("every number is declared in the table");
            let kind = match metric.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram => "histogram",
            };
            let help = metric.help;
            page.push_str(&format!(
                "# HELP {name} {help}\n# TYPE {name} {kind}\n{lines}\n"
            ));
        }
        page
    }
}

#[cfg(test)]
mod tests {
    use super::super::{WORKER_LOSS, WORKERS_NOT_SHOWN};
    use super::*;

    #[test]
    fn a_number_is_described_once_and_has_a_line_for_each_value() {
        let mut samples = Samples::default();
        for (worker, loss) in [("A", 1.5), ("B", 2.0)] {
            samples.add(WORKER_LOSS, &[("run", "demo"), ("worker", worker)], loss);
        }
        samples.add(WORKERS_NOT_SHOWN, &[], 0.0);
        let page = samples.render();
        assert_eq!(page.matches("# TYPE diloco_worker_loss gauge\n").count(), 1);
        assert!(
            page.contains("diloco_worker_loss{run=\"demo\",worker=\"B\"} 2\n"),
            "{page}"
        );
        assert!(page.contains("diloco_workers_not_shown 0\n"), "{page}");
    }
}
