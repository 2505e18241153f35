//! The committed list of mutants that no test catches, each with the reason why it may survive.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

/// The list. Rows `| package | … |` name the packages of which all mutants were tried; rows `|
/// mutant | reason |` follow.
pub(super) const FILE: &str = "docs/survivors.md";

/// Names without line and column, which change with every edit above them.
#[derive(Debug)]
pub(super) struct Survivors {
    names: Vec<String>,
    tables: Vec<String>,
}

impl Survivors {
    /// Reads the list of the checkout at `root`.
    ///
    /// # Errors
    /// The list cannot be read, or a row gives no reason.
    pub(super) fn read(root: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(root.join(FILE))
            .with_context(|| format!("cannot read {FILE}"))?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self> {
        let mut names = Vec::new();
        for row in text.lines().filter(|line| line.starts_with("| `")) {
            let (name, reason) = row
                .trim_start_matches("| `")
                .split_once("` |")
                .with_context(|| format!("{FILE}: no name in {row}"))?;
            ensure!(
                reason.trim_matches(['|', ' ']).len() > 10,
                "{FILE}: {name} has no reason"
            );
            names.push(name.replace("\\|", "|"));
        }
        let rows = text.lines().filter_map(|line| line.strip_prefix("| "));
        let first = rows.filter_map(|row| row.split(" |").next());
        Ok(Self {
            names,
            tables: first.map(str::to_owned).collect(),
        })
    }

    /// Finds a mutant by the name that cargo-mutants gives it.
    pub(super) fn contains(&self, name: &str) -> bool {
        let wanted = without_position(name);
        self.names.contains(&wanted)
    }

    /// True when the list says that all mutants of a package were tried.
    pub(super) fn is_complete(&self, package: &str) -> bool {
        self.tables.iter().any(|first| first == package)
    }

    /// Rows about one of these `files` that match none of the `known` mutants.
    pub(super) fn others(&self, files: &[&Path], known: &[&str]) -> Vec<&str> {
        let known: Vec<String> = known.iter().map(|name| without_position(name)).collect();
        let is_there = |row: &&String| {
            let file = row.split(": ").next().unwrap_or_default();
            files.contains(&Path::new(file)) && !known.contains(*row)
        };
        self.names
            .iter()
            .filter(is_there)
            .map(String::as_str)
            .collect()
    }
}

/// `file.rs:12:5: replace …` without the numbers.
fn without_position(name: &str) -> String {
    let mut parts = name.splitn(4, ':');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(file), Some(_), Some(_), Some(what)) => format!("{file}:{what}"),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "# x\n\n| mutant | reason |\n| --- | --- |\n\
        | `a/b.rs: replace < with <= in f` | Both end in the same state. |\n\
        | `a/b.rs: replace \\|\\| with && in g` | The two never differ. |\n";

    #[test]
    fn a_listed_mutant_is_found_wherever_its_line_went() {
        let list = Survivors::parse(LIST).expect("it parses");
        assert!(list.contains("a/b.rs:12:5: replace < with <= in f"));
        assert!(list.contains("a/b.rs:900:1: replace || with && in g"));
        assert!(!list.contains("a/c.rs:12:5: replace < with <= in f"));
        assert!(!list.contains("a/b.rs:12:5: replace < with == in f"));
    }

    #[test]
    fn a_row_of_a_mutant_that_is_caught_is_reported() {
        let list = Survivors::parse(LIST).expect("it parses");
        let known = ["a/b.rs:12:5: replace < with <= in f"];
        let gone = ["a/b.rs: replace || with && in g"];
        assert_eq!(list.others(&[Path::new("a/b.rs")], &known), gone);
        assert!(list.others(&[Path::new("a/c.rs")], &[]).is_empty());
    }

    #[test]
    fn a_package_is_complete_when_it_has_a_row() {
        let text = "| package | mutants |\n| --- | --- |\n| chain | 82 |\n";
        let list = Survivors::parse(text).expect("it parses");
        assert!(list.is_complete("chain"));
        assert!(!list.is_complete("ledger"));
    }

    #[test]
    fn a_row_without_a_reason_is_refused() {
        assert!(Survivors::parse("| `a/b.rs: replace < with > in f` | |").is_err());
    }
}
