//! Messages for a person. They go to stderr, so that stdout has only the output of the started
//! programs.

use std::fmt::Display;
use std::io::{IsTerminal, Write, stderr};
use std::time::Duration;

use schemas::Refusal;

/// Prints one line.
pub(crate) fn say(text: impl Display) {
    put(format_args!("{text}\n"));
}

/// True when stderr is a terminal: progress is then shown in one line that is replaced, elsewhere
/// in few lines.
pub(crate) fn is_watched() -> bool {
    stderr().is_terminal()
}

/// A line of progress; on a terminal the next one replaces it.
pub(crate) fn progress(text: impl Display) {
    if is_watched() {
        put(format_args!("\r\x1b[2K  {text}"));
    } else {
        put(format_args!("  {text}\n"));
    }
}

/// Removes the last line of progress from a terminal.
pub(crate) fn progress_done() {
    if is_watched() {
        put(format_args!("\r\x1b[2K"));
    }
}

/// Prints an error with its causes and, where it has a code, the next step.
pub(crate) fn failure(error: &anyhow::Error) {
    say(format_args!("error: {error:#}"));
    if let Some(refusal) = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<Refusal>())
    {
        say(format_args!("next:  {}", refusal.code.next_step()));
        say(format_args!("page:  docs/errors/{}.md", refusal.code));
    }
}

/// Bytes for people: `544.3 MB`.
pub(crate) fn megabytes(bytes: u64) -> String {
    format!("{}.{} MB", bytes / 1_000_000, bytes / 100_000 % 10)
}

/// A span for people: `0.4 s`, `12 min 05 s`.
pub(crate) fn span(span: Duration) -> String {
    match span.as_secs() {
        seconds if seconds < 60 => format!("{:.1} s", span.as_secs_f64()),
        seconds => format!("{} min {:02} s", seconds / 60, seconds % 60),
    }
}

fn put(text: std::fmt::Arguments<'_>) {
    // A closed stderr is no reason to stop the job.
    let _closed = stderr().lock().write_fmt(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_for_people() {
        assert_eq!(megabytes(544_345_678), "544.3 MB");
        assert_eq!(megabytes(99_999), "0.0 MB");
        assert_eq!(span(Duration::from_millis(420)), "0.4 s");
        assert_eq!(span(Duration::from_secs(725)), "12 min 05 s");
    }
}
