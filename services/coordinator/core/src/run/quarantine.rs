//! Quarantine: the end of everything that a worker has in the run.

use schemas::foundry::Order;
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
            if let Some(screening) = held.screening {
                turn.screenings.end(self.run.name(), screening);
                let result = self.live.screenings.remove(&screening);
                let result = result.expect("a lease names only a check that runs");
                for reply in result.replies() {
                    turn.reply(reply, Err(refusal.clone()));
                }
            }
            if !self.run.units.contains_key(&lease.unit) {
                self.settle(turn, &lease.unit);
            }
        }
        for lease in ended.lease.iter().chain(&ended.withdrawn).copied() {
            self.order(turn, Order::Unstage { lease });
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
}
