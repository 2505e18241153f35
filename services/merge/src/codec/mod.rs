//! Codecs: how a slice of parameters or differences is written as bytes.
//!
//! A codec is a file here, a line in [`CodecKind`], which gives its name and sizes, a line in
//! `of`, and a file of golden bytes under `golden/`. The crate `torch` has it once more as tensor
//! operations, for weights on a card.

mod bf16;
mod e3m0;
mod examine;
mod fp32;

use rayon::prelude::*;
use schemas::run::CodecKind;

pub(crate) use examine::{Examined, Fault};

use crate::vectors::{Vectors, vectorised};
use crate::{BLOCK_ELEMENTS, SeededRounding, TILE_ELEMENTS};

/// The implementation of a codec.
pub(crate) const fn of(codec: CodecKind) -> &'static dyn Codec {
    match codec {
        CodecKind::Fp32 => &fp32::Fp32,
        CodecKind::Bf16 => &bf16::Bf16,
        CodecKind::E3m0 => &e3m0::E3m0,
    }
}

/// The work of a codec on a slice of at most [`BLOCK_ELEMENTS`], on this thread. The caller has
/// checked that bytes and elements fit each other, and that the slice starts at a multiple of
/// [`block_elements`].
pub(crate) trait Codec: Sync {
    /// Writes `values`.
    fn encode(&self, vectors: Vectors, values: &[f32], rounding: SeededRounding, out: &mut [u8]);

    /// Reads into `out`.
    fn decode(&self, vectors: Vectors, bytes: &[u8], out: &mut [f32]);

    /// Sets the mean to the first part: weight times value, rounded to `f32`.
    fn start(&self, vectors: Vectors, part: Part<'_>, mean: &mut [f32]);

    /// Adds a further part: the product rounded to `f32`, then the sum.
    fn add(&self, vectors: Vectors, part: Part<'_>, mean: &mut [f32]);

    /// The same as [`Codec::start`] with the first part and [`Codec::add`] with the others, for
    /// codecs that are faster if the mean is loaded and stored once.
    fn start_four(&self, vectors: Vectors, [first, rest @ ..]: [Part<'_>; 4], mean: &mut [f32]) {
        self.start(vectors, first, mean);
        for part in rest {
            self.add(vectors, part, mean);
        }
    }

    /// The same as [`Codec::add`] with each part.
    fn add_four(&self, vectors: Vectors, parts: [Part<'_>; 4], mean: &mut [f32]) {
        for part in parts {
            self.add(vectors, part, mean);
        }
    }

    /// Describes a slice for the screen.
    fn examine(&self, vectors: Vectors, bytes: &[u8], elements: usize) -> Examined;

    /// The first fault in a slice; called only if [`Codec::examine`] finds a fault.
    fn fault(&self, bytes: &[u8], elements: usize) -> Option<Fault>;
}

/// A slice of a contribution, and its weight in the mean.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) weight: f32,
}

/// The reason why a slice was not encoded or decoded. Nothing was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The buffer or the input has not the size of the encoding.
    #[error("{elements} elements need {expected_bytes} bytes, got {got_bytes}")]
    WrongLength {
        /// Elements of the slice.
        elements: usize,
        /// Bytes of their encoding.
        expected_bytes: usize,
        /// Bytes given.
        got_bytes: usize,
    },
    /// The two sides of a difference are not of one length.
    #[error("base has {base} elements, local has {local}")]
    Unequal {
        /// Elements of the base.
        base: usize,
        /// Elements of the local weights.
        local: usize,
    },
}

/// Elements that are encoded together; a slice must start at a multiple of them. Divides
/// `TILE_ELEMENTS`.
pub const fn block_elements(codec: CodecKind) -> usize {
    codec.block_elements() as usize
}

/// Bytes of one encoded block of [`block_elements`].
pub const fn block_bytes(codec: CodecKind) -> usize {
    codec.block_bytes() as usize
}

/// Bytes of the encoding of `elements` elements; a last, partial block counts as a whole one.
///
/// `usize::MAX` where the true number would not fit, so that it equals no real length.
pub const fn encoded_bytes(codec: CodecKind, elements: usize) -> usize {
    elements
        .div_ceil(block_elements(codec))
        .saturating_mul(block_bytes(codec))
}

/// Writes `values` to `out`, which must have [`encoded_bytes`]. In parallel.
///
/// The result does not depend on how a vector is cut into slices (at multiples of
/// [`block_elements`]) as long as `rounding` names the slice's place, nor on the number of threads.
///
/// # Errors
/// [`CodecError::WrongLength`].
pub fn encode(
    codec: CodecKind,
    values: &[f32],
    rounding: SeededRounding,
    out: &mut [u8],
) -> Result<(), CodecError> {
    check(codec, values.len(), out.len())?;
    out.par_chunks_mut(encoded_bytes(codec, BLOCK_ELEMENTS))
        .zip(values.par_chunks(BLOCK_ELEMENTS))
        .enumerate()
        .for_each(|(block, (out, values))| {
            let rounding = rounding.skip(block * BLOCK_ELEMENTS);
            of(codec).encode(Vectors::widest(), values, rounding, out);
        });
    Ok(())
}

/// Writes `base - local`, the direction in which a contribution points, to `out`: the same as
/// subtracting in `f32` and then encoding, without a buffer for the difference. In parallel.
///
/// # Errors
/// [`CodecError`].
pub fn encode_difference(
    codec: CodecKind,
    base: &[f32],
    local: &[f32],
    rounding: SeededRounding,
    out: &mut [u8],
) -> Result<(), CodecError> {
    if base.len() != local.len() {
        return Err(CodecError::Unequal {
            base: base.len(),
            local: local.len(),
        });
    }
    check(codec, base.len(), out.len())?;
    out.par_chunks_mut(encoded_bytes(codec, BLOCK_ELEMENTS))
        .zip(
            base.par_chunks(BLOCK_ELEMENTS)
                .zip(local.par_chunks(BLOCK_ELEMENTS)),
        )
        .enumerate()
        .for_each(|(block, (out, (base, local)))| {
            let vectors = Vectors::widest();
            let mut difference = [0.0; TILE_ELEMENTS];
            let tiles = base.chunks(TILE_ELEMENTS).zip(local.chunks(TILE_ELEMENTS));
            let outs = out.chunks_mut(encoded_bytes(codec, TILE_ELEMENTS));
            for (tile, ((base, local), out)) in tiles.zip(outs).enumerate() {
                let difference = &mut difference[..base.len()];
                subtract(vectors, base, local, difference);
                let rounding = rounding.skip(block * BLOCK_ELEMENTS + tile * TILE_ELEMENTS);
                of(codec).encode(vectors, difference, rounding, out);
            }
        });
    Ok(())
}

/// Reads `bytes` into `out`. In parallel.
///
/// Every byte string of the right length is readable; it may hold NaN and infinities (see
/// [`crate::screen()`]).
///
/// # Errors
/// [`CodecError::WrongLength`].
pub fn decode(codec: CodecKind, bytes: &[u8], out: &mut [f32]) -> Result<(), CodecError> {
    check(codec, out.len(), bytes.len())?;
    out.par_chunks_mut(BLOCK_ELEMENTS)
        .zip(bytes.par_chunks(encoded_bytes(codec, BLOCK_ELEMENTS)))
        .for_each(|(out, bytes)| of(codec).decode(Vectors::widest(), bytes, out));
    Ok(())
}

pub(crate) fn check(codec: CodecKind, elements: usize, got_bytes: usize) -> Result<(), CodecError> {
    let expected_bytes = encoded_bytes(codec, elements);
    if expected_bytes == got_bytes {
        Ok(())
    } else {
        Err(CodecError::WrongLength {
            elements,
            expected_bytes,
            got_bytes,
        })
    }
}

vectorised!(fn subtract(base: &[f32], local: &[f32], out: &mut [f32]) = subtract_body);

#[inline(always)]
fn subtract_body(base: &[f32], local: &[f32], out: &mut [f32]) {
    for (out, (base, local)) in out.iter_mut().zip(base.iter().zip(local)) {
        *out = base - local;
    }
}

#[cfg(test)]
mod tests {
    use schemas::run::Rounding;

    use super::*;
    use crate::rounding::noise_word;

    /// Bit patterns of every kind, and the boundaries of all vector widths.
    fn patterns(count: usize) -> Vec<f32> {
        (0..count as u64)
            .map(|index| f32::from_bits(noise_word(7, index) as u32))
            .collect()
    }

    #[test]
    fn all_vector_widths_write_and_read_the_same_bytes() {
        let stochastic = SeededRounding {
            rule: Rounding::Stochastic,
            seed: 3,
            first_element: 5,
        };
        let counts = [0, 1, 3, 31, 32, 33, 1000, TILE_ELEMENTS];
        for (count, codec) in counts
            .iter()
            .flat_map(|count| CodecKind::ALL.iter().map(move |codec| (*count, *codec)))
        {
            let values = patterns(count);
            for rounding in [SeededRounding::NEAREST, stochastic] {
                let pass = |vectors| {
                    let mut out = vec![0; encoded_bytes(codec, count)];
                    of(codec).encode(vectors, &values, rounding, &mut out);
                    let mut again = vec![0.0_f32; count];
                    of(codec).decode(vectors, &out, &mut again);
                    let again: Vec<u32> = again.iter().map(|value| value.to_bits()).collect();
                    (out, again)
                };
                let expected = pass(Vectors::BASELINE);
                for vectors in Vectors::available() {
                    assert_eq!(
                        pass(vectors),
                        expected,
                        "{codec:?} {rounding:?} {vectors:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_tile_and_a_task_hold_whole_blocks() {
        for codec in CodecKind::ALL.iter().copied() {
            assert!(TILE_ELEMENTS.is_multiple_of(block_elements(codec)));
            assert!(BLOCK_ELEMENTS.is_multiple_of(TILE_ELEMENTS));
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(encoded_bytes(CodecKind::Fp32, 3), 12);
        assert_eq!(encoded_bytes(CodecKind::Bf16, 3), 6);
        assert_eq!(encoded_bytes(CodecKind::Fp32, usize::MAX), usize::MAX);
        assert_eq!(
            decode(CodecKind::Bf16, &[0; 5], &mut [0.0; 3]),
            Err(CodecError::WrongLength {
                elements: 3,
                expected_bytes: 6,
                got_bytes: 5
            })
        );
        assert_eq!(
            encode_difference(
                CodecKind::Bf16,
                &[0.0; 3],
                &[0.0; 2],
                SeededRounding::NEAREST,
                &mut [0; 6]
            ),
            Err(CodecError::Unequal { base: 3, local: 2 })
        );
    }
}
