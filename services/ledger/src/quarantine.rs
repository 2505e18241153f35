//! Quarantine of workers: the fold of its events, and where the contributions of a worker are.

use std::collections::BTreeSet;

use schemas::hold::Reason;
use schemas::lease::{LeaseRef, UnitId};
use schemas::quarantine::{MergedRounds, QUARANTINED_MAX};
use schemas::snapshot::MergeInput;
use schemas::{Fragment, PublicKey, Round, SyncId, UnixMillis, Weight, WorkerId};
use serde::Serialize;

use crate::error::{ApplyError, out_of_place};
use crate::state::{OpenSync, RoundRecord, Run, SnapshotRecord, Standing};

/// A quarantine that stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QuarantineRecord {
    /// The operator who ordered it.
    pub operator: PublicKey,
    /// The operator's reason.
    pub reason: Reason,
    /// The time of the order.
    pub since: UnixMillis,
}

impl Run {
    /// True while operators shut this worker out.
    pub fn is_quarantined(&self, worker: &WorkerId) -> bool {
        self.quarantined.contains_key(worker)
    }

    /// The contributions of a worker, under this key and those from before, that a quarantine
    /// withdraws: those to open rounds of which no seal has begun, in any fragment. What a seal
    /// names is merged.
    pub fn withdrawable(&self, worker: &WorkerId) -> Vec<LeaseRef> {
        // A fragment that is merged is open no more.
        let collects = |round: Round, fragment: Fragment| {
            let open = self.open.get(&SyncId { round, fragment });
            open.is_some_and(OpenSync::collects)
        };
        let unsealed = |round: Round| {
            let mut fragments = self.spec.fragments();
            fragments.all(|fragment| collects(round, fragment))
        };
        let rounds = self.open_rounds().filter(|round| unsealed(*round));
        let inputs = rounds.filter_map(|round| self.syncs(round).next());
        let inputs = inputs.flat_map(|(_, open)| open.inputs());
        let own = inputs.filter(|input| self.is_key_of(&input.worker, worker));
        own.map(|input| input.lease).collect()
    }

    /// Open rounds whose sealed set, or the part of it that is named, has a contribution of a
    /// worker that weighs something.
    pub fn sealed_with(&self, worker: &WorkerId) -> BTreeSet<Round> {
        let own =
            |input: &MergeInput| input.weight > Weight(0) && self.is_key_of(&input.worker, worker);
        let open = self.open.iter();
        open.filter(|(_, open)| !open.collects() && open.inputs().any(own))
            .map(|(sync, _)| sync.round)
            .collect()
    }

    /// The newest full snapshot that no contribution of these workers is part of.
    pub fn last_snapshot_without<'s, 'a>(
        &'s self,
        workers: impl Iterator<Item = &'a WorkerId>,
    ) -> Option<&'s SnapshotRecord> {
        let makers = self.makers_of_snapshots(workers);
        let mut newest = self.snapshots.iter().zip(makers).rev();
        let without = |(snapshot, makers): (&'s SnapshotRecord, u32)| {
            let kept = self.snapshot_given_up(&snapshot.manifest.digest).is_none();
            (makers == 0 && kept).then_some(snapshot)
        };
        newest.find_map(without)
    }

    /// The workers in quarantine whose contributions are part of a version of the weights,
    /// ascending.
    pub fn quarantined_in(&self, version: Round) -> impl Iterator<Item = &WorkerId> {
        let shut = self.quarantined.keys();
        shut.filter(move |worker| self.merged_into(worker, version).is_some())
    }

    /// The other keys of the holder of this key that are in quarantine as well, ascending: those
    /// that it had before, and those that it has had since.
    pub fn other_keys_shut_out<'a>(
        &'a self,
        worker: &'a WorkerId,
    ) -> impl Iterator<Item = &'a WorkerId> {
        let first = self.keys(worker).last();
        let shut = self.quarantined.keys();
        shut.filter(move |key| *key != worker && self.keys(key).last() == first)
    }

    fn is_key_of(&self, key: &WorkerId, worker: &WorkerId) -> bool {
        self.keys(worker).any(|own| own == key)
    }

    /// Shuts a worker out, with everything that this ends. `lease` and `withdrawn` are what the
    /// event says that it ends; an event that says otherwise than the state does not follow.
    pub(crate) fn quarantine(
        &mut self,
        worker: &WorkerId,
        record: QuarantineRecord,
        lease: Option<LeaseRef>,
        withdrawn: u32,
    ) -> Result<(), ApplyError> {
        let event = "worker-quarantined";
        let held = self.members.get(worker).and_then(|member| member.lease);
        let contributions = self.withdrawable(worker);
        let agrees = held == lease && contributions.len() as u64 == u64::from(withdrawn);
        let full = self.quarantined.len() >= QUARANTINED_MAX;
        if self.is_quarantined(worker) || full || !agrees {
            let what = format!(
                "quarantine of {worker} that ends lease {lease:?} and {withdrawn} contributions"
            );
            return Err(out_of_place(event, what));
        }
        if let Some(lease) = lease {
            self.release(event, &lease, worker)?;
            self.tokens.abandoned += self.unit_tokens(&lease.unit);
        }
        for contribution in contributions {
            self.withdraw(&contribution.unit, worker);
        }
        if let Some(member) = self.members.get_mut(worker).filter(|member| member.present) {
            member.present = false;
            member.since = record.since;
        }
        self.quarantined.insert(worker.clone(), record);
        Ok(())
    }

    pub(crate) fn readmit(&mut self, worker: &WorkerId) -> Result<(), ApplyError> {
        let lifted = self.quarantined.remove(worker);
        let missing = || {
            let what = format!("the end of a quarantine of {worker}");
            out_of_place("worker-readmitted", what)
        };
        lifted.map(|_| ()).ok_or_else(missing)
    }

    /// Takes back that a contribution counts, and opens its unit again: the next grant has the next
    /// epoch.
    fn withdraw(&mut self, unit: &UnitId, worker: &WorkerId) {
        let of_round = self.open.iter_mut();
        for (_, open) in of_round.filter(|(sync, _)| sync.round == unit.round) {
            if let OpenSync::Collecting(inputs) = open {
                inputs.remove(&unit.index);
                // The others were compared with it.
                for input in inputs.values_mut() {
                    input.cosine = None;
                }
            }
        }
        let found = self.units.get_mut(unit);
        let found = found.expect("a unit whose contribution counts is in the state");
        found.standing = Standing::Open;
        found.failed_by = Some(worker.clone());
        self.accepted.remove(unit);
        let tokens = self.unit_tokens(unit);
        self.tokens.merged = self.tokens.merged - tokens;
        self.tokens.rejected += tokens;
        let loss = self.measured.remove(unit).map(|found| found.loss);
        let record = self.rounds.get_mut(unit.round.get() as usize);
        let record = record.expect("a round that is open has a record");
        let before = record.tokens.get() as f64;
        record.tokens = record.tokens - tokens;
        record.loss_sum = match loss {
            _ if record.tokens.get() == 0 => RoundRecord::default().loss_sum,
            Some(loss) => record.loss_sum - loss * tokens.get() as f64,
            // A run that does not compare keeps no losses one by one: the mean stays.
            None => record.loss_sum * (record.tokens.get() as f64 / before),
        };
    }

    /// Notes whose contributions a merged round has. Those that weigh nothing are left out.
    pub(crate) fn note_merged(&mut self, round: Round, inputs: &[MergeInput]) {
        for input in inputs.iter().filter(|input| input.weight > Weight(0)) {
            self.count(&input.worker, |member| {
                let merged = member.merged.get_or_insert(MergedRounds {
                    first: round,
                    last: round,
                    rounds: 0,
                });
                // A round of several fragments, or with several of its units, is one round.
                merged.rounds += u64::from(merged.rounds == 0 || merged.last < round);
                merged.last = merged.last.max(round);
            });
        }
    }
}
