//! The merge of one chunk: decode, weighted mean, outer step and, if wanted, the broadcast
//! encoding, in one pass over memory.
//!
//! Per element this is the rule of [`crate::mean`], then the rule of [`crate::outer`], then
//! [`crate::codec::encode`] of the new parameter; an element never depends on another. That is the
//! whole specification: any loop that follows it gets the same bits. Chunks, blocks, tiles
//! and threads only decide which element is computed when.

use rayon::prelude::*;

use schemas::run::{CodecKind, OuterOptimizer};

use crate::codec::{self, CodecError};
use crate::mean::{ContributionChunk, Mean, MeanError};
use crate::outer::{self, Momentum, OuterError};
use crate::vectors::{Vectors, vectorised};
use crate::{BLOCK_ELEMENTS, SeededRounding, TILE_ELEMENTS};

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
}

/// The reason why a chunk was not merged. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// The contributions have no mean.
    #[error(transparent)]
    Mean(#[from] MeanError),
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
    merge(contributions, optimizer, params, momentum, None)
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
    codec::check(broadcast.codec, params.len(), broadcast.out.len())?;
    merge(contributions, optimizer, params, momentum, Some(broadcast))
}

fn merge<'a>(
    contributions: &[ContributionChunk<'_>],
    optimizer: OuterOptimizer,
    params: &'a mut [f32],
    momentum: Momentum<'a>,
    broadcast: Option<Broadcast<'a>>,
) -> Result<Merged, MergeError> {
    let mean = Mean::new(contributions, params.len())?;
    outer::check(optimizer, params.len(), &momentum)?;
    let whole = Part {
        start: 0,
        params,
        momentum,
        broadcast,
    };
    let vectors = Vectors::widest();
    let abs_max_bits = whole
        .cut(BLOCK_ELEMENTS)
        .into_par_iter()
        .map(|block| block.merge(vectors, &mean, optimizer))
        .max();
    Ok(Merged {
        params_abs_max: f32::from_bits(abs_max_bits.unwrap_or(0)),
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

    /// Merges it tile by tile and returns the largest magnitude, as bits.
    fn merge(self, vectors: Vectors, mean: &Mean<'_>, optimizer: OuterOptimizer) -> u32 {
        let mut gradient = [0.0; TILE_ELEMENTS];
        let mut abs_max_bits = 0;
        for tile in self.cut(TILE_ELEMENTS) {
            let gradient = &mut gradient[..tile.params.len()];
            mean.gradient(vectors, tile.start, gradient);
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
        abs_max_bits
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

/// Largest magnitude as bits: of numbers in their own order, above them infinity, above it NaN.
#[inline(always)]
fn abs_max_body(values: &[f32]) -> u32 {
    values
        .iter()
        .fold(0, |max, value| max.max(value.to_bits() & 0x7fff_ffff))
}

#[cfg(test)]
mod tests {
    use super::*;
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
        outer: OuterOptimizer,
        elements: usize,
    ) -> (Vec<u32>, Vec<u8>, u32) {
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
        let abs_max_bits = part.merge(vectors, &Mean::new(&chunks, elements).unwrap(), outer);
        (
            params
                .iter()
                .chain(&buffer)
                .map(|value| value.to_bits())
                .collect(),
            out,
            abs_max_bits,
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
                    let expected = merged(Vectors::BASELINE, codecs, outer, elements);
                    for vectors in Vectors::available() {
                        assert_eq!(
                            merged(vectors, codecs, outer, elements),
                            expected,
                            "{vectors:?} {outer:?} {codecs:?}"
                        );
                    }
                }
            }
        }
    }
}
