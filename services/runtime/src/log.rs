//! Logs go to stderr: for people by default, with colours on a terminal; as JSON lines for machines. What
//! repeats is held back and counted, see [`crate::throttle`].

use std::io::IsTerminal as _;
use std::sync::OnceLock;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::throttle::{Held, HeldBack};

/// What the log of this process holds back: there is one log.
static HELD: OnceLock<Held> = OnceLock::new();

/// The client of the bus logs each of its events once more, without saying what it means.
const FILTER: &str = "info,async_nats=warn";

/// How a process logs.
#[derive(Args, Clone, Debug, Default)]
pub struct LogArgs {
    /// Form of the log on stderr.
    #[arg(long, value_enum, default_value_t = LogFormat::Human, global = true, env = "DILOCO_LOG_FORMAT")]
    pub log_format: LogFormat,
    /// What to log: a level, or `target=level` pairs (tracing's filter syntax).
    #[arg(long, default_value = FILTER, global = true, env = "DILOCO_LOG")]
    pub log: String,
}

/// Form of a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One line for people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// A filter that does not parse.
#[derive(Debug, thiserror::Error)]
#[error("--log {filter:?}: {source}; use a level such as info, or target=level pairs")]
pub struct LogError {
    filter: String,
    source: tracing_subscriber::filter::ParseError,
}

/// Starts logging and sends panics there. To be called once; a second call changes nothing.
///
/// # Errors
/// The filter does not parse.
pub fn init(args: &LogArgs) -> Result<(), LogError> {
    let failed = |source| LogError { filter: args.log.clone(), source };
    let filter = EnvFilter::builder().parse(&args.log).map_err(failed)?;
    let held = Held::new();
    let log = tracing_subscriber::registry().with(filter).with(HeldBack(held.clone()));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let started = match args.log_format {
        LogFormat::Human => log.with(lines.with_ansi(colours)).try_init(),
        LogFormat::Json => log.with(lines.json().flatten_event(true)).try_init(),
    };
    // An error says that logging was started already, in a test for instance.
    if started.is_ok() && HELD.set(held.clone()).is_ok() {
        held.tell_for_ever();
    }
    std::panic::set_hook(Box::new(|panic| {
        let message = panic.payload_as_str().unwrap_or("no message");
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(place, "panic: {message}");
    }));
    Ok(())
}

/// Logs how many lines were held back and not told yet: to be called when the process is about to end.
pub fn flush() {
    if let Some(held) = HELD.get() {
        held.tell_rest();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_does_not_parse_is_refused() {
        let args = LogArgs { log: "schemas=loud".into(), ..LogArgs::default() };
        assert!(init(&args).is_err());
    }
}
