//! The form in which a command prints its failure.

use schemas::Refusal;
use schemas::text::ShownJson;
use serde_json::json;

use crate::output::Format;

/// Renders a refusal in the command's output format.
pub(crate) fn render(format: Format, refusal: &Refusal) -> String {
    let code = refusal.code;
    match format {
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
    }
}
