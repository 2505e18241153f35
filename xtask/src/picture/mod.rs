//! `cargo xtask picture`: trains for some minutes, kills a worker with `kill -9` in the middle,
//! starts the worker again, and draws what the signed record says about the run.

mod record;
mod svg;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde_json::Value;

use crate::deps::{self, Overrides};
use crate::diloctl::{Diloctl, RUN};
use crate::process::Workspace;
use crate::{console, demo, interrupt};
use record::Record;

/// The trust domain of the run that is drawn; the demo has another.
const DOMAIN: &str = "target/picture/diloco";
/// The worker that is killed.
const VICTIM: &str = "worker-1";
/// Workers that `up` starts.
const WORKERS: usize = 2;
/// Longest wait for a moment in which all workers train; a round is shorter, in a full run and in a
/// quick one.
const TRAINING_WAIT_MAX: Duration = Duration::from_secs(120);
/// Rounds that both workers close before one of them is killed.
const ROUNDS_TOGETHER: u64 = 2;
/// Rounds that are closed by the time the killed worker is started again.
const ROUNDS_UNTIL_BACK: u64 = 4;
/// Settings of every picture: a lost unit is given to the other worker after ten seconds.
const SETTINGS: [&str; 6] = [
    "--set",
    "policy.lease=10s",
    "--set",
    "policy.workers_min=1",
    "--rounds",
    "8",
];
/// Settings of a run of seconds, enough to see that every step works.
const QUICK: [&str; 4] = ["--steps", "8", "--set", "policy.lease=5s"];

/// Options of the picture.
#[derive(Debug, Args)]
pub(crate) struct PictureOptions {
    /// File to write the picture to
    #[arg(long, value_name = "FILE", default_value = "docs/picture.svg")]
    into: PathBuf,
}

/// The length of a picture's run, and the programs that do it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PictureRun {
    /// Some minutes, with the programs that the demo builds.
    Full,
    /// Seconds, with the programs that the tests build.
    Quick,
}

/// Draws the picture that the README shows.
pub(crate) fn run_picture(
    workspace: &Workspace,
    overrides: &Overrides,
    options: &PictureOptions,
) -> Result<()> {
    let found = deps::ensure(&workspace.deps(), overrides)?;
    interrupt::listen();
    demo::build(workspace)?;
    let picture = draw(workspace, &found.nats_server, PictureRun::Full)?;
    let path = workspace.root().join(&options.into);
    write(&path, &picture)?;
    console::say(format_args!("drawn: {}", path.display()));
    Ok(())
}

/// Draws a picture of a quick run with the programs in target/debug, which shows that the command
/// works.
///
/// # Errors
/// A step of the run failed, or the record does not show a worker that is lost and comes back.
pub(crate) fn rehearse(workspace: &Workspace, nats_server: &Path) -> Result<()> {
    // Ctrl-C stops the services of the run before this program ends.
    interrupt::listen();
    let picture = draw(workspace, nats_server, PictureRun::Quick)?;
    write(&workspace.root().join("target/picture/quick.svg"), &picture)
}

fn write(path: &Path, picture: &str) -> Result<()> {
    std::fs::write(path, picture).with_context(|| format!("cannot write {}", path.display()))
}

fn draw(workspace: &Workspace, nats_server: &Path, pace: PictureRun) -> Result<String> {
    let profile = match pace {
        PictureRun::Full => "demo",
        PictureRun::Quick => "debug",
    };
    let diloctl = Diloctl::new(workspace, nats_server, profile, DOMAIN);
    diloctl.remove_domain()?;
    let drawn = story(&diloctl, pace);
    // If both fail, the first failure is reported.
    let stopped = diloctl.down();
    drawn.and_then(|picture| stopped.map(|()| picture))
}

/// Does the whole run and returns its picture.
fn story(diloctl: &Diloctl, pace: PictureRun) -> Result<String> {
    diloctl.show(&["auth", "init", "--run", RUN])?;
    diloctl.show(&["up", "--run", RUN])?;
    match pace {
        PictureRun::Full => diloctl.show(&["data", "import", "--limit", "32MiB"])?,
        PictureRun::Quick => diloctl.show(&["data", "import", "--text", "schemas/src"])?,
    }
    let quick: &[&str] = if pace == PictureRun::Quick {
        &QUICK
    } else {
        &[]
    };
    diloctl.show(&[&["run", "new", RUN], &SETTINGS[..], quick].concat())?;
    wait(diloctl, ROUNDS_TOGETHER)?;
    half_a_round(diloctl)?;
    let pid = pid_of_the_victim(diloctl)?;
    until_all_train(diloctl)?;
    kill(pid)?;
    wait(diloctl, ROUNDS_UNTIL_BACK)?;
    diloctl.show(&["up", "--run", RUN])?;
    diloctl.show(&["run", "wait", RUN])?;
    let record = Record::read(
        &diloctl.ask(&["audit", "replay", "--run", RUN])?,
        &diloctl.ask(&["round", "ls", RUN])?,
        &diloctl.ask(&["run", "get", RUN])?,
        &diloctl.ask(&["data", "ls"])?,
    )?;
    record.tells_the_story()?;
    Ok(svg::draw(&record))
}

fn wait(diloctl: &Diloctl, rounds: u64) -> Result<()> {
    diloctl.show(&["run", "wait", RUN, "--for", &format!("round={rounds}")])
}

/// Waits for half the time that the newest closed round took: by then the next round is in full
/// swing.
fn half_a_round(diloctl: &Diloctl) -> Result<()> {
    let rounds = diloctl.ask(&["round", "ls", RUN])?;
    let took = rounds["items"]
        .as_array()
        .and_then(|rounds| {
            rounds.iter().rev().find_map(|round| {
                let closed = round["closed_at"].as_u64()?;
                closed.checked_sub(round["opened_at"].as_u64()?)
            })
        })
        .context("no round is closed")?;
    std::thread::sleep(Duration::from_millis(took / 2));
    interrupt::check()
}

fn pid_of_the_victim(diloctl: &Diloctl) -> Result<libc::pid_t> {
    let services = diloctl.ask(&["up", "--run", RUN])?;
    let pid = items(&services)
        .iter()
        .find(|row| row["service"] == VICTIM)
        .and_then(|row| row["pid"].as_i64())
        .with_context(|| format!("{VICTIM} does not run"))?;
    libc::pid_t::try_from(pid).context("a process id fits")
}

/// Waits until both workers hold a training unit, so that the killed one loses a unit.
fn until_all_train(diloctl: &Diloctl) -> Result<()> {
    let begun = Instant::now();
    loop {
        interrupt::check()?;
        let leases = diloctl.ask(&["lease", "ls", RUN])?;
        let training = items(&leases)
            .iter()
            .filter(|row| row["lease"].to_string().contains("train"))
            .count();
        if training == WORKERS {
            return Ok(());
        }
        ensure!(
            begun.elapsed() < TRAINING_WAIT_MAX,
            "the workers never trained at the same time"
        );
    }
}

fn kill(pid: libc::pid_t) -> Result<()> {
    console::say(format_args!("$ kill -9 {pid}   # {VICTIM}"));
    // SAFETY: a signal to a process that `up` started and that was seen alive a moment ago.
    let sent = unsafe { libc::kill(pid, libc::SIGKILL) };
    ensure!(sent == 0, "{VICTIM} could not be killed");
    Ok(())
}

/// A list in the JSON of `diloctl`.
fn items(value: &Value) -> &[Value] {
    value["items"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default()
}
