//! `cargo xtask demo`: from a fresh checkout to a trained, verified model. Every step after the
//! build is a `diloctl` command that a person could type; each is printed before it runs.

mod report;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::deps::{self, Overrides};
use crate::diloctl::{Diloctl, RUN};
use crate::process::Workspace;
use crate::{console, interrupt};

/// The programs that the demo starts; each is built by the package of the same name.
const PROGRAMS: &[&str] = &[
    "diloco-coordinator",
    "diloco-worker",
    "diloco-audit",
    "diloco-registrar",
    "diloco-store",
    "diloctl",
];

/// Options of the demo.
#[derive(Debug, Args)]
pub(crate) struct DemoOptions {
    /// Text to train on: a file or a folder; by default the Rust sources in cargo's registry folder
    #[arg(long, value_name = "PATH")]
    text: Option<PathBuf>,
    /// Most text to import
    #[arg(long, value_name = "SIZE", default_value = "32MiB")]
    limit: String,
    /// Leave everything running at the end
    #[arg(long)]
    keep: bool,
    /// Remove .diloco/ first: keys, runs, models
    #[arg(long)]
    fresh: bool,
    /// Further flags of `diloctl run new`, such as `--rounds 5`
    #[arg(last = true)]
    settings: Vec<String>,
}

/// Sets everything up, trains, verifies, shows, stops.
pub(crate) fn run_demo(
    workspace: &Workspace,
    overrides: &Overrides,
    options: &DemoOptions,
) -> Result<()> {
    console::say("1/7 what the project needs");
    let found = deps::ensure(&workspace.deps(), overrides)?;
    console::say(found.report());
    // From here on services have to be stopped in order; before, a download can simply end.
    interrupt::listen();
    console::say("2/7 build (some minutes the first time)");
    let begun = Instant::now();
    build(workspace)?;
    console::say(format_args!("built in {}", console::span(begun.elapsed())));
    let diloctl = Diloctl::new(workspace, &found.nats_server, "demo", ".diloco");
    if options.fresh {
        diloctl.remove_domain()?;
    }
    let outcome = train(&diloctl, options);
    if options.keep && outcome.is_ok() {
        console::say("everything keeps running; `target/demo/diloctl down` stops it");
    } else {
        console::say("7/7 stop");
        diloctl.down()?;
    }
    outcome
}

/// Builds the programs that a run needs, as the demo wants them.
pub(crate) fn build(workspace: &Workspace) -> Result<()> {
    let mut command = workspace.cargo(&["build", "--profile", "demo", "--locked"]);
    for program in PROGRAMS {
        command.args(["--package", program, "--bin", program]);
    }
    let mut child = command.spawn().context("cannot start cargo")?;
    let status = interrupt::wait(&mut child)?;
    if status.success() {
        Ok(())
    } else {
        bail!("the build failed ({status})")
    }
}

fn train(diloctl: &Diloctl, options: &DemoOptions) -> Result<()> {
    let begun = Instant::now();
    console::say("3/7 keys, credentials, certificates");
    if diloctl.has_domain() {
        console::say("there is a trust domain in .diloco; it is used (--fresh makes a new one)");
    } else {
        diloctl.show(&["auth", "init", "--run", RUN])?;
    }
    console::say("4/7 broker, store, registrar, audit, coordinator, two workers");
    diloctl.show(&["up", "--run", RUN])?;
    console::say("5/7 text and run");
    import(diloctl, options)?;
    let mut new = vec!["run", "new", RUN];
    new.extend(options.settings.iter().map(String::as_str));
    diloctl.insist(&new)?;
    console::say("6/7 train");
    diloctl.watch(RUN)?;
    report::show(diloctl, RUN, begun.elapsed())
        .context("the run is complete, but its result cannot be shown")
}

/// Imports text unless there is a data set already: repeating the demo continues its run.
fn import(diloctl: &Diloctl, options: &DemoOptions) -> Result<()> {
    if options.text.is_none()
        && diloctl.ask(&["data", "ls"])?["items"]
            .as_array()
            .is_some_and(|sets| !sets.is_empty())
    {
        console::say("the data set that was imported before is used");
        return Ok(());
    }
    let text = options.text.as_ref().map(|path| path.display().to_string());
    let mut arguments = vec!["data", "import", "--limit", &options.limit];
    if let Some(text) = &text {
        arguments.extend(["--text", text]);
    }
    diloctl.insist(&arguments)
}
