//! `control`: orders over the bus.

use std::io::{IsTerminal as _, Write as _};

use runtime::Failure;
use schemas::call::control as call;
use schemas::{Code, Millis, V, control};
use serde::Serialize;

use crate::cli::Control;
use crate::context::Context;
use crate::output::Record;

pub(crate) async fn run(context: &Context, command: &Control) -> Result<(), Failure> {
    match command {
        Control::Shutdown { drain, yes } => shut_down(context, drain.millis(), *yes).await,
    }
}

async fn shut_down(context: &Context, drain: Millis, yes: bool) -> Result<(), Failure> {
    if !yes && !confirmed("stop the coordinator and its workers?")? {
        return Err(Failure::new(
            Code::Interrupted,
            "not confirmed; nothing was done",
        ));
    }
    let operator = context.operator().await?;
    let order = control::Shutdown { v: V, drain };
    let reply = operator.ask::<call::Shutdown>(&order).await?;
    context.printer.record(&DrainStarted::from(reply));
    Ok(())
}

/// Asks for confirmation on the terminal. Where there is no terminal, `--yes` is needed.
#[expect(
    clippy::print_stderr,
    reason = "a question to the person at the terminal"
)]
fn confirmed(question: &str) -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::new(
            Code::ConfirmationMissing,
            "there is no terminal to ask on",
        ));
    }
    eprint!("{question} [y/N] ");
    let mut answer = String::new();
    std::io::stderr()
        .flush()
        .and_then(|()| std::io::stdin().read_line(&mut answer))
        .map_err(|error| Failure::new(Code::Interrupted, error))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

#[derive(Serialize)]
struct DrainStarted {
    leases: u32,
    workers: u32,
}

impl From<control::ShutdownReply> for DrainStarted {
    fn from(reply: control::ShutdownReply) -> Self {
        Self {
            leases: reply.leases,
            workers: reply.workers,
        }
    }
}

impl Record for DrainStarted {
    fn lines(&self) -> Vec<(&'static str, String)> {
        vec![
            (
                "coordinator",
                "is draining; this is in the ledger".to_owned(),
            ),
            ("leases held", self.leases.to_string()),
            ("workers told", self.workers.to_string()),
        ]
    }
}
