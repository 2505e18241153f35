//! Error feedback: the part that a codec takes from one contribution is added to the next one.
//!
//! A sender keeps a residual, as many values as the model has. For each element:
//!
//! 1. `d` = (base − local) + residual, the difference and the sum each rounded to `f32`;
//! 2. `d` is encoded, and decoded to `s`, which the receiver merges;
//! 3. the rest is `d` − `s`, rounded to `f32`: the next residual, if the contribution counts.
//!
//! So over many rounds the receiver gets the sum of all differences except for the last residual,
//! however coarse the codec is. A contribution that does not count leaves the residual unchanged:
//! nothing of it was merged, and its unit is done again.

use rayon::prelude::*;
use schemas::run::CodecKind;

use crate::codec::{self, CodecError, check, encoded_bytes};
use crate::vectors::{Vectors, vectorised};
use crate::{BLOCK_ELEMENTS, SeededRounding, TILE_ELEMENTS};

/// One chunk of a contribution with error feedback.
#[derive(Clone, Copy, Debug)]
pub struct FeedbackChunk<'a> {
    /// The weights that the unit began with.
    pub base: &'a [f32],
    /// The weights that it ended with.
    pub local: &'a [f32],
    /// The part of earlier contributions that the codec took and that is still owed.
    pub residual: &'a [f32],
}

/// Writes the encoding of a chunk to `out`, and the part that the encoding lacks to `left`. In
/// parallel.
///
/// The result depends neither on the number of threads nor on how the vector is cut, as for
/// [`codec::encode`].
///
/// # Errors
/// [`CodecError`]; nothing was written.
pub fn encode_with_feedback(
    codec: CodecKind,
    owed: FeedbackChunk<'_>,
    rounding: SeededRounding,
    out: &mut [u8],
    left: &mut [f32],
) -> Result<(), CodecError> {
    let elements = owed.base.len();
    for other in [owed.local.len(), owed.residual.len(), left.len()] {
        if other != elements {
            return Err(CodecError::Unequal {
                base: elements,
                local: other,
            });
        }
    }
    check(codec, elements, out.len())?;
    out.par_chunks_mut(encoded_bytes(codec, BLOCK_ELEMENTS))
        .zip(left.par_chunks_mut(BLOCK_ELEMENTS))
        .enumerate()
        .for_each(|(block, (out, left))| {
            let tiles = left.chunks_mut(TILE_ELEMENTS);
            let outs = out.chunks_mut(encoded_bytes(codec, TILE_ELEMENTS));
            for (tile, (left, out)) in tiles.zip(outs).enumerate() {
                let start = block * BLOCK_ELEMENTS + tile * TILE_ELEMENTS;
                encode_tile(codec, owed, start, rounding.skip(start), out, left);
            }
        });
    Ok(())
}

/// The tile from element `start` on, as long as `left`.
fn encode_tile(
    codec: CodecKind,
    owed: FeedbackChunk<'_>,
    start: usize,
    rounding: SeededRounding,
    out: &mut [u8],
    left: &mut [f32],
) {
    let (vectors, codec) = (Vectors::widest(), codec::of(codec));
    let range = start..start + left.len();
    let mut decoded = [0.0; TILE_ELEMENTS];
    let decoded = &mut decoded[..left.len()];
    let FeedbackChunk {
        base,
        local,
        residual,
    } = owed;
    let (base, local) = (&base[range.clone()], &local[range.clone()]);
    add_up(vectors, base, local, &residual[range], left);
    codec.encode(vectors, left, rounding, out);
    codec.decode(vectors, out, decoded);
    take_away(vectors, decoded, left);
}

vectorised!(fn add_up(base: &[f32], local: &[f32], residual: &[f32], sum: &mut [f32]) = add_up_body);
vectorised!(fn take_away(sent: &[f32], left: &mut [f32]) = take_away_body);

#[inline(always)]
fn add_up_body(base: &[f32], local: &[f32], residual: &[f32], sum: &mut [f32]) {
    let given = base.iter().zip(local).zip(residual);
    for (sum, ((base, local), residual)) in sum.iter_mut().zip(given) {
        *sum = (base - local) + residual;
    }
}

#[inline(always)]
fn take_away_body(sent: &[f32], left: &mut [f32]) {
    for (left, sent) in left.iter_mut().zip(sent) {
        *left -= sent;
    }
}
