//! Further cargo commands, compiled from pinned versions under `.deps/tools`, without optimisation.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};
use schemas::{Code, Refusal};

use crate::console;
use crate::process::{self, Workspace};

/// Finds the program `name` in `version`, under `.deps/tools` or on the PATH, and compiles it if it
/// is in neither.
///
/// # Errors
/// [`Code::DownloadFailed`]: cargo could not install it.
pub(crate) fn ensure(workspace: &Workspace, name: &str, version: &str) -> Result<PathBuf> {
    let tools = workspace.deps().join("tools");
    let own = tools.join("bin").join(name);
    // Called as cargo calls it: some of these programs need their own name as the first argument.
    let subcommand = name.trim_start_matches("cargo-");
    for candidate in [own.clone(), PathBuf::from(name)] {
        let answer = process::capture(Command::new(&candidate).args([subcommand, "--version"]));
        if answer.is_ok_and(|answer| answer.trim().ends_with(version)) {
            return Ok(candidate);
        }
    }
    console::say(format_args!(
        "installing {name} {version} into {} (a minute or two)",
        tools.display()
    ));
    let mut command = workspace.cargo(&[
        "install",
        name,
        "--locked",
        "--debug",
        "--quiet",
        "--version",
        version,
        "--root",
    ]);
    // The build uses the tool's own lints, profile and target folder; debug information would only
    // cost time.
    command
        .arg(&tools)
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env("CARGO_TARGET_DIR", tools.join("target"));
    process::run(&mut command).map_err(|error| {
        Refusal::new(Code::DownloadFailed, format!("{name} {version}: {error:#}"))
    })?;
    fs::remove_dir_all(tools.join("target"))
        .with_context(|| format!("cannot remove what compiling {name} left"))?;
    Ok(own)
}
