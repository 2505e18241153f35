//! Pointers to full snapshots: the fold of promotions.

use std::collections::BTreeSet;

use schemas::promotion::{POINTERS_MAX, PointerName};
use schemas::{ChainSequence, Digest, Round, WorkerId};

use crate::error::{ApplyError, out_of_place};
use crate::state::{PointerRecord, Run, SnapshotRecord};

/// The reason why a pointer cannot be moved to a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unpromotable {
    /// The run has no full snapshot with this manifest.
    Unknown,
    /// The objects of the snapshot, which is of this round, were given up by this event.
    GivenUp(Round, ChainSequence),
    /// The ledger names no statement about the snapshot.
    Unattested,
    /// The pointer would be one more than a run may have.
    Full,
}

impl Run {
    /// The full snapshot to which `pointer` may be moved. Holds are looked at elsewhere.
    ///
    /// # Errors
    /// The reason why it may not.
    pub fn promotable(
        &self,
        pointer: &PointerName,
        manifest: Digest,
    ) -> Result<&SnapshotRecord, Unpromotable> {
        let mut snapshots = self.snapshots.iter();
        let found = snapshots.find(|snapshot| snapshot.manifest.digest == manifest);
        let snapshot = found.ok_or(Unpromotable::Unknown)?;
        if let Some(given_up) = self.snapshot_given_up(&manifest) {
            return Err(Unpromotable::GivenUp(snapshot.round, given_up.sequence));
        }
        if !self.statements.contains_key(&snapshot.round) {
            return Err(Unpromotable::Unattested);
        }
        if self.pointers.len() >= POINTERS_MAX && !self.pointers.contains_key(pointer) {
            return Err(Unpromotable::Full);
        }
        Ok(snapshot)
    }

    /// The newest full snapshot to which `pointer` may be moved and that has no contribution of a
    /// worker in quarantine.
    pub fn last_promotable(&self, pointer: &PointerName) -> Option<&SnapshotRecord> {
        let makers = self.makers_of_snapshots(self.quarantined.keys());
        let listed = self.snapshots.iter().zip(makers);
        let mut newest = listed.rev().filter(|(_, makers)| *makers == 0);
        newest.find_map(|(one, _)| self.promotable(pointer, one.manifest.digest).ok())
    }

    /// A promotion that moves nothing is not written, so it is out of place. One that does not name
    /// all workers in quarantine with contributions in the snapshot, or names others, is as well.
    pub(crate) fn promote(
        &mut self,
        pointer: &PointerName,
        record: PointerRecord,
        accepted: &[WorkerId],
    ) -> Result<(), ApplyError> {
        let snapshot = self.promotable(pointer, record.manifest);
        let right = snapshot.is_ok_and(|snapshot| snapshot.round == record.round);
        let moves = self.pointers.get(pointer);
        let moves = moves.is_none_or(|there| there.manifest != record.manifest);
        let named = self.quarantined_in(record.round).eq(accepted);
        if !right || !moves || !named {
            let what = format!("pointer {pointer} to snapshot {}", record.round);
            return Err(out_of_place("snapshot-promoted", what));
        }
        self.pointers.insert(pointer.clone(), record);
        Ok(())
    }

    /// The first pointer that leads to no full snapshot.
    pub(crate) fn check_pointers(&self) -> Result<(), String> {
        for (name, record) in &self.pointers {
            let leads = self.promotable(name, record.manifest);
            if leads.is_ok_and(|snapshot| snapshot.round == record.round) {
                continue;
            }
            let round = record.round;
            return Err(format!(
                "pointer {name} leads to no snapshot of round {round}"
            ));
        }
        let saved: BTreeSet<Round> = self.snapshots.iter().map(|one| one.round).collect();
        match self.statements.keys().find(|round| !saved.contains(round)) {
            Some(round) => Err(format!("a statement about no snapshot of round {round}")),
            None => Ok(()),
        }
    }
}
