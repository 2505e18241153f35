//! Tables for people: columns by content, no frames, so that they can be cut and sorted by other tools.

use comfy_table::{ContentArrangement, Table, presets};

/// A whole table with titles.
pub(crate) fn render(titles: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(titles.iter().map(|title| title.to_uppercase()));
    rows.for_each(|cells| {
        table.add_row(cells);
    });
    trimmed(&table.to_string())
}

/// Names and values, one a line.
pub(crate) fn lines(lines: &[(&str, String)]) -> String {
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    lines.iter().map(|(name, value)| format!("{name:width$}  {value}")).collect::<Vec<_>>().join("\n")
}

/// Width of a column in a table that grows: its rows are not known in advance.
const FOLLOW_WIDTH: usize = 12;

/// One line of a table that grows.
pub(crate) fn follow(titles: &[&str], cells: &[String], first: bool) -> String {
    let pad = |cell: &str, title: &str| format!("{cell:<width$}", width = title.len().max(FOLLOW_WIDTH));
    let join = |cells: Vec<String>| cells.join("  ").trim_end().to_owned();
    let row = join(cells.iter().zip(titles).map(|(cell, title)| pad(cell, title)).collect());
    if !first {
        return row;
    }
    let head = join(titles.iter().map(|title| pad(&title.to_uppercase(), title)).collect());
    format!("{head}\n{row}")
}

fn trimmed(text: &str) -> String {
    text.lines().map(|line| line.trim_start_matches(' ').trim_end()).collect::<Vec<_>>().join("\n")
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
    let millis = i64::try_from(at.get()).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(millis).map_or_else(|_| at.to_string(), |time| format!("{time:.0}"))
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

    #[test]
    fn a_table_has_no_frame() {
        let text = render(&["name", "n"], [vec!["demo".to_owned(), "1".to_owned()]].into_iter());
        assert_eq!(text, "NAME  N\ndemo  1");
    }
}
