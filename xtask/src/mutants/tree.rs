//! The copy of the checkout in which mutants are made. The checkout itself is never touched, so
//! that a killed run leaves no working tree without a guard.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::process::{self, Workspace};

/// Makes `tree` equal to the checkout: tracked files, and new ones that git does not ignore. A file
/// that is equal already keeps its time, so that cargo compiles only what changed. Files in `woven`
/// are skipped, since the caller writes them.
pub(super) fn update(workspace: &Workspace, tree: &Path, woven: &BTreeSet<PathBuf>) -> Result<()> {
    let listed = process::capture(Command::new("git").current_dir(workspace.root()).args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
    ]))
    .context("mutants are made of what git lists")?;
    let wanted: BTreeSet<PathBuf> = listed
        .lines()
        .map(PathBuf::from)
        .filter(|path| workspace.root().join(path).is_file())
        .collect();
    fs::create_dir_all(tree).with_context(|| format!("cannot make {}", tree.display()))?;
    remove_others(tree, tree, &wanted)?;
    for path in wanted.difference(woven) {
        copy(&workspace.root().join(path), &tree.join(path))?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let bytes = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    if fs::read(to).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    let written = || -> std::io::Result<()> {
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(to, &bytes)?;
        fs::set_permissions(to, fs::metadata(from)?.permissions())
    };
    written().with_context(|| format!("cannot write {}", to.display()))
}

fn remove_others(tree: &Path, folder: &Path, wanted: &BTreeSet<PathBuf>) -> Result<()> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            remove_others(tree, &path, wanted)?;
        } else if !path
            .strip_prefix(tree)
            .is_ok_and(|path| wanted.contains(path))
        {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}
