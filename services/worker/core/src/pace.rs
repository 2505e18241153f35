//! Pauses between tries: exponential with a ceiling, and jitter from a seed, so that the same seed
//! gives the same pauses.

use schemas::Millis;

/// The pauses of one kind of trouble.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    first: Millis,
    max: Millis,
    tries: u32,
    noise: u64,
}

impl Pace {
    pub(crate) const fn new((first, max): (Millis, Millis), seed: u64) -> Self {
        Self {
            first,
            max,
            tries: 0,
            noise: seed,
        }
    }

    /// Failures since the last success.
    pub(crate) const fn tries(&self) -> u32 {
        self.tries
    }

    /// All is well again: pauses start small.
    pub(crate) const fn reset(&mut self) {
        self.tries = 0;
    }

    /// Counts a failure; the pause after it lies between half and the whole of the doubled span.
    pub(crate) fn pause(&mut self) -> Millis {
        self.pause_up_to(self.max)
    }

    /// As [`Pace::pause`], with a ceiling of its own.
    pub(crate) fn pause_up_to(&mut self, max: Millis) -> Millis {
        let doublings = self.tries.min(20);
        self.tries = self.tries.saturating_add(1);
        let span = self
            .first
            .get()
            .saturating_mul(1 << doublings)
            .min(max.get())
            .max(2);
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
    use super::*;

    #[test]
    fn pauses_grow_to_a_ceiling_and_start_again() {
        let mut pace = Pace::new((Millis(100), Millis(1000)), 7);
        let pauses: Vec<u64> = (0..40).map(|_| pace.pause().get()).collect();
        for (n, pause) in pauses.iter().enumerate() {
            let span = (100 << n.min(20)).min(1000);
            assert!((span / 2..=span).contains(pause), "{n}: {pause}");
        }
        assert_eq!(pace.tries(), 40);
        pace.reset();
        assert!(pace.pause().get() <= 100);
    }

    #[test]
    fn the_seed_decides() {
        let pauses = |seed| {
            let mut pace = Pace::new((Millis(100), Millis(100_000)), seed);
            (0..8).map(|_| pace.pause()).collect::<Vec<_>>()
        };
        assert_eq!(pauses(1), pauses(1));
        assert_ne!(pauses(1), pauses(2));
    }
}
