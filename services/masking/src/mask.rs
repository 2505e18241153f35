//! Masks: streams of words that are added to a contribution, and taken from the sum of several.

use std::collections::BTreeSet;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};
use schemas::masking::{Bytes32, Unmasking};
use schemas::{Digest, UnitIndex};
use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

use crate::WORD_BYTES;
use crate::fixed::{FixedPoint, RangeError};
use crate::keys::{agree, derive};

const OWN: &[u8] = b"diloco/mask/own/v1";
const PAIR: &[u8] = b"diloco/mask/pair/v1";
/// Bytes of a stream that are made at a time: they stay in the cache.
const BLOCK_BYTES: usize = 16 << 10;

/// The direction in which a mask is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sign {
    Add,
    Subtract,
}

/// The key of a stream. It is wiped when dropped.
pub(crate) type StreamKey = Zeroizing<[u8; 32]>;

/// The masks of one contribution.
pub struct Masks {
    fixed: FixedPoint,
    streams: Vec<(Sign, StreamKey)>,
}

impl Masks {
    pub(crate) const fn new(fixed: FixedPoint, streams: Vec<(Sign, StreamKey)>) -> Self {
        Self { fixed, streams }
    }

    /// Replaces a chunk of values, fp32 little endian, by its masked words. `start` is the position
    /// of its first value in the whole contribution. One set of masks may mask one contribution,
    /// once: the difference of two would show the difference of what is under the masks.
    ///
    /// # Errors
    /// A value has no place. The chunk holds nothing useful then, and must not be sent.
    pub fn mask(&self, chunk: &mut [u8], start: u64) -> Result<(), RangeError> {
        self.fixed.encode(chunk)?;
        for (sign, key) in &self.streams {
            apply(*sign, key, start, chunk);
        }
        Ok(())
    }
}

impl std::fmt::Debug for Masks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Masks({} streams)", self.streams.len())
    }
}

/// The reason why a sum cannot be unmasked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnmaskError {
    /// Contributions that the unmasking is not for, or chunks of different lengths.
    #[error("{parts} contributions of a cohort in which {expected} count, or of different lengths")]
    Parts {
        /// Contributions that are there.
        parts: usize,
        /// Contributions that the unmasking is for.
        expected: usize,
    },
    /// A value of the sum that no contributions within the run's bound can have.
    #[error("the sum has a value larger than all contributions together may have")]
    Range,
    /// A key that agrees on nothing.
    #[error("the masking key of unit {0} agrees on no secret")]
    Key(UnitIndex),
}

/// The mean of a chunk over all contributions that count, fp32 little endian: their sum, without
/// the masks that do not cancel in it. `parts` is the chunk of each, in any order.
///
/// # Errors
/// [`UnmaskError`].
pub fn unmask(
    unmasking: &Unmasking,
    fixed: &FixedPoint,
    start: u64,
    parts: &[&[u8]],
) -> Result<Vec<u8>, UnmaskError> {
    let expected = unmasking.seeds.len();
    let wrong = UnmaskError::Parts {
        parts: parts.len(),
        expected,
    };
    let count = u32::try_from(expected).map_err(|_| wrong)?;
    let Some(first) = parts.first().filter(|_| parts.len() == expected) else {
        return Err(wrong);
    };
    let whole = first.len() % WORD_BYTES == 0;
    if !whole || parts.iter().any(|part| part.len() != first.len()) {
        return Err(wrong);
    }
    let mut sum = first.to_vec();
    for part in &parts[1..] {
        let (words, _) = sum.as_chunks_mut::<WORD_BYTES>();
        for (word, other) in words.iter_mut().zip(part.as_chunks::<WORD_BYTES>().0) {
            let total = u32::from_le_bytes(*word).wrapping_add(u32::from_le_bytes(*other));
            *word = total.to_le_bytes();
        }
    }
    for (sign, key) in left_over(unmasking)? {
        apply(sign, &key, start, &mut sum);
    }
    let (words, _) = sum.as_chunks_mut::<WORD_BYTES>();
    for word in words {
        let total = u32::from_le_bytes(*word);
        if !fixed.can_sum(total, count) {
            return Err(UnmaskError::Range);
        }
        *word = fixed.mean(total, count).to_le_bytes();
    }
    Ok(sum)
}

/// What is to be applied to the sum so that no mask is left in it.
fn left_over(unmasking: &Unmasking) -> Result<Vec<(Sign, StreamKey)>, UnmaskError> {
    let cohort = &unmasking.cohort;
    let own = unmasking.seeds.iter();
    let own = own.map(|seed| (Sign::Subtract, own_key(cohort, &seed.key.0, seed.unit)));
    let mut streams: Vec<_> = own.collect();
    for gone in &unmasking.gone {
        let secret = StaticSecret::from(gone.key.0);
        for here in &unmasking.masking {
            let key = pair_key(cohort, &secret, gone.unit, &here.key, here.unit);
            let key = key.ok_or(UnmaskError::Key(here.unit))?;
            let sign = match pair_sign(here.unit, gone.unit) {
                Sign::Add => Sign::Subtract,
                Sign::Subtract => Sign::Add,
            };
            streams.push((sign, key));
        }
    }
    Ok(streams)
}

/// True if each of the units stands once, ascending.
pub(crate) fn ascend(units: impl IntoIterator<Item = UnitIndex>) -> bool {
    let units: Vec<UnitIndex> = units.into_iter().collect();
    let set: BTreeSet<UnitIndex> = units.iter().copied().collect();
    units.len() == set.len() && units.is_sorted()
}

/// The direction in which the worker of `unit` applies the mask that it shares with another.
pub(crate) fn pair_sign(unit: UnitIndex, other: UnitIndex) -> Sign {
    if unit < other {
        Sign::Add
    } else {
        Sign::Subtract
    }
}

/// The key of a worker's own mask.
pub(crate) fn own_key(cohort: &Digest, seed: &[u8; 32], unit: UnitIndex) -> StreamKey {
    derive(cohort, seed, &[OWN, &unit.get().to_le_bytes()])
}

/// The key of the mask of two workers: the same for both. None if the public key agrees on no
/// secret.
pub(crate) fn pair_key(
    cohort: &Digest,
    secret: &StaticSecret,
    unit: UnitIndex,
    public: &Bytes32,
    other: UnitIndex,
) -> Option<StreamKey> {
    let shared = agree(secret, public)?;
    let (low, high) = (unit.min(other), unit.max(other));
    let purpose: [&[u8]; 3] = [PAIR, &low.get().to_le_bytes(), &high.get().to_le_bytes()];
    Some(derive(cohort, &shared, &purpose))
}

/// Adds a stream to words, or subtracts it, modulo `2^32`. The stream is ChaCha20 with a nonce of
/// 64 bits, the position of the chunk, so each chunk has words of its own.
fn apply(sign: Sign, key: &StreamKey, start: u64, chunk: &mut [u8]) {
    let mut stream = ChaCha20Rng::from_seed(**key);
    stream.set_stream(start);
    let mut block = Zeroizing::new([0; BLOCK_BYTES]);
    for part in chunk.chunks_mut(BLOCK_BYTES) {
        let block = &mut block[..part.len()];
        stream.fill_bytes(block);
        let masks = block.as_chunks::<WORD_BYTES>().0;
        for (word, mask) in part.as_chunks_mut::<WORD_BYTES>().0.iter_mut().zip(masks) {
            let (value, mask) = (u32::from_le_bytes(*word), u32::from_le_bytes(*mask));
            let masked = match sign {
                Sign::Add => value.wrapping_add(mask),
                Sign::Subtract => value.wrapping_sub(mask),
            };
            *word = masked.to_le_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use schemas::masking::UnitKey;

    use super::*;

    fn unit(unit: u32, key: u8) -> UnitKey {
        UnitKey {
            unit: UnitIndex(unit),
            key: Bytes32([key; 32]),
        }
    }

    fn words(bytes: &[u8]) -> Vec<u32> {
        let (words, _) = bytes.as_chunks::<4>();
        words.iter().map(|word| u32::from_le_bytes(*word)).collect()
    }

    /// Computed by another program, in Python, from the RFCs of HKDF and ChaCha20 (with the counter
    /// and the nonce of 64 bits that its author gave it).
    #[test]
    fn tl_17_masks_are_the_words_that_another_program_computes() {
        let cohort = Digest::of(b"a cohort");
        let key = own_key(&cohort, &[3; 32], UnitIndex(2));
        let mut chunk = [0; 80];
        apply(Sign::Add, &key, 5000, &mut chunk);
        assert_eq!(
            words(&chunk[..16]),
            [0xb6ab_f0c9, 0x911b_e683, 0xfe03_cf2f, 0xc852_49cf]
        );
        assert_eq!(words(&chunk[76..]), [0x5b5e_e575]);
        let (one, two) = (StaticSecret::from([1; 32]), StaticSecret::from([2; 32]));
        let public =
            |secret: &StaticSecret| Bytes32(x25519_dalek::PublicKey::from(secret).to_bytes());
        let there = pair_key(&cohort, &one, UnitIndex(7), &public(&two), UnitIndex(4)).unwrap();
        let back = pair_key(&cohort, &two, UnitIndex(4), &public(&one), UnitIndex(7)).unwrap();
        assert_eq!(there, back);
        let mut chunk = [0; 8];
        apply(Sign::Add, &there, 0, &mut chunk);
        assert_eq!(words(&chunk), [0x6282_f797, 0x21f2_e3e5]);
    }

    #[test]
    fn tl_17_of_two_workers_the_one_with_the_lower_unit_adds_their_mask() {
        let (low, high) = (UnitIndex(4), UnitIndex(7));
        assert_eq!(pair_sign(low, high), Sign::Add);
        assert_eq!(pair_sign(high, low), Sign::Subtract);
    }

    #[test]
    fn tl_17_a_long_chunk_is_one_stream_and_each_chunk_another() {
        let key = own_key(&Digest::of(b"a cohort"), &[3; 32], UnitIndex(0));
        let mut long = vec![0; BLOCK_BYTES + 40];
        apply(Sign::Add, &key, 0, &mut long);
        let mut again = vec![0; BLOCK_BYTES + 40];
        let mut stream = ChaCha20Rng::from_seed(*key);
        stream.fill_bytes(&mut again);
        assert_eq!(long, again);
        let mut other = vec![0; 40];
        apply(Sign::Add, &key, 1, &mut other);
        assert_ne!(long[..40], other);
        apply(Sign::Subtract, &key, 1, &mut other);
        assert_eq!(other, [0; 40]);
    }

    #[test]
    fn tl_17_parts_that_are_not_the_cohorts_give_no_sum() {
        // Two of this largest value fill the words, so any words are a sum.
        let fixed = FixedPoint::new(1_073_741_822.0 / 2_f64.powi(30), 2);
        let unmasking = Unmasking {
            cohort: Digest::of(b"a cohort"),
            seeds: vec![unit(0, 1), unit(1, 2)],
            masking: vec![],
            gone: vec![],
        };
        let run = |parts: &[&[u8]]| unmask(&unmasking, &fixed, 0, parts).err();
        assert_eq!(run(&[&[0; 8], &[0; 8]]), None);
        // Words without the streams of these seeds: a sum that no two contributions have.
        let narrow = FixedPoint::new(1.0, 3);
        let out = unmask(&unmasking, &narrow, 0, &[&[0; 4000], &[0; 4000]]);
        assert_eq!(out, Err(UnmaskError::Range));
        for parts in [
            &[&[0; 8][..]][..],
            &[&[0; 8], &[0; 4]],
            &[&[0; 7], &[0; 7]],
            &[],
        ] {
            assert!(
                matches!(run(parts), Some(UnmaskError::Parts { .. })),
                "{parts:?}"
            );
        }
    }
}
