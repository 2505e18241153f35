//! The pauses between tries: each twice as long as the one before it, up to a ceiling. Nothing here
//! reads a clock or draws a random number; the caller brings both, so that pure cores can use it.

use std::time::Duration;

/// Doublings beyond which every ceiling is reached: 2^20 times the shortest pause.
const DOUBLINGS_MAX: u32 = 20;

/// The pauses after one kind of failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    /// The first and the longest pause.
    pub const fn new((first, max): (Duration, Duration)) -> Self {
        Self {
            first,
            max,
            failures: 0,
        }
    }

    /// The state after this many failures.
    pub const fn after(pauses: (Duration, Duration), failures: u32) -> Self {
        Self {
            failures,
            ..Self::new(pauses)
        }
    }

    /// Failures since the last success.
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// Starts again with the short pause, after a success.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }

    /// The pause after the next failure.
    pub fn peek(&self) -> Duration {
        self.peek_up_to(self.max)
    }

    /// Counts a failure and returns the pause after it.
    pub fn fail(&mut self) -> Duration {
        self.fail_up_to(self.max)
    }

    /// As [`Backoff::fail`], with a ceiling of its own.
    pub fn fail_up_to(&mut self, max: Duration) -> Duration {
        let pause = self.peek_up_to(max);
        self.failures = self.failures.saturating_add(1);
        pause
    }

    fn peek_up_to(&self, max: Duration) -> Duration {
        let factor = 1 << self.failures.min(DOUBLINGS_MAX);
        self.first.saturating_mul(factor).min(max)
    }
}

/// A pause between half and the whole of `pause`; `fraction` lies between 0 and 1. With different
/// fractions, peers that lost the same server do not come back at the same moment.
pub fn spread(pause: Duration, fraction: f64) -> Duration {
    let half = pause / 2;
    half + half.mul_f64(fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(pause: Duration) -> u128 {
        pause.as_millis()
    }

    #[test]
    fn pauses_double_up_to_their_ceiling_and_start_again() {
        let mut backoff = Backoff::new((Duration::from_millis(100), Duration::from_secs(1)));
        let pauses: Vec<u128> = (0..6).map(|_| millis(backoff.fail())).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1000, 1000]);
        assert_eq!(backoff.failures(), 6);
        backoff.reset();
        assert_eq!(millis(backoff.peek()), 100);
        assert_eq!(millis(backoff.fail_up_to(Duration::from_millis(30))), 30);
    }

    #[test]
    fn no_number_of_failures_overflows() {
        let mut backoff = Backoff::new((Duration::from_secs(1 << 40), Duration::MAX));
        for _ in 0..100 {
            assert!(backoff.fail() >= Duration::from_secs(1 << 40));
        }
    }

    #[test]
    fn a_spread_pause_keeps_at_least_its_half() {
        let pause = Duration::from_millis(100);
        assert_eq!(millis(spread(pause, 0.0)), 50);
        assert_eq!(millis(spread(pause, 1.0)), 100);
    }
}
