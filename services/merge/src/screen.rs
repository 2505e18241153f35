//! The screen: the checks of an encoded chunk before it counts, in one pass and without a decoded
//! copy.

use rayon::prelude::*;
use schemas::Code;
use schemas::run::CodecKind;

use crate::codec::{self, Examined, Fault, check, encoded_bytes};
use crate::vectors::Vectors;
use crate::{BLOCK_ELEMENTS, CodecError};

/// Statistics of a screened chunk.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ChunkStatistics {
    /// The number of its elements.
    pub elements: u64,
    /// Sum of the squares of its elements; see [`screen`] for the order of additions.
    pub sum_of_squares: f64,
    /// Largest magnitude.
    pub abs_max: f32,
}

/// The reason why a chunk does not count.
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
    /// It holds a block that is not the encoding of its values: with two encodings of one
    /// contribution, a digest would no longer name what was sent.
    #[error("the block at element {index} is not what the codec writes: {why}")]
    NotCanonical {
        /// The first element of the block, counted from the start of the chunk.
        index: usize,
        /// The fault.
        why: &'static str,
    },
}

impl ScreenError {
    fn at(start: usize, fault: Fault) -> Self {
        match fault {
            Fault::NotFinite { index } => Self::NotFinite {
                index: start + index,
            },
            Fault::NotCanonical { index, why } => Self::NotCanonical {
                index: start + index,
                why,
            },
        }
    }

    /// The code under which the contribution is refused.
    pub const fn code(&self) -> Code {
        match self {
            Self::WrongLength(_) => Code::SizeMismatch,
            Self::NotFinite { .. } => Code::NotFinite,
            Self::NotCanonical { .. } => Code::EncodingInvalid,
        }
    }
}

schemas::coded!(ScreenError);

impl ChunkStatistics {
    /// Adds the next chunk of the same contribution; the order matters for the last bits of the
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

/// Checks that `bytes` are the encoding of exactly `elements` finite numbers, and describes them.
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
    let block_bytes = encoded_bytes(codec, BLOCK_ELEMENTS);
    let length = |block: usize| BLOCK_ELEMENTS.min(elements - block * BLOCK_ELEMENTS);
    let blocks: Vec<Examined> = bytes
        .par_chunks(block_bytes)
        .enumerate()
        .map(|(block, bytes)| codec::of(codec).examine(Vectors::widest(), bytes, length(block)))
        .collect();
    let mut statistics = ChunkStatistics {
        elements: elements as u64,
        sum_of_squares: 0.0,
        abs_max: 0.0,
    };
    for (block, examined) in blocks.into_iter().enumerate() {
        let abs_max = f32::from_bits(examined.abs_max_bits);
        if !abs_max.is_finite() || !examined.canonical {
            let bytes = &bytes[block * block_bytes..][..encoded_bytes(codec, length(block))];
            let fault = codec::of(codec)
                .fault(bytes, length(block))
                .expect("the examination of the block found something wrong");
            return Err(ScreenError::at(block * BLOCK_ELEMENTS, fault));
        }
        statistics.sum_of_squares += examined.sum_of_squares;
        statistics.abs_max = statistics.abs_max.max(abs_max);
    }
    Ok(statistics)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SeededRounding;

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
        let values: Vec<f32> = (0..BLOCK_ELEMENTS - 5)
            .map(|index| (index as f32 * 0.37).sin() * 1e-3)
            .collect();
        for kind in CodecKind::ALL.iter().copied() {
            let mut bytes = vec![0; encoded_bytes(kind, values.len())];
            codec::encode(kind, &values, SeededRounding::NEAREST, &mut bytes).unwrap();
            let examine = |vectors| codec::of(kind).examine(vectors, &bytes, values.len());
            let expected = examine(Vectors::BASELINE);
            assert!(
                expected.sum_of_squares > 0.0 && expected.canonical,
                "{kind:?}"
            );
            for vectors in Vectors::available() {
                let found = examine(vectors);
                assert_eq!(
                    found.sum_of_squares.to_bits(),
                    expected.sum_of_squares.to_bits(),
                    "{kind:?} {vectors:?}"
                );
                assert_eq!(
                    found.abs_max_bits, expected.abs_max_bits,
                    "{kind:?} {vectors:?}"
                );
                assert!(found.canonical, "{kind:?} {vectors:?}");
            }
        }
    }
}
