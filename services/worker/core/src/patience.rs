//! How long an answer is waited for: longer after each wait that was in vain, up to a ceiling.

use std::time::Duration;

use schemas::Millis;

/// What a span may lose because its two ends are cut to milliseconds.
const ROUNDING: Duration = Duration::from_millis(1);

/// The patience with one question.
#[derive(Clone, Debug)]
pub struct Patience {
    first: Millis,
    max: Millis,
    now: Millis,
}

impl Patience {
    /// The first and the longest wait.
    pub const fn new((first, max): (Millis, Millis)) -> Self {
        Self {
            first,
            max,
            now: first,
        }
    }

    /// The longest wait for the answer to the next try.
    pub const fn now(&self) -> Millis {
        self.now
    }

    /// Takes in a try that brought no answer and took this long. Only a try that was waited out
    /// doubles the wait. A broker that reports at once that nobody listens, and a coordinator that
    /// refuses, do not show how long an answer takes; if they counted, an answer that is lost after
    /// a long absence would cost the longest wait.
    pub fn failed_after(&mut self, took: Duration) {
        if took + ROUNDING >= self.now.as_duration() {
            self.now = Millis(self.now.get().saturating_mul(2)).min(self.max);
        }
    }

    /// Another question: the wait is short again.
    pub(crate) const fn reset(&mut self) {
        self.now = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_try_that_was_waited_out_makes_the_next_wait_longer() {
        let mut patience = Patience::new((Millis(2_000), Millis(16_000)));
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
