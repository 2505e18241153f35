//! The machine on which the numbers were measured.

use std::fs;

/// The facts about the machine that decide the numbers.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    model: String,
    cores: usize,
    kernel: String,
    load: f64,
}

impl Machine {
    /// The facts about this machine, with its present load.
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

    /// The facts in one line for people.
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

/// Average number of processes that wanted to run during the last minute. It is printed with the
/// numbers, since they are worse beside other work.
pub(crate) fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace()
        .next()
        .and_then(|first| first.parse().ok())
        .unwrap_or(0.0)
}
