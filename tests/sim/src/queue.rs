//! The work queue as a JetStream consumer shows it: an offer that is not settled is delivered again
//! after `ack_wait`.

use std::collections::BTreeMap;

use schemas::lease::UnitId;
use schemas::{Millis, UnixMillis};

use coordinator_core::DeliveryId;

/// The consumer's `ack_wait`.
pub(crate) const ACK_WAIT: Millis = Millis::from_secs(60);

/// Offers that are not settled.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    messages: BTreeMap<u64, Message>,
    deliveries: BTreeMap<DeliveryId, u64>,
    numbers: u64,
}

#[derive(Debug)]
struct Message {
    unit: UnitId,
    /// Time before which the offer is not delivered again.
    next_at: UnixMillis,
}

/// The outcome of a try to deliver.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Try {
    /// The message was settled.
    Gone,
    /// It is too early; try again at this time.
    Later(UnixMillis),
    /// The message was delivered.
    Delivered(UnitId, DeliveryId),
}

impl Queue {
    pub(crate) fn holds(&self, unit: &UnitId) -> bool {
        self.messages.values().any(|message| message.unit == *unit)
    }

    pub(crate) fn publish(&mut self, unit: UnitId) -> u64 {
        self.numbers += 1;
        self.messages.insert(
            self.numbers,
            Message {
                unit,
                next_at: UnixMillis(0),
            },
        );
        self.numbers
    }

    pub(crate) fn deliver(&mut self, now: UnixMillis, number: u64) -> Try {
        let Some(message) = self.messages.get_mut(&number) else {
            return Try::Gone;
        };
        if message.next_at > now {
            return Try::Later(message.next_at);
        }
        message.next_at = now.after(ACK_WAIT);
        self.numbers += 1;
        let delivery = DeliveryId(self.numbers);
        self.deliveries.insert(delivery, number);
        Try::Delivered(message.unit, delivery)
    }

    pub(crate) fn settle(&mut self, delivery: DeliveryId) {
        if let Some(number) = self.deliveries.get(&delivery) {
            self.messages.remove(number);
        }
    }

    pub(crate) fn hold(&mut self, now: UnixMillis, delivery: DeliveryId) {
        let number = self.deliveries.get(&delivery);
        if let Some(message) = number.and_then(|number| self.messages.get_mut(number)) {
            message.next_at = now.after(ACK_WAIT);
        }
    }
}

#[cfg(test)]
mod tests {
    use schemas::lease::UnitKind;
    use schemas::{Round, UnitIndex};

    use super::*;

    #[test]
    fn an_offer_comes_back_until_it_is_settled() {
        let unit = UnitId {
            round: Round(0),
            kind: UnitKind::Train,
            index: UnitIndex(0),
        };
        let mut queue = Queue::default();
        let number = queue.publish(unit);
        let Try::Delivered(found, first) = queue.deliver(UnixMillis(5), number) else {
            panic!("it waits")
        };
        assert!(found == unit && queue.holds(&unit));
        assert_eq!(
            queue.deliver(UnixMillis(6), number),
            Try::Later(UnixMillis(60_005))
        );
        queue.hold(UnixMillis(50_000), first);
        assert_eq!(
            queue.deliver(UnixMillis(60_005), number),
            Try::Later(UnixMillis(110_000))
        );
        assert!(matches!(
            queue.deliver(UnixMillis(110_000), number),
            Try::Delivered(..)
        ));
        queue.settle(first);
        assert_eq!(queue.deliver(UnixMillis(200_000), number), Try::Gone);
        assert!(!queue.holds(&unit));
    }
}
