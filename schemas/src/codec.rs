//! Codecs: the number formats in which weights and contributions travel, and the sizes of their
//! encodings.

use serde::{Deserialize, Serialize};

/// The encoding of values on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Codec {
    /// The number format.
    pub kind: CodecKind,
    /// The rule by which values are rounded to it.
    pub rounding: Rounding,
}

/// The rule by which values are rounded to a narrower format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rounding {
    /// Rounding to the nearest value; the codec says which of two equally near values it takes.
    Nearest,
    /// Up or down with probability by distance, from the run's seed and the element's index.
    Stochastic,
}

/// The purpose of a codec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carries {
    /// Weights and contributions.
    Anything,
    /// Contributions only. The codec errs by a part of the largest value nearby; a mean of
    /// contributions evens that out, but a copy of the weights would keep it.
    Contributions,
}

/// Declares the codecs, one a line: its number, its name on the wire, the elements of a block in
/// the bytes of its encoding, and the values that it carries.
macro_rules! codecs {
    ($($(#[doc = $doc:literal])+ $kind:ident = $number:literal, $name:literal: $elements:literal in $bytes:literal, $carries:ident;)+) => {
        /// A number format on the wire, little endian.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[repr(u8)]
        pub enum CodecKind {
            $($(#[doc = $doc])+ #[serde(rename = $name)] $kind = $number,)+
        }

        impl CodecKind {
            /// Every codec of this build.
            pub const ALL: &[Self] = &[$(Self::$kind),+];

            /// The name in messages and settings.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)+
                }
            }

            /// The elements that are encoded together; a slice must start at a multiple of them.
            pub const fn block_elements(self) -> u64 {
                match self {
                    $(Self::$kind => $elements,)+
                }
            }

            /// The bytes of one encoded block.
            pub const fn block_bytes(self) -> u64 {
                match self {
                    $(Self::$kind => $bytes,)+
                }
            }

            /// The values that may travel in this codec.
            pub const fn carries(self) -> Carries {
                match self {
                    $(Self::$kind => Carries::$carries,)+
                }
            }
        }
    };
}

codecs! {
    /// 4 bytes a value, exact.
    Fp32 = 1, "fp32": 1 in 4, Anything;
    /// 2 bytes a value: the upper half of fp32.
    Bf16 = 2, "bf16": 1 in 2, Anything;
    /// 4 bits a value and an fp32 scale for 256 of them: a sign and a power of two below the
    /// scale.
    E3m0 = 3, "e3m0": 256 in 132, Contributions;
}

impl CodecKind {
    /// The number of the codec: the same in every release, and never given to another.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The bytes of the encoding of `elements`. A last block that is not full takes as many bytes
    /// as a full one. `u64::MAX` if the true number does not fit, which is no possible length.
    pub const fn encoded_bytes(self, elements: u64) -> u64 {
        elements
            .div_ceil(self.block_elements())
            .saturating_mul(self.block_bytes())
    }

    /// The most elements whose encoding fits in `bytes`.
    pub const fn elements_in(self, bytes: u64) -> u64 {
        (bytes / self.block_bytes()).saturating_mul(self.block_elements())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_those_of_every_release() {
        let table: Vec<_> = CodecKind::ALL
            .iter()
            .map(|codec| (codec.number(), codec.name()))
            .collect();
        assert_eq!(table, [(1, "fp32"), (2, "bf16"), (3, "e3m0")]);
        for codec in CodecKind::ALL {
            let bytes = rmp_serde::to_vec(codec).expect("it is a message");
            let text: String = rmp_serde::from_slice(&bytes).expect("a name");
            assert_eq!(text, codec.name(), "{codec:?}");
        }
    }

    #[test]
    fn sizes_go_by_block() {
        for codec in CodecKind::ALL {
            let (elements, bytes) = (codec.block_elements(), codec.block_bytes());
            assert_eq!(codec.encoded_bytes(0), 0);
            assert_eq!(codec.encoded_bytes(1), bytes);
            assert_eq!(codec.encoded_bytes(elements), bytes);
            assert_eq!(codec.encoded_bytes(elements + 1), 2 * bytes);
            assert_eq!(codec.elements_in(2 * bytes), 2 * elements);
            assert_eq!(codec.elements_in(2 * bytes - 1), elements);
        }
        assert_eq!(CodecKind::Fp32.encoded_bytes(u64::MAX), u64::MAX);
    }
}
