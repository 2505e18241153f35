//! The weighted mean of contributions.
//!
//! The rule, for contributions `0..n` in the order given (callers sort by unit, so that the order
//! of arrival does not matter) with whole-number weights `k`:
//!
//! 1. `w[i]` = `k[i] / (k[0] + … + k[n-1])`: the sum exact, both sides converted to `f64`, divided
//!    in `f64`, the quotient converted to `f32`. A single contribution has weight 1 exactly.
//! 2. per element, `g = w[0] * x[0]`, and then for each further contribution `g = g + (w[i] *
//!    x[i])`, every product and every sum rounded to `f32`, never fused.
//!
//! So the mean of `n` equal values differs from the value by at most `(n + 1)` roundings:
//! relatively no more than `1.01 * (n + 1) * 2^-24` (for up to 100 000 contributions, away from
//! subnormal numbers).

use schemas::run::CodecKind;

use crate::CodecError;
use crate::codec::{self, Part, check, encoded_bytes};
use crate::vectors::Vectors;

/// One chunk of a screened contribution: base minus local.
#[derive(Clone, Copy, Debug)]
pub struct ContributionChunk<'a> {
    /// Its share in the mean: the tokens that it was trained on, or another weight that the run
    /// defines. A part with weight 0 does not take part.
    pub weight: u64,
    /// The codec of the elements.
    pub codec: CodecKind,
    /// The encoded elements.
    pub bytes: &'a [u8],
}

/// The reason why there is no mean.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MeanError {
    /// Nothing was given.
    #[error("no contributions to merge")]
    NoContributions,
    /// All weights are 0.
    #[error("the {contributions} contributions weigh 0 together; at least one needs a weight")]
    NoWeight {
        /// The number of contributions.
        contributions: usize,
    },
    /// A contribution has not the size of the chunk.
    #[error("contribution {index}: {source}")]
    WrongLength {
        /// Its place in the order given.
        index: usize,
        /// Expected and found size.
        source: CodecError,
    },
}

/// The weights by step 1 of the rule, in the order given.
///
/// # Errors
/// [`MeanError::NoContributions`], [`MeanError::NoWeight`].
pub fn weights(contributions: &[ContributionChunk<'_>]) -> Result<Vec<f32>, MeanError> {
    if contributions.is_empty() {
        return Err(MeanError::NoContributions);
    }
    let total: u128 = contributions
        .iter()
        .map(|contribution| u128::from(contribution.weight))
        .sum();
    if total == 0 {
        return Err(MeanError::NoWeight {
            contributions: contributions.len(),
        });
    }
    Ok(contributions
        .iter()
        .map(|contribution| (contribution.weight as f64 / total as f64) as f32)
        .collect())
}

/// Contributions of one chunk, checked, with their weights.
#[derive(Debug)]
pub(crate) struct Mean<'a> {
    contributions: &'a [ContributionChunk<'a>],
    weights: Vec<f32>,
}

impl<'a> Mean<'a> {
    pub(crate) fn new(
        contributions: &'a [ContributionChunk<'a>],
        elements: usize,
    ) -> Result<Self, MeanError> {
        for (index, contribution) in contributions.iter().enumerate() {
            let checked = check(contribution.codec, elements, contribution.bytes.len());
            checked.map_err(|source| MeanError::WrongLength { index, source })?;
        }
        Ok(Self {
            contributions,
            weights: weights(contributions)?,
        })
    }

    /// Step 2 of the rule for the elements from `start` on, as many as `gradient` holds. `start` is
    /// a multiple of every codec's block.
    ///
    /// Contributions are taken in fours where they have one codec, which may gain from it.
    pub(crate) fn gradient(&self, vectors: Vectors, start: usize, gradient: &mut [f32]) {
        let end = start + gradient.len();
        let part = |index: usize| {
            let ContributionChunk { codec, bytes, .. } = self.contributions[index];
            Part {
                bytes: &bytes[encoded_bytes(codec, start)..encoded_bytes(codec, end)],
                weight: self.weights[index],
            }
        };
        let mut index = 0;
        while let [first, rest @ ..] = &self.contributions[index..] {
            let codec = codec::of(first.codec);
            let four = rest.len() >= 3 && rest[..3].iter().all(|next| next.codec == first.codec);
            match (four, index) {
                (true, 0) => codec.start_four(vectors, [0, 1, 2, 3].map(part), gradient),
                (true, _) => {
                    let parts = [0, 1, 2, 3].map(|offset| part(index + offset));
                    codec.add_four(vectors, parts, gradient);
                }
                (false, 0) => codec.start(vectors, part(0), gradient),
                (false, _) => codec.add(vectors, part(index), gradient),
            }
            index += if four { 4 } else { 1 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weighing(weight: u64) -> ContributionChunk<'static> {
        ContributionChunk {
            weight,
            codec: CodecKind::Fp32,
            bytes: &[],
        }
    }

    #[test]
    fn weights_are_shares() {
        assert_eq!(weights(&[weighing(12_345)]), Ok(vec![1.0]));
        assert_eq!(weights(&[weighing(u64::MAX)]), Ok(vec![1.0]));
        assert_eq!(weights(&[weighing(1), weighing(3)]), Ok(vec![0.25, 0.75]));
        assert_eq!(weights(&[weighing(0), weighing(7)]), Ok(vec![0.0, 1.0]));
        assert_eq!(weights(&[weighing(u64::MAX); 4]), Ok(vec![0.25; 4]));
    }

    #[test]
    fn nothing_has_no_mean() {
        assert_eq!(weights(&[]), Err(MeanError::NoContributions));
        assert_eq!(
            weights(&[weighing(0); 3]),
            Err(MeanError::NoWeight { contributions: 3 })
        );
    }
}
