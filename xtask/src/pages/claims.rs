//! The tables of `SECURITY.md` that say what somebody cannot do: each row names the tests that show
//! it, and each name leads to a test.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::functions;

/// The page with the claims.
const PAGE: &str = "SECURITY.md";
/// The title of the column that names tests.
const SHOWN_BY: &str = "shown by";
/// A title with this word is one of claims.
const CANNOT: &str = "cannot";

/// What is wrong with the claims of the checkout at `root`: rows without a test, and names without
/// one.
pub(super) fn faults(root: &Path) -> Vec<String> {
    let names = functions::declared(root, &["rs", "py"]);
    let names: BTreeSet<String> = names.into_iter().map(|(_, name)| name).collect();
    let text = fs::read_to_string(root.join(PAGE)).unwrap_or_default();
    faults_of(&text, &names)
}

fn faults_of(page: &str, names: &BTreeSet<String>) -> Vec<String> {
    let mut faults = Vec::new();
    let lines: Vec<&str> = page.lines().collect();
    for table in lines.split(|line| !line.starts_with('|')) {
        let mut rows = table.iter().map(|line| cells(line));
        let Some(titles) = rows.next() else { continue };
        let Some(claim) = titles.iter().position(|title| title.contains(CANNOT)) else {
            continue;
        };
        let Some(shown_by) = titles.iter().position(|title| *title == SHOWN_BY) else {
            faults.push(format!("no column `{SHOWN_BY}` beside `{}`", titles[claim]));
            continue;
        };
        for row in rows
            .skip(1)
            .filter(|row| row.len() > claim && !row[claim].is_empty())
        {
            let named = quoted(row.get(shown_by).copied().unwrap_or_default());
            if named.is_empty() {
                faults.push(format!("no test shows the row `{}`", row[0]));
            }
            let unknown = named.into_iter().filter(|name| !leads(name, names));
            faults.extend(unknown.map(|name| format!("`{name}` is no test")));
        }
    }
    faults
}

/// True if a name, or the beginning of one before `…`, is that of a function.
fn leads(name: &str, names: &BTreeSet<String>) -> bool {
    match name.strip_suffix('…') {
        Some(beginning) => names.iter().any(|name| name.starts_with(beginning)),
        None => names.contains(name),
    }
}

/// The cells of a row of a table.
fn cells(row: &str) -> Vec<&str> {
    let inside = row.trim().trim_start_matches('|').trim_end_matches('|');
    inside.split('|').map(str::trim).collect()
}

/// What stands between backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(rows: &str) -> Vec<String> {
        let names = ["nobody_enters", "nobody_leaves"].map(str::to_owned);
        let page = format!("text\n\n{rows}\ntext\n");
        faults_of(&page, &BTreeSet::from(names))
    }

    #[test]
    fn a_claim_needs_a_test_that_is_there() {
        let table = |row: &str| {
            faults(&format!(
                "| holder | can | cannot | shown by |\n| --- | --- | --- | --- |\n{row}\n"
            ))
        };
        assert!(table("| a | look | enter | `nobody_enters`, `nobody_le…` |").is_empty());
        assert!(table("| a | everything | | |").is_empty());
        assert_eq!(table("| a | look | enter | see above |").len(), 1);
        assert_eq!(
            table("| a | look | enter | `nobody_enters`, `nobody` |"),
            ["`nobody` is no test"]
        );
        assert_eq!(table("| a | look | enter |").len(), 1);
    }

    #[test]
    fn a_table_of_claims_has_a_column_of_tests_and_others_need_none() {
        assert_eq!(
            faults("| a worker cannot | since |\n| --- | --- |\n| enter | so |\n").len(),
            1
        );
        assert!(faults("| exit status | means |\n| --- | --- |\n| 0 | good |\n").is_empty());
    }
}
