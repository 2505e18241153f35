//! Sequences from shards: shuffled without repetition for training, evenly spaced for evaluation.

use std::ops::Range;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::{DataError, TokenShard};

/// Draws a unit's training sequences: windows that do not overlap, in random order and from a
/// random offset. When all have been used, new ones are drawn from other offsets. The same shards,
/// seed and length give the same sequences, whatever the batch size.
#[derive(Clone, Debug)]
pub struct UnitSampler {
    shards: Vec<TokenShard>,
    sequence_tokens: usize,
    random: ChaCha8Rng,
    /// Windows that are still to be used, the next one last.
    windows: Vec<Window>,
}

/// A unit's held-out sequences: evenly spaced windows that do not overlap.
#[derive(Clone, Debug)]
pub struct HeldOut {
    shards: Vec<TokenShard>,
    sequence_tokens: usize,
    windows: Vec<Window>,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    shard: u32,
    start: u32,
}

impl UnitSampler {
    /// A sampler over `shards`, for sequences of `sequence_tokens` predicted tokens.
    ///
    /// # Errors
    /// [`DataError::Invalid`]: no shard is long enough for one sequence.
    pub fn new(
        shards: Vec<TokenShard>,
        seed: u64,
        sequence_tokens: usize,
    ) -> Result<Self, DataError> {
        check(&shards, sequence_tokens)?;
        Ok(Self {
            shards,
            sequence_tokens,
            random: ChaCha8Rng::seed_from_u64(seed),
            windows: Vec::new(),
        })
    }

    /// The next `sequences` rows of `sequence_tokens + 1` tokens, one after another; they replace
    /// the contents of `batch`.
    pub fn next_batch(&mut self, sequences: usize, batch: &mut Vec<u32>) {
        batch.clear();
        for _ in 0..sequences {
            if self.windows.is_empty() {
                self.shuffle();
            }
            let window = self
                .windows
                .pop()
                .expect("a shard is long enough for at least one window");
            self.shards[window.shard as usize].append(
                window.start as usize,
                self.sequence_tokens + 1,
                batch,
            );
        }
    }

    fn shuffle(&mut self) {
        let length = self.sequence_tokens;
        for (index, shard) in (0..).zip(&self.shards) {
            // Windows share one token: the last of a row is only predicted, and is the first input
            // of the next row.
            let spare = (shard.tokens().saturating_sub(1)) % length;
            let offset = below(&mut self.random, spare + 1);
            let count = shard.tokens().saturating_sub(1) / length;
            self.windows.extend(windows(index, offset, count, length));
        }
        for last in (1..self.windows.len()).rev() {
            self.windows.swap(last, below(&mut self.random, last + 1));
        }
    }
}

impl HeldOut {
    /// An evaluation of `sequences` sequences, or of all if there are fewer.
    ///
    /// # Errors
    /// [`DataError::Invalid`]: no shard is long enough for one sequence.
    pub fn new(
        shards: Vec<TokenShard>,
        sequences: usize,
        sequence_tokens: usize,
    ) -> Result<Self, DataError> {
        check(&shards, sequence_tokens)?;
        let mut all = Vec::new();
        for (index, shard) in (0..).zip(&shards) {
            all.extend(windows(
                index,
                0,
                shard.tokens().saturating_sub(1) / sequence_tokens,
                sequence_tokens,
            ));
        }
        let count = sequences.min(all.len());
        let windows = (0..count)
            .map(|index| all[index * all.len() / count])
            .collect();
        Ok(Self {
            shards,
            sequence_tokens,
            windows,
        })
    }

    /// Number of sequences.
    pub fn sequences(&self) -> usize {
        self.windows.len()
    }

    /// Some of the sequences; they replace the contents of `batch`.
    ///
    /// # Panics
    /// When `sequences` is out of bounds.
    pub fn batch(&self, sequences: Range<usize>, batch: &mut Vec<u32>) {
        batch.clear();
        for window in &self.windows[sequences] {
            self.shards[window.shard as usize].append(
                window.start as usize,
                self.sequence_tokens + 1,
                batch,
            );
        }
    }
}

fn windows(shard: u32, offset: usize, count: usize, length: usize) -> impl Iterator<Item = Window> {
    // A shard is one object of at most 256 MiB, so positions fit in 32 bits.
    (0..count).map(move |index| Window {
        shard,
        start: (offset + index * length) as u32,
    })
}

fn check(shards: &[TokenShard], sequence_tokens: usize) -> Result<(), DataError> {
    let longest = shards.iter().map(TokenShard::tokens).max().unwrap_or(0);
    if sequence_tokens == 0 || longest <= sequence_tokens || shards.len() > u32::MAX as usize {
        let count = shards.len();
        let reason = format!(
            "sequences of {sequence_tokens} tokens from {count} shards of at most {longest} tokens"
        );
        return Err(DataError::Invalid(reason));
    }
    Ok(())
}

/// A number below `bound`. The bias is at most `bound / 2^64`.
fn below(random: &mut ChaCha8Rng, bound: usize) -> usize {
    ((u128::from(random.next_u64()) * bound as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::encode_shard;

    /// Shards whose tokens name their own positions.
    fn shards(sizes: &[usize]) -> Vec<TokenShard> {
        let shard = |(index, size): (usize, &usize)| {
            let tokens: Vec<u32> = (0..*size as u32)
                .map(|at| index as u32 * 10_000 + at)
                .collect();
            TokenShard::decode(encode_shard(&tokens, 4), 1 << 20).expect("valid")
        };
        sizes.iter().enumerate().map(shard).collect()
    }

    #[test]
    fn an_epoch_uses_every_window_once() {
        let mut sampler = UnitSampler::new(shards(&[101, 257, 9]), 5, 10).expect("long enough");
        let mut batch = Vec::new();
        let epoch = 10 + 25;
        let mut predicted: BTreeSet<u32> = BTreeSet::new();
        for _ in 0..epoch / 5 {
            sampler.next_batch(5, &mut batch);
            assert_eq!(batch.len(), 5 * 11);
            for row in batch.chunks(11) {
                assert!(
                    row.windows(2).all(|pair| pair[1] == pair[0] + 1),
                    "a window is consecutive"
                );
                predicted.extend(&row[1..]);
            }
        }
        assert_eq!(predicted.len(), epoch * 10, "no token is predicted twice");
        sampler.next_batch(epoch, &mut batch);
        assert_eq!(batch.len(), epoch * 11, "and then it starts anew");
    }

    #[test]
    fn sequences_depend_on_the_seed_and_not_on_batches() {
        let draw = |seed, sizes: &[usize]| {
            let mut sampler = UnitSampler::new(shards(&[5000]), seed, 16).expect("long enough");
            let (mut all, mut batch) = (Vec::new(), Vec::new());
            for size in sizes {
                sampler.next_batch(*size, &mut batch);
                all.extend_from_slice(&batch);
            }
            all
        };
        assert_eq!(draw(1, &[8, 8]), draw(1, &[4, 4, 4, 4]));
        assert_ne!(draw(1, &[16]), draw(2, &[16]));
    }

    #[test]
    fn held_out_windows_are_spread_over_everything() {
        let held_out = HeldOut::new(shards(&[1001, 1001]), 20, 10).expect("long enough");
        assert_eq!(held_out.sequences(), 20);
        let mut batch = Vec::new();
        held_out.batch(0..20, &mut batch);
        let starts: Vec<u32> = batch.chunks(11).map(|row| row[0]).collect();
        assert_eq!(starts[..3], [0, 100, 200]);
        assert_eq!(starts[10..12], [10_000, 10_100]);
        let all = HeldOut::new(shards(&[1001]), 5000, 10).expect("long enough");
        assert_eq!(all.sequences(), 100);
    }

    #[test]
    fn short_shards_are_refused() {
        assert!(UnitSampler::new(shards(&[10]), 0, 10).is_err());
        assert!(UnitSampler::new(vec![], 0, 10).is_err());
        assert!(HeldOut::new(shards(&[10]), 1, 0).is_err());
    }
}
