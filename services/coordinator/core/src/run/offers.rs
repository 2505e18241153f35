//! Offers on the queue and the units that may be granted. The queue tells of work; the ledger says
//! what is open.

use ledger::Standing;
use schemas::Millis;
use schemas::lease::UnitId;

use crate::deadline::Alarm;
use crate::effect::Effect;
use crate::input::DeliveryId;
use crate::run::RunRoom;
use crate::run::live::Offered;
use crate::turn::Turn;

/// How often the delivery of a unit that is not complete is kept from being delivered again: a
/// third of the consumer's `ack_wait` of 60 s, so that two may get lost.
const HOLD_EVERY: Millis = Millis::from_secs(20);
/// How long a unit waits for its offer to be delivered. Then it may be granted without: the queue
/// may have lost the message, or holds it back for a coordinator that died; that the unit is open
/// is in the ledger.
const DELIVERY_WAIT: Millis = Millis::from_secs(2);

impl RunRoom<'_> {
    /// Puts a unit on offer.
    pub(crate) fn offer(&mut self, turn: &mut Turn<'_>, unit: UnitId) {
        let due_at = turn.now.after(DELIVERY_WAIT);
        let offered = Offered {
            delivery: None,
            due_at,
        };
        self.live.offers.insert(unit, offered);
        self.wake(turn, due_at, Alarm::Offer(unit));
        turn.out.push(Effect::Offer {
            run: self.run.name().clone(),
            unit,
        });
    }

    /// The queue delivered an offer.
    pub(crate) fn offered(&mut self, turn: &mut Turn<'_>, unit: UnitId, delivery: DeliveryId) {
        match self.live.offers.get_mut(&unit) {
            Some(offered) => {
                offered.delivery = Some(delivery);
                offered.due_at = turn.now.after(HOLD_EVERY);
                let due_at = offered.due_at;
                self.wake(turn, due_at, Alarm::Offer(unit));
                self.make_ready(turn, unit);
            }
            // Complete, or never ours: either way nobody shall see it again.
            None => turn.out.push(Effect::Settle { delivery }),
        }
    }

    pub(crate) fn offer_due(&mut self, turn: &mut Turn<'_>, unit: UnitId) {
        // The timer outlives the offer that it was set for, and may be older than its due time.
        let offered = self.live.offers.get_mut(&unit);
        if let Some(offered) = offered.filter(|offered| offered.due_at <= turn.now) {
            match offered.delivery {
                Some(delivery) => {
                    offered.due_at = turn.now.after(HOLD_EVERY);
                    let due_at = offered.due_at;
                    self.wake(turn, due_at, Alarm::Offer(unit));
                    turn.out.push(Effect::Hold { delivery });
                }
                None => self.make_ready(turn, unit),
            }
        }
    }

    /// Lets a unit be granted if it is open, and serves the claims that wait.
    pub(crate) fn make_ready(&mut self, turn: &mut Turn<'_>, unit: UnitId) {
        let found = self.run.units.get(&unit);
        if found.is_some_and(|found| found.standing == Standing::Open) {
            self.live.ready.insert(unit);
            self.serve(turn);
        }
    }

    /// A unit is complete: its offer goes off the queue.
    pub(crate) fn settle(&mut self, turn: &mut Turn<'_>, unit: &UnitId) {
        self.live.ready.remove(unit);
        let offered = self.live.offers.remove(unit);
        if let Some(delivery) = offered.and_then(|offered| offered.delivery) {
            turn.out.push(Effect::Settle { delivery });
        }
    }
}
