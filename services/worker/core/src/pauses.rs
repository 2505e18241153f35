//! Pauses between tries: exponential with a ceiling, and jitter from a seed, so that the same seed
//! gives the same pauses.

use std::time::Duration;

use backoff::Backoff;
use schemas::Millis;

/// The pauses after one kind of failure.
#[derive(Clone, Debug)]
pub(crate) struct RetryPauses {
    backoff: Backoff,
    noise: u64,
}

impl RetryPauses {
    pub(crate) fn new((first, max): (Millis, Millis), seed: u64) -> Self {
        Self {
            backoff: Backoff::new((first.as_duration(), max.as_duration())),
            noise: seed,
        }
    }

    /// Failures since the last success.
    pub(crate) const fn tries(&self) -> u32 {
        self.backoff.failures()
    }

    /// Starts again with short pauses, after a success.
    pub(crate) const fn reset(&mut self) {
        self.backoff.reset();
    }

    /// Counts a failure; the pause after it lies between half and the whole of the doubled span.
    pub(crate) fn pause(&mut self) -> Millis {
        let span = self.backoff.fail();
        self.spread(span)
    }

    /// Does the same as [`RetryPauses::pause`], with a ceiling of its own.
    pub(crate) fn pause_up_to(&mut self, max: Millis) -> Millis {
        let span = self.backoff.fail_up_to(max.as_duration());
        self.spread(span)
    }

    /// Draws a pause from a span, in whole numbers, so that every machine gets the same pause.
    fn spread(&mut self, span: Duration) -> Millis {
        let span = u64::try_from(span.as_millis()).unwrap_or(u64::MAX).max(2);
        self.noise = self.noise.wrapping_add(0x9e37_79b9_7f4a_7c15);
        Millis(span / 2 + mix(self.noise) % (span - span / 2 + 1))
    }
}

/// The output function of SplitMix64 (Steele, Lea, Flood 2014).
const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn pauses_grow_to_a_ceiling_and_start_again() {
        let mut retries = RetryPauses::new((Millis(100), Millis(1000)), 7);
        let pauses: Vec<u64> = (0..40).map(|_| retries.pause().get()).collect();
        for (n, pause) in pauses.iter().enumerate() {
            let span = (100 << n.min(20)).min(1000);
            assert!((span / 2..=span).contains(pause), "{n}: {pause}");
        }
        assert_eq!(retries.tries(), 40);
        retries.reset();
        assert!(retries.pause().get() <= 100);
    }

    /// All of a span is used, with both its ends: in a part that is left out no worker would come
    /// back.
    #[test]
    fn pauses_reach_both_ends_of_their_span() {
        let mut retries = RetryPauses::new((Millis(6), Millis(6)), 1);
        let pauses: BTreeSet<u64> = (0..64).map(|_| retries.pause().get()).collect();
        assert_eq!(pauses, BTreeSet::from([3, 4, 5, 6]));
    }

    /// The first numbers of the generator for the seed 1234567, as its authors' program prints
    /// them.
    #[test]
    fn the_noise_is_that_of_split_mix_64() {
        let mut retries = RetryPauses::new((Millis(2), Millis(2)), 1_234_567);
        for number in [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
        ] {
            retries.pause();
            assert_eq!(mix(retries.noise), number);
        }
    }

    #[test]
    fn the_seed_decides() {
        let pauses = |seed| {
            let mut retries = RetryPauses::new((Millis(100), Millis(100_000)), seed);
            (0..8).map(|_| retries.pause()).collect::<Vec<_>>()
        };
        assert_eq!(pauses(1), pauses(1));
        assert_ne!(pauses(1), pauses(2));
    }
}
