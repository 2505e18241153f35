//! Restore: the end of everything that is under way, and the way back to a full snapshot.

use ledger::SnapshotRecord;
use schemas::event::LedgerEvent;
use schemas::foundry::Order;
use schemas::hold::{Hold, Reason};
use schemas::lease::{LeaseRef, UnitId, Weights};
use schemas::restore::RestoreReply;
use schemas::{Code, PublicKey, Refusal, V};

use crate::run::RunRoom;
use crate::run::live::{Foundry, WeightsTask};
use crate::run::masking::Agreement;
use crate::turn::Turn;

impl RunRoom<'_> {
    /// Leads the run back, and freezes it if nobody has. One event ends every lease and the open
    /// round and names the new weights, so no coordinator that dies leaves the order half done. The
    /// foundry gets them from the snapshot like at a start, and whatever it does for the old ones
    /// counts no more. A run that is halted goes on: the restored weights are others.
    pub(crate) fn restore_snapshot(
        &mut self,
        turn: &mut Turn<'_>,
        operator: PublicKey,
        reason: Reason,
        snapshot: &SnapshotRecord,
        weights: Weights,
    ) -> RestoreReply {
        if !self.run.is_held(Hold::Merges) {
            let placed = LedgerEvent::HoldPlaced {
                hold: Hold::Merges,
                operator: operator.clone(),
                reason: reason.clone(),
            };
            self.append(turn, placed);
        }
        let leases: Vec<LeaseRef> = self.run.leases().map(|(lease, ..)| lease).collect();
        let dropped: Vec<LeaseRef> = self.run.inputs_open().map(|input| input.lease).collect();
        let (from, version) = (self.run.rounds_closed(), weights.round);
        let restored = LedgerEvent::SnapshotRestored {
            snapshot: snapshot.round,
            manifest: snapshot.manifest,
            from,
            weights,
            operator,
            reason,
            leases: leases.len() as u32,
            contributions: dropped.len() as u32,
        };
        self.append(turn, restored);
        for lease in &leases {
            self.drop_lease(turn, *lease);
        }
        for lease in leases.iter().chain(&dropped).copied() {
            self.order(turn, Order::Unstage { lease });
        }
        let offered = self.live.offers.keys().copied();
        let gone: Vec<UnitId> = offered.filter(|unit| unit.round < version).collect();
        for unit in gone {
            self.settle(turn, &unit);
        }
        self.live.agreement = Agreement::default();
        self.live.failures.clear();
        self.live.failed_in_a_row = 0;
        // A restore that is under way ends first, and its outcome means nothing.
        let restores = self.live.foundry.task == Some(WeightsTask::Restore);
        self.live.foundry = Foundry {
            task: restores.then_some(WeightsTask::Restore),
            outdated: restores,
            ..Foundry::default()
        };
        self.advance(turn);
        RestoreReply {
            v: V,
            run: self.run.name().clone(),
            manifest: snapshot.manifest.digest,
            changed: true,
            since: turn.now,
            snapshot: snapshot.round,
            from,
            version,
            undone: self.run.undone_of(from),
            leases: leases.len() as u32,
            contributions: dropped.len() as u32,
            frozen: true,
            uploads: None,
        }
    }

    /// Drops everything that was kept for a lease that ended with the restore.
    fn drop_lease(&mut self, turn: &mut Turn<'_>, lease: LeaseRef) {
        let held = self.live.end_lease(&lease.unit);
        if let Some(screening) = held.screening {
            turn.screenings.end(self.run.name(), screening);
            let result = self.live.screenings.remove(&screening);
            let result = result.expect("a lease names only a check that runs");
            let detail = format!("lease {lease} ended with the restore of a snapshot");
            for reply in result.replies() {
                turn.reply(reply, Err(Refusal::new(Code::LeaseLost, detail.clone())));
            }
        }
    }
}
