//! Holds on a run: `run freeze` and `run unfreeze`, `run stop-urls` and `run allow-urls`.

use runtime::Failure;
use schemas::call::control as call;
use schemas::hold::{AtStore, Hold, HoldReply, HoldRequest};
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
    #[serde(skip_serializing_if = "Option::is_none")]
    store: Option<AtStore>,
}

/// What a store does about URLs that are out, in words.
pub(crate) const fn at_store(store: AtStore, stopped: bool) -> &'static str {
    match (store, stopped) {
        (AtStore::Done, true) => "the store refuses them; a transfer that began before goes on",
        (AtStore::Later, true) => {
            "none is given out; the store does not know yet, and takes those that are out until they end, a minute at most"
        }
        (AtStore::Unable, true) => {
            "none is given out; this store cannot tell whose they are, and takes those that are out until they end, a minute at most"
        }
        (AtStore::Done, false) => "the store takes them, unless another order stops them",
        (AtStore::Later, false) => {
            "the store does not know yet; the coordinator goes on telling it"
        }
        (AtStore::Unable, false) => "given out again",
    }
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
            store: reply.store,
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
        let mut lines = vec![
            ("run", self.run.to_string()),
            ("hold", format!("on {}: {state}", self.hold)),
            ("weights", format!("version {}", self.weights)),
            ("contributions not merged", self.contributions.to_string()),
            ("leases held", self.leases.to_string()),
        ];
        if let Some(store) = self.store {
            lines.push(("urls", at_store(store, self.held).to_owned()));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `snapshot restore` counts versions too: one thing has one number.
    #[test]
    fn a_hold_names_the_version_of_the_weights() {
        let set = Set {
            run: "demo".parse().expect("a name"),
            hold: Hold::Merges,
            held: true,
            changed: true,
            weights: 304,
            contributions: 1,
            leases: 2,
            store: None,
        };
        let lines = set.lines();
        let weights = lines.iter().find(|(name, _)| *name == "weights");
        assert_eq!(weights.map(|(_, text)| text.as_str()), Some("version 304"));
    }
}
