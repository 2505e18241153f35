//! Holds on a run: `run freeze` and `run unfreeze`.

use runtime::Failure;
use schemas::call::control as call;
use schemas::hold::{Hold, HoldReply, HoldRequest};
use schemas::{RunId, V};
use serde::Serialize;

use crate::cli::HoldArgs;
use crate::context::Context;
use crate::output::Record;

/// Places a hold on a run or lifts it, and shows what it concerns.
pub(crate) async fn set(
    context: &Context,
    args: HoldArgs,
    hold: Hold,
    held: bool,
) -> Result<(), Failure> {
    let operator = context.operator().await?;
    let HoldArgs { run, reason } = args;
    let request = HoldRequest {
        v: V,
        run: run.clone(),
        hold,
        held,
        reason,
    };
    let reply = operator.ask::<call::RunHold>(&request).await?;
    context.printer.record(&Set::from((run, hold, held, reply)));
    Ok(())
}

/// A hold as it is now.
#[derive(Serialize)]
struct Set {
    run: RunId,
    hold: Hold,
    held: bool,
    changed: bool,
    weights: u64,
    contributions: u32,
    leases: u32,
}

impl From<(RunId, Hold, bool, HoldReply)> for Set {
    fn from((run, hold, held, reply): (RunId, Hold, bool, HoldReply)) -> Self {
        Self {
            run,
            hold,
            held,
            changed: reply.changed,
            weights: reply.weights.get(),
            contributions: reply.contributions,
            leases: reply.leases,
        }
    }
}

impl Record for Set {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let state = match (self.held, self.changed) {
            (true, true) => "placed; this is in the ledger",
            (true, false) => "stands already",
            (false, true) => "lifted; this is in the ledger",
            (false, false) => "there was none",
        };
        vec![
            ("run", self.run.to_string()),
            ("hold", format!("on {}: {state}", self.hold)),
            ("weights", format!("of round {}", self.weights)),
            ("contributions not merged", self.contributions.to_string()),
            ("leases held", self.leases.to_string()),
        ]
    }
}
