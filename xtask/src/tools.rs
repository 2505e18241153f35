//! Tools under `.deps` beside nats-server and libtorch: cargo commands, compiled from pinned
//! versions without optimisation, and Python packages.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use schemas::{Code, Refusal};

use crate::console;
use crate::process::{self, Workspace};

/// Returns the program `name` of this version: from `.deps/tools`, else from the PATH. If neither
/// has it, cargo compiles it into `.deps/tools`.
///
/// # Errors
/// [`Code::DownloadFailed`]: cargo could not install it.
pub(crate) fn ensure(workspace: &Workspace, name: &str, version: &str) -> Result<PathBuf> {
    let tools = workspace.deps().join("tools");
    let own = tools.join("bin").join(name);
    // Called as cargo calls it: some of these programs need the subcommand, which is their name
    // without `cargo-`, as first argument.
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
    // Debug information would only cost time. The target folder of the build is removed below.
    command
        .arg(&tools)
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env("CARGO_TARGET_DIR", tools.join("target"));
    process::run(&mut command).map_err(|error| {
        Refusal::new(Code::DownloadFailed, format!("{name} {version}: {error:#}"))
    })?;
    fs::remove_dir_all(tools.join("target"))
        .with_context(|| format!("cannot remove the build files of {name}"))?;
    Ok(own)
}

/// Installs the Python packages that `requirements` names into `.deps/NAME`, unless they are there,
/// and returns that folder. `requirements` pins versions and hashes.
///
/// # Errors
/// [`Code::DownloadFailed`]: pip could not install them.
pub(crate) fn ensure_packages(
    workspace: &Workspace,
    name: &str,
    requirements: &Path,
) -> Result<PathBuf> {
    let wanted = fs::read(requirements)
        .with_context(|| format!("cannot read {}", requirements.display()))?;
    let folder = workspace.deps().join(name);
    // A copy of `requirements`, written after the packages: if it is equal, exactly these packages
    // are there.
    let mark = "installed";
    if fs::read(folder.join(mark)).is_ok_and(|installed| installed == wanted) {
        return Ok(folder);
    }
    let fresh = workspace.deps().join(format!("{name}.new"));
    for folder in [&folder, &fresh] {
        if folder.exists() {
            fs::remove_dir_all(folder)
                .with_context(|| format!("cannot remove {}", folder.display()))?;
        }
    }
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--no-input", "--no-deps"])
        .args(["--disable-pip-version-check", "--require-hashes"])
        .arg("--requirement")
        .arg(requirements)
        .arg("--target")
        .arg(&fresh)
        .stdin(Stdio::null())
        .env("PIP_ROOT_USER_ACTION", "ignore")
        .env_remove("PIP_REQUIRE_VIRTUALENV");
    process::capture(&mut pip)
        .map_err(|error| Refusal::new(Code::DownloadFailed, format!("{name}: {error:#}")))?;
    fs::write(fresh.join(mark), &wanted)
        .and_then(|()| fs::rename(&fresh, &folder))
        .with_context(|| format!("cannot finish the packages in {}", folder.display()))?;
    Ok(folder)
}
