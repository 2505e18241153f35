//! A list that is printed while its rows come. Its text is the same as that of a list that is
//! printed at once.

use std::marker::PhantomData;

use schemas::text::ShownJson;

use crate::output::{Format, JSON_VERSION, Printer, Row, json, print, versioned};
use crate::table::{self, StreamedTable};

/// Number of rows that decide the column widths of a table.
const MEASURED_ROWS: usize = 1000;
/// Text that is collected before it is written: one write for each row would take longer than
/// making the row.
const WRITTEN_BYTES: usize = 64 << 10;

/// A list that is being printed. One that is dropped without [`Listing::end`] was broken off: what
/// was printed is incomplete, and in JSON it is not a document.
pub(crate) struct Listing<T> {
    printer: Printer,
    /// The first rows of a table, until there are enough to choose the column widths.
    measured: Vec<Vec<String>>,
    /// The table, once the column widths are chosen.
    table: Option<StreamedTable>,
    rows: usize,
    text: String,
    row: PhantomData<fn(&T)>,
}

impl<T: Row> Listing<T> {
    pub(crate) fn new(printer: Printer) -> Self {
        Self {
            printer,
            measured: Vec::new(),
            table: None,
            rows: 0,
            text: String::new(),
            row: PhantomData,
        }
    }

    /// Prints the next row.
    pub(crate) fn row(&mut self, row: &T) {
        self.add(row);
        if self.text.len() >= WRITTEN_BYTES {
            print(&std::mem::take(&mut self.text));
        }
    }

    /// Ends the list.
    pub(crate) fn end(mut self) {
        if self.rows == 0 && self.printer.format() == Format::Table {
            return self.printer.talk("nothing to show");
        }
        self.close();
        print(&self.text);
    }

    fn add(&mut self, row: &T) {
        self.rows += 1;
        match self.printer.format() {
            Format::Table => self.add_cells(row.cells()),
            Format::Json => {
                let before = if self.rows == 1 { "{\"items\":[" } else { "," };
                self.text.push_str(before);
                self.text.push_str(&ShownJson(&json(row)).to_string());
            }
            Format::Jsonl => self.line(&ShownJson(&json(&versioned(row))).to_string()),
        }
    }

    fn add_cells(&mut self, cells: Vec<String>) {
        if let Some(table) = &mut self.table {
            let line = table.row(T::TITLES, T::WIDTHS, &cells);
            return self.line(&line);
        }
        self.measured.push(cells);
        if self.measured.len() > MEASURED_ROWS {
            let rows = std::mem::take(&mut self.measured);
            self.table = Some(StreamedTable::measured(T::TITLES, &rows));
            self.line(&table::render(T::TITLES, rows.into_iter()));
        }
    }

    fn close(&mut self) {
        match self.printer.format() {
            Format::Table if self.table.is_some() => {}
            Format::Table => {
                let rows = std::mem::take(&mut self.measured);
                self.line(&table::render(T::TITLES, rows.into_iter()));
            }
            Format::Json => {
                let before = if self.rows == 0 { "{\"items\":[" } else { "" };
                self.line(&format!("{before}],\"v\":{JSON_VERSION}}}"));
            }
            Format::Jsonl => {}
        }
    }

    fn line(&mut self, text: &str) {
        self.text.push_str(text);
        self.text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use serde::Serialize;

    use super::*;
    use crate::output::list;

    #[derive(Serialize)]
    struct Thing {
        name: String,
        size: usize,
    }

    impl Row for Thing {
        const TITLES: &'static [&'static str] = &["name", "size", "more"];

        fn cells(&self) -> Vec<String> {
            vec![self.name.clone(), self.size.to_string(), "x".to_owned()]
        }
    }

    fn things(count: usize) -> Vec<Thing> {
        let thing = |at: usize| Thing {
            name: "\"n\u{1b}".repeat(at % 5 + 1),
            size: at.pow(3),
        };
        (0..count).map(thing).collect()
    }

    fn text(format: Format, things: &[Thing]) -> String {
        let mut listing = Listing::new(Printer::new(format));
        things.iter().for_each(|thing| listing.add(thing));
        listing.close();
        listing.text
    }

    #[test]
    fn the_text_is_that_of_a_list_that_is_printed_at_once() {
        for count in [1, 2, 7, MEASURED_ROWS, MEASURED_ROWS + 1] {
            let things = things(count);
            for format in [Format::Table, Format::Json, Format::Jsonl] {
                assert_eq!(
                    text(format, &things),
                    list(format, &things),
                    "{format:?} {count}"
                );
            }
        }
        for format in [Format::Json, Format::Jsonl] {
            assert_eq!(text(format, &[]), list(format, &[] as &[Thing]));
        }
    }

    #[test]
    fn a_long_table_goes_on_in_the_columns_of_its_begin() {
        let things = things(3 * MEASURED_ROWS);
        let table = text(Format::Table, &things);
        assert_eq!(table.lines().count(), 1 + things.len());
        let last = table.lines().last().expect("a row");
        let first = table.lines().next().expect("titles");
        // The size is now one digit longer than the measured column.
        assert_eq!(last.find('x'), first.find("MORE").map(|at| at + 1));
    }

    #[test]
    fn what_is_kept_does_not_grow_with_the_list() {
        for format in [Format::Table, Format::Json, Format::Jsonl] {
            let mut listing = Listing::new(Printer::new(format));
            for thing in things(5 * MEASURED_ROWS) {
                listing.add(&thing);
                // The same as `row` does, without printing.
                listing.text.clear();
                assert!(listing.measured.len() <= MEASURED_ROWS, "{format:?}");
            }
        }
    }
}
