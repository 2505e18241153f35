//! The codecs as tensor operations, for weights that lie on a device: the same bytes as
//! [`merge::codec`] makes of the same numbers, whose rules are said there.
//!
//! All rounding is integer arithmetic on the bits. Of floating point there is one subtraction, one
//! division, one sum or one product at a time, each of which IEEE 754 rounds the same way
//! everywhere. Only the payload of a NaN is the device's own; no NaN passes the screen.

use merge::SeededRounding;
use merge::codec::{block_bytes, block_elements};
use merge::rounding::noise_key;
use schemas::run::{CodecKind, Rounding};
use tch::{Kind, Tensor};

use crate::error::TorchError;

const INFINITY_BITS: i64 = 0x7f80_0000;
const MAGNITUDE_BITS: i64 = 0x7fff_ffff;
/// The sign of an int32, as the number that its bit alone is.
const SIGN_BIT: i64 = i32::MIN as i64;

/// Encodes a flat vector of fp32; the bytes lie on its device.
pub(crate) fn encode(
    codec: CodecKind,
    values: &Tensor,
    rounding: SeededRounding,
) -> Result<Tensor, TorchError> {
    match codec {
        CodecKind::Fp32 => Ok(values.f_view_dtype(Kind::Uint8)?),
        CodecKind::Bf16 => {
            let bits = values.f_view_dtype(Kind::Int)?;
            let narrow = match rounding.rule {
                Rounding::Nearest => bf16::narrow_nearest(&bits)?,
                Rounding::Stochastic => bf16::narrow_stochastic(&bits, &noise(&bits, rounding)?)?,
            };
            Ok(narrow.f_to_kind(Kind::Int16)?.f_view_dtype(Kind::Uint8)?)
        }
        CodecKind::E3m0 => e3m0::encode(values, rounding),
    }
}

/// Decodes `elements` values of fp32 from bytes of the right length.
pub(crate) fn decode(
    codec: CodecKind,
    bytes: &Tensor,
    elements: usize,
) -> Result<Tensor, TorchError> {
    match codec {
        CodecKind::Fp32 => Ok(bytes.f_view_dtype(Kind::Float)?),
        CodecKind::Bf16 => {
            let narrow = bytes.f_view_dtype(Kind::Int16)?.f_to_kind(Kind::Int)?;
            let bits = narrow.f_bitwise_left_shift_tensor_scalar(16)?;
            Ok(bits.f_view_dtype(Kind::Float)?)
        }
        CodecKind::E3m0 => e3m0::decode(bytes, elements),
    }
}

mod bf16 {
    use super::*;

    /// The largest finite bf16.
    const MAX: i64 = 0x7f7f;
    /// Marks a NaN as quiet.
    const QUIET: i64 = 0x0040;

    /// The upper halves of the nearest bf16, as int32 with their sign extended.
    pub(super) fn narrow_nearest(bits: &Tensor) -> Result<Tensor, TorchError> {
        let upper = bits.f_bitwise_right_shift_tensor_scalar(16)?;
        let nearest = upper
            .f_bitwise_and(1)?
            .f_add_scalar(0x7fff)?
            .f_add_(bits)?
            .f_bitwise_right_shift_tensor_scalar(16)?;
        let is_nan = bits.f_bitwise_and(MAGNITUDE_BITS)?.f_gt(INFINITY_BITS)?;
        Ok(upper.f_bitwise_or(QUIET)?.f_where_self(&is_nan, &nearest)?)
    }

    /// The upper halves of the bf16 that the noise, 16 bits for each element, rounds to.
    pub(super) fn narrow_stochastic(bits: &Tensor, noise: &Tensor) -> Result<Tensor, TorchError> {
        let magnitude = bits.f_bitwise_and(MAGNITUDE_BITS)?;
        let finite = magnitude
            .f_add(noise)?
            .f_bitwise_right_shift_tensor_scalar(16)?
            .f_clamp_max(MAX)?;
        let is_nan = magnitude.f_gt(INFINITY_BITS)?.f_to_kind(Kind::Int)?;
        let special = magnitude
            .f_bitwise_right_shift_tensor_scalar(16)?
            .f_bitwise_or_tensor(&is_nan.f_mul_scalar(QUIET)?)?;
        let rounded = finite.f_where_self(&magnitude.f_lt(INFINITY_BITS)?, &special)?;
        let sign = bits
            .f_bitwise_right_shift_tensor_scalar(31)?
            .f_bitwise_left_shift_tensor_scalar(15)?;
        Ok(sign.f_bitwise_or_tensor(&rounded)?)
    }
}

mod e3m0 {
    use super::*;

    const ELEMENTS: i64 = block_elements(CodecKind::E3m0) as i64;
    const BYTES: i64 = block_bytes(CodecKind::E3m0) as i64;
    /// Bytes of the scale.
    const SCALE: i64 = 4;
    /// Values of a run: those whose codes lie in one half of the code bytes.
    const RUN: i64 = ELEMENTS / 2;
    /// Smallest scale above 0, 2^-100.
    const SCALE_MIN_BITS: i64 = (127 - 100) << 23;
    /// The exponent field of 1/64, the ratio of level 1.
    const LEVEL_1_EXPONENT: i64 = 127 - 6;
    /// The noise of rounding to nearest: one half.
    const HALF: i64 = 0x8000;

    pub(super) fn encode(values: &Tensor, rounding: SeededRounding) -> Result<Tensor, TorchError> {
        let elements = values.size1()?;
        let missing = (ELEMENTS - elements % ELEMENTS) % ELEMENTS;
        let padded = if missing == 0 {
            values.shallow_clone()
        } else {
            values.f_constant_pad_nd([0, missing])?
        };
        let bits = padded.f_view_dtype(Kind::Int)?.f_view([-1, ELEMENTS])?;
        let magnitude = bits.f_bitwise_and(MAGNITUDE_BITS)?;
        let largest = magnitude.f_amax([1], true)?;
        let codes = codes(&bits, &magnitude, &largest, rounding)?;
        let has_codes = largest
            .f_ge(SCALE_MIN_BITS)?
            .f_logical_and(&largest.f_lt(INFINITY_BITS)?)?;
        let codes = codes.f_where_scalarother(&has_codes, 0)?;
        let high = codes
            .f_narrow(1, RUN, RUN)?
            .f_bitwise_left_shift_tensor_scalar(4)?;
        let packed = codes.f_narrow(1, 0, RUN)?.f_bitwise_or_tensor(&high)?;
        let scale = largest.f_where_scalarother(&largest.f_ge(SCALE_MIN_BITS)?, 0)?;
        let blocks = Tensor::f_empty([bits.size2()?.0, BYTES], (Kind::Uint8, values.device()))?;
        blocks
            .f_narrow(1, 0, SCALE)?
            .f_copy_(&scale.f_view_dtype(Kind::Uint8)?)?;
        blocks.f_narrow(1, SCALE, RUN)?.f_copy_(&packed)?;
        Ok(blocks.f_view([-1])?)
    }

    /// The code of every value, as int32. Where the scale is 0 or no number they mean nothing.
    fn codes(
        bits: &Tensor,
        magnitude: &Tensor,
        largest: &Tensor,
        rounding: SeededRounding,
    ) -> Result<Tensor, TorchError> {
        let scale = largest.f_view_dtype(Kind::Float)?;
        let ratio = magnitude.f_view_dtype(Kind::Float)?.f_div(&scale)?;
        let lowest = 1.0 / 64.0;
        let is_low = ratio.f_lt(lowest)?;
        let place = ratio.f_add_scalar(lowest)?.f_where_self(&is_low, &ratio)?;
        let place = place.f_view_dtype(Kind::Int)?;
        let noisy = match rounding.rule {
            Rounding::Nearest => place.f_add_scalar(HALF << 7)?,
            Rounding::Stochastic => {
                let noise = noise(bits, rounding)?.f_view([-1, ELEMENTS])?;
                place.f_add(&noise.f_bitwise_left_shift_tensor_scalar(7)?)?
            }
        };
        let level = noisy
            .f_bitwise_right_shift_tensor_scalar(23)?
            .f_sub_scalar(LEVEL_1_EXPONENT - 1)?
            .f_sub(&is_low.f_to_kind(Kind::Int)?)?;
        let sign = bits
            .f_bitwise_right_shift_tensor_scalar(28)?
            .f_bitwise_and(8)?
            .f_where_scalarother(&level.f_ne(0)?, 0)?;
        Ok(level.f_bitwise_or_tensor(&sign)?)
    }

    pub(super) fn decode(bytes: &Tensor, elements: usize) -> Result<Tensor, TorchError> {
        let blocks = bytes.f_view([-1, BYTES])?;
        let scale = blocks.f_narrow(1, 0, SCALE)?.f_contiguous()?;
        let packed = blocks.f_narrow(1, SCALE, RUN)?.f_to_kind(Kind::Int)?;
        let low = packed.f_bitwise_and(15)?;
        let high = packed.f_bitwise_right_shift_tensor_scalar(4)?;
        let codes = Tensor::f_cat(&[low, high], 1)?;
        let level = codes.f_bitwise_and(7)?;
        let magnitude = level
            .f_add_scalar(LEVEL_1_EXPONENT - 1)?
            .f_bitwise_left_shift_tensor_scalar(23)?
            .f_where_scalarother(&level.f_ne(0)?, 0)?;
        let sign = codes
            .f_bitwise_left_shift_tensor_scalar(28)?
            .f_bitwise_and(SIGN_BIT)?;
        let values = magnitude
            .f_bitwise_or_tensor(&sign)?
            .f_view_dtype(Kind::Float)?
            .f_mul(&scale.f_view_dtype(Kind::Float)?)?;
        Ok(values.f_view([-1])?.f_narrow(0, 0, elements as i64)?)
    }
}

/// Elements that share one word of noise, 16 bits each.
const NOISE_LANES: u64 = 4;
/// The step of SplitMix64.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The noise of as many elements as `bits` has, 16 bits each, flat, as int32. Int64 arithmetic
/// wraps, so that its bits are those of the unsigned words.
fn noise(bits: &Tensor, rounding: SeededRounding) -> Result<Tensor, TorchError> {
    let SeededRounding {
        seed,
        first_element: first,
        ..
    } = rounding;
    let (count, device) = (bits.numel() as u64, bits.device());
    let skipped = first % NOISE_LANES;
    let words = (skipped + count).div_ceil(NOISE_LANES);
    let first_word = (first / NOISE_LANES).wrapping_add(1).wrapping_mul(GOLDEN);
    let start = noise_key(seed).wrapping_add(first_word);
    let words = Tensor::f_arange(words as i64, (Kind::Int64, device))?
        .f_mul_scalar(GOLDEN as i64)?
        .f_add_scalar(start as i64)?;
    let words = times(&folded(&words, 30)?, 0xbf58_476d_1ce4_e5b9)?;
    let words = times(&folded(&words, 27)?, 0x94d0_49bb_1331_11eb)?;
    let halves = folded(&words, 31)?.f_view_dtype(Kind::Int16)?;
    let halves = halves.f_narrow(0, skipped as i64, count as i64)?;
    Ok(halves.f_to_kind(Kind::Int)?.f_bitwise_and(0xffff)?)
}

/// `z ^ (z >> shift)` of unsigned words.
fn folded(words: &Tensor, shift: i64) -> Result<Tensor, TorchError> {
    let shifted = words
        .f_bitwise_right_shift_tensor_scalar(shift)?
        .f_bitwise_and((1_i64 << (64 - shift)) - 1)?;
    Ok(words.f_bitwise_xor_tensor(&shifted)?)
}

fn times(words: &Tensor, factor: u64) -> Result<Tensor, TorchError> {
    Ok(words.f_mul_scalar(factor as i64)?)
}
