//! The pauses between attempts, and the time until which new attempts may begin.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use backoff::{Backoff, spread};
use tokio::time::{Instant, sleep};

use crate::limits::TransferLimits;

/// Longest `Retry-After` that is respected.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);

/// The pauses between attempts of one transfer.
pub(crate) struct Pace {
    backoff: Backoff,
    deadline: Instant,
    /// Time that the transfer may spend without progress.
    patience: Duration,
}

impl Pace {
    pub(crate) fn new(limits: &TransferLimits, deadline: Instant) -> Self {
        let patience = deadline.saturating_duration_since(Instant::now());
        Self {
            backoff: Backoff::new((limits.pause_first, limits.pause_max)),
            deadline,
            patience,
        }
    }

    /// The time until which another attempt may begin.
    pub(crate) const fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Starts the time anew, and the pauses small, after progress that the next attempt need not
    /// repeat.
    pub(crate) fn restart(&mut self) {
        self.backoff.reset();
        self.deadline = self.deadline.max(Instant::now() + self.patience);
    }

    /// Extends the time by a wait for other transfers that made progress.
    pub(crate) fn waited(&mut self, span: Duration) {
        self.deadline += span;
    }

    /// Waits before another attempt, for `asked` if the store said so. Returns false if the
    /// deadline does not allow it.
    pub(crate) async fn pause(&mut self, asked: Option<Duration>) -> bool {
        let pause = self.step(asked, random_fraction());
        if Instant::now() + pause >= self.deadline {
            return false;
        }
        sleep(pause).await;
        true
    }

    /// The next pause; `jitter` is between 0 and 1.
    fn step(&mut self, asked: Option<Duration>, jitter: f64) -> Duration {
        let pause = self.backoff.fail();
        match asked {
            None => spread(pause, jitter),
            Some(asked) => asked.min(RETRY_AFTER_MAX) + (pause / 2).mul_f64(jitter),
        }
    }
}

/// Between 0 and 1, different each time: pauses of many workers must not coincide.
pub fn random_fraction() -> f64 {
    let random = RandomState::new().hash_one(0_u8);
    f64::from(u32::try_from(random >> 32).expect("32 bits remain")) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace() -> Pace {
        Pace::new(
            &TransferLimits::default(),
            Instant::now() + Duration::from_secs(10),
        )
    }

    #[test]
    fn pauses_double_up_to_their_limit() {
        let mut pace = pace();
        let pauses: Vec<u128> = (0..8).map(|_| pace.step(None, 1.0).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        pace.restart();
        assert_eq!(pace.step(None, 0.0), Duration::from_millis(50));
    }

    #[test]
    fn a_store_that_asks_for_patience_gets_it_within_bounds() {
        assert_eq!(
            pace().step(Some(Duration::from_secs(7)), 0.0),
            Duration::from_secs(7)
        );
        assert_eq!(
            pace().step(Some(Duration::from_secs(3600)), 0.0),
            RETRY_AFTER_MAX
        );
    }

    #[test]
    fn a_pause_that_a_store_asked_for_is_spread_over_half_of_our_own() {
        let asked = Some(Duration::from_secs(7));
        let most = Duration::from_millis(7050);
        assert_eq!(pace().step(asked, 1.0), most);
    }

    #[test]
    fn progress_and_waiting_for_others_move_the_deadline() {
        let mut pace = pace();
        let before = pace.deadline();
        pace.restart();
        let anew = pace.deadline();
        assert!(anew > before);
        let span = Duration::from_secs(3);
        pace.waited(span);
        assert_eq!(pace.deadline(), anew + span);
    }

    #[tokio::test]
    async fn no_pause_passes_the_deadline() {
        assert!(!pace().pause(Some(Duration::from_secs(20))).await);
    }

    #[test]
    fn jitter_differs_and_is_a_fraction() {
        let drawn: Vec<f64> = (0..20).map(|_| random_fraction()).collect();
        assert!(drawn.iter().all(|part| (0.0..=1.0).contains(part)));
        assert!(
            drawn
                .windows(2)
                .any(|pair| (pair[0] - pair[1]).abs() > f64::EPSILON)
        );
    }
}
