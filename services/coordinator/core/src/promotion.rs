//! Promotion: an operator moves a pointer of a run to one of its full snapshots, also of a run that
//! is over. The operator's command has read the snapshot back and verified it; here is decided if
//! the ledger allows the move.

use ledger::{Run, Unpromotable};
use schemas::event::LedgerEvent;
use schemas::hold::Hold;
use schemas::promotion::{ACCEPTED_MAX, POINTERS_MAX, PromoteReply, PromoteRequest};
use schemas::text::Time;
use schemas::{Code, PublicKey, Refusal, Round, RunId, V, WorkerId};

use crate::control::ControlOutcome;
use crate::coordinator::{Coordinator, run_unknown};
use crate::effect::Answer;
use crate::restore::{descends, given_up, newest_clean};
use crate::turn::Outcome;

impl Coordinator {
    /// Moves a pointer, or says if it may be moved. A request that moves nothing is answered and
    /// not written, also in a frozen run: an answer may have been lost.
    pub(crate) fn promote(
        &mut self,
        operator: PublicKey,
        request: PromoteRequest,
    ) -> ControlOutcome {
        if request.accept.len() > ACCEPTED_MAX {
            let number = request.accept.len();
            let detail = format!("{number} workers to accept, of at most {ACCEPTED_MAX}");
            return Err(Refusal::new(Code::AcceptedTooMany, detail));
        }
        let name = self.run_of(&request)?;
        let run = self.state.run(&name).ok_or_else(|| run_unknown(&name))?;
        let promotable = run.promotable(&request.pointer, request.snapshot);
        let snapshot = promotable.map_err(|reason| refusal(reason, &name, &request))?;
        let (round, manifest) = (snapshot.round, snapshot.manifest);
        let before = run.pointers.get(&request.pointer);
        let changed = before.is_none_or(|before| before.manifest != manifest.digest);
        let accepted = match changed {
            true => {
                frozen(&name, run)?;
                accepted(&name, run, &request, round)?
            }
            false => Vec::new(),
        };
        let reply = PromoteReply {
            v: V,
            changed,
            pointer: request.pointer.clone(),
            round,
            manifest,
            before: before.map(|before| before.round),
            undone: !run.leads_from(round),
            accepted: accepted.clone(),
        };
        if changed && !request.check_only {
            self.check_orders(&operator)?;
            self.spend_order(&operator);
            let event = LedgerEvent::SnapshotPromoted {
                pointer: request.pointer,
                round,
                manifest: manifest.digest,
                operator,
                reason: request.reason,
                accepted,
            };
            self.append(Some(&name), event);
        }
        Ok(Outcome::Now(Answer::Promote(Box::new(reply))))
    }

    /// The run that a request names, or the one that has the snapshot.
    fn run_of(&self, request: &PromoteRequest) -> Result<RunId, Refusal> {
        if let Some(name) = &request.run {
            return Ok(name.clone());
        }
        let mut runs = self.state.runs();
        let found = runs.find(|(_, run)| run.snapshot(&request.snapshot).is_some());
        let unknown = || {
            let detail = format!("no run has a full snapshot {}", request.snapshot);
            Refusal::new(Code::SnapshotMissing, detail)
        };
        found.map(|(name, _)| name.clone()).ok_or_else(unknown)
    }
}

/// The workers in quarantine with contributions in the snapshot, of which the operator accepts
/// every one; refused if one was not named.
fn accepted(
    name: &RunId,
    run: &Run,
    request: &PromoteRequest,
    round: Round,
) -> Result<Vec<WorkerId>, Refusal> {
    let named = |worker: &&WorkerId| request.accept.contains(worker);
    let (named, others): (Vec<&WorkerId>, Vec<_>) = run.quarantined_in(round).partition(named);
    if others.is_empty() {
        return Ok(named.into_iter().cloned().collect());
    }
    let clean = run.last_promotable(&request.pointer);
    let number = named.len() + others.len();
    if number > ACCEPTED_MAX {
        let detail = format!(
            "the snapshot of round {round} of run {name} has contributions of {number} workers in quarantine, and a promotion \
             accepts {ACCEPTED_MAX} at most; {}",
            newest_clean(clean)
        );
        return Err(Refusal::new(Code::AcceptedTooMany, detail));
    }
    Err(descends(name, round, &others, clean))
}

/// Refuses a promotion in a run that is frozen.
fn frozen(name: &RunId, run: &Run) -> Result<(), Refusal> {
    let Some(hold) = run.holds.get(&Hold::Merges) else {
        return Ok(());
    };
    let (operator, since) = (&hold.operator, Time(hold.since));
    let detail = format!("run {name} was frozen by {operator} at {since}");
    Err(Refusal::new(Code::RunFrozen, detail))
}

fn refusal(reason: Unpromotable, run: &RunId, request: &PromoteRequest) -> Refusal {
    let snapshot = request.snapshot;
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
