//! Calls of `diloctl`: with output for people, with JSON, and repeated when a service died.

use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::process::{self, Workspace};
use crate::{console, interrupt};

/// Most tries of a step during which a service died: every step can be repeated safely.
const ATTEMPTS: u32 = 5;
/// Pause between two looks at services and run.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Name of the run; the workers' credentials are issued for it.
pub(crate) const RUN: &str = "demo";

/// The built command line, started in the top folder, for one trust domain.
pub(crate) struct Diloctl {
    program: PathBuf,
    root: PathBuf,
    nats_server: PathBuf,
    domain: PathBuf,
}

impl Diloctl {
    /// `profile` names the folder of the programs below `target`; `domain` is relative to the top
    /// folder.
    pub(crate) fn new(
        workspace: &Workspace,
        nats_server: &Path,
        profile: &str,
        domain: &str,
    ) -> Self {
        Self {
            program: workspace.program(profile, "diloctl"),
            root: workspace.root().to_owned(),
            nats_server: nats_server.to_owned(),
            domain: workspace.root().join(domain),
        }
    }

    pub(crate) fn has_domain(&self) -> bool {
        self.domain.join("trust.json").exists()
    }

    /// Stops what runs and removes the trust domain with everything in it.
    pub(crate) fn remove_domain(&self) -> Result<()> {
        if self.has_domain() {
            self.down()?;
        }
        match std::fs::remove_dir_all(&self.domain) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.domain.display()))
            }
            _ => Ok(()),
        }
    }

    /// Runs a command whose output is for people.
    pub(crate) fn show(&self, arguments: &[&str]) -> Result<()> {
        interrupt::check()?;
        console::say(format_args!("$ diloctl {}", shell(arguments)));
        let mut child = self.start(arguments)?;
        let status = interrupt::wait(&mut child)?;
        if status.success() {
            Ok(())
        } else {
            bail!("`diloctl {}` failed ({status})", shell(arguments))
        }
    }

    /// Like [`Self::show`]; if the command fails, services that died are started again and the
    /// command is repeated.
    pub(crate) fn insist(&self, arguments: &[&str]) -> Result<()> {
        let mut attempt = 1;
        loop {
            let outcome = self.show(arguments);
            if outcome.is_ok() || attempt == ATTEMPTS || interrupt::came() || !self.revive()? {
                return outcome;
            }
            attempt += 1;
        }
    }

    /// Runs a command and returns its JSON.
    pub(crate) fn ask(&self, arguments: &[&str]) -> Result<Value> {
        let text = process::capture(self.command(arguments).args(["-o", "json"]))?;
        serde_json::from_str(&text)
            .with_context(|| format!("`diloctl {}` printed no JSON", shell(arguments)))
    }

    /// Follows the run to its end. Services that die meanwhile are started again.
    pub(crate) fn watch(&self, run: &str) -> Result<()> {
        let arguments = ["run", "watch", run];
        console::say(format_args!("$ diloctl {}", shell(&arguments)));
        let mut watching = self.start(&arguments)?;
        loop {
            match interrupt::wait_for(&mut watching, LOOK_EVERY)? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => {
                    // The command was killed, or cut off by a service that died. Otherwise it has
                    // reported the trouble of the run itself.
                    if !self.revive()? && status.signal().is_none() {
                        bail!("`diloctl run watch {run}` ended with {status}");
                    }
                    watching = self.start(&arguments)?;
                }
                None => {
                    self.revive()?;
                }
            }
        }
    }

    fn start(&self, arguments: &[&str]) -> Result<Child> {
        self.command(arguments)
            .spawn()
            .context("cannot start diloctl")
    }

    /// Starts services that died and prints their names. Returns true if there were any.
    fn revive(&self) -> Result<bool> {
        let answer = self.ask(&["up", "--run", RUN])?;
        let rows = answer["items"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let started: Vec<&str> = rows
            .iter()
            .filter(|row| row["state"] == "started")
            .filter_map(|row| row["service"].as_str())
            .collect();
        if !started.is_empty() {
            console::say(format_args!(
                "ended by itself and was started again: {}",
                started.join(", ")
            ));
        }
        Ok(!started.is_empty())
    }

    /// Stops everything. `diloctl down` gets a process group of its own, so that a second Ctrl-C
    /// does not interrupt it half way.
    pub(crate) fn down(&self) -> Result<()> {
        process::run(self.command(&["down"]).process_group(0))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .current_dir(&self.root)
            .stdin(Stdio::null());
        command
            .env("NATS_SERVER_BIN", &self.nats_server)
            .env("DILOCO_DOMAIN", &self.domain);
        command
    }
}

/// The command line as a person would type it.
fn shell(arguments: &[&str]) -> String {
    let quoted = |argument: &&str| match argument.contains([' ', '\n', '{', '(']) {
        true => format!("{argument:?}"),
        false => (*argument).to_owned(),
    };
    arguments.iter().map(quoted).collect::<Vec<_>>().join(" ")
}
