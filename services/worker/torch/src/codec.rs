//! The codecs as tensor operations, for weights that lie on a device: they give the same bytes as
//! [`merge::codec`], which states the rules.
//!
//! All rounding is integer arithmetic on the bits. Of floating point there is one subtraction, one
//! division, one sum or one product at a time, each of which IEEE 754 rounds the same way
//! everywhere. Only the payload of a NaN is the device's own; no NaN passes the screen.
//!
//! Operations work in place where they can. Encoding holds at most [`ENCODING_BYTES_MAX`] bytes of
//! temporaries for each element at a time, the values that it is given among them, and decoding
//! [`DECODING_BYTES_MAX`]; callers go through long vectors by [`BLOCK_ELEMENTS`].

use merge::SeededRounding;
use merge::codec::{block_bytes, block_elements};
use merge::rounding::noise_key;
use schemas::run::{CodecKind, Rounding};
use tch::{Kind, Tensor};

use crate::error::TorchError;

/// Elements that are encoded or decoded at once, a multiple of every codec's block and of the
/// elements that share a word of noise. A device is busy with far fewer elements, but the time to
/// start an operation would then matter beside the operation itself.
pub(crate) const BLOCK_ELEMENTS: usize = 4 << 20;
/// Bytes for each element of a block while it is encoded.
pub(crate) const ENCODING_BYTES_MAX: usize = 18;
/// Bytes for each element of a block while it is decoded.
pub(crate) const DECODING_BYTES_MAX: usize = 11;
/// Bytes of all temporaries. Beside the memory of training, a sync takes no more of a device, apart
/// from encodings that wait for the bus.
const TEMPORARY_BYTES_MAX: usize = 72 << 20;
const _: () = assert!(BLOCK_ELEMENTS * ENCODING_BYTES_MAX <= TEMPORARY_BYTES_MAX);
const _: () = assert!(DECODING_BYTES_MAX <= ENCODING_BYTES_MAX);

const INFINITY_BITS: i64 = 0x7f80_0000;
const MAGNITUDE_BITS: i64 = 0x7fff_ffff;
/// The sign of an int32, as the number in which only the sign bit is set.
const SIGN_BIT: i64 = i32::MIN as i64;

/// Encodes a flat vector of fp32, whose memory is used up, to `place`: bytes on the same device, as
/// many as the encoding has.
pub(crate) fn encode(
    codec: CodecKind,
    values: Tensor,
    rounding: SeededRounding,
    place: &Tensor,
) -> Result<(), TorchError> {
    match codec {
        CodecKind::Fp32 => place.f_view_dtype(Kind::Float)?.f_copy_(&values)?,
        CodecKind::Bf16 => {
            let bits = values.f_view_dtype(Kind::Int)?;
            drop(values);
            let narrow = match rounding.rule {
                Rounding::Nearest => bf16::narrow_nearest(bits)?,
                Rounding::Stochastic => {
                    let noise = noise(&bits, rounding)?;
                    bf16::narrow_stochastic(bits, noise)?
                }
            };
            place.f_view_dtype(Kind::Int16)?.f_copy_(&narrow)?;
        }
        CodecKind::E3m0 => e3m0::encode(values, rounding, place)?,
    }
    Ok(())
}

/// Decodes bytes of the right length to `place`: a flat vector of fp32 on the same device.
pub(crate) fn decode(codec: CodecKind, bytes: &Tensor, place: &Tensor) -> Result<(), TorchError> {
    match codec {
        CodecKind::Fp32 => place
            .shallow_clone()
            .f_copy_(&bytes.f_view_dtype(Kind::Float)?)?,
        CodecKind::Bf16 => {
            let mut bits = place.f_view_dtype(Kind::Int)?;
            bits.f_copy_(&bytes.f_view_dtype(Kind::Int16)?)?;
            let _ = bits.f_bitwise_left_shift_tensor_scalar_(16)?;
        }
        CodecKind::E3m0 => e3m0::decode(bytes, place)?,
    }
    Ok(())
}

mod bf16 {
    use super::*;

    /// The largest finite bf16.
    const MAX: i64 = 0x7f7f;
    const INFINITY: i64 = INFINITY_BITS >> 16;
    /// Marks a NaN as quiet.
    const QUIET: i64 = 0x0040;

    /// The upper halves of the nearest bf16, as int32 with their sign extended.
    pub(super) fn narrow_nearest(mut bits: Tensor) -> Result<Tensor, TorchError> {
        let is_nan = bits.f_bitwise_and(MAGNITUDE_BITS)?.f_gt(INFINITY_BITS)?;
        let nearest = bits
            .f_bitwise_right_shift_tensor_scalar(16)?
            .f_bitwise_and_(1)?
            .f_add_scalar_(0x7fff)?
            .f_add_(&bits)?
            .f_bitwise_right_shift_tensor_scalar_(16)?;
        let quiet = bits
            .f_bitwise_right_shift_tensor_scalar_(16)?
            .f_bitwise_or_(QUIET)?;
        Ok(quiet.f_where_self(&is_nan, &nearest)?)
    }

    /// The upper halves of the bf16 that the noise, 16 bits for each element, rounds to.
    pub(super) fn narrow_stochastic(
        mut bits: Tensor,
        mut noise: Tensor,
    ) -> Result<Tensor, TorchError> {
        let mut magnitude = bits.f_bitwise_and(MAGNITUDE_BITS)?;
        let finite = noise
            .f_add_(&magnitude)?
            .f_bitwise_right_shift_tensor_scalar_(16)?
            .f_clamp_max_(MAX)?;
        let is_nan = magnitude.f_gt(INFINITY_BITS)?;
        let quiet = is_nan.f_to_kind(Kind::Int)?.f_mul_scalar_(QUIET)?;
        drop(is_nan);
        let special = magnitude
            .f_bitwise_right_shift_tensor_scalar_(16)?
            .f_bitwise_or_tensor_(&quiet)?;
        drop(quiet);
        let is_finite = special.f_lt(INFINITY)?;
        let mut rounded = finite.f_where_self(&is_finite, &special)?;
        let sign = bits
            .f_bitwise_right_shift_tensor_scalar_(31)?
            .f_bitwise_left_shift_tensor_scalar_(15)?;
        Ok(rounded.f_bitwise_or_tensor_(&sign)?)
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

    pub(super) fn encode(
        values: Tensor,
        rounding: SeededRounding,
        place: &Tensor,
    ) -> Result<(), TorchError> {
        let missing = (ELEMENTS - values.size1()? % ELEMENTS) % ELEMENTS;
        let padded = if missing == 0 {
            values
        } else {
            values.f_constant_pad_nd([0, missing])?
        };
        let bits = padded.f_view_dtype(Kind::Int)?.f_view([-1, ELEMENTS])?;
        drop(padded);
        let magnitude = bits.f_bitwise_and(MAGNITUDE_BITS)?;
        let largest = magnitude.f_amax([1], true)?;
        let has_codes = largest
            .f_ge(SCALE_MIN_BITS)?
            .f_logical_and(&largest.f_lt(INFINITY_BITS)?)?;
        // If the block has no scale, the values computed for it have no meaning.
        let codes = codes(bits, magnitude, &largest, rounding)?.f_mul_(&has_codes)?;
        let high = codes
            .f_narrow(1, RUN, RUN)?
            .f_bitwise_left_shift_tensor_scalar_(4)?;
        let packed = codes.f_narrow(1, 0, RUN)?.f_bitwise_or_tensor_(&high)?;
        let scale = largest.f_where_scalarother(&largest.f_ge(SCALE_MIN_BITS)?, 0)?;
        let blocks = place.f_view([-1, BYTES])?;
        blocks
            .f_narrow(1, 0, SCALE)?
            .f_copy_(&scale.f_view_dtype(Kind::Uint8)?)?;
        Ok(blocks.f_narrow(1, SCALE, RUN)?.f_copy_(&packed)?)
    }

    /// The code of every value, as int32. If the scale is 0 or no number, the codes have no
    /// meaning.
    fn codes(
        mut bits: Tensor,
        magnitude: Tensor,
        largest: &Tensor,
        rounding: SeededRounding,
    ) -> Result<Tensor, TorchError> {
        let scale = largest.f_view_dtype(Kind::Float)?;
        let mut ratio = magnitude.f_view_dtype(Kind::Float)?;
        drop(magnitude);
        let _ = ratio.f_div_(&scale)?;
        let lowest = 1.0 / 64.0;
        let is_low = ratio.f_lt(lowest)?;
        // A ratio that is not low does not change: adding zero gives the number itself.
        let lift = is_low.f_to_kind(Kind::Float)?.f_mul_scalar_(lowest)?;
        let _ = ratio.f_add_(&lift)?;
        drop(lift);
        let mut place = ratio.f_view_dtype(Kind::Int)?;
        drop(ratio);
        match rounding.rule {
            Rounding::Nearest => drop(place.f_add_scalar_(HALF << 7)?),
            Rounding::Stochastic => {
                let noise = noise(&bits, rounding)?.f_bitwise_left_shift_tensor_scalar_(7)?;
                drop(place.f_add_(&noise.f_view([-1, ELEMENTS])?)?);
            }
        }
        let mut level = place
            .f_bitwise_right_shift_tensor_scalar_(23)?
            .f_sub_scalar_(LEVEL_1_EXPONENT - 1)?
            .f_sub_(&is_low.f_to_kind(Kind::Int)?)?;
        let sign = bits
            .f_bitwise_right_shift_tensor_scalar_(28)?
            .f_bitwise_and_(8)?
            .f_mul_(&level.f_ne(0)?)?;
        Ok(level.f_bitwise_or_tensor_(&sign)?)
    }

    pub(super) fn decode(bytes: &Tensor, place: &Tensor) -> Result<(), TorchError> {
        let blocks = bytes.f_view([-1, BYTES])?;
        let scale = blocks.f_narrow(1, 0, SCALE)?.f_contiguous()?;
        let mut high = blocks.f_narrow(1, SCALE, RUN)?.f_to_kind(Kind::Int)?;
        let low = high.f_bitwise_and(15)?;
        let _ = high.f_bitwise_right_shift_tensor_scalar_(4)?;
        let mut codes = Tensor::f_cat(&[&low, &high], 1)?;
        drop((low, high));
        let mut level = codes.f_bitwise_and(7)?;
        let is_zero = level.f_eq(0)?;
        let sign = codes
            .f_bitwise_left_shift_tensor_scalar_(28)?
            .f_bitwise_and_(SIGN_BIT)?;
        let values = level
            .f_add_scalar_(LEVEL_1_EXPONENT - 1)?
            .f_bitwise_left_shift_tensor_scalar_(23)?
            .f_masked_fill_(&is_zero, 0)?
            .f_bitwise_or_tensor_(&sign)?
            .f_view_dtype(Kind::Float)?
            .f_mul_(&scale.f_view_dtype(Kind::Float)?)?;
        let elements = place.size1()?;
        let values = values.f_view([-1])?.f_narrow(0, 0, elements)?;
        Ok(place.shallow_clone().f_copy_(&values)?)
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
    let mut words = Tensor::f_arange(words as i64, (Kind::Int64, device))?
        .f_mul_scalar_(GOLDEN as i64)?
        .f_add_scalar_(start as i64)?;
    fold(&mut words, 30)?;
    let _ = words.f_mul_scalar_(0xbf58_476d_1ce4_e5b9_u64 as i64)?;
    fold(&mut words, 27)?;
    let _ = words.f_mul_scalar_(0x94d0_49bb_1331_11eb_u64 as i64)?;
    fold(&mut words, 31)?;
    let halves = words
        .f_view_dtype(Kind::Int16)?
        .f_narrow(0, skipped as i64, count as i64)?;
    Ok(halves.f_to_kind(Kind::Int)?.f_bitwise_and_(0xffff)?)
}

/// Makes of each unsigned word `z` the word `z ^ (z >> shift)`.
fn fold(words: &mut Tensor, shift: i64) -> Result<(), TorchError> {
    let shifted = words
        .f_bitwise_right_shift_tensor_scalar(shift)?
        .f_bitwise_and_((1_i64 << (64 - shift)) - 1)?;
    let _ = words.f_bitwise_xor_tensor_(&shifted)?;
    Ok(())
}

#[cfg(test)]
mod tests;
