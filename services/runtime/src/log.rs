//! Logs go to stderr: for people by default, with colours on a terminal; as JSON lines for machines.

use std::io::IsTerminal as _;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

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
    // A line that cannot be written is lost, no more: the subscriber's own way to complain would panic where the terminal
    // has gone, in the middle of an orderly end.
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let builder = builder.log_internal_errors(false);
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    // An error says that logging was started already, in a test for instance.
    let _ = match args.log_format {
        LogFormat::Human => builder.with_ansi(colours).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    std::panic::set_hook(Box::new(|panic| {
        let message = panic.payload_as_str().unwrap_or("no message");
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(place, "panic: {message}");
    }));
    Ok(())
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
