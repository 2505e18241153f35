//! The rate of a worker's messages: what one worker may send, and have recorded.

use schemas::UnixMillis;

/// Events a second from one worker, in the long run. A worker emits two for each unit, and units
/// last seconds. The fastest runs of tests, with units of a tenth of a second, stay below this too.
pub const EVENTS_PER_SECOND: u64 = 25;
/// Events from one worker in quick succession: more than the 256 that it may have collected while
/// the bus was away.
pub const EVENTS_BURST: u64 = 300;
/// Bytes a second from one worker, in the long run. A worker's event has some 300 bytes with its
/// signature.
pub const BYTES_PER_SECOND: u64 = 32 << 10;
/// Bytes from one worker in quick succession: its burst of events, with 2 KiB for each that has
/// long texts.
pub const BYTES_BURST: u64 = 600 << 10;
/// Bytes a second of one worker that are recorded, over days. A unit leads to some 600 bytes, and
/// in a run of days a unit takes minutes.
pub const RECORDED_PER_SECOND: u64 = 512;
/// Bytes of one worker that are recorded without delay: some 25,000 units of a fast run, and a
/// small part of the 512 MiB that a tenant's stream holds. A single worker then needs eleven days
/// to fill the stream, and not four hours.
pub const RECORDED_BURST: u64 = 16 << 20;

/// The events and bytes that a worker may still send now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    /// Events, in thousandths, so that milliseconds count.
    events: u64,
    /// Bytes, in thousandths.
    bytes: u64,
    /// Bytes that may be recorded, in thousandths.
    recorded: u64,
    at: UnixMillis,
}

impl Rate {
    pub(crate) const fn full(at: UnixMillis) -> Self {
        let (events, bytes, recorded) = (
            1000 * EVENTS_BURST,
            1000 * BYTES_BURST,
            1000 * RECORDED_BURST,
        );
        Self {
            events,
            bytes,
            recorded,
            at,
        }
    }

    pub(crate) fn refill(&mut self, now: UnixMillis) {
        // A clock that goes back adds nothing.
        let passed = self.at.until(now).get();
        let refilled = |left: u64, each: u64, burst: u64| {
            left.saturating_add(passed.saturating_mul(each))
                .min(1000 * burst)
        };
        self.events = refilled(self.events, EVENTS_PER_SECOND, EVENTS_BURST);
        self.bytes = refilled(self.bytes, BYTES_PER_SECOND, BYTES_BURST);
        self.recorded = refilled(self.recorded, RECORDED_PER_SECOND, RECORDED_BURST);
        self.at = now;
    }

    pub(crate) fn take(&mut self, now: UnixMillis, bytes: u64) -> bool {
        self.refill(now);
        let fits = self.events >= 1000 && self.bytes >= 1000 * bytes;
        if fits {
            self.events -= 1000;
            self.bytes -= 1000 * bytes;
        }
        fits
    }

    /// True when `bytes` more may be recorded; only events that passed all checks by themselves
    /// count.
    pub(crate) const fn record(&mut self, bytes: u64) -> bool {
        let fits = self.recorded >= 1000 * bytes;
        if fits {
            self.recorded -= 1000 * bytes;
        }
        fits
    }

    /// True for a worker that has its whole allowance: to forget it changes nothing.
    pub(crate) fn is_full(&self) -> bool {
        *self == Self::full(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

    #[test]
    fn a_worker_has_its_burst_and_then_its_rate_and_not_one_more() {
        let mut rate = Rate::full(NOW);
        for _ in 0..EVENTS_BURST {
            assert!(rate.take(NOW, 0));
        }
        assert!(!rate.take(NOW, 0), "the burst is over");
        let pause = 1000 / EVENTS_PER_SECOND;
        assert!(!rate.take(UnixMillis(NOW.get() + pause - 1), 0));
        let soon = UnixMillis(NOW.get() + pause);
        assert!(rate.take(soon, 0) && !rate.take(soon, 0));
    }

    #[test]
    fn the_bytes_of_a_worker_are_counted_to_the_last() {
        let later = UnixMillis(NOW.get() + 1000);
        let mut rate = Rate::full(NOW);
        assert!(rate.take(NOW, BYTES_BURST - 1), "two messages");
        assert!(rate.take(NOW, 1) && !rate.take(NOW, 1), "fill the burst");
        assert!(!rate.take(later, BYTES_PER_SECOND + 1));
        assert!(rate.take(later, BYTES_PER_SECOND) && !rate.take(later, 1));
        let mut rate = Rate::full(NOW);
        assert!(rate.record(RECORDED_BURST - 1) && rate.record(1) && !rate.record(1));
        rate.refill(later);
        assert!(!rate.record(RECORDED_PER_SECOND + 1));
        assert!(rate.record(RECORDED_PER_SECOND) && !rate.record(1));
    }

    /// A worker that is forgotten begins with a full burst, so only one that has a full burst may
    /// be forgotten.
    #[test]
    fn a_worker_that_has_used_anything_is_not_forgotten() {
        let full = Rate::full(NOW);
        assert!(full.is_full());
        let mut heard = full;
        assert!(heard.take(NOW, 0) && !heard.is_full());
        let mut recorded = full;
        assert!(recorded.record(1) && !recorded.is_full());
        let mut long = full;
        assert!(long.take(NOW, 1));
        long.events = full.events;
        assert!(!long.is_full());
    }
}
