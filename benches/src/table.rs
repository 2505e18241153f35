//! Results on the terminal, and kept in `benches/baseline.json`: a list of `{name, unit, value,
//! reach}`. Each entry also names the machine that it was measured on, since entries may be
//! replaced one by one.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use comfy_table::{CellAlignment, Table, TableComponent, presets};
use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::row::{Reach, Row};

/// An entry of the baseline.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Entry {
    name: String,
    unit: String,
    value: f64,
    reach: Option<Reach>,
    machine: String,
}

/// Prints a line.
pub(crate) fn say(line: &str) {
    // A closed pipe must not end the measuring.
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Prints rows beside the baseline.
pub(crate) fn print(rows: &[Row]) {
    let reference = baseline().unwrap_or_default();
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
    for line in [
        TableComponent::HorizontalLines,
        TableComponent::MiddleIntersections,
    ] {
        table.remove_style(line);
    }
    table.set_header([
        "name",
        "unit",
        "median",
        "min..max (n)",
        "reach",
        "of baseline",
        "",
    ]);
    for row in rows {
        let before = reference.iter().find(|entry| entry.name == row.name);
        table.add_row(cells(row, before));
    }
    for column in 2..=5 {
        table
            .column_mut(column)
            .expect("the header has seven cells")
            .set_cell_alignment(CellAlignment::Right);
    }
    say(&table.to_string());
}

fn cells(row: &Row, before: Option<&Entry>) -> [String; 7] {
    let value = row.median();
    let (min, max) = row.spread();
    let reach = row.reach.map_or(String::new(), |reach| {
        let sign = if matches!(reach, Reach::AtMost(_)) {
            "≤"
        } else {
            "≥"
        };
        let verdict = if reach.holds(value) {
            "reached"
        } else {
            "missed"
        };
        format!("{sign} {} {verdict}", number(reach.bound()))
    });
    let ratio = before
        .filter(|entry| entry.value != 0.0)
        .map_or(String::new(), |entry| number(value / entry.value));
    let spread = format!("{}..{} ({})", number(min), number(max), row.count());
    [
        row.name.clone(),
        row.unit.to_owned(),
        number(value),
        spread,
        reach,
        ratio,
        row.note.clone(),
    ]
}

/// Three significant digits, or all digits before the point if there are more.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// Puts the medians of `rows` into the baseline.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn save(machine: &Machine, rows: &[Row]) -> Result<()> {
    let kept = baseline().unwrap_or_default();
    let fresh = rows.iter().map(|row| Entry {
        name: row.name.clone(),
        unit: row.unit.to_owned(),
        // Six decimal places are more than any of these numbers needs.
        value: (row.median() * 1e6).round() / 1e6,
        reach: row.reach,
        machine: machine.line(),
    });
    let entries: BTreeMap<String, Entry> = kept
        .into_iter()
        .chain(fresh)
        .map(|entry| (entry.name.clone(), entry))
        .collect();
    let mut text = serde_json::to_string_pretty(&entries.into_values().collect::<Vec<_>>())?;
    text.push('\n');
    let path = path();
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    say(&format!("kept in {}", path.display()));
    Ok(())
}

fn baseline() -> Option<Vec<Entry>> {
    serde_json::from_slice(&fs::read(path()).ok()?).ok()
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("baseline.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_three_digits() {
        let shown = [0.0, 0.1234, 1.234, 12.34, 123.4, 98765.4].map(number);
        assert_eq!(shown, ["0", "0.123", "1.23", "12.3", "123", "98765"]);
    }

    #[test]
    fn a_row_says_whether_it_reached_its_bound() {
        let row = Row::new("sync", "s", vec![0.2]).reach(Reach::AtMost(0.16));
        let before = Entry {
            name: "sync".into(),
            unit: "s".into(),
            value: 0.4,
            reach: None,
            machine: String::new(),
        };
        let cells = cells(&row, Some(&before));
        assert_eq!(
            (cells[4].as_str(), cells[5].as_str()),
            ("≤ 0.160 missed", "0.500")
        );
    }

    #[test]
    fn the_committed_baseline_is_a_list_of_entries() {
        let path = path();
        let Ok(text) = fs::read(&path) else { return };
        let entries: Vec<Entry> = serde_json::from_slice(&text).expect("a list of entries");
        assert!(
            entries
                .iter()
                .all(|entry| entry.value.is_finite() && !entry.unit.is_empty())
        );
    }
}
