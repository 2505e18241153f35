//! Codecs: how a slice of parameters or differences is written as bytes.

use rayon::prelude::*;
use schemas::run::{CodecKind, Rounding};

use crate::rounding::{
    NOISE_LANES, narrow_nearest, narrow_stochastic, noise_key, noise_word, widen,
};
use crate::vectors::{Vectors, vectorised};
use crate::{BLOCK_ELEMENTS, SeededRounding, TILE_ELEMENTS};

/// Why a slice was not encoded or decoded. Nothing was written.
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

/// Elements that are encoded together; a chunk must start at a multiple of it. 1 for all codecs so
/// far; one with a scale per block has more, and divides [`BLOCK_ELEMENTS`].
pub const fn block_elements(codec: CodecKind) -> usize {
    match codec {
        CodecKind::Fp32 | CodecKind::Bf16 => 1,
    }
}

/// Bytes of one encoded block of [`block_elements`].
pub const fn block_bytes(codec: CodecKind) -> usize {
    match codec {
        CodecKind::Fp32 => 4,
        CodecKind::Bf16 => 2,
    }
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
            encode_block(
                Vectors::widest(),
                codec,
                values,
                rounding.skip(block * BLOCK_ELEMENTS),
                out,
            );
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
                let skipped = block * BLOCK_ELEMENTS + tile * TILE_ELEMENTS;
                encode_block(vectors, codec, difference, rounding.skip(skipped), out);
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
        .for_each(|(out, bytes)| match codec {
            CodecKind::Fp32 => read_fp32(Vectors::widest(), bytes, out),
            CodecKind::Bf16 => read_bf16(Vectors::widest(), bytes, out),
        });
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

/// Encodes at most a block on this thread; lengths are checked by the caller.
pub(crate) fn encode_block(
    vectors: Vectors,
    codec: CodecKind,
    values: &[f32],
    SeededRounding {
        rule,
        seed,
        first_element,
    }: SeededRounding,
    out: &mut [u8],
) {
    match (codec, rule) {
        (CodecKind::Fp32, _) => write_fp32(vectors, values, out),
        (CodecKind::Bf16, Rounding::Nearest) => write_bf16_nearest(vectors, values, out),
        (CodecKind::Bf16, Rounding::Stochastic) => {
            write_bf16_stochastic(vectors, values, noise_key(seed), first_element, out);
        }
    }
}

vectorised!(fn subtract(base: &[f32], local: &[f32], out: &mut [f32]) = subtract_body);
vectorised!(fn write_fp32(values: &[f32], out: &mut [u8]) = write_fp32_body);
vectorised!(fn write_bf16_nearest(values: &[f32], out: &mut [u8]) = write_bf16_nearest_body);
vectorised!(fn write_bf16_stochastic(values: &[f32], key: u64, first: u64, out: &mut [u8]) = write_bf16_stochastic_body);
vectorised!(fn read_fp32(bytes: &[u8], out: &mut [f32]) = read_fp32_body);
vectorised!(fn read_bf16(bytes: &[u8], out: &mut [f32]) = read_bf16_body);

#[inline(always)]
fn subtract_body(base: &[f32], local: &[f32], out: &mut [f32]) {
    for (out, (base, local)) in out.iter_mut().zip(base.iter().zip(local)) {
        *out = base - local;
    }
}

#[inline(always)]
fn write_fp32_body(values: &[f32], out: &mut [u8]) {
    for (out, value) in out.as_chunks_mut::<4>().0.iter_mut().zip(values) {
        *out = value.to_le_bytes();
    }
}

#[inline(always)]
fn write_bf16_nearest_body(values: &[f32], out: &mut [u8]) {
    for (out, value) in out.as_chunks_mut::<2>().0.iter_mut().zip(values) {
        *out = narrow_nearest(*value).to_le_bytes();
    }
}

/// One word of noise serves four elements: the few before the first whole group of four are done
/// one by one, so that a slice may start anywhere.
#[inline(always)]
fn write_bf16_stochastic_body(values: &[f32], key: u64, first: u64, out: &mut [u8]) {
    let lanes = NOISE_LANES as u64;
    let out = out.as_chunks_mut::<2>().0;
    let one = |value: f32, index: u64| {
        let noise = noise_word(key, index / lanes) >> (16 * (index % lanes));
        narrow_stochastic(value, noise as u16).to_le_bytes()
    };
    let head = ((lanes - first % lanes) % lanes).min(values.len() as u64) as usize;
    let (head_values, values) = values.split_at(head);
    let (head_out, out) = out.split_at_mut(head);
    for (place, (out, value)) in head_out.iter_mut().zip(head_values).enumerate() {
        *out = one(*value, first.wrapping_add(place as u64));
    }
    let first = first.wrapping_add(head as u64);
    let (groups, tail_values) = values.as_chunks::<NOISE_LANES>();
    let (group_outs, tail_out) = out.as_chunks_mut::<NOISE_LANES>();
    for (group, (out, values)) in group_outs.iter_mut().zip(groups).enumerate() {
        let word = noise_word(key, first / lanes + group as u64);
        for lane in 0..NOISE_LANES {
            out[lane] = narrow_stochastic(values[lane], (word >> (16 * lane)) as u16).to_le_bytes();
        }
    }
    let first = first.wrapping_add((groups.len() * NOISE_LANES) as u64);
    for (place, (out, value)) in tail_out.iter_mut().zip(tail_values).enumerate() {
        *out = one(*value, first.wrapping_add(place as u64));
    }
}

#[inline(always)]
fn read_fp32_body(bytes: &[u8], out: &mut [f32]) {
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *out = f32::from_le_bytes(*bytes);
    }
}

#[inline(always)]
fn read_bf16_body(bytes: &[u8], out: &mut [f32]) {
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *out = widen(u16::from_le_bytes(*bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        for count in [0, 1, 3, 31, 32, 33, 1000, TILE_ELEMENTS] {
            let values = patterns(count);
            for (codec, rounding) in [
                (CodecKind::Fp32, SeededRounding::NEAREST),
                (CodecKind::Bf16, SeededRounding::NEAREST),
                (CodecKind::Bf16, stochastic),
            ] {
                let encode = |vectors| {
                    let mut out = vec![0; encoded_bytes(codec, count)];
                    encode_block(vectors, codec, &values, rounding, &mut out);
                    out
                };
                let expected = encode(Vectors::BASELINE);
                for vectors in Vectors::available() {
                    assert_eq!(
                        encode(vectors),
                        expected,
                        "{codec:?} {rounding:?} {vectors:?}"
                    );
                }
            }
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
