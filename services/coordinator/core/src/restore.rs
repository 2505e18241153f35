//! Restore: an operator leads a run back to an earlier full snapshot.
//!
//! Every object of the snapshot is read back first; until then nothing is written. Then one event
//! does all of it, in a run that is frozen, or that is frozen with it: so an order that is repeated
//! finds the restored weights, since nobody merges into them before the operator has looked.

use std::collections::BTreeMap;

use ledger::{Run, SnapshotRecord};
use schemas::hold::Hold;
use schemas::lease::Weights;
use schemas::restore::{RESTORES_MAX, RestoreReply, RestoreRequest};
use schemas::{ChainSequence, Code, PublicKey, Refusal, Round, RunId, V, WorkerId};

use crate::control::ControlOutcome;
use crate::coordinator::{Coordinator, draining, run_closed, run_unknown};
use crate::effect::{Effect, Purging, Uploads};
use crate::input::ReplyId;
use crate::turn::Outcome;

/// Most requests that wait for the check of one snapshot. One that is repeated while the check runs
/// waits too.
const REPLIES_MAX: usize = 16;
/// Most snapshots that are read back at once: each is as large as two models.
const CHECKS_MAX: usize = 2;
/// Most workers in quarantine that a refusal names: their keys leave room for the rest of its text.
const NAMED_MAX: usize = 8;

/// The restores under way, by run.
pub(crate) type Restores = BTreeMap<RunId, Restoring>;

/// A restore whose snapshot is being read back.
#[derive(Debug)]
pub(crate) struct Restoring {
    operator: PublicKey,
    request: RestoreRequest,
    pub(crate) replies: Vec<ReplyId>,
}

impl Coordinator {
    /// Leads a run back to a snapshot. An order that changes nothing is answered and not written.
    pub(crate) fn restore(
        &mut self,
        operator: PublicKey,
        request: RestoreRequest,
        reply: ReplyId,
    ) -> ControlOutcome {
        if self.drain.is_some() {
            return Err(draining());
        }
        let (name, snapshot) = self.named(&request)?;
        let run = self.state.run(&name).ok_or_else(|| run_unknown(&name))?;
        if run.is_complete() {
            return Err(run_closed(&name));
        }
        if let Some(told) = restored_before(&name, run, &snapshot) {
            self.answer_restored(reply, told);
            return Ok(Outcome::Later);
        }
        stands(&name, run, &snapshot)?;
        check_history(&name, run, &snapshot, &request)?;
        let settings = run.spec.clone();
        if let Some(waiting) = self.restores.get_mut(&name) {
            let same = waiting.request == request && waiting.operator == operator;
            if !same || waiting.replies.len() >= REPLIES_MAX {
                let detail = format!("another restore of run {name} is under way; ask again");
                return Err(Refusal::new(Code::NoAnswer, detail));
            }
            waiting.replies.push(reply);
            return Ok(Outcome::Later);
        }
        self.no_collection()?;
        if self.restores.len() >= CHECKS_MAX {
            let detail = format!("{CHECKS_MAX} snapshots are being read back; ask again");
            return Err(Refusal::new(Code::NoAnswer, detail));
        }
        self.check_orders(&operator)?;
        let restoring = Restoring {
            operator,
            request,
            replies: vec![reply],
        };
        self.restores.insert(name, restoring);
        self.out.push(Effect::CheckSnapshot {
            spec: Box::new(settings),
            round: snapshot.round,
            manifest: snapshot.manifest,
        });
        Ok(Outcome::Later)
    }

    /// The snapshot that a request names, and its run.
    fn named(&self, request: &RestoreRequest) -> Result<(RunId, SnapshotRecord), Refusal> {
        if let Some(name) = &request.run {
            self.state.run(name).ok_or_else(|| run_unknown(name))?;
        }
        let wanted = &request.snapshot;
        let mut runs = self.state.runs();
        let found = runs.find_map(|(name, run)| Some((name, run.snapshot(wanted)?)));
        let unknown = |detail: String| Refusal::new(Code::SnapshotUnknown, detail);
        let (name, snapshot) =
            found.ok_or_else(|| unknown(format!("{wanted} is no full snapshot of any run")))?;
        match &request.run {
            Some(meant) if meant != name => Err(unknown(format!(
                "{wanted} is the snapshot of round {} of run {name}, not of run {meant}",
                snapshot.round
            ))),
            _ => Ok((name.clone(), snapshot.clone())),
        }
    }

    /// Takes the outcome of reading a snapshot back: restores it, or tells why not.
    pub(crate) fn snapshot_checked(&mut self, name: &RunId, verdict: Result<Weights, Refusal>) {
        // A verdict that was not asked for changes nothing.
        let Some(restoring) = self.restores.remove(name) else {
            return;
        };
        let replies = restoring.replies.clone();
        match verdict.and_then(|weights| self.restore_checked(name, restoring, weights)) {
            Ok(told) => {
                for reply in replies {
                    self.answer_restored(reply, told.clone());
                }
            }
            Err(refusal) => {
                for reply in replies {
                    self.reply(reply, Err(refusal.clone()));
                }
            }
        }
    }

    /// Restores a snapshot that was read back. The run may have changed meanwhile.
    fn restore_checked(
        &mut self,
        name: &RunId,
        restoring: Restoring,
        weights: Weights,
    ) -> Result<RestoreReply, Refusal> {
        if self.drain.is_some() {
            return Err(draining());
        }
        let Restoring {
            operator, request, ..
        } = restoring;
        let (_, snapshot) = self.named(&request)?;
        let run = self.state.run(name).ok_or_else(|| run_unknown(name))?;
        if run.is_complete() {
            return Err(run_closed(name));
        }
        stands(name, run, &snapshot)?;
        check_history(name, run, &snapshot, &request)?;
        let weights = Weights {
            round: run.version_restored(),
            ..weights
        };
        let form = run
            .spec
            .check_chunks(&weights.chunks, run.spec.download.kind);
        if weights.codec != run.spec.download || form.is_err() {
            let digest = request.snapshot;
            let detail = format!("snapshot {digest}: its weights for workers have another form");
            return Err(Refusal::new(Code::SnapshotUnsound, detail));
        }
        self.spend_order(&operator);
        let told = self.enter(name, |room, turn| {
            room.restore_snapshot(turn, operator, request.reason, &snapshot, weights)
        });
        Ok(told.expect("a run that is not complete has a room"))
    }

    /// Answers once the uploads of before are deleted. A repeated order deletes what came since, by
    /// URLs that were given out before.
    fn answer_restored(&mut self, reply: ReplyId, told: RestoreReply) {
        self.out.push(Effect::Purge {
            reply,
            run: told.run.clone(),
            uploads: Uploads::Before(told.version),
            stop: None,
            told: Box::new(Purging::Restore(told)),
        });
    }
}

/// The answer if the run stands at this snapshot since a restore, and nothing was sealed since.
fn restored_before(name: &RunId, run: &Run, snapshot: &SnapshotRecord) -> Option<RestoreReply> {
    let last = run.restored_last()?;
    let same = last.manifest == snapshot.manifest;
    // A restore takes one number.
    let from = Round(last.version.get() - 1);
    same.then(|| RestoreReply {
        v: V,
        run: name.clone(),
        manifest: last.manifest.digest,
        changed: false,
        since: last.since,
        snapshot: last.snapshot,
        from,
        version: last.version,
        undone: run.undone_of(from),
        leases: 0,
        contributions: 0,
        frozen: run.is_held(Hold::Merges),
        uploads: None,
    })
}

/// Refuses a snapshot whose objects were given up.
fn stands(name: &RunId, run: &Run, snapshot: &SnapshotRecord) -> Result<(), Refusal> {
    match run.snapshot_given_up(&snapshot.manifest.digest) {
        None => Ok(()),
        Some(by) => Err(given_up(name, snapshot.round, by.sequence)),
    }
}

/// A full snapshot cannot be had, since a collection gave it up.
pub(crate) fn given_up(name: &RunId, round: Round, event: ChainSequence) -> Refusal {
    let detail = format!(
        "the snapshot of round {round} of run {name} was given up by gc at event {event} of the ledger"
    );
    Refusal::new(Code::ObjectsGivenUp, detail)
}

/// Refuses a restore that the run's history forbids.
fn check_history(
    name: &RunId,
    run: &Run,
    snapshot: &SnapshotRecord,
    request: &RestoreRequest,
) -> Result<(), Refusal> {
    if run.restores.len() >= RESTORES_MAX {
        let detail = format!("run {name} was restored {RESTORES_MAX} times");
        return Err(Refusal::new(Code::RestoresFull, detail));
    }
    match request.force {
        true => Ok(()),
        false => check_descent(name, run, snapshot),
    }
}

/// Refuses a snapshot that has contributions of a worker in quarantine.
fn check_descent(name: &RunId, run: &Run, snapshot: &SnapshotRecord) -> Result<(), Refusal> {
    let found: Vec<&WorkerId> = run.quarantined_in(snapshot.round).collect();
    if found.is_empty() {
        return Ok(());
    }
    let clean = run.last_snapshot_without(run.quarantined.keys());
    Err(descends(name, snapshot.round, &found, clean))
}

/// A full snapshot has contributions of workers in quarantine; `clean` is one that has none, for
/// the same purpose.
pub(crate) fn descends(
    name: &RunId,
    round: Round,
    found: &[&WorkerId],
    clean: Option<&SnapshotRecord>,
) -> Refusal {
    let named = found.iter().take(NAMED_MAX);
    let named: Vec<String> = named.map(ToString::to_string).collect();
    let more = match found.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let clean = newest_clean(clean);
    let detail = format!(
        "the snapshot of round {round} of run {name} has contributions of {}{more}; {clean}",
        named.join(", ")
    );
    Refusal::new(Code::SnapshotDescends, detail)
}

/// Names the newest full snapshot without contributions of workers in quarantine.
pub(crate) fn newest_clean(clean: Option<&SnapshotRecord>) -> String {
    match clean {
        Some(clean) => format!(
            "the newest without any worker in quarantine is of round {}, {}",
            clean.round, clean.manifest.digest
        ),
        None => "no full snapshot is without the workers in quarantine".to_owned(),
    }
}
