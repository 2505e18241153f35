//! Quarantine: the end of everything that a worker has in the run.

use schemas::event::LeaseEnd;
use schemas::foundry::{Order, ScreeningId};
use schemas::quarantine::QuarantineRequest;
use schemas::{PublicKey, Refusal};

use crate::quarantine::Ended;
use crate::run::RunRoom;
use crate::run::groups::sealed_seat;
use crate::turn::Turn;

impl RunRoom<'_> {
    /// Shuts a worker out. One event ends its membership, its lease and its contributions that no
    /// seal names yet; so no coordinator that dies leaves a part of them standing. A check of its
    /// result that is under way counts no more, whatever it finds.
    pub(crate) fn quarantine(
        &mut self,
        turn: &mut Turn<'_>,
        operator: PublicKey,
        request: &QuarantineRequest,
        refusal: &Refusal,
    ) -> Ended {
        let worker = &request.worker;
        let ended = Ended::of(&self.run, worker);
        let group = sealed_seat(&self.run, worker);
        self.append(turn, ended.event(operator, request));
        self.forget(turn, worker, refusal);
        if let Some(lease) = ended.lease {
            let held = self.live.end_lease(&lease.unit);
            self.drop_check(turn, held.screening, refusal);
            if !self.run.units.contains_key(&lease.unit) {
                self.settle(turn, &lease.unit);
            }
        }
        for lease in ended.lease.iter().chain(&ended.withdrawn).copied() {
            self.order(turn, Order::Unstage { lease });
        }
        // A result that it handed in under its key from before may still be checked.
        let earlier: Vec<_> = self.run.keys(worker).skip(1).cloned().collect();
        for key in earlier {
            let held = self.run.members.get(&key).and_then(|member| member.lease);
            if let Some(lease) = held {
                let check = self.live.lease(&lease.unit).screening;
                self.drop_check(turn, check, refusal);
                self.end_lease(turn, lease, LeaseEnd::Orphaned);
            }
        }
        if let Some(seat) = group {
            self.evict_group(turn, &seat, worker);
        }
        // This worker may have been the last one that had not failed a unit.
        self.judge_failures(turn);
        self.offer_open(turn);
        // The run may have waited only for its lease.
        self.advance(turn);
        ended
    }

    /// Ends the check of a result, if one runs: it counts no more, whatever it finds.
    pub(crate) fn drop_check(
        &mut self,
        turn: &mut Turn<'_>,
        check: Option<ScreeningId>,
        refusal: &Refusal,
    ) {
        let Some(check) = check else {
            return;
        };
        turn.screenings.end(self.run.name(), check);
        let result = self.live.screenings.remove(&check);
        let result = result.expect("a lease names only a check that runs");
        for reply in result.replies() {
            turn.reply(reply, Err(refusal.clone()));
        }
    }
}
