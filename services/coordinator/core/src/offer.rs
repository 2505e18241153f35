//! Offers on the queue and the units that may be granted. The queue tells of work; the ledger says
//! what is open.

use ledger::Standing;
use schemas::Millis;
use schemas::RunId;
use schemas::lease::UnitId;

use crate::coordinator::Coordinator;
use crate::deadline::Timer;
use crate::effect::Effect;
use crate::input::DeliveryId;
use crate::live::Offered;

/// How often the delivery of a unit that is not complete is kept from being delivered again: a
/// third of the consumer's `ack_wait` of 60 s, so that two may get lost.
const HOLD_EVERY: Millis = Millis::from_secs(20);
/// How long a unit waits for its offer to be delivered. Then it may be granted without: the queue
/// may have lost the message, or holds it back for a coordinator that died; that the unit is open
/// is in the ledger.
const DELIVERY_WAIT: Millis = Millis::from_secs(2);

impl Coordinator {
    /// Puts a unit on offer.
    pub(crate) fn offer(&mut self, name: &RunId, unit: UnitId) {
        let due_at = self.now.after(DELIVERY_WAIT);
        let Some(live) = self.live.get_mut(name) else {
            return;
        };
        live.offers.insert(
            unit,
            Offered {
                delivery: None,
                due_at,
            },
        );
        self.timers.set(due_at, Timer::Offer(name.clone(), unit));
        self.out.push(Effect::Offer {
            run: name.clone(),
            unit,
        });
    }

    /// The queue delivered an offer.
    pub(crate) fn offered(&mut self, name: &RunId, unit: UnitId, delivery: DeliveryId) {
        let due_at = self.now.after(HOLD_EVERY);
        let Some(offered) = self
            .live
            .get_mut(name)
            .and_then(|live| live.offers.get_mut(&unit))
        else {
            // Complete, or never ours: either way nobody shall see it again.
            self.out.push(Effect::Settle { delivery });
            return;
        };
        offered.delivery = Some(delivery);
        offered.due_at = due_at;
        self.timers.set(due_at, Timer::Offer(name.clone(), unit));
        self.make_ready(name, unit);
    }

    pub(crate) fn offer_due(&mut self, name: &RunId, unit: UnitId) {
        let now = self.now;
        let Some(offered) = self
            .live
            .get_mut(name)
            .and_then(|live| live.offers.get_mut(&unit))
        else {
            return;
        };
        if offered.due_at > now {
            return;
        }
        match offered.delivery {
            Some(delivery) => {
                offered.due_at = now.after(HOLD_EVERY);
                self.timers
                    .set(offered.due_at, Timer::Offer(name.clone(), unit));
                self.out.push(Effect::Hold { delivery });
            }
            None => self.make_ready(name, unit),
        }
    }

    /// Lets a unit be granted if it is open, and serves the claims that wait.
    pub(crate) fn make_ready(&mut self, name: &RunId, unit: UnitId) {
        let Ok((run, live)) = self.open_run(name) else {
            return;
        };
        if run
            .units
            .get(&unit)
            .is_some_and(|found| found.standing == Standing::Open)
        {
            live.ready.insert(unit);
            self.serve(name);
        }
    }

    /// A unit is complete: its offer goes off the queue.
    pub(crate) fn settle(&mut self, name: &RunId, unit: &UnitId) {
        let Some(live) = self.live.get_mut(name) else {
            return;
        };
        live.ready.remove(unit);
        if let Some(delivery) = live
            .offers
            .remove(unit)
            .and_then(|offered| offered.delivery)
        {
            self.out.push(Effect::Settle { delivery });
        }
    }
}
