//! Offers on the queue. The queue announces work to clients that cannot see this state. The ledger
//! says which units are open, and nothing waits for a delivery, so late, lost and doubled
//! deliveries do no harm. The newest delivery of a unit is held until the unit is complete, and
//! then settled.

use std::collections::btree_map::Entry;

use ledger::Run;
use schemas::lease::{UnitId, UnitKind};
use schemas::{Millis, Round, UnitIndex};

use crate::deadline::RunTimer;
use crate::effect::Effect;
use crate::input::DeliveryId;
use crate::run::RunRoom;
use crate::run::live::Offered;
use crate::turn::Turn;

/// Time after which the delivery of an unfinished unit is held back once more: a third of the
/// consumer's `ack_wait` of 60 s, so that two of these messages may get lost.
const HOLD_EVERY: Millis = Millis::from_secs(20);

impl RunRoom<'_> {
    /// Puts a unit on the queue, unless it is there.
    pub(crate) fn offer(&mut self, turn: &mut Turn<'_>, unit: UnitId) {
        if let Entry::Vacant(place) = self.live.offers.entry(unit) {
            place.insert(Offered::default());
            turn.out.push(Effect::Offer {
                run: self.run.name().clone(),
                unit,
            });
        }
    }

    /// Puts the units that follow the merge under way on the queue, so that nothing has to be
    /// published between its end and the next grant.
    pub(crate) fn offer_ahead(&mut self, turn: &mut Turn<'_>) {
        for unit in units_ahead(&self.run) {
            self.offer(turn, unit);
        }
    }

    /// Handles the delivery of an offer.
    pub(crate) fn offered(&mut self, turn: &mut Turn<'_>, unit: UnitId, delivery: DeliveryId) {
        // The offer comes from an earlier coordinator, for a merge that it did not finish. It stays
        // on the queue, since an offer of this coordinator would count as a repeat.
        if is_ahead(&self.run, &unit) {
            self.live.offers.entry(unit).or_default();
        }
        match self.live.offers.get_mut(&unit) {
            Some(offered) => {
                offered.delivery = Some(delivery);
                offered.hold_at = turn.now.after(HOLD_EVERY);
                let hold_at = offered.hold_at;
                self.wake(turn, hold_at, RunTimer::Offer(unit));
            }
            // The unit is complete or unknown, so its offer must not come again.
            None => turn.out.push(Effect::Settle { delivery }),
        }
    }

    pub(crate) fn offer_due(&mut self, turn: &mut Turn<'_>, unit: UnitId) {
        // The timer may have outlived its offer, and may be older than the due time.
        let offered = self.live.offers.get_mut(&unit);
        if let Some(offered) = offered.filter(|offered| offered.hold_at <= turn.now)
            && let Some(delivery) = offered.delivery
        {
            offered.hold_at = turn.now.after(HOLD_EVERY);
            let hold_at = offered.hold_at;
            self.wake(turn, hold_at, RunTimer::Offer(unit));
            turn.out.push(Effect::Hold { delivery });
        }
    }

    /// Takes the offer of a unit that is complete, or counts no more, off the queue.
    pub(crate) fn settle(&mut self, turn: &mut Turn<'_>, unit: &UnitId) {
        let offered = self.live.offers.remove(unit);
        if let Some(delivery) = offered.and_then(|offered| offered.delivery) {
            turn.out.push(Effect::Settle { delivery });
        }
    }
}

/// True for a unit that will be open once the oldest open round is merged.
fn is_ahead(run: &Run, unit: &UnitId) -> bool {
    !run.open.is_empty() && units_ahead(run).contains(unit)
}

/// The units that will be open once the next set is merged: those of the next round, and the
/// evaluation of the new weights.
fn units_ahead(run: &Run) -> Vec<UnitId> {
    let next = Round(run.rounds.len() as u64);
    let units = if run.plans(next) && run.affords_round() {
        run.spec.schedule.units
    } else {
        0
    };
    let train = (0..units).map(|index| UnitId {
        round: next,
        kind: UnitKind::Train,
        index: UnitIndex(index),
    });
    let version = run.rounds_closed().next();
    let evaluate = run.evaluates(version).then_some(UnitId {
        round: version,
        kind: UnitKind::Evaluate,
        index: UnitIndex(0),
    });
    train.chain(evaluate).collect()
}
