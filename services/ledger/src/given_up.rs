//! Collections: the fold of their events, and the rules of what may be given up.
//!
//! What goes follows from one number and the state, so an auditor derives the same: everything of
//! rounds before `through`, except the snapshots to which a pointer leads. `through` is the version
//! of a full snapshot that is kept, so weights can be restored and merges recomputed from there on.

use std::collections::BTreeSet;

use schemas::collection::COLLECTIONS_MAX;
use schemas::hold::Reason;
use schemas::{ChainSequence, Digest, PublicKey, Round, UnixMillis};
use serde::Serialize;

use crate::error::{ApplyError, out_of_place};
use crate::state::Run;

/// A collection of old objects.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GivenUp {
    /// Its event's position in the chain.
    pub sequence: ChainSequence,
    /// The time of the order.
    pub since: UnixMillis,
    /// Contributions to earlier rounds are given up, and the weights for them.
    pub through: Round,
    /// The manifests of the full snapshots that this collection gave up, ascending.
    pub snapshots: Vec<Digest>,
    /// The operator who ordered it.
    pub operator: PublicKey,
    /// The operator's reason.
    pub reason: Reason,
}

impl Run {
    /// The round before which objects go if the newest `keep` full snapshots on the way to the
    /// present weights are kept, but at least one; round 0 if there are fewer.
    pub fn keeps_from(&self, keep: u32) -> Round {
        let mut seen = BTreeSet::new();
        let newest = self.snapshots.iter().rev();
        // A restore lists the same snapshot once more.
        let mut kept =
            newest.filter(|one| self.leads_from(one.round) && seen.insert(one.manifest.digest));
        let oldest = kept.nth(keep.max(1) as usize - 1);
        let from = oldest.map_or(Round(0), |oldest| oldest.round);
        from.max(self.given_up_before())
    }

    /// The round before which objects were given up; round 0 before the first collection.
    pub fn given_up_before(&self) -> Round {
        self.given_up.last().map_or(Round(0), |last| last.through)
    }

    /// The collection that gave up the objects of a round.
    pub fn round_given_up(&self, round: Round) -> Option<&GivenUp> {
        self.given_up.iter().find(|one| round < one.through)
    }

    /// The collection that gave up a full snapshot.
    pub fn snapshot_given_up(&self, manifest: &Digest) -> Option<&GivenUp> {
        let gone = |one: &&GivenUp| one.snapshots.binary_search(manifest).is_ok();
        self.given_up.iter().find(gone)
    }

    /// The full snapshots that a collection up to this round gives up, besides those that are gone.
    pub fn snapshots_going(&self, through: Round) -> BTreeSet<Digest> {
        let stays = |one: &&crate::SnapshotRecord| one.round >= through;
        let kept = self.snapshots.iter().filter(stays);
        let kept = kept.map(|one| one.manifest.digest);
        let promoted = self.pointers.values().map(|pointer| pointer.manifest);
        let kept: BTreeSet<Digest> = kept.chain(promoted).collect();
        let all = self.snapshots.iter().map(|one| one.manifest.digest);
        let gone = |manifest: &Digest| self.snapshot_given_up(manifest).is_some();
        all.filter(|one| !kept.contains(one) && !gone(one))
            .collect()
    }

    /// True if the run's state keeps no further collection.
    pub fn collections_full(&self) -> bool {
        self.given_up.len() >= COLLECTIONS_MAX
    }

    /// True if a collection up to this round gives up anything, and may.
    pub fn may_give_up(&self, through: Round) -> bool {
        let goes = through > self.given_up_before()
            || (through == self.given_up_before() && !self.snapshots_going(through).is_empty());
        // From the newest snapshot on everything is needed to come to the present weights.
        goes && through <= self.saved_version() && !self.collections_full()
    }

    /// A collection that gives up nothing is not written, so it is out of place.
    pub(crate) fn give_up(&mut self, record: GivenUp, snapshots: u32) -> Result<(), ApplyError> {
        let through = record.through;
        let going = self.snapshots_going(through);
        if !self.may_give_up(through) || going.len() != snapshots as usize {
            let what = format!("{snapshots} snapshots and all before round {through}");
            return Err(out_of_place("objects-given-up", what));
        }
        let snapshots = going.into_iter().collect();
        self.given_up.push(GivenUp {
            snapshots,
            ..record
        });
        Ok(())
    }

    /// Checks that what was given up does not contradict what is needed.
    pub(crate) fn check_given_up(&self) -> Result<(), String> {
        let mut before = Round(0);
        for one in &self.given_up {
            if one.through < before || !one.snapshots.is_sorted_by(|a, b| a < b) {
                let through = one.through;
                return Err(format!(
                    "all before round {through} was given up, before that {before}"
                ));
            }
            before = one.through;
        }
        let last = self.last_snapshot();
        let gone = last.and_then(|last| self.snapshot_given_up(&last.manifest.digest));
        if before > self.saved_version() || gone.is_some() {
            return Err(format!(
                "what the weights come from was given up, before round {before}"
            ));
        }
        Ok(())
    }
}
