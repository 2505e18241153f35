//! The end of leases by an operator's order, in their run.

use schemas::event::{LeaseEnd, LedgerEvent};
use schemas::hold::Reason;
use schemas::lease::LeaseRef;
use schemas::{Code, PublicKey, Refusal};

use crate::ending::is_held;
use crate::run::RunRoom;
use crate::turn::Turn;

impl RunRoom<'_> {
    /// Ends leases that are held. A check of a result under one of them counts no more, whatever it
    /// finds. Their holders stay members, and may claim again.
    pub(crate) fn end_leases(
        &mut self,
        turn: &mut Turn<'_>,
        operator: PublicKey,
        reason: Reason,
        leases: &[LeaseRef],
    ) {
        let ordered = LedgerEvent::LeasesEnded {
            operator,
            reason,
            leases: leases.len() as u32,
        };
        self.append(turn, ordered);
        for lease in leases.iter().copied() {
            // The end of one may have moved the run on.
            if !is_held(&self.run, &lease) {
                continue;
            }
            let check = self.live.lease(&lease.unit).screening;
            let detail = format!("lease {lease} was ended by an operator");
            self.drop_check(turn, check, &Refusal::new(Code::LeaseLost, detail));
            self.end_lease(turn, lease, LeaseEnd::Ordered);
        }
    }
}
