//! The mutants of a sample: they are drawn from the files that the last commits changed. The commit
//! is the seed of the draw, so that a second run for one commit draws the same mutants, and the
//! next commit draws others. A checkout without that history draws from all files.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use schemas::Digest;

use super::listed::Mutant;
use crate::process::{self, Workspace};

/// The oldest commit that counts as recent.
const COMMITS: &str = "HEAD~20";

/// Draws `count` mutants from files that changed lately, or from all files if none of those has
/// mutants.
pub(super) fn sample(
    workspace: &Workspace,
    mutants: Vec<Mutant>,
    count: usize,
) -> Result<Vec<Mutant>> {
    let changed = changed(workspace).unwrap_or_default();
    let (recent, others): (Vec<_>, Vec<_>) = mutants
        .into_iter()
        .partition(|mutant| changed.contains(&mutant.file));
    draw(
        workspace,
        if recent.is_empty() { others } else { recent },
        count,
    )
}

/// Draws `count` mutants; the commit decides which.
pub(super) fn draw(
    workspace: &Workspace,
    mut mutants: Vec<Mutant>,
    count: usize,
) -> Result<Vec<Mutant>> {
    let commit = git(workspace, &["rev-parse", "HEAD"])?;
    mutants.sort_by_cached_key(|mutant| Digest::of(format!("{commit}{}", mutant.name).as_bytes()));
    mutants.truncate(count);
    Ok(mutants)
}

/// Files that the last commits changed, and those that are not committed yet.
///
/// # Errors
/// The checkout has no such history.
pub(super) fn changed(workspace: &Workspace) -> Result<BTreeSet<PathBuf>> {
    let changed = git(workspace, &["diff", "--name-only", COMMITS])?;
    Ok(changed.lines().map(PathBuf::from).collect())
}

fn git(workspace: &Workspace, arguments: &[&str]) -> Result<String> {
    process::capture(
        Command::new("git")
            .current_dir(workspace.root())
            .args(arguments),
    )
}
