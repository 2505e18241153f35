//! All randomness, from one seed.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use schemas::Millis;

/// A stream of chances. The same seed gives the same stream on every machine and in every version.
#[derive(Debug)]
pub(crate) struct SeededRandom(ChaCha8Rng);

impl SeededRandom {
    pub(crate) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// A number of `least..=most`.
    pub(crate) fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.0.next_u64() % (most - least + 1)
    }

    /// True `permille` times of a thousand.
    pub(crate) fn hits(&mut self, permille: u64) -> bool {
        self.between(0, 999) < permille
    }

    pub(crate) fn millis(&mut self, least: u64, most: u64) -> Millis {
        Millis(self.between(least, most))
    }
}
