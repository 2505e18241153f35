//! Offers on the queue. The queue announces work to clients that cannot see this state; the ledger
//! says what is open, and nothing waits for a delivery. A delivery that is late, lost or doubled
//! costs nothing here: the newest is held until its unit is complete, and then settled.

use std::collections::btree_map::Entry;

use ledger::Run;
use schemas::lease::{UnitId, UnitKind};
use schemas::{Millis, Round, UnitIndex};

use crate::deadline::Alarm;
use crate::effect::Effect;
use crate::input::DeliveryId;
use crate::run::RunRoom;
use crate::run::live::Offered;
use crate::turn::Turn;

/// The time after which the delivery of a unit that is not complete is held back once more: a third
/// of the consumer's `ack_wait` of 60 s, so that two such messages may get lost.
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

    /// Puts the units on the queue that the merge under way leads to, so that nothing is published
    /// between its end and the next grant.
    pub(crate) fn offer_ahead(&mut self, turn: &mut Turn<'_>) {
        for unit in units_ahead(&self.run) {
            self.offer(turn, unit);
        }
    }

    /// The queue delivered an offer.
    pub(crate) fn offered(&mut self, turn: &mut Turn<'_>, unit: UnitId, delivery: DeliveryId) {
        // One of the coordinator before this one, for a merge that it did not finish: it stays on
        // the queue, where this one's own would be a repeat.
        if is_ahead(&self.run, &unit) {
            self.live.offers.entry(unit).or_default();
        }
        match self.live.offers.get_mut(&unit) {
            Some(offered) => {
                offered.delivery = Some(delivery);
                offered.hold_at = turn.now.after(HOLD_EVERY);
                let hold_at = offered.hold_at;
                self.wake(turn, hold_at, Alarm::Offer(unit));
            }
            // Complete, or never ours: either way nobody shall see it again.
            None => turn.out.push(Effect::Settle { delivery }),
        }
    }

    pub(crate) fn offer_due(&mut self, turn: &mut Turn<'_>, unit: UnitId) {
        // The timer outlives the offer that it was set for, and may be older than its due time.
        let offered = self.live.offers.get_mut(&unit);
        if let Some(offered) = offered.filter(|offered| offered.hold_at <= turn.now)
            && let Some(delivery) = offered.delivery
        {
            offered.hold_at = turn.now.after(HOLD_EVERY);
            let hold_at = offered.hold_at;
            self.wake(turn, hold_at, Alarm::Offer(unit));
            turn.out.push(Effect::Hold { delivery });
        }
    }

    /// A unit is complete, or counts no more: its offer goes off the queue.
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

/// The units that are open once the next set is merged: those of the next round, and the evaluation
/// of the weights.
fn units_ahead(run: &Run) -> Vec<UnitId> {
    let next = Round(run.rounds.len() as u64);
    let units = if next.get() < run.spec.schedule.rounds {
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
    let evaluate = run.spec.evaluates(version).then_some(UnitId {
        round: version,
        kind: UnitKind::Evaluate,
        index: UnitIndex(0),
    });
    train.chain(evaluate).collect()
}
