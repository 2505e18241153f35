//! The machine on which the numbers were measured.

use std::fs;

/// The machine, as far as it decides the numbers.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    model: String,
    cores: usize,
    kernel: String,
    load: f64,
}

impl Machine {
    /// This one, with its load now.
    pub(crate) fn here() -> Self {
        let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = text
            .lines()
            .find(|line| line.starts_with("model name"))
            .and_then(|line| line.split(':').nth(1));
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let model = model.unwrap_or("unknown processor").trim().to_owned();
        Self {
            model,
            cores,
            kernel: kernel.trim().to_owned(),
            load: load(),
        }
    }

    /// One line for people.
    pub(crate) fn line(&self) -> String {
        let Self {
            model,
            cores,
            kernel,
            load,
        } = self;
        format!("{model}, {cores} cores, Linux {kernel}, load {load:.1} at the start")
    }
}

/// Processes that wanted to run during the last minute, on average. Numbers that were taken beside
/// other work say so.
pub(crate) fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace()
        .next()
        .and_then(|first| first.parse().ok())
        .unwrap_or(0.0)
}
