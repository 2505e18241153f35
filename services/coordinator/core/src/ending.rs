//! The end of leases by an operator's order.

use std::collections::BTreeSet;

use ledger::Run;
use schemas::ending::{LEASES_ENDED_MAX, LeasesEndReply, LeasesEndRequest};
use schemas::lease::LeaseRef;
use schemas::{Code, PublicKey, Refusal, V};

use crate::control::ControlOutcome;
use crate::coordinator::{Coordinator, run_unknown};
use crate::effect::Answer;
use crate::turn::Outcome;

impl Coordinator {
    /// Ends leases of a run: their units are open again under their next epochs, and no result
    /// under the ended ones counts. Those that are over already are named in the answer, and an
    /// order that ends none is not written.
    pub(crate) fn end_leases(
        &mut self,
        operator: PublicKey,
        request: LeasesEndRequest,
    ) -> ControlOutcome {
        let LeasesEndRequest {
            run: name,
            leases,
            reason,
            ..
        } = request;
        let run = self.state.run(&name).ok_or_else(|| run_unknown(&name))?;
        if !(1..=LEASES_ENDED_MAX).contains(&leases.len()) {
            let count = leases.len();
            let detail = format!("{count} leases in one order, expected 1 to {LEASES_ENDED_MAX}");
            return Err(Refusal::new(Code::MessageInvalid, detail));
        }
        let named: BTreeSet<LeaseRef> = leases.into_iter().collect();
        let (ended, over): (Vec<_>, Vec<_>) =
            named.into_iter().partition(|lease| is_held(run, lease));
        if !ended.is_empty() {
            self.check_orders(&operator)?;
            self.spend_order(&operator);
            let in_room = self.enter(&name, |room, turn| {
                room.end_leases(turn, operator, reason, &ended);
            });
            in_room.expect("a run in which leases are held is not complete");
        }
        let reply = LeasesEndReply { v: V, ended, over };
        Ok(Outcome::Now(Answer::LeasesEnd(reply)))
    }
}

/// True while somebody holds this lease.
pub(crate) fn is_held(run: &Run, lease: &LeaseRef) -> bool {
    let holder = run.holder(&lease.unit);
    holder.is_some_and(|(_, epoch)| epoch == lease.epoch)
}
