//! Logs go to stderr: for people by default, with colours on a terminal; as JSON lines for
//! machines. Repeated lines are held back and counted, see [`crate::throttle`].

use std::io::IsTerminal as _;
use std::sync::OnceLock;

use clap::{Args, ValueEnum};
use schemas::text::Shown;
use tracing::Metadata;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::debug_fn;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::throttle::{SharedThrottle, ThrottleLayer};

/// Lines that the throttle holds back. There is one throttle for the process, since it has one log.
static HELD: OnceLock<SharedThrottle> = OnceLock::new();

/// The client of the bus logs each of its events once more, without explaining it.
const FILTER: &str = "info,async_nats=warn";
/// A command reports on stdout and in its last line, so it logs errors only, which are panics. What
/// the client of the bus calls an error is in the last line, with a code.
const COMMAND_FILTER: &str = "error,async_nats=off";

/// Switches of logging.
#[derive(Args, Clone, Debug, Default)]
pub struct LogArgs {
    /// Form of the log on stderr.
    #[arg(long, value_enum, default_value_t = LogFormat::Human, global = true, env = "DILOCO_LOG_FORMAT")]
    pub log_format: LogFormat,
    /// Log filter: a level, or `target=level` pairs in tracing's syntax. The target `diloco` stands
    /// for all crates of this project. Without this flag the variable RUST_LOG is used.
    #[arg(long, global = true, env = "DILOCO_LOG")]
    pub log: Option<String>,
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

/// The targets of this project's crates, which are their names. In a filter `diloco` stands for all
/// of them.
const CRATES: &[&str] = &[
    "audit_core",
    "backoff",
    "chain",
    "coordinator_core",
    "data",
    "diloco_audit",
    "diloco_coordinator",
    "diloco_registrar",
    "diloco_store",
    "diloco_worker",
    "diloctl",
    "identity",
    "ledger",
    "masking",
    "merge",
    "model",
    "objects",
    "privacy",
    "recompute",
    "registrar_core",
    "runtime",
    "schemas",
    "tlog",
    "torch",
    "trainer",
    "witness",
    "worker_core",
];

/// The loudest level that is shown of each crate of other software, where somebody has checked its
/// lines for secrets. Unchecked crates are shown from `info` on: below that level libraries print
/// whole requests, headers and URLs, and a presigned URL is a secret.
///
/// At `trace` the client of the bus prints its credentials when it connects, and every message that
/// it reads, including grants with their URLs.
const OTHERS: &[(&str, LevelFilter)] = &[
    ("async_nats", LevelFilter::DEBUG),
    // Names the server of a pooled connection, and no path.
    ("hyper_util", LevelFilter::TRACE),
    ("rustls", LevelFilter::DEBUG),
];

/// Starts logging and sends panics there. To be called once; a second call changes nothing.
///
/// # Errors
/// The filter does not parse.
pub fn init(args: &LogArgs) -> Result<(), LogError> {
    init_without(args, &[])
}

/// [`init`] for a command: it logs errors only, unless a flag says otherwise.
///
/// # Errors
/// The filter does not parse.
pub fn init_command(args: &LogArgs) -> Result<(), LogError> {
    start(args, COMMAND_FILTER, &[])
}

/// [`init`], with targets that are never shown.
///
/// # Errors
/// The filter does not parse.
pub fn init_without(args: &LogArgs, silent: &[&str]) -> Result<(), LogError> {
    start(args, FILTER, silent)
}

fn start(args: &LogArgs, usual: &str, silent: &[&str]) -> Result<(), LogError> {
    let given = args.log.clone().or_else(|| std::env::var("RUST_LOG").ok());
    let given = given.filter(|filter| !filter.trim().is_empty());
    let given = given.as_deref().unwrap_or(usual);
    let filter = filter(given)?;
    let held = SharedThrottle::new();
    let silent: Vec<String> = silent.iter().map(|target| (*target).to_owned()).collect();
    let log = tracing_subscriber::registry()
        .with(filter)
        .with(filter_fn(move |of| is_shown(of, &silent)))
        .with(ThrottleLayer(held.clone()));
    // A line that cannot be written is lost, and that is all: the subscriber's own complaint would
    // panic on a closed terminal, in the middle of an orderly end.
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .log_internal_errors(false);
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let started = match args.log_format {
        LogFormat::Human => log
            .with(lines.with_ansi(colours).fmt_fields(fields()))
            .try_init(),
        LogFormat::Json => log.with(lines.json().flatten_event(true)).try_init(),
    };
    // An error means that logging was started already, for instance in a test.
    if started.is_ok() && HELD.set(held.clone()).is_ok() {
        held.tell_for_ever();
    }
    std::panic::set_hook(Box::new(|panic| {
        let message = panic.payload_as_str().unwrap_or("no message");
        let place = panic
            .location()
            .map(ToString::to_string)
            .unwrap_or_default();
        tracing::error!(place, "panic: {message}");
    }));
    Ok(())
}

/// False for lines that are never logged, whatever the filter says: lines of a target that the
/// process keeps silent, and lines of other software that nobody has checked for secrets.
fn is_shown(of: &Metadata<'_>, silent: &[String]) -> bool {
    let (name, _) = of.target().split_once("::").unwrap_or((of.target(), ""));
    if silent.iter().any(|target| target == name) {
        return false;
    }
    let loudest = OTHERS.iter().find(|(other, _)| *other == name);
    CRATES.contains(&name)
        || *of.level() <= loudest.map_or(LevelFilter::INFO, |(_, loudest)| *loudest)
}

/// Parses a filter after `diloco` was replaced by the names of all crates.
fn filter(given: &str) -> Result<EnvFilter, LogError> {
    let mut parts: Vec<String> = Vec::new();
    for part in given.split(',') {
        let rest = part.trim().strip_prefix("diloco");
        match rest.filter(|rest| rest.is_empty() || rest.starts_with(['=', '['])) {
            Some(rest) => parts.extend(CRATES.iter().map(|target| format!("{target}{rest}"))),
            None => parts.push(part.to_owned()),
        }
    }
    EnvFilter::builder()
        .parse(parts.join(","))
        .map_err(|source| LogError {
            filter: given.to_owned(),
            source,
        })
}

/// Writes each field on one line. Reasons and errors contain strangers' text, which must not begin
/// a line of its own and must not reach the terminal unescaped.
fn fields() -> impl for<'writer> FormatFields<'writer> + 'static {
    debug_fn(|writer, field, value| {
        let value = format!("{value:?}");
        match field.name() {
            "message" => write!(writer, "{}", Shown(&value)),
            name => write!(writer, "{name}={}", Shown(&value)),
        }
    })
    .delimited(" ")
}

/// Logs how many lines were held back and not reported yet. To be called at the end of the process.
pub fn flush() {
    if let Some(held) = HELD.get() {
        held.tell_rest();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    use super::*;

    /// A log in memory.
    #[derive(Clone, Default)]
    struct MemoryLog(Arc<Mutex<Vec<u8>>>);

    impl Write for MemoryLog {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0
                .lock()
                .expect("no writer panics")
                .extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_text_of_others_stays_on_its_line() {
        let paper = MemoryLog::default();
        let to = paper.clone();
        let lines = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .fmt_fields(fields());
        let log = tracing_subscriber::registry().with(lines.with_writer(move || to.clone()));
        let hostile = "a\u{1b}[2J\n2026-01-01T00:00:00Z ERROR forged\u{9b}1m\u{202e}";
        tracing::subscriber::with_default(log, || {
            let span = tracing::info_span!("span", of = %hostile);
            let _entered = span.enter();
            tracing::warn!(detail = %hostile, text = hostile, number = 3, "said {hostile}");
        });
        let written =
            String::from_utf8(paper.0.lock().expect("no writer panics").clone()).expect("text");
        assert_eq!(written.lines().count(), 1, "{written}");
        assert!(
            schemas::text::is_plain(written.trim_end_matches('\n')),
            "{written:?}"
        );
        assert!(
            written.contains("number=3") && written.contains(" said a\\u{1b}[2J\\u{a}2026"),
            "{written}"
        );
    }

    #[test]
    fn a_filter_that_does_not_parse_is_refused() {
        let args = LogArgs {
            log: Some("schemas=loud".into()),
            ..LogArgs::default()
        };
        assert!(init(&args).is_err());
    }

    #[test]
    fn one_prefix_means_every_crate_of_the_workspace() {
        let all = filter("warn,diloco=debug").expect("it parses").to_string();
        for target in CRATES {
            assert!(all.contains(&format!("{target}=debug")), "{target}: {all}");
        }
        assert!(all.contains("warn"), "{all}");
        let one = filter("diloco_audit=trace,other=info").expect("it parses");
        assert!(!one.to_string().contains("merge"), "{one}");
    }

    /// The log of one line at each of several targets, under a filter; each line's text names its
    /// target.
    fn shown(given: &str) -> String {
        let paper = MemoryLog::default();
        let to = paper.clone();
        let lines = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .with_writer(move || to.clone());
        let silent = ["s3s".to_owned()];
        let log = tracing_subscriber::registry()
            .with(filter(given).expect("it parses"))
            .with(filter_fn(move |of| is_shown(of, &silent)))
            .with(lines);
        tracing::subscriber::with_default(log, || {
            tracing::trace!(target: "objects::transfer", "ours");
            tracing::trace!(target: "async_nats::connection", "credentials");
            tracing::debug!(target: "async_nats", "reconnects");
            tracing::debug!(target: "h2::codec", "headers");
            tracing::trace!(target: "hyper_util::client::legacy::pool", "pool");
            tracing::info!(target: "h2", "harmless");
            tracing::error!(target: "s3s::service", "request");
            tracing::debug!(target: "objects_of_others", "url");
            tracing::error!(target: "async_nats::connector", "raw");
            tracing::error!(target: "diloctl", "panic");
        });
        let written = paper.0.lock().expect("no writer panics").clone();
        String::from_utf8(written).expect("text")
    }

    #[test]
    fn no_filter_shows_what_other_software_prints_of_requests_and_credentials() {
        let loudest = "trace,async_nats::connection=trace,h2=trace,h2::codec=trace,s3s=trace,\
                       s3s::service=trace,objects_of_others=trace";
        for given in ["trace", loudest] {
            let written = shown(given);
            for text in ["ours", "reconnects", "pool", "harmless"] {
                assert!(written.contains(text), "{text}: {written}");
            }
            for text in ["credentials", "headers", "request", ": url"] {
                assert!(!written.contains(text), "{text}: {written}");
            }
        }
        assert!(
            !shown("info").contains("reconnects"),
            "the filter counts too"
        );
    }

    #[test]
    fn a_command_logs_its_own_panics_and_no_raw_line_of_the_client_of_the_bus() {
        let written = shown(COMMAND_FILTER);
        assert!(
            written.contains("panic") && !written.contains("raw"),
            "{written}"
        );
        assert!(shown("error").contains("raw"), "a flag shows it");
    }

    /// A crate that is missing in the list would stay silent when all are asked for.
    #[test]
    fn the_targets_are_the_crates_that_run() {
        let manifest: toml::Table =
            toml::from_str(include_str!("../../../Cargo.toml")).expect("TOML");
        let members = manifest["workspace"]["members"].as_array().expect("a list");
        let members = members.iter().filter_map(toml::Value::as_str);
        let folders = members
            .filter(|folder| folder.starts_with("services/") || *folder == "schemas")
            .map(|folder| folder.trim_start_matches("services/").replace('/', "_"));
        let name = |folder: String| match folder.as_str() {
            "audit" | "coordinator" | "registrar" | "store" | "worker" => {
                format!("diloco_{folder}")
            }
            "worker_torch" | "worker_trainer" => folder.trim_start_matches("worker_").to_owned(),
            _ => folder,
        };
        let mut folders: Vec<String> = folders.map(name).collect();
        folders.sort();
        assert_eq!(folders, CRATES);
    }
}
