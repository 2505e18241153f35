//! Documents that are made from the code: written by `cargo xtask docs`, compared by `cargo xtask
//! docs --check`. To add one, add a [`Generator`] to [`GENERATORS`].

mod asyncapi;
mod claims;
mod errors;
mod functions;
mod requirements;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use schemas::{Code, Refusal};

use crate::console;
use crate::process::{self, Workspace};

/// Pages by their path below the top folder.
type Pages = BTreeMap<String, String>;

/// One source of pages.
struct Generator {
    /// Makes the pages of the checkout at this folder.
    make: fn(&Path) -> Pages,
    /// A folder that holds its pages and nothing else, so that a page left from an earlier build is
    /// noticed.
    owns: Option<&'static str>,
}

const GENERATORS: &[Generator] = &[
    Generator {
        make: bus,
        owns: None,
    },
    Generator {
        make: |_| errors::pages(),
        owns: Some("docs/errors"),
    },
    Generator {
        make: requirements::pages,
        owns: None,
    },
];

fn bus(_: &Path) -> Pages {
    Pages::from([("docs/bus.md".to_owned(), schemas::permission::reference())])
}

/// The tests that write pages.
const WRITTEN_BY_TESTS: &[&[&str]] = &[
    &["test", "--quiet", "--package", "diloctl", "--test", "pages"],
    &[
        "test",
        "--quiet",
        "--package",
        "schemas",
        "--test",
        "wire",
        "asyncapi",
    ],
];

/// Writes every page that differs and removes those that are no longer made.
pub(crate) fn write(workspace: &Workspace) -> Result<()> {
    let differences = differences(workspace.root())?;
    for (path, text) in &differences {
        let file = workspace.root().join(path);
        match text {
            Some(text) => {
                let folder = file.parent().expect("a page lies in a folder");
                fs::create_dir_all(folder)
                    .with_context(|| format!("cannot create {}", folder.display()))?;
                fs::write(&file, text).with_context(|| format!("cannot write {path}"))?;
                console::say(format_args!("wrote   {path}"));
            }
            None => {
                fs::remove_file(&file).with_context(|| format!("cannot remove {path}"))?;
                console::say(format_args!("removed {path}"));
            }
        }
    }
    console::say(format_args!("{} pages changed", differences.len()));
    // These pages are about crates that are too heavy to build into this program. Their tests
    // compare the pages, and write them when told to.
    for test in WRITTEN_BY_TESTS {
        process::run(workspace.cargo(test).env("DILOCO_WRITE_PAGES", "1"))?;
    }
    asyncapi::check(workspace.root())
}

/// Fails if [`write()`] would change anything, or if a page names a test that is not there.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let faults = claims::faults(workspace.root());
    if !faults.is_empty() {
        bail!(
            "SECURITY.md claims what no test shows: {}",
            faults.join("; ")
        );
    }
    let differences = differences(workspace.root())?;
    if differences.is_empty() {
        return asyncapi::check(workspace.root());
    }
    let names: Vec<_> = differences.into_keys().collect();
    Err(Refusal::new(Code::PageStale, names.join(", ")).into())
}

/// The pages to write (with their text) or to remove (none), so that the pages below `root` are
/// those that the code makes.
fn differences(root: &Path) -> Result<BTreeMap<String, Option<String>>> {
    let mut differences = BTreeMap::new();
    for generator in GENERATORS {
        let pages = (generator.make)(root);
        for name in generator
            .owns
            .map(|folder| files_in(root, folder))
            .transpose()?
            .unwrap_or_default()
        {
            if !pages.contains_key(&name) {
                differences.insert(name, None);
            }
        }
        for (path, text) in pages {
            if fs::read_to_string(root.join(&path)).ok().as_ref() != Some(&text) {
                differences.insert(path, Some(text));
            }
        }
    }
    Ok(differences)
}

fn files_in(root: &Path, folder: &str) -> Result<Vec<String>> {
    let place = root.join(folder);
    if !place.is_dir() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(&place).with_context(|| format!("cannot list {folder}"))?;
    entries
        .map(|entry| Ok(format!("{folder}/{}", entry?.file_name().to_string_lossy())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_altered_and_leftover_pages_are_noticed() {
        let root = tempfile::tempdir().unwrap();
        let all = differences(root.path()).unwrap();
        assert!(all.contains_key("docs/bus.md") && all.contains_key("docs/errors/DL0101.md"));
        fs::create_dir_all(root.path().join("docs/errors")).unwrap();
        for (path, text) in &all {
            fs::write(root.path().join(path), text.as_ref().unwrap()).unwrap();
        }
        assert!(differences(root.path()).unwrap().is_empty());

        fs::write(root.path().join("docs/bus.md"), "altered").unwrap();
        fs::write(root.path().join("docs/errors/DL0000.md"), "left over").unwrap();
        let found = differences(root.path()).unwrap();
        assert_eq!(
            found.keys().collect::<Vec<_>>(),
            ["docs/bus.md", "docs/errors/DL0000.md"]
        );
        assert!(found["docs/errors/DL0000.md"].is_none());
    }
}
