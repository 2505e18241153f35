//! `cargo xtask bench`: builds the benches crate and the programs that it starts, in release, and
//! runs the benches.

use std::process::Command;

use anyhow::Result;

use crate::deps::{self, Overrides};
use crate::process::{self, Workspace};

/// Programs that the benches start as processes of their own.
const PROGRAMS: [&str; 6] = [
    "diloco-audit",
    "diloco-coordinator",
    "diloco-registrar",
    "diloco-store",
    "diloco-worker",
    "diloctl",
];

/// Runs the benches with `arguments`.
pub(crate) fn run(
    workspace: &Workspace,
    overrides: &Overrides,
    arguments: &[String],
) -> Result<()> {
    let found = deps::ensure(&workspace.deps(), overrides)?;
    let mut build = workspace.cargo(&[
        "build",
        "--release",
        "--locked",
        "--bins",
        "--package",
        "benches",
    ]);
    for program in PROGRAMS {
        build.args(["--package", program]);
    }
    process::run(&mut build)?;
    // Started directly: `cargo run` would choose the features of this package alone, and so compile
    // most of the dependencies once more.
    let mut benches = Command::new(workspace.program("release", "benches"));
    process::run(
        benches
            .current_dir(workspace.root())
            .args(arguments)
            .env("NATS_SERVER_BIN", &found.nats_server),
    )
}
