//! The last words of a command that failed.

use std::io::Write as _;
use std::process::ExitCode;

use runtime::Failure;
use schemas::text::ShownJson;
use serde_json::json;

use crate::output::Format;

/// Prints a failure to stderr in the format of the command and gives its status.
pub(crate) fn report(format: Format, failure: &Failure) -> ExitCode {
    let refusal = failure.refusal();
    let code = refusal.code;
    let text = match format {
        Format::Table => runtime::exit::render(refusal),
        Format::Json | Format::Jsonl => {
            let error = json!({
                "v": 1,
                "error": code.to_string(),
                "title": code.title(),
                "detail": refusal.detail,
                "next": code.next_step(),
            });
            ShownJson(&error.to_string()).to_string()
        }
    };
    // The status tells a script the same where the terminal has gone.
    let _gone = writeln!(std::io::stderr().lock(), "{text}");
    ExitCode::from(failure.exit_status())
}
