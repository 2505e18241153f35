//! The throttle as a layer of the log: it sees each event before anything is written, and lets it
//! pass or counts it.

use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::{CAUSE_FIELDS, HeldBackLines, INTERVAL_FIRST, NEWEST_BYTES_MAX, Throttle};

/// The target of the lines that sum up what was held back; they are not throttled themselves.
const TARGET: &str = "runtime::throttle";
/// Most of these lines at a time; one more counts the causes that were left out.
const LINES_MAX: usize = 16;

/// The lines held back. Clones share them: the layer adds to them, and one clone sums them up.
#[derive(Clone, Debug)]
pub(crate) struct SharedThrottle {
    throttle: Arc<Mutex<Throttle>>,
    started: Instant,
}

/// The layer that counts events and holds them back.
pub(crate) struct ThrottleLayer(pub(crate) SharedThrottle);

impl SharedThrottle {
    pub(crate) fn new() -> Self {
        Self {
            throttle: Arc::default(),
            started: Instant::now(),
        }
    }

    /// Logs the sums that are due, for as long as the process lives.
    pub(crate) fn tell_for_ever(self) {
        // A thread and not a task, so that lines are summed up before the async runtime starts and
        // while it stands still.
        let telling = move || {
            loop {
                std::thread::sleep(INTERVAL_FIRST);
                let many = self.lock().due(self.started.elapsed());
                log(&many);
            }
        };
        if let Err(error) = std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(telling)
        {
            tracing::warn!(%error, "no thread for the counts of lines that were held back; they are logged when the process ends");
        }
    }

    /// Logs the sums that were not reported yet.
    pub(crate) fn tell_rest(&self) {
        let many = self.lock().rest(self.started.elapsed());
        log(&many);
    }

    fn lock(&self) -> MutexGuard<'_, Throttle> {
        // The counters are valid after a panic too.
        self.throttle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn log(many: &[HeldBackLines]) {
    for HeldBackLines {
        site,
        cause,
        count,
        within,
        newest,
    } in many.iter().take(LINES_MAX)
    {
        let (within_s, site) = (
            within.as_secs(),
            site.strip_prefix("event ").unwrap_or(site),
        );
        tracing::warn!(target: TARGET, held_back = count, within_s, cause, site, newest, "more lines of this cause");
    }
    if let Some(causes) = many.len().checked_sub(LINES_MAX).filter(|more| *more > 0) {
        let lines: u64 = many[LINES_MAX..].iter().map(|many| many.count).sum();
        tracing::warn!(target: TARGET, held_back = lines, causes, "more lines of further causes");
    }
}

impl<S: Subscriber> Layer<S> for ThrottleLayer {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        if metadata.target() == TARGET || !is_throttled(metadata) {
            return true;
        }
        let mut line = Line::default();
        event.record(&mut line);
        let Line { cause, text } = line;
        let held = &self.0;
        held.lock()
            .note(metadata.name(), &cause, held.started.elapsed(), || text)
    }
}

/// True for warnings, errors, and information with a code or a cause. Other information, such as
/// progress, is logged line by line.
fn is_throttled(metadata: &tracing::Metadata<'_>) -> bool {
    let fields = metadata.fields();
    *metadata.level() <= Level::WARN
        || (*metadata.level() == Level::INFO
            && (fields.field("code").is_some() || fields.field("cause").is_some()))
}

/// An event as text, and the part of it that is its cause.
#[derive(Default)]
struct Line {
    cause: String,
    text: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if CAUSE_FIELDS.contains(&field.name()) {
            add(&mut self.cause, field.name(), value);
        }
        add(&mut self.text, field.name(), value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}

/// Adds `name=value`, up to the limit: a stranger's text may be long.
fn add(text: &mut String, name: &str, value: &dyn fmt::Debug) {
    let space = if text.is_empty() { "" } else { " " };
    // Writing to a string does not fail.
    let _ = match name {
        "message" => write!(text, "{space}{value:?}"),
        _ => write!(text, "{space}{name}={value:?}"),
    };
    if text.len() > NEWEST_BYTES_MAX {
        text.truncate(text.floor_char_boundary(NEWEST_BYTES_MAX));
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use tracing_subscriber::fmt::MakeWriter;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::super::FULL_MAX;
    use super::*;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Page {
        type Writer = Self;
        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    /// The log of the lines in `say`, with the sums at the end.
    fn logged(say: impl FnOnce()) -> String {
        let (page, held) = (Page::default(), SharedThrottle::new());
        let layer = tracing_subscriber::fmt::layer()
            .with_writer(page.clone())
            .with_ansi(false);
        let subscriber = tracing_subscriber::registry()
            .with(ThrottleLayer(held.clone()))
            .with(layer);
        tracing::subscriber::with_default(subscriber, || {
            say();
            held.tell_rest();
        });
        let bytes = page.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_cause_repeated_a_thousand_times_is_a_few_lines_and_the_right_sum() {
        let text = logged(|| {
            for n in 0..1000 {
                tracing::warn!(code = "DL0304", lease = n, "an upload failed");
                if n == 500 {
                    tracing::warn!(code = "DL0301", lease = n, "an upload failed");
                }
            }
        });
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), FULL_MAX as usize + 2, "{text}");
        assert!(
            lines.iter().any(|line| line.contains("DL0301")),
            "the one of another code is there: {text}"
        );
        let sum = lines.last().unwrap();
        assert!(
            sum.contains(&format!("held_back={}", 1000 - FULL_MAX)),
            "{sum}"
        );
        assert!(
            sum.contains("lease=999") && sum.contains("an upload failed"),
            "the newest is shown: {sum}"
        );
    }

    #[test]
    fn progress_is_told_line_by_line_unless_it_names_what_keeps_it() {
        let progress = logged(|| (0..50).for_each(|n| tracing::info!(unit = n, "done")));
        assert_eq!(progress.lines().count(), 50);
        let waiting = logged(|| (0..50).for_each(|_| tracing::info!(code = "DL0403", "waiting")));
        assert_eq!(waiting.lines().count(), FULL_MAX as usize + 1, "{waiting}");
    }

    #[test]
    fn a_long_text_of_a_stranger_is_cut() {
        let long = "ä".repeat(100_000);
        let text = logged(|| (0..5).for_each(|_| tracing::warn!(sender = long, "refused")));
        let sum = text.lines().last().unwrap();
        assert!(sum.len() < 3 * NEWEST_BYTES_MAX, "{}", sum.len());
    }
}
