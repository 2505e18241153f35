//! Promotion: an operator moves a pointer of a run to one of its full snapshots, also of a run that
//! is over. The operator's command has read the snapshot back and verified it; here is decided if
//! the ledger allows the move.

use ledger::{Run, Unpromotable};
use schemas::event::LedgerEvent;
use schemas::hold::Hold;
use schemas::promotion::{POINTERS_MAX, PromoteReply, PromoteRequest};
use schemas::text::Time;
use schemas::{Code, PublicKey, Refusal, V};

use crate::control::ControlOutcome;
use crate::coordinator::{Coordinator, run_unknown};
use crate::effect::Answer;
use crate::restore::{check_descent, given_up};
use crate::turn::Outcome;

impl Coordinator {
    /// Moves a pointer. A request that moves nothing is answered and not written, also in a frozen
    /// run: an answer may have been lost.
    pub(crate) fn promote(
        &mut self,
        operator: PublicKey,
        request: PromoteRequest,
    ) -> ControlOutcome {
        let name = request.run.clone();
        let run = self.state.run(&name).ok_or_else(|| run_unknown(&name))?;
        let promotable = run.promotable(&request.pointer, request.snapshot);
        let snapshot = promotable.map_err(|reason| refusal(reason, &request))?;
        let (round, manifest) = (snapshot.round, snapshot.manifest);
        let before = run.pointers.get(&request.pointer);
        let changed = before.is_none_or(|before| before.manifest != manifest.digest);
        let reply = PromoteReply {
            v: V,
            changed,
            pointer: request.pointer.clone(),
            round,
            manifest,
            before: before.map(|before| before.round),
            undone: !run.leads_from(round),
        };
        if changed {
            frozen(run, &request)?;
            check_descent(&name, run, snapshot)?;
            self.check_orders(&operator)?;
            self.spend_order(&operator);
            let event = LedgerEvent::SnapshotPromoted {
                pointer: request.pointer,
                round,
                manifest: manifest.digest,
                operator,
                reason: request.reason,
            };
            self.append(Some(&name), event);
        }
        Ok(Outcome::Now(Answer::Promote(Box::new(reply))))
    }
}

/// Refuses a promotion in a run that is frozen.
fn frozen(run: &Run, request: &PromoteRequest) -> Result<(), Refusal> {
    let Some(hold) = run.holds.get(&Hold::Merges) else {
        return Ok(());
    };
    let (name, operator, since) = (&request.run, &hold.operator, Time(hold.since));
    let detail = format!("run {name} was frozen by {operator} at {since}");
    Err(Refusal::new(Code::RunFrozen, detail))
}

fn refusal(reason: Unpromotable, request: &PromoteRequest) -> Refusal {
    let PromoteRequest { run, snapshot, .. } = request;
    match reason {
        Unpromotable::Unknown => {
            let detail = format!("run {run} has no full snapshot {snapshot}");
            Refusal::new(Code::SnapshotMissing, detail)
        }
        Unpromotable::GivenUp(round, event) => given_up(run, round, event),
        Unpromotable::Unattested => {
            let detail = format!("snapshot {snapshot} of run {run}");
            Refusal::new(Code::SnapshotUnattested, detail)
        }
        Unpromotable::Full => {
            let detail = format!("run {run} has {POINTERS_MAX} pointers");
            Refusal::new(Code::PointersFull, detail)
        }
    }
}
