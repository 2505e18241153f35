//! The merge of one chunk: decode, combine, outer step and, if wanted, the broadcast encoding, in
//! one pass over memory.
//!
//! Per element this is the rule of [`crate::mean`] or another of [`crate::combine`], then the rule
//! of [`crate::outer`], then [`crate::codec::encode`] of the new parameter. An element never
//! depends on another, except for the factors of radial averaging. That is the whole specification:
//! any loop that follows it gets the same bits. Chunks, blocks, tiles and threads only decide which
//! element is computed when.

use rayon::prelude::*;

use schemas::run::{CodecKind, OuterOptimizer};

use crate::codec::{self, CodecError};
use crate::combine::{Combined, Rule, RuleError, Scratch};
use crate::mean::{ContributionChunk, MeanError};
use crate::outer::{self, Momentum, OuterError};
use crate::vectors::{Vectors, vectorised};
use crate::{BLOCK_ELEMENTS, SeededRounding, TILE_ELEMENTS};

/// Running sums of squares of a block.
const LANES: usize = 8;

/// The buffer and the encoding of the new parameters for the workers.
#[derive(Debug)]
pub struct Broadcast<'a> {
    /// The codec of the broadcast.
    pub codec: CodecKind,
    /// Its rounding; names the chunk's place where that matters.
    pub rounding: SeededRounding,
    /// Receives the encoding, [`crate::codec::encoded_bytes`] of the chunk.
    pub out: &'a mut [u8],
}

/// The outcome of a merge.
#[derive(Clone, Copy, Debug, PartialEq)]
#[must_use = "parameters that are no longer finite must not be published"]
pub struct Merged {
    /// Largest magnitude of a new parameter. Infinite or NaN if any parameter is.
    pub params_abs_max: f32,
    /// Sum of the squares of the combined contribution, in `f64`: in each block of
    /// [`BLOCK_ELEMENTS`], element `i` is added to running sum `i % 8`; the sums of a block are
    /// added in order, and so are the blocks.
    pub sum_of_squares: f64,
}

/// The reason why a chunk was not merged. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// The contributions have no mean.
    #[error(transparent)]
    Mean(#[from] MeanError),
    /// A fact is missing that the rule of combination needs.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// The outer state does not fit the optimizer or the parameters.
    #[error(transparent)]
    Outer(#[from] OuterError),
    /// The buffer of the broadcast has another size.
    #[error("broadcast: {0}")]
    Broadcast(#[from] CodecError),
}

impl Merged {
    /// True when every new parameter is a number.
    pub fn is_finite(self) -> bool {
        self.params_abs_max.is_finite()
    }
}

/// Merges `contributions`, in the order given (sort by unit), into `params` and `momentum` by
/// `optimizer`.
///
/// The contributions must have passed [`crate::screen()`]; even so, huge ones can take parameters
/// out of the range of `f32`, so look at the result before publishing.
///
/// # Errors
/// [`MergeError`].
pub fn merge_chunk(
    contributions: &[ContributionChunk<'_>],
    optimizer: OuterOptimizer,
    params: &mut [f32],
    momentum: Momentum<'_>,
) -> Result<Merged, MergeError> {
    merge_chunk_by(
        &Rule::MEAN,
        contributions,
        optimizer,
        params,
        momentum,
        None,
    )
}

/// [`merge_chunk`] that also encodes the new parameters for the workers, while they are in the
/// cache.
///
/// # Errors
/// [`MergeError`].
pub fn merge_chunk_and_encode(
    contributions: &[ContributionChunk<'_>],
    optimizer: OuterOptimizer,
    params: &mut [f32],
    momentum: Momentum<'_>,
    broadcast: Broadcast<'_>,
) -> Result<Merged, MergeError> {
    let broadcast = Some(broadcast);
    merge_chunk_by(
        &Rule::MEAN,
        contributions,
        optimizer,
        params,
        momentum,
        broadcast,
    )
}

/// Merges by any rule of combination. The chunk must be whole: a rule may look at all of it first.
///
/// # Errors
/// [`MergeError`].
pub fn merge_chunk_by<'a>(
    rule: &Rule<'_>,
    contributions: &[ContributionChunk<'_>],
    optimizer: OuterOptimizer,
    params: &'a mut [f32],
    momentum: Momentum<'a>,
    broadcast: Option<Broadcast<'a>>,
) -> Result<Merged, MergeError> {
    if let Some(broadcast) = &broadcast {
        codec::check(broadcast.codec, params.len(), broadcast.out.len())?;
    }
    outer::check(optimizer, params.len(), &momentum)?;
    let combined = Combined::new(rule, contributions, params.len())?;
    let whole = Part {
        start: 0,
        params,
        momentum,
        broadcast,
    };
    let vectors = Vectors::widest();
    let blocks: Vec<(u32, f64)> = whole
        .cut(BLOCK_ELEMENTS)
        .into_par_iter()
        .map_init(Scratch::default, |scratch, block| {
            block.merge(vectors, &combined, optimizer, scratch)
        })
        .collect();
    let largest = blocks.iter().map(|(abs_max_bits, _)| *abs_max_bits).max();
    Ok(Merged {
        params_abs_max: f32::from_bits(largest.unwrap_or(0)),
        sum_of_squares: blocks.iter().map(|(_, squares)| squares).sum(),
    })
}

/// A range of the chunk with everything that is written there.
struct Part<'a> {
    /// Place of its first element in the chunk.
    start: usize,
    params: &'a mut [f32],
    momentum: Momentum<'a>,
    broadcast: Option<Broadcast<'a>>,
}

impl Part<'_> {
    /// Cuts it into parts of `elements`, the last of which may be shorter.
    fn cut(self, elements: usize) -> Vec<Self> {
        let mut parts = Vec::with_capacity(self.params.len().div_ceil(elements));
        let mut rest = self;
        while !rest.params.is_empty() {
            let head = elements.min(rest.params.len());
            let (params, rest_params) = rest.params.split_at_mut(head);
            let (momentum, rest_momentum) = rest.momentum.split_at(head);
            let (broadcast, rest_broadcast) = rest
                .broadcast
                .map(|broadcast| broadcast.split_at(head))
                .unzip();
            parts.push(Self {
                start: rest.start,
                params,
                momentum,
                broadcast,
            });
            rest = Self {
                start: rest.start + head,
                params: rest_params,
                momentum: rest_momentum,
                broadcast: rest_broadcast,
            };
        }
        parts
    }

    /// Merges it tile by tile. Returns the largest magnitude, as bits, and the squares of the
    /// combined contribution.
    fn merge(
        self,
        vectors: Vectors,
        combined: &Combined<'_>,
        optimizer: OuterOptimizer,
        scratch: &mut Scratch,
    ) -> (u32, f64) {
        let mut gradient = [0.0; TILE_ELEMENTS];
        let mut abs_max_bits = 0;
        let mut lanes = [0.0; LANES];
        for tile in self.cut(TILE_ELEMENTS) {
            let gradient = &mut gradient[..tile.params.len()];
            combined.gradient(vectors, tile.start, gradient, scratch);
            add_squares(vectors, gradient, &mut lanes);
            outer::apply(vectors, optimizer, gradient, tile.params, tile.momentum);
            abs_max_bits = abs_max(vectors, tile.params).max(abs_max_bits);
            if let Some(Broadcast {
                codec,
                rounding,
                out,
            }) = tile.broadcast
            {
                codec::of(codec).encode(vectors, tile.params, rounding, out);
            }
        }
        (abs_max_bits, lanes.iter().sum())
    }
}

impl Broadcast<'_> {
    fn split_at(self, elements: usize) -> (Self, Self) {
        let Self {
            codec,
            rounding,
            out,
        } = self;
        let (head, rest) = out.split_at_mut(codec::encoded_bytes(codec, elements));
        (
            Self {
                codec,
                rounding,
                out: head,
            },
            Self {
                codec,
                rounding: rounding.skip(elements),
                out: rest,
            },
        )
    }
}

vectorised!(fn abs_max(values: &[f32]) -> u32 = abs_max_body);

vectorised!(fn add_squares(values: &[f32], lanes: &mut [f64; LANES]) = add_squares_body);

#[inline(always)]
fn add_squares_body(values: &[f32], lanes: &mut [f64; LANES]) {
    let (groups, rest) = values.as_chunks::<LANES>();
    for group in groups {
        for (lane, value) in lanes.iter_mut().zip(group) {
            *lane += f64::from(*value) * f64::from(*value);
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane += f64::from(*value) * f64::from(*value);
    }
}

/// Largest magnitude as bits: of numbers in their own order, above them infinity, above it NaN.
#[inline(always)]
fn abs_max_body(values: &[f32]) -> u32 {
    values
        .iter()
        .fold(0, |max, value| max.max(value.to_bits() & 0x7fff_ffff))
}

#[cfg(test)]
mod tests {
    use schemas::run::Combination;

    use super::*;
    use crate::TensorPiece;
    use crate::rounding::noise_word;

    const FIVE: [CodecKind; 5] = [
        CodecKind::Bf16,
        CodecKind::Bf16,
        CodecKind::Bf16,
        CodecKind::Bf16,
        CodecKind::Bf16,
    ];
    const MIXED: [CodecKind; 5] = [
        CodecKind::Fp32,
        CodecKind::Bf16,
        CodecKind::Fp32,
        CodecKind::Bf16,
        CodecKind::Bf16,
    ];
    const NINE: [CodecKind; 9] = [CodecKind::Bf16; 9];

    fn numbers(seed: u64, count: usize) -> Vec<f32> {
        (0..count as u64)
            .map(|index| (noise_word(seed, index) >> 40) as f32 * 1e-9 - 0.01)
            .collect()
    }

    fn merged(
        vectors: Vectors,
        codecs: &[CodecKind],
        rule: Combination,
        outer: OuterOptimizer,
        elements: usize,
    ) -> (Vec<u32>, Vec<u8>, u32, u64) {
        let encode = |(seed, codec): (usize, &CodecKind)| {
            let mut bytes = vec![0; codec::encoded_bytes(*codec, elements)];
            codec::encode(
                *codec,
                &numbers(seed as u64, elements),
                SeededRounding::NEAREST,
                &mut bytes,
            )
            .unwrap();
            bytes
        };
        let encoded: Vec<_> = codecs.iter().enumerate().map(encode).collect();
        let chunks = encoded.iter().zip(codecs).zip(1..);
        let chunks: Vec<_> = chunks
            .map(|((bytes, codec), weight)| ContributionChunk {
                weight,
                codec: *codec,
                bytes,
            })
            .collect();
        let (mut params, mut buffer, mut out) = (
            numbers(77, elements),
            numbers(78, elements),
            vec![0; 2 * elements],
        );
        let momentum = if outer::keeps_momentum(outer) {
            Momentum::Running(&mut buffer)
        } else {
            Momentum::Absent
        };
        let broadcast = Broadcast {
            codec: CodecKind::Bf16,
            rounding: SeededRounding::NEAREST,
            out: &mut out,
        };
        let part = Part {
            start: 0,
            params: &mut params,
            momentum,
            broadcast: Some(broadcast),
        };
        let norms: Vec<f32> = (1..=chunks.len()).map(|norm| norm as f32).collect();
        let cut = elements / 3;
        let tensors = [0..cut, cut..elements].map(|range| TensorPiece {
            embedding: false,
            range,
        });
        let rule = Rule {
            combination: rule,
            norms: &norms,
            tensors: &tensors[usize::from(cut == 0)..],
        };
        let combined = Combined::new(&rule, &chunks, elements).unwrap();
        let (abs_max_bits, squares) =
            part.merge(vectors, &combined, outer, &mut Scratch::default());
        (
            params
                .iter()
                .chain(&buffer)
                .map(|value| value.to_bits())
                .collect(),
            out,
            abs_max_bits,
            squares.to_bits(),
        )
    }

    #[test]
    fn all_vector_widths_merge_to_the_same_bits() {
        let nesterov = OuterOptimizer::Nesterov {
            learning_rate: 0.7,
            momentum: 0.9,
        };
        for outer in [
            OuterOptimizer::Average,
            OuterOptimizer::Sgd { learning_rate: 0.3 },
            nesterov,
        ] {
            for codecs in [&FIVE[..], &MIXED, &NINE] {
                for elements in [1, 17, TILE_ELEMENTS + 33] {
                    all_widths_agree(codecs, Combination::Mean, outer, elements);
                }
            }
        }
    }

    fn all_widths_agree(
        codecs: &[CodecKind],
        rule: Combination,
        outer: OuterOptimizer,
        elements: usize,
    ) {
        let expected = merged(Vectors::BASELINE, codecs, rule, outer, elements);
        for vectors in Vectors::available() {
            let found = merged(vectors, codecs, rule, outer, elements);
            assert_eq!(found, expected, "{vectors:?} {rule:?} {outer:?} {codecs:?}");
        }
    }

    #[test]
    fn all_vector_widths_combine_to_the_same_bits() {
        let rules = [
            Combination::Clipped { norm_ratio: 1.5 },
            Combination::Trimmed { each_end: 1 },
            Combination::Median,
            Combination::Radial,
        ];
        for rule in rules {
            for codecs in [&FIVE[..1], &FIVE, &MIXED, &NINE] {
                for elements in [1, 17, TILE_ELEMENTS + 33] {
                    all_widths_agree(codecs, rule, OuterOptimizer::Average, elements);
                }
            }
        }
    }
}
