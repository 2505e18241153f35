//! The coordinator's time, as this worker knows it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use runtime::clock;
use schemas::{Code, UnixMillis};

use crate::verify::SKEW;

/// The time by which the coordinator's clock is ahead of this process's. Clones share it.
///
/// A document that the coordinator signed is judged by the coordinator's time. Its window of
/// validity makes an old document useless to anyone who kept it. For that both ends need the same
/// clock, but not a right one. This process's clock is monotonic, and the difference comes with
/// answers that only the coordinator may give. A peer that can forge those answers already controls
/// what reaches this worker, and still cannot sign; and a result under an old lease counts nowhere.
/// If this machine's wall clock decided instead, a neglected clock could stop a worker, and nothing
/// would be gained.
#[derive(Clone, Debug, Default)]
pub(crate) struct CoordinatorTime(Arc<AtomicI64>);

impl CoordinatorTime {
    /// Takes over a measurement, and logs when somebody should look at a clock.
    pub(crate) fn measured(&self, ahead_ms: i64) {
        let before = self.0.swap(ahead_ms, Ordering::Relaxed);
        let is_off = |ahead: i64| ahead.unsigned_abs() > SKEW.get();
        if is_off(ahead_ms) && before.abs_diff(ahead_ms) > SKEW.get() {
            let (seconds, way) = (
                ahead_ms.unsigned_abs() / 1000,
                if ahead_ms > 0 { "behind" } else { "ahead of" },
            );
            let next = Code::ClockOff.next_step();
            tracing::warn!(code = %Code::ClockOff, next, "this machine's clock is {seconds} s {way} the coordinator's");
        }
    }

    /// The coordinator's time now. Before the first answer it is assumed to be ours.
    pub(crate) fn now(&self) -> UnixMillis {
        UnixMillis(
            clock::now()
                .get()
                .saturating_add_signed(self.0.load(Ordering::Relaxed)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_ours_until_it_was_measured_and_shared_from_then_on() {
        let time = CoordinatorTime::default();
        let near = |time: &CoordinatorTime, ahead: i64| {
            let expected = clock::now().get().saturating_add_signed(ahead);
            time.now().get().abs_diff(expected) < 10_000
        };
        assert!(near(&time, 0));
        let other = time.clone();
        for ahead in [90_000, -90_000, 3_600_000] {
            time.measured(ahead);
            assert!(near(&other, ahead), "{ahead}");
        }
    }
}
