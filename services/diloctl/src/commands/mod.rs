//! One file per noun. A command gets the context and its own flags, and prints through the
//! context's printer.

mod audit;
mod auth;
pub(crate) mod cluster;
mod collection;
mod control;
mod data;
mod doctor;
mod enrol;
mod holds;
mod invitations;
mod lists;
mod reissue;
mod rekey;
pub(crate) mod revocation;
pub(crate) mod run;
pub(crate) mod settings;
mod snapshot;
mod stack;
mod store;
mod tenant;
mod watch;
mod worker;

use std::process::ExitCode;

use clap::CommandFactory as _;
use runtime::{Failure, service, shutdown};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{Audit, Cli, Command, Lineage};
use crate::context::Context;
use crate::exit;
use crate::output;

/// Runs one command line and returns its exit status.
pub fn run(cli: Cli) -> ExitCode {
    let format = cli.global.output;
    let log = cli.global.log.clone();
    let ended = service::command(&log, Box::pin(carry_out(cli)));
    runtime::exit::report(ended, |refusal| exit::render(format, refusal))
}

async fn carry_out(cli: Cli) -> Result<(), Failure> {
    let context = Context::new(&cli.global)?;
    let stopped = stopped(&cli.command);
    tokio::select! {
        // The command is polled before the signal: one that has ended has not been stopped.
        biased;
        outcome = dispatch(&context, cli.command) => {
            outcome.map_err(|failure| context.explained(failure))?;
        }
        signal = stopped => return Err(context.interrupted(signal)),
    }
    output::written()
}

/// Resolves when this command is told to end: by Ctrl-C, by a service manager, or by the end of its
/// terminal. Without handlers these would end the process between two steps, without a message; so
/// they are there from the call on, before the command does anything. `audit tail` is meant to be
/// ended by Ctrl-C, and hears that itself.
fn stopped(command: &Command) -> impl Future<Output = &'static str> + use<> {
    let hears_itself = matches!(command, Command::Audit(Audit::Tail { .. }));
    let interrupt = signal(SignalKind::interrupt())
        .ok()
        .filter(|_| !hears_itself);
    let terminate = signal(SignalKind::terminate()).ok();
    let hangup = shutdown::hangup().ok().flatten();
    async move {
        let (mut interrupt, mut terminate, mut hangup) = (interrupt, terminate, hangup);
        tokio::select! {
            () = shutdown::heard(&mut interrupt) => "SIGINT",
            () = shutdown::heard(&mut terminate) => "SIGTERM",
            () = shutdown::heard(&mut hangup) => "SIGHUP",
        }
    }
}

async fn dispatch(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::Auth(command) => auth::run(context, &command).await,
        Command::Cluster(command) => cluster::run(context, &command).await,
        Command::Data(command) => data::run(context, &command).await,
        Command::Run(command) => run::run(context, command).await,
        Command::Tenant(command) => tenant::run(context, command).await,
        Command::Worker(command) => worker::run(context, command).await,
        Command::Lease(command) => lists::leases(context, &command).await,
        Command::Round(command) => lists::rounds(context, &command).await,
        Command::Snapshot(command) => snapshot::run(context, &command).await,
        Command::Control(command) => control::run(context, &command).await,
        Command::Audit(command) => audit::run(context, &command).await,
        Command::Doctor { nats_config } => doctor::run(context, &nats_config).await,
        Command::Store(command) => store::run(context, &command).await,
        Command::Lineage(Lineage::Descendants(command)) => {
            audit::lineage::descendants(context, &command).await
        }
        Command::Lineage(Lineage::Export(command)) => audit::export::run(context, &command).await,
        Command::Lineage(Lineage::Show(command)) => audit::ancestry::show(context, &command).await,
        Command::Up(options) => stack::up(context, &options).await,
        Command::Down(options) => stack::down(context, &options).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "diloctl", &mut script);
            context.printer.text(&String::from_utf8_lossy(&script));
            Ok(())
        }
    }
}
