//! Collection: an operator has the objects of a run's old rounds deleted, or is told which.
//!
//! The ledger names what is given up before the store loses anything. The other order would leave a
//! gap that looks like damage, if this process died between the two. If it dies after the event,
//! some of these objects are left; the same order finds and deletes them later.
//!
//! Two runs, or two rounds, may need the same bytes, and other work goes on meanwhile. So from the
//! order on the store keeps every object that is written, and what is being written at that moment
//! is waited for before anything is looked at: until it is in the ledger, nobody knows that it is
//! needed. Orders of operators that begin to need objects which are in the store already wait until
//! a collection is over.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ledger::{Named, Needed, Plan};
use schemas::collection::{CollectReply, CollectRequest};
use schemas::event::LedgerEvent;
use schemas::hold::Hold;
use schemas::text::Time;
use schemas::{
    ChainSequence, Code, Digest, Millis, ObjectRef, PublicKey, Refusal, Round, RunId, SyncId,
    UnixMillis, V,
};

use crate::control::ControlOutcome;
use crate::coordinator::{Coordinator, draining, run_unknown};
use crate::effect::{Answer, Collect, Effect};
use crate::input::{ReplyId, ScreeningId};
use crate::run::live::WeightsTask;
use crate::turn::Outcome;

/// Most requests that wait for one collection. One that is repeated meanwhile waits too.
const REPLIES_MAX: usize = 16;

/// Time for which a committed object is kept although no run names it: a person imports data, looks
/// at what came of it, and creates a run.
const COMMITTED_FOR: Millis = Millis::from_secs(24 * 3600);
/// Most of them: two of the largest data sets. Of more, the newest are not kept.
const COMMITTED_MAX: usize = 1 << 17;

/// The collection under way.
#[derive(Debug)]
pub(crate) struct Collection {
    operator: PublicKey,
    request: CollectRequest,
    pub(crate) replies: Vec<ReplyId>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// What was being written when it began, and is not in the ledger yet.
    Waiting(BTreeSet<Writing>),
    /// The store and the ledger are looked at; before this round objects go, and these snapshots.
    Looking(Round, BTreeSet<Digest>),
    /// The store deletes; this is the answer when it has.
    Deleting(Box<CollectReply>),
}

/// Objects that operators have committed lately. No run names them yet, and where the same bytes
/// were part of an old round too, a collection would delete them before `run new`. It is kept in
/// memory.
#[derive(Debug, Default)]
pub(crate) struct Committed(BTreeMap<Digest, (ObjectRef, UnixMillis)>);

impl Committed {
    fn note(&mut self, now: UnixMillis, objects: &[ObjectRef]) {
        if self.0.len() + objects.len() > COMMITTED_MAX {
            self.0.retain(|_, (_, until)| *until > now);
        }
        let until = now.after(COMMITTED_FOR);
        for object in objects {
            if self.0.len() < COMMITTED_MAX || self.0.contains_key(&object.digest) {
                self.0.insert(object.digest, (*object, until));
            }
        }
    }

    /// Those that are kept now.
    fn at(&self, now: UnixMillis) -> Vec<ObjectRef> {
        let kept = self.0.values().filter(|(_, until)| *until > now);
        kept.map(|(object, _)| *object).collect()
    }
}

/// Work of a foundry that writes objects which an event will name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Writing {
    Merge(RunId, SyncId),
    Save(RunId, Round),
    Screen(RunId, ScreeningId),
}

impl Collection {
    fn refusal(&self) -> Refusal {
        let run = &self.request.run;
        let detail = format!("old objects of run {run} are being collected; ask again");
        Refusal::new(Code::NoAnswer, detail)
    }
}

impl Coordinator {
    /// Begins a collection, unless the order cannot be carried out.
    pub(crate) fn collect(
        &mut self,
        operator: PublicKey,
        request: CollectRequest,
        reply: ReplyId,
    ) -> ControlOutcome {
        if self.drain.is_some() {
            return Err(draining());
        }
        if let Some(under_way) = &mut self.collection {
            let same = under_way.request == request && under_way.operator == operator;
            if same && under_way.replies.len() < REPLIES_MAX {
                under_way.replies.push(reply);
                return Ok(Outcome::Later);
            }
        }
        if let Some(under_way) = &self.collection {
            return Err(under_way.refusal());
        }
        self.collectable(&request)?;
        if request.delete.is_some() && !request.store_is_ours {
            let detail = format!("an order to delete old objects of run {}", request.run);
            return Err(Refusal::new(Code::StoreNotOurs, detail));
        }
        let mut writing = BTreeSet::new();
        if request.delete.is_some() {
            self.check_orders(&operator)?;
            let waits = [self.checks.len(), self.restores.len(), self.commits.len()];
            if waits.iter().sum::<usize>() > 0 {
                let detail = "orders of operators that name objects are under way; ask again";
                return Err(Refusal::new(Code::NoAnswer, detail));
            }
            writing = self.writing();
            self.out.push(Effect::Collect(Collect::KeepWritten));
        }
        self.collection = Some(Collection {
            operator,
            request,
            replies: vec![reply],
            stage: Stage::Waiting(writing),
        });
        Ok(Outcome::Later)
    }

    /// Refuses an order that begins to need objects, while a collection may delete them. One that
    /// only tells deletes nothing.
    pub(crate) fn no_collection(&self) -> Result<(), Refusal> {
        let deletes = |one: &&Collection| one.request.delete.is_some();
        match self.collection.as_ref().filter(deletes) {
            None => Ok(()),
            Some(under_way) => Err(under_way.refusal()),
        }
    }

    /// Refuses an order for a run that is unknown, or of which nothing may be deleted now.
    fn collectable(&self, request: &CollectRequest) -> Result<(), Refusal> {
        let name = &request.run;
        let run = self.state.run(name).ok_or_else(|| run_unknown(name))?;
        match run.holds.get(&Hold::Merges) {
            Some(hold) if request.delete.is_some() => {
                let (operator, since) = (&hold.operator, Time(hold.since));
                let detail = format!("run {name} was frozen by {operator} at {since}");
                Err(Refusal::new(Code::RunFrozen, detail))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The work of all foundries that writes objects now.
    fn writing(&self) -> BTreeSet<Writing> {
        let mut writing = BTreeSet::new();
        for (name, live) in &self.live {
            let named = || name.clone();
            if let Some(WeightsTask::Merge(sync)) = live.foundry.task {
                writing.insert(Writing::Merge(named(), sync));
            }
            let saving = live.foundry.saving;
            writing.extend(saving.map(|round| Writing::Save(named(), round)));
            let screenings = live.screenings.keys();
            writing.extend(screenings.map(|one| Writing::Screen(named(), *one)));
        }
        writing
    }

    /// Looks at store and ledger once nothing is being written that was when the collection began.
    pub(crate) fn collect_on(&mut self) {
        let now = match &self.collection {
            Some(Collection {
                stage: Stage::Waiting(writing),
                ..
            }) if !writing.is_empty() => self.writing(),
            Some(_) => BTreeSet::new(),
            None => return,
        };
        let collection = self.collection.as_mut().expect("it was there just now");
        let Stage::Waiting(writing) = &mut collection.stage else {
            return;
        };
        writing.retain(|one| now.contains(one));
        if !writing.is_empty() {
            return;
        }
        let request = &collection.request;
        let run = self.state.run(&request.run);
        let run = run.expect("a run that was there stays in the state");
        let through = run.keeps_from(request.keep);
        collection.stage = Stage::Looking(through, run.snapshots_going(through));
        let committed = self.committed.at(self.now);
        // A frozen run keeps the outcome of a merge that no event names yet.
        let merged = self
            .live
            .values()
            .filter_map(|live| live.foundry.merged.as_ref());
        self.out.push(Effect::Collect(Collect::Look {
            state: Arc::new(self.state.clone()),
            run: request.run.clone(),
            through,
            needed: merged
                .map(|(_, merged)| Named::Chunks(merged.broadcast.chunks.clone()))
                .chain(committed.into_iter().map(Named::Plain))
                .map(Needed::by_all)
                .collect(),
        }));
    }

    /// Takes the objects that the mark leaves to go: answers, or names them as given up.
    pub(crate) fn looked(&mut self, outcome: Result<Plan, Refusal>) {
        // An outcome that was not asked for changes nothing.
        let Some(Collection {
            stage: Stage::Looking(through, going),
            request,
            ..
        }) = &self.collection
        else {
            return;
        };
        let (looked, request) = ((*through, going.clone()), request.clone());
        match outcome.and_then(|plan| self.give_up(&request, looked, plan)) {
            Ok(Some(reply)) => self.end_collection(Ok(reply)),
            // The store deletes first.
            Ok(None) => {}
            Err(refusal) => self.end_collection(Err(refusal)),
        }
    }

    /// Writes that the objects are given up, and has them deleted. Returns the answer if there is
    /// nothing to delete.
    fn give_up(
        &mut self,
        request: &CollectRequest,
        (through, looked): (Round, BTreeSet<Digest>),
        plan: Plan,
    ) -> Result<Option<CollectReply>, Refusal> {
        let name = &request.run;
        let run = self.state.run(name).ok_or_else(|| run_unknown(name))?;
        let going = looked.len() as u32;
        let reply = CollectReply {
            v: V,
            run: name.clone(),
            through,
            contributions: plan.contributions,
            weights: plan.weights,
            snapshots: plan.snapshots,
            snapshots_given_up: going,
            event: None,
            deleted: None,
        };
        let Some(reason) = request.delete.clone() else {
            return Ok(Some(reply));
        };
        if self.drain.is_some() {
            return Err(draining());
        }
        // The run may have changed meanwhile: it may be frozen, or a pointer lead elsewhere.
        self.collectable(request)?;
        if run.snapshots_going(through) != looked {
            let detail = format!("a pointer of run {name} was moved meanwhile; ask again");
            return Err(Refusal::new(Code::NoAnswer, detail));
        }
        if plan.objects.is_empty() {
            let deleted = Some(0);
            return Ok(Some(CollectReply { deleted, ..reply }));
        }
        if run.collections_full() {
            let detail = format!("run {name}");
            return Err(Refusal::new(Code::CollectionsFull, detail));
        }
        let last = run.given_up.last().map(|last| last.sequence);
        // A process may have died after the event, and left objects that it names.
        let event = match run.may_give_up(through) {
            true => Some(self.name_given_up(name, through, going, reason, &plan)),
            false => last,
        };
        let reply = CollectReply { event, ..reply };
        let collection = self.collection.as_mut();
        let collection = collection.expect("a collection looks, and goes on");
        collection.stage = Stage::Deleting(Box::new(reply));
        let groups = plan.in_order();
        self.out.push(Effect::Collect(Collect::Delete { groups }));
        Ok(None)
    }

    fn name_given_up(
        &mut self,
        name: &RunId,
        through: Round,
        snapshots: u32,
        reason: schemas::hold::Reason,
        plan: &Plan,
    ) -> ChainSequence {
        let collection = self.collection.as_ref();
        let operator = collection.expect("a collection gives up").operator.clone();
        self.spend_order(&operator);
        let sequence = ChainSequence(self.state.events());
        let event = LedgerEvent::ObjectsGivenUp {
            through,
            snapshots,
            objects: plan.objects.len() as u64,
            bytes: plan.bytes(),
            list: plan.list(),
            operator,
            reason,
        };
        self.append(Some(name), event);
        sequence
    }

    /// Takes the number of objects that the store has deleted.
    pub(crate) fn collected(&mut self, outcome: Result<u64, Refusal>) {
        // An outcome that was not asked for changes nothing.
        let Some(Collection {
            stage: Stage::Deleting(reply),
            ..
        }) = &self.collection
        else {
            return;
        };
        let reply = CollectReply::clone(reply);
        let told = outcome.map(|deleted| CollectReply {
            deleted: Some(deleted),
            ..reply
        });
        self.end_collection(told);
    }

    /// Keeps what an operator commits from collections for a time.
    pub(crate) fn keep_committed(&mut self, objects: &[ObjectRef]) {
        self.committed.note(self.now, objects);
    }

    fn end_collection(&mut self, told: Result<CollectReply, Refusal>) {
        let collection = self.collection.take();
        let collection = collection.expect("the collection that ends is under way");
        if collection.request.delete.is_some() {
            self.out.push(Effect::Collect(Collect::End));
        }
        let told = told.map(|reply| Answer::Collect(Box::new(reply)));
        for reply in collection.replies {
            self.reply(reply, told.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use schemas::Bytes;

    use super::*;

    fn object(number: usize) -> ObjectRef {
        ObjectRef {
            digest: Digest::of(&number.to_le_bytes()),
            bytes: Bytes(1),
        }
    }

    #[test]
    fn committed_objects_are_kept_for_a_day_and_not_too_many() {
        let mut committed = Committed::default();
        let begun = UnixMillis(1000);
        committed.note(begun, &[object(0), object(1)]);
        let later = begun.after(Millis(1));
        committed.note(later, &[object(1)]);
        let end = begun.after(COMMITTED_FOR);
        assert_eq!(committed.at(UnixMillis(end.get() - 1)).len(), 2);
        assert_eq!(committed.at(end), [object(1)], "it was committed again");
        let many: Vec<_> = (2..COMMITTED_MAX).map(object).collect();
        committed.note(later, &many);
        committed.note(later, &[object(COMMITTED_MAX), object(1)]);
        assert_eq!(committed.0.len(), COMMITTED_MAX, "no room");
        committed.note(end, &[object(COMMITTED_MAX), object(COMMITTED_MAX + 1)]);
        let kept = committed.at(end);
        assert!(kept.contains(&object(COMMITTED_MAX)) && !kept.contains(&object(0)));
        assert_eq!(committed.0.len(), COMMITTED_MAX);
    }
}
