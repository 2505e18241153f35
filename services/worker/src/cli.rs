//! The command line.

use clap::{Parser, Subcommand};
use runtime::{ConfigArgs, LogArgs};

use crate::sample::SampleArgs;

/// Trains for a run: asks the coordinator for work over NATS, fetches weights and data, hands in
/// results.
#[derive(Debug, Parser)]
#[command(name = "diloco-worker", version)]
pub struct Cli {
    /// What to do; without it, work for the run.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Configuration.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Logging.
    #[command(flatten)]
    pub log: LogArgs,
    /// The run to work for; the same as `--set worker.run=…`.
    #[arg(long, value_name = "RUN")]
    pub run: Option<String>,
    /// File that appears when the worker is ready to join; the same as `--set worker.ready=…`.
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<String>,
}

/// What else this program does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print text from a model folder.
    Sample(SampleArgs),
    /// Print what this build and machine can train with.
    Devices,
}

impl Cli {
    /// The flags that are configuration keys.
    pub fn overrides(&self) -> Vec<(&'static str, &'static str, String)> {
        let flags = [
            ("worker.run", "--run", &self.run),
            ("worker.ready", "--ready-file", &self.ready_file),
        ];
        flags
            .into_iter()
            .filter_map(|(key, flag, value)| Some((key, flag, value.clone()?)))
            .collect()
    }
}
