//! Tables for people: columns as wide as their content and without frames, so that other tools can
//! cut and sort them.

use comfy_table::{ContentArrangement, Table, presets};
use schemas::text::{Shown, Time};

/// A whole table with titles.
pub(crate) fn render(titles: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(titles.iter().map(|title| title.to_uppercase()));
    rows.for_each(|cells| {
        table.add_row(cells.iter().map(|cell| Shown(cell).to_string()));
    });
    trimmed(&table.to_string())
}

/// Lines of a name and a value.
pub(crate) fn lines(lines: &[(&str, String)]) -> String {
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    lines
        .iter()
        .map(|(name, value)| format!("{name:width$}  {}", Shown(value)))
        .collect::<Vec<_>>()
        .join("\n")
}

/// A table whose rows come one by one. Its columns start with their usual widths, and grow when a
/// wider cell comes.
#[derive(Debug, Default)]
pub(crate) struct StreamedTable(Vec<usize>);

impl StreamedTable {
    /// The rest of a table whose first `rows` were printed by [`render`].
    pub(crate) fn measured(titles: &[&str], rows: &[Vec<String>]) -> Self {
        let width = |(at, title): (usize, &&str)| {
            let cells = rows.iter().map(|cells| Shown(&cells[at]).to_string());
            let longest = cells.map(|cell| cell.chars().count()).max();
            title.len().max(longest.unwrap_or(0))
        };
        Self(titles.iter().enumerate().map(width).collect())
    }

    /// The next line; the titles come above the first one.
    pub(crate) fn row(&mut self, titles: &[&str], usual: &[usize], cells: &[String]) -> String {
        let cells: Vec<String> = cells.iter().map(|cell| Shown(cell).to_string()).collect();
        let first = self.0.is_empty();
        if first {
            let usual = usual.iter().copied().chain(std::iter::repeat(0));
            self.0 = titles
                .iter()
                .zip(usual)
                .map(|(title, usual)| title.len().max(usual))
                .collect();
        }
        for (width, cell) in self.0.iter_mut().zip(&cells) {
            *width = (*width).max(cell.chars().count());
        }
        let row = self.padded(&cells);
        if !first {
            return row;
        }
        let titles: Vec<String> = titles.iter().map(|title| title.to_uppercase()).collect();
        format!("{}\n{row}", self.padded(&titles))
    }

    fn padded(&self, cells: &[String]) -> String {
        let padded = cells
            .iter()
            .zip(&self.0)
            .map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    }
}

fn trimmed(text: &str) -> String {
    text.lines()
        .map(|line| line.trim_start_matches(' ').trim_end())
        .collect::<Vec<_>>()
        .join("\n")
}

/// `1.5 MiB`: binary units, three significant digits.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if unit == 0 || value >= 100.0 { 0 } else { 1 };
    format!("{value:.digits$} {}", UNITS[unit])
}

/// `12.3 k`: decimal units for counts.
pub(crate) fn count(count: f64) -> String {
    match count {
        c if c >= 1e9 => format!("{:.1} G", c / 1e9),
        c if c >= 1e6 => format!("{:.1} M", c / 1e6),
        c if c >= 1e4 => format!("{:.1} k", c / 1e3),
        c => format!("{c:.0}"),
    }
}

/// `2m05s`: a span of milliseconds.
pub(crate) fn span(millis: u64) -> String {
    let seconds = millis / 1000;
    match seconds {
        0..=9 => format!("{:.1}s", millis as f64 / 1000.0),
        10..=59 => format!("{seconds}s"),
        60..=3599 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}

/// RFC 3339, UTC, whole seconds.
pub(crate) fn time(at: schemas::UnixMillis) -> String {
    Time(at).to_string()
}

/// A value or a dash.
pub(crate) fn or_dash<T>(value: Option<T>, show: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), show)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_spans_read_well() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(300 << 20), "300 MiB");
        assert_eq!(count(12_345.0), "12.3 k");
        assert_eq!(span(1500), "1.5s");
        assert_eq!(span(125_000), "2m05s");
        assert_eq!(time(schemas::UnixMillis(0)), "1970-01-01T00:00:00Z");
    }

    /// A device name that is an attack: it clears the screen and forges a row.
    const HOSTILE: &str = "cpu\u{1b}[2J\u{1b}[H\nUFORGED  yes  \u{202e}training\u{9b}1m";

    #[test]
    fn no_form_of_a_table_lets_a_cell_out_of_its_place() {
        let cells = || vec!["UABC".to_owned(), HOSTILE.to_owned()];
        let titles = ["worker", "device"];
        let mut growing = StreamedTable::default();
        for text in [
            render(&titles, [cells()].into_iter()),
            lines(&[
                ("worker", "UABC".to_owned()),
                ("device", HOSTILE.to_owned()),
            ]),
            growing.row(&titles, &[], &cells()),
        ] {
            assert_eq!(text.lines().count(), 2, "{text}");
            assert!(text.lines().all(schemas::text::is_plain), "{text:?}");
        }
    }

    #[test]
    fn columns_of_a_table_that_grows_line_up() {
        let mut table = StreamedTable::default();
        let cell = |text: &str| text.to_owned();
        let first = table.row(
            &["a", "bb", "c"],
            &[4],
            &[cell("1"), cell("2"), cell("a long one")],
        );
        let second = table.row(&["a", "bb", "c"], &[4], &[cell("12"), cell("3"), cell("x")]);
        assert_eq!(
            format!("{first}\n{second}"),
            "A     BB  C\n1     2   a long one\n12    3   x"
        );
        let third = table.row(
            &["a", "bb", "c"],
            &[4],
            &[cell("123456"), cell("3"), cell("x")],
        );
        assert_eq!(third, "123456  3   x");
    }

    #[test]
    fn a_table_has_no_frame() {
        let text = render(
            &["name", "n"],
            [vec!["demo".to_owned(), "1".to_owned()]].into_iter(),
        );
        assert_eq!(text, "NAME  N\ndemo  1");
    }
}
