//! Initial weights from a seed, the same on every machine and in any order of computing.
//!
//! Element `i` of tensor `t` takes the 32-bit words `4 i .. 4 i + 4` of stream `t` of ChaCha8 under
//! a key that holds the seed, so that any part can be made without the parts before it. The words
//! are eight 16-bit numbers; their sum, less its mean and divided by its standard deviation, is
//! close to a normal value (Irwin-Hall: cut off at 4.9 deviations, kurtosis 2.85 instead of 3).
//! Only whole numbers are added and one fp32 product is rounded: no logarithm or sine, whose last
//! bit differs from one mathematics library to the next.

use std::ops::Range;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// The initial values of a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Initial {
    /// All zeros.
    Zero,
    /// All ones.
    One,
    /// Independent values with mean 0.
    Normal {
        /// Their standard deviation.
        deviation: f32,
    },
}

/// The initial weights of one model under one seed.
#[derive(Clone, Debug)]
pub struct InitialWeights {
    key: [u8; 32],
    /// Contiguous from 0.
    tensors: Vec<(Range<u64>, Initial)>,
}

/// Separates this use of a run's seed from every other use.
const DOMAIN: &[u8; 24] = b"diloco initial weights 1";
const WORDS_PER_ELEMENT: u128 = 4;
const BYTES_PER_ELEMENT: usize = 16;
/// Elements made at a time: 4 KiB of random bytes.
const BLOCK_ELEMENTS: usize = 256;
/// Mean of the sum of eight uniform 16-bit numbers.
const SUM_MEAN: i32 = 8 * 65_535 / 2;
/// Standard deviation of that sum: the root of `8 (65536^2 - 1) / 12`.
const SUM_DEVIATION: f64 = 53_509.919_921_450_08;

impl InitialWeights {
    pub(crate) fn new(seed: u64, tensors: Vec<(Range<u64>, Initial)>) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..].copy_from_slice(DOMAIN);
        Self { key, tensors }
    }

    /// Number of elements in all.
    pub fn elements(&self) -> u64 {
        self.tensors.last().map_or(0, |(span, _)| span.end)
    }

    /// Writes the elements from `start` of the flat vector into `out`.
    ///
    /// # Panics
    /// When `out` reaches past the last element.
    pub fn fill(&self, start: u64, out: &mut [f32]) {
        let end = start + out.len() as u64;
        assert!(
            end <= self.elements(),
            "{start}..{end} lies outside {} elements",
            self.elements()
        );
        let first = self.tensors.partition_point(|(span, _)| span.end <= start);
        let mut rest = out;
        let mut at = start;
        for (stream, (span, initial)) in (0_u64..).zip(&self.tensors).skip(first) {
            let here = (span.end.min(end) - at) as usize;
            let (part, after) = rest.split_at_mut(here);
            match initial {
                Initial::Zero => part.fill(0.0),
                Initial::One => part.fill(1.0),
                Initial::Normal { deviation } => {
                    self.normal(stream, at - span.start, *deviation, part)
                }
            }
            rest = after;
            at += here as u64;
            if rest.is_empty() {
                return;
            }
        }
    }

    fn normal(&self, stream: u64, element: u64, deviation: f32, out: &mut [f32]) {
        let mut random = ChaCha8Rng::from_seed(self.key);
        random.set_stream(stream);
        random.set_word_pos(u128::from(element) * WORDS_PER_ELEMENT);
        let scale = (f64::from(deviation) / SUM_DEVIATION) as f32;
        let mut bytes = [0; BLOCK_ELEMENTS * BYTES_PER_ELEMENT];
        for block in out.chunks_mut(BLOCK_ELEMENTS) {
            let used = &mut bytes[..block.len() * BYTES_PER_ELEMENT];
            random.fill_bytes(used);
            for (value, raw) in block.iter_mut().zip(used.chunks_exact(BYTES_PER_ELEMENT)) {
                let sum: i32 = raw
                    .chunks_exact(2)
                    .map(|pair| i32::from(u16::from_le_bytes([pair[0], pair[1]])))
                    .sum();
                *value = (sum - SUM_MEAN) as f32 * scale;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Preset;

    fn whole(seed: u64) -> Vec<f32> {
        let initial = Preset::named("tiny")
            .expect("a preset")
            .config
            .initial(seed);
        let mut values = vec![f32::NAN; initial.elements() as usize];
        initial.fill(0, &mut values);
        values
    }

    #[test]
    fn any_cut_gives_the_same_bits() {
        let initial = Preset::named("tiny").expect("a preset").config.initial(7);
        let expected = whole(7);
        for size in [1000, 4097, 100_003] {
            let mut start = 0;
            while start < expected.len() {
                let end = (start + size).min(expected.len());
                let mut part = vec![f32::NAN; end - start];
                initial.fill(start as u64, &mut part);
                assert_eq!(part, expected[start..end]);
                start = end;
            }
        }
        assert_ne!(whole(8), expected);
    }

    #[test]
    fn golden_values_hold_on_every_machine() {
        let initial = InitialWeights::new(
            1,
            vec![
                (0..4, Initial::Normal { deviation: 1.0 }),
                (4..5, Initial::One),
            ],
        );
        let mut values = [0.0; 5];
        initial.fill(0, &mut values);
        assert_eq!(values.map(f32::to_bits), GOLDEN);
    }

    /// The output of a ChaCha8 of twenty lines of Python, written for this purpose.
    const GOLDEN: [u32; 5] = [
        3_207_747_594,
        1_058_262_655,
        3_192_798_286,
        1_056_609_712,
        0x3f80_0000,
    ];

    #[test]
    fn values_are_close_to_normal() {
        let initial =
            InitialWeights::new(3, vec![(0..1_000_000, Initial::Normal { deviation: 0.02 })]);
        let mut values = vec![0.0; 1_000_000];
        initial.fill(0, &mut values);
        let count = values.len() as f64;
        let moment = |power: i32| {
            values
                .iter()
                .map(|value| (f64::from(*value) / 0.02).powi(power))
                .sum::<f64>()
                / count
        };
        assert!(moment(1).abs() < 0.005, "mean {}", moment(1));
        assert!((moment(2) - 1.0).abs() < 0.005, "variance {}", moment(2));
        assert!((moment(4) - 2.85).abs() < 0.05, "kurtosis {}", moment(4));
        let within = values.iter().filter(|value| value.abs() < 0.02).count() as f64 / count;
        assert!(
            (within - 0.6827).abs() < 0.01,
            "{within} within one deviation"
        );
    }
}
