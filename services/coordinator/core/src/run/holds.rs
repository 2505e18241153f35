//! Holds: an operator keeps the run from doing something, for as long as the ledger says so.

use ledger::Run;
use schemas::event::LedgerEvent;
use schemas::hold::{HoldReply, HoldRequest};
use schemas::{PublicKey, V};

use crate::run::RunRoom;
use crate::turn::Turn;

/// True if the request would change the run.
pub(crate) fn changes(run: &Run, request: &HoldRequest) -> bool {
    run.is_held(request.hold) != request.held
}

impl RunRoom<'_> {
    /// Places a hold or lifts it, where that changes the run. After a lift, the run at once does
    /// what the hold forbade. The reply describes the run after that.
    pub(crate) fn hold(
        &mut self,
        turn: &mut Turn<'_>,
        operator: PublicKey,
        request: HoldRequest,
    ) -> HoldReply {
        let changed = changes(&self.run, &request);
        if changed {
            let HoldRequest { hold, reason, .. } = request;
            let event = if request.held {
                LedgerEvent::HoldPlaced {
                    hold,
                    operator,
                    reason,
                }
            } else {
                LedgerEvent::HoldLifted {
                    hold,
                    operator,
                    reason,
                }
            };
            self.append(turn, event);
        }
        self.advance(turn);
        self.serve(turn);
        let contributions = self.run.open.values().map(|open| open.inputs().count());
        HoldReply {
            v: V,
            changed,
            weights: self.run.rounds_closed(),
            contributions: contributions.sum::<usize>() as u32,
            leases: self.run.leases().count() as u32,
            store: None,
        }
    }
}
