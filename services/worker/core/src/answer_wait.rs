//! The time to wait for an answer: longer after each wait in vain, up to a ceiling.

use std::time::Duration;

use backoff::Backoff;
use schemas::Millis;

/// The most that a span may lose because its ends are rounded down to milliseconds.
const ROUNDING: Duration = Duration::from_millis(1);

/// The patience with one question.
#[derive(Clone, Debug)]
pub struct AnswerWait(Backoff);

impl AnswerWait {
    /// The first and the longest wait.
    pub fn new((first, max): (Millis, Millis)) -> Self {
        Self(Backoff::new((first.as_duration(), max.as_duration())))
    }

    /// The longest wait for the answer to the next try.
    pub fn now(&self) -> Millis {
        Millis(u64::try_from(self.0.peek().as_millis()).unwrap_or(u64::MAX))
    }

    /// Notes a try that took this long and brought no answer. Only a try that used its whole wait
    /// doubles the wait. A broker that reports at once that nobody listens, and a coordinator that
    /// refuses, do not show how long an answer takes; if they counted, an answer that is lost after
    /// a long absence would cost the longest wait.
    pub fn failed_after(&mut self, took: Duration) {
        if took + ROUNDING >= self.0.peek() {
            self.0.fail();
        }
    }

    /// Starts again with the short wait, for another question.
    pub(crate) const fn reset(&mut self) {
        self.0.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_try_that_was_waited_out_makes_the_next_wait_longer() {
        let mut patience = AnswerWait::new((Millis(2_000), Millis(16_000)));
        for took in [0, 1, 1_000, 1_998] {
            patience.failed_after(Duration::from_millis(took));
            assert_eq!(patience.now(), Millis(2_000), "{took}");
        }
        let mut waits = Vec::new();
        for _ in 0..5 {
            patience.failed_after(patience.now().as_duration());
            patience.failed_after(Duration::ZERO);
            waits.push(patience.now().get());
        }
        assert_eq!(waits, [4_000, 8_000, 16_000, 16_000, 16_000]);
        patience.reset();
        patience.failed_after(Duration::from_millis(1_999));
        assert_eq!(
            patience.now(),
            Millis(4_000),
            "the two ends were cut to milliseconds"
        );
    }
}
