//! One code path from a value to stdout, in the format that was asked for.

use std::io::{self, IsTerminal as _, Write};

use clap::ValueEnum;
use serde::Serialize;
use serde_json::{Value, json};

/// How data is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// One JSON document.
    Json,
    /// One JSON document a line and row.
    Jsonl,
}

/// Version of the JSON documents, their field `v`.
const JSON_VERSION: u8 = 1;

/// What one row of a table looks like.
pub(crate) trait Row: Serialize {
    /// Column titles.
    const TITLES: &'static [&'static str];

    /// One cell per title.
    fn cells(&self) -> Vec<String>;
}

/// What a single thing looks like: lines of a name and a value.
pub(crate) trait Record: Serialize {
    /// The lines.
    fn lines(&self) -> Vec<(&'static str, String)>;
}

/// Prints values. A broken pipe ends printing in silence: whoever reads has seen enough.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Printer {
    format: Format,
}

impl Printer {
    pub(crate) const fn new(format: Format) -> Self {
        Self { format }
    }

    /// Whether a person watches: bars and colours make sense.
    pub(crate) fn is_live(self) -> bool {
        self.format == Format::Table && io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()
    }

    /// A list.
    pub(crate) fn rows<T: Row>(self, rows: &[T]) {
        match self.format {
            Format::Table if rows.is_empty() => self.talk("nothing to show"),
            Format::Table => line(&crate::table::render(T::TITLES, rows.iter().map(Row::cells))),
            Format::Json => line(&json!({ "v": JSON_VERSION, "items": rows }).to_string()),
            Format::Jsonl => rows.iter().for_each(|row| line(&versioned(row))),
        }
    }

    /// A single thing.
    pub(crate) fn record<T: Record>(self, record: &T) {
        match self.format {
            Format::Table => line(&crate::table::lines(&record.lines())),
            Format::Json | Format::Jsonl => line(&versioned(record)),
        }
    }

    /// One more row of a list that grows; the first call prints the titles in table form.
    pub(crate) fn follow<T: Row>(self, row: &T, first: bool) {
        match self.format {
            Format::Table => line(&crate::table::follow(T::TITLES, &row.cells(), first)),
            Format::Json | Format::Jsonl => line(&versioned(row)),
        }
    }

    /// Text that is itself the data, such as a completion script; JSON wraps it.
    pub(crate) fn text(self, text: &str) {
        match self.format {
            Format::Table => line(text.trim_end_matches('\n')),
            Format::Json | Format::Jsonl => line(&json!({ "v": JSON_VERSION, "text": text }).to_string()),
        }
    }

    /// Talk: progress and advice, on stderr.
    pub(crate) fn talk(self, text: &str) {
        // A terminal that has gone is no reason to stop half way: `down` has more to do than to tell of it.
        let _gone = writeln!(io::stderr().lock(), "{text}");
    }
}

fn versioned<T: Serialize>(value: &T) -> String {
    let mut value = serde_json::to_value(value).expect("views serialise: no map with other keys than text");
    if let Value::Object(fields) = &mut value {
        fields.insert("v".to_owned(), json!(JSON_VERSION));
    }
    value.to_string()
}

fn line(text: &str) {
    let mut out = io::stdout().lock();
    // A closed pipe is the reader's decision, not an error of ours.
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Thing {
        name: &'static str,
    }

    #[test]
    fn json_carries_its_version() {
        assert_eq!(versioned(&Thing { name: "x" }), r#"{"name":"x","v":1}"#);
    }
}
