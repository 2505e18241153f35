//! Holds: an operator keeps the run from doing something, for as long as the ledger says so.

use ledger::Run;
use schemas::event::LedgerEvent;
use schemas::hold::{Hold, HoldReply, HoldRequest};
use schemas::{PublicKey, V};

use crate::run::RunRoom;
use crate::turn::Turn;

/// True if the request would change the run.
pub(crate) fn changes(run: &Run, request: &HoldRequest) -> bool {
    run.is_held(request.hold) != request.held
}

/// The event that the request is, where it changes the run.
pub(crate) fn event(operator: PublicKey, request: HoldRequest) -> LedgerEvent {
    let HoldRequest { hold, reason, .. } = request;
    match request.held {
        true => LedgerEvent::HoldPlaced {
            hold,
            operator,
            reason,
        },
        false => LedgerEvent::HoldLifted {
            hold,
            operator,
            reason,
        },
    }
}

/// What the run is like after the request.
pub(crate) fn reply(run: &Run, changed: bool) -> HoldReply {
    let contributions = run.open.values().map(|open| open.inputs().count());
    HoldReply {
        v: V,
        changed,
        weights: run.rounds_closed(),
        contributions: contributions.sum::<usize>() as u32,
        leases: run.leases().count() as u32,
        shut_out: 0,
        store: None,
    }
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
            let gives_urls = request.hold == Hold::Urls && !request.held;
            self.append(turn, event(operator, request));
            if gives_urls {
                // Nobody could move a byte until now.
                for held in self.live.leases.values_mut() {
                    held.progress_at = turn.now;
                }
            }
        }
        self.advance(turn);
        self.serve(turn);
        reply(&self.run, changed)
    }
}
