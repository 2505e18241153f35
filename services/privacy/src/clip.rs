//! Clipping and noise of one contribution.

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use schemas::Code;
use schemas::run::Privacy;
use zeroize::Zeroizing;

use crate::noise::DiscreteGaussian;

/// Elements whose noise has a stream of its own. Callers may apply a noising to such blocks on
/// several threads.
pub const BLOCK_ELEMENTS: usize = 4096;
/// The deviation of the noise is `2^GRID_BITS` steps of the grid. The grid must be fine beside the
/// values of a clipped contribution, which are `C / √d` each for `d` parameters: with a billion of
/// them and `z` = 1, 512 steps.
const GRID_BITS: u32 = 24;
const STEPS: f64 = (1_u32 << GRID_BITS) as f64;
/// A part of the norm that clipping gives away for the rounding of the norm itself, whose error is
/// below `2^-30` for as many elements as a model can have.
const MARGIN: f64 = 1.0 - 1.0 / (1 << 20) as f64;

/// The reason why a contribution cannot be clipped.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("the norm of the contribution is {0}")]
pub struct NormError(f64);

impl NormError {
    /// The code under which the unit fails.
    pub const fn code(&self) -> Code {
        Code::NotFinite
    }
}

schemas::coded!(NormError);

/// The sum of the squares of a contribution's elements, before it is clipped.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SquaredNorm(f64);

impl SquaredNorm {
    /// Adds the elements `base - local`, each rounded to `f32`.
    ///
    /// # Panics
    /// If the two have not one length.
    pub fn add(&mut self, base: &[f32], local: &[f32]) {
        assert_eq!(base.len(), local.len(), "both are of one piece");
        let blocks = base
            .chunks(BLOCK_ELEMENTS)
            .zip(local.chunks(BLOCK_ELEMENTS));
        // Blocks first, so that the sum of many elements keeps its precision.
        self.0 += blocks
            .map(|(base, local)| sum_of_block(base, local))
            .sum::<f64>();
    }

    /// The Euclidean norm.
    pub fn norm(self) -> f64 {
        self.0.sqrt()
    }
}

fn sum_of_block(base: &[f32], local: &[f32]) -> f64 {
    let squares = base.iter().zip(local).map(|(base, local)| {
        let difference = f64::from(base - local);
        difference * difference
    });
    squares.sum()
}

/// The clipping and the noise of one contribution. With the seed the noise can be taken off again,
/// so it is wiped with this value,
/// and not shown. The same noising gives the same values again, so a contribution that is encoded a
/// second time is no second disclosure.
#[derive(Clone)]
pub struct Noising {
    /// Steps of the grid in a unit of the contribution's values, after clipping.
    steps: f64,
    /// The length of a step.
    grid: f64,
    seed: Zeroizing<[u8; 32]>,
}

impl std::fmt::Debug for Noising {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Noising")
            .field("steps", &self.steps)
            .field("grid", &self.grid)
            .finish_non_exhaustive()
    }
}

impl Noising {
    /// The noising of a contribution with this norm over all its parameters. The seed must come
    /// from the operating system, be used for this contribution alone, and stay in this process.
    ///
    /// # Errors
    /// [`NormError`]: the norm is not finite.
    pub fn new(
        privacy: &Privacy,
        norm: SquaredNorm,
        seed: Zeroizing<[u8; 32]>,
    ) -> Result<Self, NormError> {
        let norm = norm.norm();
        if !norm.is_finite() {
            return Err(NormError(norm));
        }
        let grid = privacy.clip * privacy.noise_multiplier / STEPS;
        let most = privacy.clip * MARGIN;
        let factor = if norm > most { most / norm } else { 1.0 };
        Ok(Self {
            steps: factor / grid,
            grid,
            seed,
        })
    }

    /// Writes clipped and noised `base - local` to `out`. `start` is the position of the first
    /// element in the whole contribution. Pieces may be cut further after multiples of
    /// [`BLOCK_ELEMENTS`] from their start; two that overlap otherwise would share noise.
    ///
    /// # Panics
    /// If the three have not one length.
    pub fn apply(&self, start: usize, base: &[f32], local: &[f32], out: &mut [f32]) {
        assert_eq!(
            (base.len(), local.len()),
            (out.len(), out.len()),
            "all are of one piece"
        );
        let noise = DiscreteGaussian::new(GRID_BITS);
        let given = base
            .chunks(BLOCK_ELEMENTS)
            .zip(local.chunks(BLOCK_ELEMENTS));
        for (block, (out, (base, local))) in out.chunks_mut(BLOCK_ELEMENTS).zip(given).enumerate() {
            let mut random = ChaCha20Rng::from_seed(*self.seed);
            random.set_stream((start + block * BLOCK_ELEMENTS) as u64);
            for (out, (base, local)) in out.iter_mut().zip(base.iter().zip(local)) {
                let sum = self.cut(base - local) + noise.draw(&mut random);
                *out = (sum as f64 * self.grid) as f32;
            }
        }
    }

    /// A value in whole steps of the grid, cut towards zero.
    fn cut(&self, value: f32) -> i64 {
        (f64::from(value) * self.steps) as i64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PRIVACY: Privacy = Privacy {
        clip: 0.5,
        noise_multiplier: 2.0,
        delta: 1e-5,
        epsilon: 8.0,
    };

    fn noising(base: &[f32], local: &[f32], seed: u8) -> Noising {
        let mut norm = SquaredNorm::default();
        norm.add(base, local);
        Noising::new(&PRIVACY, norm, [seed; 32].into()).expect("a norm")
    }

    fn applied(noising: &Noising, base: &[f32], local: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; base.len()];
        noising.apply(0, base, local, &mut out);
        out
    }

    proptest! {
        /// The bound that the accountant relies on, in whole numbers: no rounding can break it.
        #[test]
        fn tl_16_no_clipped_contribution_is_longer_than_the_clip(
            values in prop::collection::vec(-1e3_f32..1e3, 1..500),
            scale in prop::sample::select(vec![1e-6_f32, 1e-3, 1.0, 1e6]),
        ) {
            let base: Vec<f32> = values.iter().map(|value| value * scale).collect();
            let local = vec![0.0; base.len()];
            let noising = noising(&base, &local, 1);
            let steps = base.iter().map(|value| i128::from(noising.cut(*value)));
            let sum: i128 = steps.map(|steps| steps * steps).sum();
            let most = STEPS / PRIVACY.noise_multiplier;
            prop_assert!(sum as f64 <= most * most, "{} {}", sum, most * most);
        }
    }

    #[test]
    fn tl_16_a_long_contribution_is_scaled_to_the_clip_and_a_short_one_stays() {
        let base = vec![3.0, 4.0];
        let long = noising(&base, &[0.0; 2], 1);
        let cut = |noising: &Noising, value| noising.cut(value) as f64 * noising.grid;
        for (value, expected) in [(3.0, 0.3), (4.0, 0.4)] {
            let found = cut(&long, value);
            assert!(
                (found / expected - 1.0).abs() < 2e-6 && found <= expected,
                "{found}"
            );
        }
        let short = noising(&[0.3], &[0.0], 1);
        assert!((cut(&short, 0.3) - 0.3).abs() < 1e-7);
        assert!(cut(&short, -0.3) >= f64::from(-0.3_f32), "cut towards zero");
        assert_eq!(noising(&[], &[], 1).steps, 1.0 / short.grid);
    }

    #[test]
    fn tl_16_the_noise_has_the_deviation_that_the_accountant_counts() {
        let zeros = vec![0.0; 50_000];
        let noise = applied(&noising(&zeros, &zeros, 3), &zeros, &zeros);
        let square: f64 = noise.iter().map(|value| f64::from(*value).powi(2)).sum();
        let deviation = (square / noise.len() as f64).sqrt();
        assert!((deviation - 1.0).abs() < 0.02, "{deviation}");
        let mut seen: Vec<u32> = noise.iter().map(|value| value.to_bits()).collect();
        seen.sort_unstable();
        seen.dedup();
        // Blocks have streams of their own.
        assert!(seen.len() > 49_000, "{}", seen.len());
    }

    #[test]
    fn tl_16_every_value_is_a_whole_number_of_steps_of_the_grid() {
        let base: Vec<f32> = (0..1000).map(|index| (index as f32).sin()).collect();
        let local = vec![0.0; base.len()];
        let noising = noising(&base, &local, 7);
        for value in applied(&noising, &base, &local) {
            let steps = f64::from(value) / noising.grid;
            // A sum above 2^24 steps has lost its last bits to the `f32`, and nothing else.
            let ulp = (f64::from(value).abs() / noising.grid / STEPS).max(1.0);
            let cut = (steps / ulp).round() * ulp;
            assert_eq!((cut * noising.grid) as f32, value);
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_values_and_another_one_others() {
        let base: Vec<f32> = (0..10_000).map(|index| index as f32 * 1e-5).collect();
        let local = vec![0.0; base.len()];
        let first = applied(&noising(&base, &local, 1), &base, &local);
        assert_eq!(applied(&noising(&base, &local, 1), &base, &local), first);
        assert_ne!(applied(&noising(&base, &local, 2), &base, &local), first);
        // A piece has the noise of its own place.
        let noising = noising(&base, &local, 1);
        let mut piece = vec![0.0; 10_000 - 2 * BLOCK_ELEMENTS];
        let start = 2 * BLOCK_ELEMENTS;
        noising.apply(start, &base[start..], &local[start..], &mut piece);
        assert_eq!(piece, first[start..]);
    }

    #[test]
    fn tl_16_the_difference_of_the_weights_is_measured_cut_and_noised() {
        let (base, local) = ([0.75, -0.25, 0.5], [0.25, 0.25, 0.125]);
        let mut norm = SquaredNorm::default();
        norm.add(&base, &local);
        assert_eq!(norm, SquaredNorm(0.25 + 0.25 + 0.375 * 0.375));
        let noising = noising(&base, &local, 5);
        let noise = DiscreteGaussian::new(GRID_BITS);
        let mut random = ChaCha20Rng::from_seed([5; 32]);
        random.set_stream(0);
        let expected = [0.5, -0.5, 0.375].map(|difference| {
            let steps = noising.cut(difference) + noise.draw(&mut random);
            (steps as f64 * noising.grid) as f32
        });
        assert_eq!(applied(&noising, &base, &local), expected);
    }

    #[test]
    fn tl_16_a_noising_that_is_printed_shows_no_seed() {
        let noising = noising(&[0.3], &[0.0], 77);
        let (steps, grid) = (noising.steps, noising.grid);
        let expected = format!("Noising {{ steps: {steps:?}, grid: {grid:?}, .. }}");
        assert_eq!(format!("{noising:?}"), expected);
    }

    #[test]
    fn a_contribution_without_a_norm_is_refused() {
        for value in [f32::NAN, f32::INFINITY] {
            let mut norm = SquaredNorm::default();
            norm.add(&[value], &[0.0]);
            let refused = Noising::new(&PRIVACY, norm, [0; 32].into()).err();
            assert_eq!(refused.map(|error| error.code()), Some(Code::NotFinite));
        }
    }
}
