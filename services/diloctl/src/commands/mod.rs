//! One file per noun. A command gets the context and its own flags, and prints through the context's printer.

mod audit;
mod auth;
pub(crate) mod cluster;
mod control;
mod data;
mod lists;
pub(crate) mod run;
pub(crate) mod settings;
mod snapshot;
mod stack;
mod watch;

use std::process::ExitCode;

use clap::CommandFactory as _;
use runtime::Failure;

use crate::cli::{Cli, Command};
use crate::context::Context;
use crate::exit;

/// Runs one command line to its exit status.
pub async fn run(cli: Cli) -> ExitCode {
    let format = cli.global.output;
    let outcome = match Context::new(&cli.global) {
        Ok(context) => tokio::select! {
            // A command that ends well on a signal, such as `audit tail`, is asked first.
            biased;
            outcome = dispatch(&context, cli.command) => outcome,
            _ = tokio::signal::ctrl_c() => Err(Failure::new(schemas::Code::Interrupted, "stopped by a signal")),
        },
        Err(failure) => Err(failure),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => exit::report(format, &failure),
    }
}

async fn dispatch(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::Auth(command) => auth::run(context, &command),
        Command::Cluster(command) => cluster::run(context, &command).await,
        Command::Data(command) => data::run(context, &command).await,
        Command::Run(command) => run::run(context, command).await,
        Command::Worker(command) => lists::workers(context, &command).await,
        Command::Lease(command) => lists::leases(context, &command).await,
        Command::Round(command) => lists::rounds(context, &command).await,
        Command::Snapshot(command) => snapshot::run(context, &command).await,
        Command::Control(command) => control::run(context, &command).await,
        Command::Audit(command) => audit::run(context, &command).await,
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
