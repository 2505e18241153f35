//! `cargo xtask demo`: from a fresh checkout to a trained, verified model.

use std::time::Instant;

use anyhow::Result;

use crate::console;
use crate::deps::{self, Overrides};
use crate::process::{self, Workspace};

/// The programs that the demo starts, by package and name.
const PROGRAMS: &[(&str, &str)] = &[
    ("diloco-coordinator", "diloco-coordinator"),
    ("diloco-worker", "diloco-worker"),
    ("diloco-audit", "diloco-audit"),
    ("diloco-store", "diloco-store"),
    ("diloctl", "diloctl"),
];

/// The calls of `target/release/diloctl` that follow the build, in order.
const DILOCTL_STEPS: &[&[&str]] = &[];

/// Fetches, builds, then hands over to `diloctl`.
pub(crate) fn run_demo(workspace: &Workspace, overrides: &Overrides) -> Result<()> {
    console::say("1/2 what the project needs");
    let found = deps::ensure(&workspace.deps(), overrides)?;
    console::say(found.report());
    console::say("2/2 release build (several minutes the first time)");
    let begun = Instant::now();
    build(workspace)?;
    console::say(format_args!("built in {}", console::span(begun.elapsed())));
    let diloctl = workspace.root().join("target/release/diloctl");
    for step in DILOCTL_STEPS {
        let mut command = std::process::Command::new(&diloctl);
        process::run(command.args(*step).current_dir(workspace.root()).env("NATS_SERVER_BIN", &found.nats_server))?;
    }
    Ok(())
}

fn build(workspace: &Workspace) -> Result<()> {
    let mut command = workspace.cargo(&["build", "--release", "--locked"]);
    for (package, program) in PROGRAMS {
        command.args(["--package", package, "--bin", program]);
    }
    process::run(&mut command)
}
