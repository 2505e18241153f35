//! The screen: what an encoded chunk must be before it counts, in one pass and without a decoded
//! copy.

use rayon::prelude::*;
use schemas::Code;
use schemas::run::CodecKind;

use crate::codec::{check, encoded_bytes};
use crate::rounding::widen;
use crate::vectors::{Vectors, vectorised};
use crate::{BLOCK_ELEMENTS, CodecError};

/// What a screened chunk is like.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ChunkStatistics {
    /// How many elements it has.
    pub elements: u64,
    /// Sum of the squares of its elements; see [`screen`] for the order of additions.
    pub sum_of_squares: f64,
    /// Largest magnitude.
    pub abs_max: f32,
}

/// Why a chunk does not count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScreenError {
    /// Not the size that the layout gives it.
    #[error(transparent)]
    WrongLength(#[from] CodecError),
    /// It holds a NaN or an infinity.
    #[error("element {index} is not finite")]
    NotFinite {
        /// The first such element, counted from the start of the chunk.
        index: usize,
    },
}

/// Running sums of one block; element `i` of the block goes to sum `i % LANES`.
const LANES: usize = 16;

impl ScreenError {
    /// The code under which the contribution is refused.
    pub const fn code(&self) -> Code {
        match self {
            Self::WrongLength(_) => Code::SizeMismatch,
            Self::NotFinite { .. } => Code::NotFinite,
        }
    }
}

schemas::coded!(ScreenError);

impl ChunkStatistics {
    /// Takes in the next chunk of the same contribution; the order matters for the last bits of the
    /// sum.
    pub fn add(&mut self, next: Self) {
        self.elements += next.elements;
        self.sum_of_squares += next.sum_of_squares;
        self.abs_max = self.abs_max.max(next.abs_max);
    }

    /// The Euclidean norm.
    pub fn norm(self) -> f64 {
        self.sum_of_squares.sqrt()
    }
}

/// Checks that `bytes` encode exactly `elements` finite numbers, and describes them.
///
/// The sum of squares is reproducible: squares are exact in `f64`. In each block of
/// [`BLOCK_ELEMENTS`], element `i` is added to running sum `i % 16` in order of `i`; the 16 sums of
/// a block are then added by halves (sum `j` and sum `j + 8`, then `j` and `j + 4`, then 2, then
/// 1), and the blocks one after the other to 0.
///
/// # Errors
/// [`ScreenError`].
pub fn screen(
    codec: CodecKind,
    bytes: &[u8],
    elements: usize,
) -> Result<ChunkStatistics, ScreenError> {
    check(codec, elements, bytes.len())?;
    let blocks = bytes.par_chunks(encoded_bytes(codec, BLOCK_ELEMENTS));
    let blocks: Vec<BlockStatistics> = blocks
        .map(|block| screen_block(Vectors::widest(), codec, block))
        .collect();
    let mut statistics = ChunkStatistics {
        elements: elements as u64,
        sum_of_squares: 0.0,
        abs_max: 0.0,
    };
    for (
        block,
        BlockStatistics {
            sum_of_squares,
            abs_max_bits,
        },
    ) in blocks.into_iter().enumerate()
    {
        let abs_max = f32::from_bits(abs_max_bits);
        if !abs_max.is_finite() {
            let start = block * BLOCK_ELEMENTS;
            let rest = &bytes[encoded_bytes(codec, start)..];
            let place = first_not_finite(codec, rest)
                .expect("the largest magnitude of the block is not finite");
            return Err(ScreenError::NotFinite {
                index: start + place,
            });
        }
        statistics.sum_of_squares += sum_of_squares;
        statistics.abs_max = statistics.abs_max.max(abs_max);
    }
    Ok(statistics)
}

struct BlockStatistics {
    sum_of_squares: f64,
    abs_max_bits: u32,
}

fn screen_block(vectors: Vectors, codec: CodecKind, bytes: &[u8]) -> BlockStatistics {
    match codec {
        CodecKind::Fp32 => screen_fp32(vectors, bytes),
        CodecKind::Bf16 => screen_bf16(vectors, bytes),
    }
}

fn first_not_finite(codec: CodecKind, bytes: &[u8]) -> Option<usize> {
    match codec {
        CodecKind::Fp32 => bytes
            .as_chunks::<4>()
            .0
            .iter()
            .position(|bytes| !fp32(*bytes).is_finite()),
        CodecKind::Bf16 => bytes
            .as_chunks::<2>()
            .0
            .iter()
            .position(|bytes| !bf16(*bytes).is_finite()),
    }
}

vectorised!(fn screen_fp32(bytes: &[u8]) -> BlockStatistics = screen_fp32_body);
vectorised!(fn screen_bf16(bytes: &[u8]) -> BlockStatistics = screen_bf16_body);

#[inline(always)]
fn fp32(bytes: [u8; 4]) -> f32 {
    f32::from_le_bytes(bytes)
}

#[inline(always)]
fn bf16(bytes: [u8; 2]) -> f32 {
    widen(u16::from_le_bytes(bytes))
}

#[inline(always)]
fn screen_fp32_body(bytes: &[u8]) -> BlockStatistics {
    statistics(bytes.as_chunks::<4>().0, fp32)
}

#[inline(always)]
fn screen_bf16_body(bytes: &[u8]) -> BlockStatistics {
    statistics(bytes.as_chunks::<2>().0, bf16)
}

#[inline(always)]
fn statistics<const BYTES: usize>(
    encoded: &[[u8; BYTES]],
    read: impl Fn([u8; BYTES]) -> f32,
) -> BlockStatistics {
    let mut sums = [0.0_f64; LANES];
    let mut maxima = [0_u32; LANES];
    let (groups, tail) = encoded.as_chunks::<LANES>();
    for group in groups {
        for lane in 0..LANES {
            let value = read(group[lane]);
            maxima[lane] = maxima[lane].max(value.to_bits() & 0x7fff_ffff);
            sums[lane] += f64::from(value) * f64::from(value);
        }
    }
    for (lane, bytes) in tail.iter().enumerate() {
        let value = read(*bytes);
        maxima[lane] = maxima[lane].max(value.to_bits() & 0x7fff_ffff);
        sums[lane] += f64::from(value) * f64::from(value);
    }
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            sums[lane] += sums[lane + half];
            maxima[lane] = maxima[lane].max(maxima[lane + half]);
        }
        half /= 2;
    }
    BlockStatistics {
        sum_of_squares: sums[0],
        abs_max_bits: maxima[0],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn describes_a_chunk() {
        let bytes: Vec<u8> = [3.0_f32, -4.0, 0.0]
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let statistics = screen(CodecKind::Fp32, &bytes, 3).unwrap();
        assert_eq!(
            statistics,
            ChunkStatistics {
                elements: 3,
                sum_of_squares: 25.0,
                abs_max: 4.0
            }
        );
        assert_eq!(statistics.norm(), 5.0);
        let mut whole = statistics;
        whole.add(statistics);
        assert_eq!(
            whole,
            ChunkStatistics {
                elements: 6,
                sum_of_squares: 50.0,
                abs_max: 4.0
            }
        );
        assert_eq!(
            screen(CodecKind::Fp32, &[], 0).unwrap(),
            ChunkStatistics::default()
        );
    }

    #[test]
    fn names_the_first_element_that_is_not_finite() {
        for (codec, special) in [
            (CodecKind::Fp32, 0x7f80_0000_u32),
            (CodecKind::Fp32, 0xff80_0001),
            (CodecKind::Bf16, 0xff80_0000),
        ] {
            for index in [
                0,
                15,
                16,
                BLOCK_ELEMENTS - 1,
                BLOCK_ELEMENTS,
                BLOCK_ELEMENTS + 1000,
            ] {
                let elements = BLOCK_ELEMENTS + 1001;
                let mut bytes = vec![0; encoded_bytes(codec, elements)];
                let width = crate::codec::block_bytes(codec);
                let upper = &special.to_le_bytes()[4 - width..];
                for place in [index, elements - 1] {
                    bytes[place * width..][..width].copy_from_slice(upper);
                }
                assert_eq!(
                    screen(codec, &bytes, elements),
                    Err(ScreenError::NotFinite { index }),
                    "{codec:?}"
                );
            }
        }
    }

    #[test]
    fn the_length_must_fit() {
        for bytes in [0, 5, 7, 8] {
            assert!(
                matches!(
                    screen(CodecKind::Bf16, &vec![0; bytes], 3),
                    Err(ScreenError::WrongLength(_))
                ),
                "{bytes}"
            );
        }
    }

    #[test]
    fn all_vector_widths_agree() {
        let values = (0..BLOCK_ELEMENTS - 5).map(|index| (index as f32 * 0.37).sin() * 1e-3);
        let bytes: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
        let expected = screen_fp32(Vectors::BASELINE, &bytes);
        assert!(expected.sum_of_squares > 0.0);
        for vectors in Vectors::available() {
            let found = screen_fp32(vectors, &bytes);
            assert_eq!(
                found.sum_of_squares.to_bits(),
                expected.sum_of_squares.to_bits(),
                "{vectors:?}"
            );
            assert_eq!(found.abs_max_bits, expected.abs_max_bits, "{vectors:?}");
        }
    }
}
