//! The functions that the sources declare: pages name tests, and a name has to lead to one.

use std::fs;
use std::path::{Path, PathBuf};

/// Folders that hold tests.
const PLACES: &[&str] = &["schemas", "services", "tests", "xtask"];

/// The functions in files with one of these endings, each with its file below `root`, in the order
/// of the files.
pub(super) fn declared(root: &Path, endings: &[&str]) -> Vec<(String, String)> {
    let mut files = Vec::new();
    PLACES
        .iter()
        .for_each(|place| sources(&root.join(place), endings, &mut files));
    files.sort();
    let of_file = |file: &PathBuf| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let shown = file.strip_prefix(root).unwrap_or(file).display();
        let names = text.lines().filter_map(function);
        names
            .map(|name| (shown.to_string(), name.to_owned()))
            .collect::<Vec<_>>()
    };
    files.iter().flat_map(of_file).collect()
}

/// The name of the function that a line of Rust or Python declares.
fn function(line: &str) -> Option<&str> {
    let rest = line
        .trim_start()
        .trim_start_matches("pub ")
        .trim_start_matches("async ");
    let rest = rest.strip_prefix("fn ").or(rest.strip_prefix("def "))?;
    rest.split(['(', '<']).next()
}

fn sources(folder: &Path, endings: &[&str], files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let ending = path.extension().and_then(|ending| ending.to_str());
        if path.is_dir() {
            sources(&path, endings, files);
        } else if ending.is_some_and(|ending| endings.contains(&ending)) {
            files.push(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declarations_of_rust_and_python_have_a_name() {
        assert_eq!(function("    async fn la_02_x() {"), Some("la_02_x"));
        assert_eq!(function("pub fn list<T>(of: T) {"), Some("list"));
        assert_eq!(
            function("async def nobody_enters(facts: dict):"),
            Some("nobody_enters")
        );
        assert_eq!(function("let x = 1;"), None);
    }
}
