//! Garage, an S3 store that others wrote, for the one test that tries `diloctl store check` on it.
//! It is compiled by cargo, optimised, for half an hour; nothing else needs it, so it is put under
//! `.deps/` only when it is asked for. Its licence is the AGPL: it runs as a program of its own,
//! and no part of it is linked into ours.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use schemas::{Code, Refusal};

use crate::console;
use crate::process::{self, Workspace};

/// The version whose behaviour the test knows.
const VERSION: &str = "2.5.0";

/// Compiles Garage into `folder/garage` unless it is there, and returns the program.
///
/// # Errors
/// [`Code::DownloadFailed`]: cargo could not install it.
pub(crate) fn ensure(workspace: &Workspace, folder: &Path) -> Result<PathBuf> {
    let root = folder.join("garage");
    let program = root.join("bin/garage");
    let answer = process::capture(Command::new(&program).arg("--version"));
    if answer.is_ok_and(|answer| answer.contains(&format!(":{VERSION} "))) {
        return Ok(program);
    }
    let root_shown = root.display();
    console::say(format_args!(
        "compiling garage {VERSION} into {root_shown} (half an hour on two cores)"
    ));
    let target = root.join("target");
    let mut command = workspace.cargo(&[
        "install",
        "garage",
        "--locked",
        "--version",
        VERSION,
        "--root",
    ]);
    command.arg(&root).env("CARGO_TARGET_DIR", &target);
    process::run(&mut command).map_err(|error| {
        Refusal::new(Code::DownloadFailed, format!("garage {VERSION}: {error:#}"))
    })?;
    fs::remove_dir_all(&target).with_context(|| format!("cannot remove {}", target.display()))?;
    Ok(program)
}
