//! Rules about files that no compiler checks: length, markers of unfinished work, and turns of
//! phrase in comments that readers have to read twice.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{Outcome, Tools};

/// A longer file must give the reason in its first lines, with the words "600 lines".
const LINES_MAX: usize = 600;
/// Lines from a file's top within which the reason must stand.
const REASON_WITHIN_LINES: usize = 12;
/// Folders that hold nothing of ours.
const SKIPPED: &[&str] = &["target", ".git", ".deps", ".diloco", "generated"];
/// File name extensions that are checked.
const EXTENSIONS: &[&str] = &[
    "rs", "toml", "md", "conf", "sh", "py", "yml", "yaml", "cpp", "h",
];
/// Written in two parts, so that this file passes its own check.
const MARKERS: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("X", "XX"),
    concat!("HA", "CK"),
];

/// Words that no comment in Rust may have: name the actor instead.
const UNNAMED: &[&str] = &["whom", "whoever"];
/// An opening that no comment in Rust may have: begin with the fact, or with "Checks that".
const OPENING: &str = "Whether ";
/// An ending that no sentence of a comment may have: name the thing instead.
const ENDING: &str = "of it.";

/// Most columns of a comment, as of code. Rows of tables and examples are left out: they cannot be
/// wrapped.
const COLUMNS_MAX: usize = 100;

/// Runs the step.
pub(super) fn check(tools: &Tools<'_>) -> Result<Outcome> {
    let mut paths = Vec::new();
    collect(tools.workspace.root(), &mut paths)?;
    let mut faults = Vec::new();
    for path in &paths {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path
            .strip_prefix(tools.workspace.root())
            .unwrap_or(path)
            .display();
        let mut found = faults_in(&text);
        if path.extension().is_some_and(|extension| extension == "rs") {
            found.extend(phrases_in(&text));
            found.extend(wide_in(&text));
        }
        faults.extend(found.into_iter().map(|fault| format!("{name}{fault}")));
    }
    if faults.is_empty() {
        return Ok(Outcome::PassedWith(format!("{} files", paths.len())));
    }
    bail!("{}", faults.join("\n       "))
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) -> Result<()> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot list {}", folder.display()))?;
        let (path, name) = (
            entry.path(),
            entry.file_name().to_string_lossy().into_owned(),
        );
        if entry.file_type()?.is_dir() {
            if !SKIPPED.contains(&name.as_str()) {
                collect(&path, paths)?;
            }
        } else if path
            .extension()
            .is_some_and(|found| EXTENSIONS.iter().any(|extension| found == *extension))
        {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(())
}

fn faults_in(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let count = text.lines().count();
    let has_reason = text
        .lines()
        .take(REASON_WITHIN_LINES)
        .any(|line| line.contains("600 lines"));
    if count > LINES_MAX && !has_reason {
        faults.push(format!(
            ": {count} lines; split it, or say in its first lines why it has more than 600 lines"
        ));
    }
    for (index, line) in text.lines().enumerate() {
        let mut words = line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        if let Some(marker) = words.find(|word| MARKERS.contains(word)) {
            faults.push(format!(
                ":{}: {marker}; finish it, or write an issue",
                index + 1
            ));
        }
    }
    faults
}

/// Finds these turns of phrase in the lines that are comments and nothing else.
fn phrases_in(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let Some(comment) = line.trim_start().strip_prefix("//") else {
            continue;
        };
        let comment = comment.trim_start_matches(['/', '!']).trim_start();
        let unnamed = comment
            .split(|c: char| !c.is_ascii_alphabetic())
            .find(|word| {
                UNNAMED
                    .iter()
                    .any(|unnamed| word.eq_ignore_ascii_case(unnamed))
            });
        let ends = comment.ends_with(ENDING) || comment.contains(&format!("{ENDING} "));
        let phrase = unnamed
            .or_else(|| comment.starts_with(OPENING).then_some(OPENING.trim_end()))
            .or_else(|| ends.then_some(ENDING));
        if let Some(phrase) = phrase {
            faults.push(format!(
                ":{}: {phrase:?} in a comment; name the actor or the thing",
                index + 1
            ));
        }
    }
    faults
}

/// Finds comments that are wider than code may be.
fn wide_in(text: &str) -> Vec<String> {
    let mut in_code = false;
    let comments = text.lines().enumerate().filter(|(_, line)| {
        let Some(comment) = line.trim_start().strip_prefix("//") else {
            return false;
        };
        let comment = comment.trim_start_matches(['/', '!']).trim_start();
        in_code ^= comment.starts_with("```");
        // A word that is as long as the line cannot be wrapped.
        !in_code && !comment.starts_with('|') && comment.contains(' ')
    });
    let wide = comments.filter(|(_, line)| line.chars().count() > COLUMNS_MAX);
    wide.map(|(index, line)| {
        let columns = line.chars().count();
        format!(
            ":{}: a comment of {columns} columns; wrap it at {COLUMNS_MAX}",
            index + 1
        )
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_are_found_as_words() {
        let line = format!("// {}: later\n", MARKERS[0]);
        assert_eq!(faults_in(&line).len(), 1);
        assert!(faults_in(&line)[0].starts_with(":1: "));
        assert!(faults_in(&format!("let {}S = 1;", MARKERS[0])).is_empty());
    }

    #[test]
    fn phrases_are_found_in_comments_alone() {
        for bad in [
            "/// Whether it is there.",
            "    // It is told to whom it concerns.",
            "//! Whoever asks.",
            "// The end of it. Then more.",
            "/// All of it.",
        ] {
            assert_eq!(phrases_in(bad).len(), 1, "{bad}");
        }
        for good in [
            "let text = \"Whether of it.\";",
            "/// True when it is there, whether or not it was read.",
            "// A copy of its bytes.",
        ] {
            assert!(phrases_in(good).is_empty(), "{good}");
        }
    }

    #[test]
    fn comments_are_as_wide_as_code_at_most() {
        let words = |columns| format!("/// a {}", "b".repeat(columns - 6));
        assert!(wide_in(&words(COLUMNS_MAX)).is_empty());
        assert_eq!(wide_in(&words(COLUMNS_MAX + 1)).len(), 1);
        let table = format!("//! | {} |", "a ".repeat(COLUMNS_MAX));
        assert!(wide_in(&table).is_empty());
        let example = format!("/// ```text\n{}\n/// ```\n", words(COLUMNS_MAX + 1));
        assert!(wide_in(&example).is_empty());
        let address = format!("// https://{}", "a".repeat(COLUMNS_MAX));
        assert!(wide_in(&address).is_empty());
    }

    #[test]
    fn long_files_need_a_reason() {
        let long = "line\n".repeat(LINES_MAX + 1);
        assert_eq!(faults_in(&long).len(), 1);
        assert!(faults_in(&format!("//! More than 600 lines: one table.\n{long}")).is_empty());
        assert!(faults_in(&"line\n".repeat(LINES_MAX)).is_empty());
    }
}
