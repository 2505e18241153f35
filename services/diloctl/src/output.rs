//! One code path from a value to stdout, in the format that the command line asks for.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::OnceLock;

use clap::ValueEnum;
use runtime::Failure;
use schemas::Refusal;
use schemas::text::{ShownJson, ShownLines, ShownText};
use serde::Serialize;

use crate::listing::Listing;
use crate::table::StreamedTable;

/// Format of printed data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// One JSON document.
    Json,
    /// One JSON document a row, each on a line.
    Jsonl,
}

/// Version of the JSON documents, their field `v`.
pub(crate) const JSON_VERSION: u8 = 1;

/// One row of a table.
pub(crate) trait Row: Serialize {
    /// Column titles, one for each column.
    const TITLES: &'static [&'static str];
    /// Characters that a column is likely to need, for a table that grows: its rows are not known
    /// Usual width of each column but the last, for a table that is printed before all rows are
    /// known. The last column takes what may be long.
    const WIDTHS: &'static [usize] = &[];

    /// One cell per title.
    fn cells(&self) -> Vec<String>;
}

/// A single thing, shown as lines of a name and a value.
pub(crate) trait Record: Serialize {
    /// The lines.
    fn lines(&self) -> Vec<(&'static str, String)>;
}

/// Prints values. A broken pipe ends the output without an error: the reader has seen enough.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Printer {
    format: Format,
}

impl Printer {
    pub(crate) const fn new(format: Format) -> Self {
        Self { format }
    }

    /// True when a person watches: bars and colours make sense.
    pub(crate) fn is_live(self) -> bool {
        self.format == Format::Table
            && io::stderr().is_terminal()
            && std::env::var_os("NO_COLOR").is_none()
    }

    /// Characters of a line on the terminal where progress is shown; none when the terminal does
    /// not report it.
    pub(crate) fn width(self) -> Option<usize> {
        let mut size = libc::winsize {
            ws_row: 0,
            ws_col: 0,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        // SAFETY: the call writes one `winsize`, for which `size` is room.
        let asked = unsafe { libc::ioctl(libc::STDERR_FILENO, libc::TIOCGWINSZ, &raw mut size) };
        (asked == 0 && size.ws_col > 0).then(|| usize::from(size.ws_col))
    }

    /// The output format.
    pub(crate) const fn format(self) -> Format {
        self.format
    }

    /// Prints a list.
    pub(crate) fn rows<T: Row>(self, rows: &[T]) {
        match self.format {
            Format::Table if rows.is_empty() => self.talk("nothing to show"),
            format => print(&list(format, rows)),
        }
    }

    /// Prints a list whose rows come one by one and are not kept.
    pub(crate) fn listing<T: Row>(self) -> Listing<T> {
        Listing::new(self)
    }

    /// Prints a single thing.
    pub(crate) fn record<T: Record>(self, record: &T) {
        match self.format {
            Format::Table => line(&crate::table::lines(&record.lines())),
            Format::Json | Format::Jsonl => json_line(&versioned(record)),
        }
    }

    /// Prints one more row of a growing list; the titles of a table come with the first row.
    pub(crate) fn follow<T: Row>(self, table: &mut StreamedTable, row: &T) {
        match self.format {
            Format::Table => line(&table.row(T::TITLES, T::WIDTHS, &row.cells())),
            Format::Json | Format::Jsonl => json_line(&versioned(row)),
        }
    }

    /// Prints one JSON document that has a form of its own.
    pub(crate) fn document<T: Serialize>(self, value: &T) {
        json_line(&versioned(value));
    }

    /// Prints text that is itself the data, such as a completion script or a model's writing; JSON
    /// wraps it.
    pub(crate) fn text(self, text: &str) {
        match self.format {
            Format::Table => line(&ShownText(text.trim_end_matches('\n')).to_string()),
            Format::Json | Format::Jsonl => {
                json_line(&serde_json::json!({ "v": JSON_VERSION, "text": text }))
            }
        }
    }

    /// Prints progress or advice on stderr.
    pub(crate) fn talk(self, text: &str) {
        // A closed terminal is no reason to stop half way: `down` must still stop the services.
        let _gone = writeln!(io::stderr().lock(), "{}", ShownLines(text));
    }
}

/// A value with the version beside its own fields.
#[derive(Serialize)]
pub(crate) struct Versioned<'a, T> {
    #[serde(flatten)]
    value: &'a T,
    v: u8,
}

#[derive(Serialize)]
struct Items<'a, T> {
    items: &'a [T],
    v: u8,
}

/// The text of a whole list.
pub(crate) fn list<T: Row>(format: Format, rows: &[T]) -> String {
    let line = |text: String| format!("{text}\n");
    match format {
        Format::Table => line(crate::table::render(T::TITLES, rows.iter().map(Row::cells))),
        Format::Json => {
            let items = Items {
                items: rows,
                v: JSON_VERSION,
            };
            line(ShownJson(&json(&items)).to_string())
        }
        Format::Jsonl => {
            let rows = rows.iter().map(|row| json(&versioned(row)));
            rows.map(|row| line(ShownJson(&row).to_string())).collect()
        }
    }
}

pub(crate) const fn versioned<T: Serialize>(value: &T) -> Versioned<'_, T> {
    Versioned {
        value,
        v: JSON_VERSION,
    }
}

/// Prints one JSON document. Data for machines may be read on a terminal too, so control characters
/// are escaped.
fn json_line<T: Serialize>(value: &T) {
    line(&ShownJson(&json(value)).to_string());
}

pub(crate) fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("views serialise: no map with other keys than text")
}

/// The first write that failed. It is reported when the command is over, since the command may have
/// more to do than to print.
static UNWRITTEN: OnceLock<Refusal> = OnceLock::new();

fn line(text: &str) {
    print(&format!("{text}\n"));
}

pub(crate) fn print(text: &str) {
    // A closed pipe passes: that is the reader's decision, not an error of ours.
    if let Err(failure) = runtime::exit::print(text) {
        let _first = UNWRITTEN.set(failure.refusal().clone());
    }
}

/// Checks that everything printed so far was written.
///
/// # Errors
/// Part of the output was not written: a script must not take the rest for the whole.
pub(crate) fn written() -> Result<(), Failure> {
    UNWRITTEN
        .get()
        .map_or(Ok(()), |refusal| Err(refusal.clone().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Thing {
        name: &'static str,
        rate: f32,
    }

    #[test]
    fn json_carries_its_version() {
        let text = serde_json::to_string(&versioned(&Thing {
            name: "x",
            rate: 0.7,
        }))
        .expect("it serialises");
        assert_eq!(text, r#"{"name":"x","rate":0.7,"v":1}"#);
    }
}
