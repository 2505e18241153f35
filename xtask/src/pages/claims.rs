//! What the pages about security say that somebody cannot do: each row of a table names the tests
//! that show it, and each name, also in running text, leads to a test.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::functions;

/// The pages with claims.
const PAGES: [&str; 3] = ["SECURITY.md", "docs/evidence.md", "docs/privacy.md"];
/// The title of the column that names tests, and the words before them in running text.
const SHOWN_BY: &str = "shown by";
/// A title with this word is one of claims.
const CANNOT: &str = "cannot";

/// What is wrong with the claims of the checkout at `root`: rows without a test, and names without
/// one.
pub(super) fn faults(root: &Path) -> Vec<String> {
    let names = functions::declared(root, &["rs", "py"]);
    let names: BTreeSet<String> = names.into_iter().map(|(_, name)| name).collect();
    let faults = PAGES.map(|page| match fs::read_to_string(root.join(page)) {
        Ok(text) => faults_of(&text, &names),
        Err(error) => vec![format!("the page cannot be read: {error}")],
    });
    let of = |(page, faults): (&str, Vec<String>)| {
        let named = faults.into_iter().map(|fault| format!("{page}: {fault}"));
        named.collect::<Vec<_>>()
    };
    PAGES.into_iter().zip(faults).flat_map(of).collect()
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
            faults.extend(unknown(named, names));
        }
    }
    let text: Vec<&str> = lines
        .into_iter()
        .filter(|line| !line.starts_with('|'))
        .collect();
    let text = text.join(" ");
    for claim in text.split(&format!("({SHOWN_BY} ")).skip(1) {
        let named = claim.split(')').next().unwrap_or_default();
        faults.extend(unknown(quoted(named), names));
    }
    faults
}

/// A fault for each name that leads nowhere.
fn unknown(named: Vec<&str>, names: &BTreeSet<String>) -> Vec<String> {
    let unknown = named.into_iter().filter(|name| !leads(name, names));
    unknown.map(|name| format!("`{name}` is no test")).collect()
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
    fn a_claim_in_running_text_leads_to_its_tests() {
        assert!(
            faults("Nobody can (shown by `nobody_enters`,\n`nobody_le…`). `x` is a name.")
                .is_empty()
        );
        assert_eq!(
            faults("Nobody can (shown\nby `nobody`)."),
            ["`nobody` is no test"]
        );
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
