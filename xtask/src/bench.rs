//! `cargo xtask bench`: the benches crate, in release, with what it needs in place.

use anyhow::Result;

use crate::deps::{self, Overrides};
use crate::process::{self, Workspace};

/// Runs the benches with `arguments`.
pub(crate) fn run(workspace: &Workspace, overrides: &Overrides, arguments: &[String]) -> Result<()> {
    let found = deps::ensure(&workspace.deps(), overrides)?;
    let mut command = workspace.cargo(&["run", "--release", "--locked", "--package", "benches", "--"]);
    process::run(command.args(arguments).env("NATS_SERVER_BIN", &found.nats_server))
}
