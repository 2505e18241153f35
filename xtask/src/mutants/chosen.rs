//! Which mutants a sample takes: those in files that the last commits changed, drawn by the commit,
//! so that a second run for one commit draws the same ones, and the next commit others. A checkout
//! without that history draws from all files.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use schemas::Digest;

use super::file_of;
use crate::process::{self, Workspace};

/// How many commits back a change is recent.
const COMMITS: &str = "HEAD~20";

/// A change of the code that a test should notice.
#[derive(Clone, Debug)]
pub(crate) struct Mutant {
    /// File, line, column and what is done, as cargo-mutants writes it.
    pub(super) name: String,
    pub(super) package: String,
}

/// Draws `count` mutants from files that changed lately; from all when none of those did.
pub(super) fn sample(
    workspace: &Workspace,
    mutants: Vec<Mutant>,
    count: usize,
) -> Result<Vec<Mutant>> {
    let git = |arguments: &[&str]| {
        process::capture(
            Command::new("git")
                .current_dir(workspace.root())
                .args(arguments),
        )
    };
    let commit = git(&["rev-parse", "HEAD"])?;
    let changed = git(&["diff", "--name-only", COMMITS, "HEAD"]).unwrap_or_default();
    let changed: Vec<PathBuf> = changed.lines().map(PathBuf::from).collect();
    let (recent, others): (Vec<_>, Vec<_>) = mutants
        .into_iter()
        .partition(|mutant| changed.iter().any(|file| file == file_of(&mutant.name)));
    let mut drawn = if recent.is_empty() { others } else { recent };
    drawn.sort_by_cached_key(|mutant| Digest::of(format!("{commit}{}", mutant.name).as_bytes()));
    drawn.truncate(count);
    Ok(drawn)
}
