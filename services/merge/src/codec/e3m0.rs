//! E3M0: 4 bits a value, for differences. A sign, and a power of two below the largest magnitude of
//! the block (Streaming DiLoCo, arXiv 2501.18512, section 3.4).
//!
//! # The encoding
//!
//! A block of 256 values is 132 bytes: the scale, an fp32 little endian, then 128 bytes of codes.
//! The low half of code byte `i` is the code of value `i`, the high half that of value `i + 128`,
//! so that a block is read and written in two runs. Bit 3 of a code is the sign, bits 0 to 2 are
//! the level `L`: the value is ±scale · 2^(L − 7) for `L` from 1 to 7, and 0 for `L` = 0. All
//! products are exact.
//!
//! The scale is the largest magnitude of the block. A block of which it is below 2^-100 is written
//! as zeros with scale 0: such values move no parameter. A block that holds NaN or infinity has
//! that as its scale, and codes 0, so that none of its values reads as a number. The values that a
//! last block lacks are written as zeros.
//!
//! # Rounding
//!
//! `r` = |value| / scale, divided in fp32. From 1/64 on, `r` is between the levels `l` and `2 l`
//! (or is 1): it becomes `2 l` if the first 16 bits of `r / l − 1`, plus a noise of 16 bits, carry.
//! Below 1/64, `r + 1/64` is rounded to fp32 and treated likewise between 1/64 and 2/64, which
//! stand for level 0 and level 1. *Stochastic* takes the noise of [`crate::rounding`]; *nearest*
//! is the constant noise of one half, so the larger of two equally near levels is taken.
//!
//! # One encoding for each block of values
//!
//! The screen refuses bytes that no encoder writes: a scale that is negative, or above 0 and below
//! 2^-100; codes with scale 0; a scale that no value of the block reaches; a negative zero; codes
//! behind the end. So a block that passes is the encoding of the values read from it.

use schemas::run::{CodecKind, Rounding};

use super::examine::{Examined, Fault, LANES, Sums};
use super::{Codec, Part};
use crate::SeededRounding;
use crate::rounding::{NOISE_LANES, noise_key, noise_word};
use crate::vectors::{Vectors, vectorised};

pub(super) struct E3m0;

const ELEMENTS: usize = CodecKind::E3m0.block_elements() as usize;
const BYTES: usize = CodecKind::E3m0.block_bytes() as usize;
/// Bytes of the scale.
const SCALE: usize = 4;
/// Values of a run: those whose codes lie in one half of the code bytes.
const RUN: usize = ELEMENTS / 2;

const INFINITY_BITS: u32 = 0x7f80_0000;
const MAGNITUDE_BITS: u32 = 0x7fff_ffff;
const SIGN_BITS: u32 = 0x8000_0000;
/// Smallest scale above 0, 2^-100: the lowest level of it, and products with it and a weight, stay
/// far from the subnormal numbers.
const SCALE_MIN_BITS: u32 = (127 - 100) << 23;
/// The exponent field of 1/64, the ratio of level 1.
const LEVEL_1_EXPONENT: u32 = 127 - 6;
/// The noise of rounding to nearest: one half.
const HALF: u32 = 0x8000;

impl Codec for E3m0 {
    fn encode(&self, vectors: Vectors, values: &[f32], rounding: SeededRounding, out: &mut [u8]) {
        match rounding.rule {
            Rounding::Nearest => write_nearest(vectors, values, out),
            Rounding::Stochastic => {
                let key = noise_key(rounding.seed);
                write_stochastic(vectors, values, key, rounding.first_element, out);
            }
        }
    }

    fn decode(&self, vectors: Vectors, bytes: &[u8], out: &mut [f32]) {
        read(vectors, bytes, out);
    }

    fn start(&self, vectors: Vectors, Part { bytes, weight }: Part<'_>, mean: &mut [f32]) {
        start(vectors, bytes, weight, mean);
    }

    fn add(&self, vectors: Vectors, Part { bytes, weight }: Part<'_>, mean: &mut [f32]) {
        add(vectors, bytes, weight, mean);
    }

    fn examine(&self, vectors: Vectors, bytes: &[u8], elements: usize) -> Examined {
        examine(vectors, bytes, elements)
    }

    fn fault(&self, bytes: &[u8], elements: usize) -> Option<Fault> {
        blocks(bytes).enumerate().find_map(|(block, bytes)| {
            let index = block * ELEMENTS;
            fault_of_block(bytes, ELEMENTS.min(elements - index), index)
        })
    }
}

vectorised!(fn write_nearest(values: &[f32], out: &mut [u8]) = write_nearest_body);
vectorised!(fn write_stochastic(values: &[f32], key: u64, first: u64, out: &mut [u8]) = write_stochastic_body);
vectorised!(fn read(bytes: &[u8], out: &mut [f32]) = read_body);
vectorised!(fn start(bytes: &[u8], weight: f32, mean: &mut [f32]) = start_body);
vectorised!(fn add(bytes: &[u8], weight: f32, mean: &mut [f32]) = add_body);
vectorised!(fn examine(bytes: &[u8], elements: usize) -> Examined = examine_body);

fn blocks(bytes: &[u8]) -> impl Iterator<Item = &[u8; BYTES]> {
    bytes.as_chunks::<BYTES>().0.iter()
}

#[inline(always)]
fn scale_bits(block: &[u8; BYTES]) -> u32 {
    let [a, b, c, d, ..] = *block;
    u32::from_le_bytes([a, b, c, d])
}

#[inline(always)]
fn codes(block: &[u8; BYTES]) -> &[u8; RUN] {
    block
        .last_chunk()
        .expect("a block is a scale and its codes")
}

/// The value of a code.
#[inline(always)]
fn value(code: u32, scale: f32) -> f32 {
    let level = code & 7;
    let magnitude = if level == 0 {
        0
    } else {
        (LEVEL_1_EXPONENT - 1 + level) << 23
    };
    f32::from_bits(magnitude | (code & 8) << 28) * scale
}

/// Reads the blocks and passes every value to `take`, with its place in `out`.
#[inline(always)]
fn each(bytes: &[u8], out: &mut [f32], mut take: impl FnMut(&mut f32, f32)) {
    let (whole, partial) = out.as_chunks_mut::<ELEMENTS>();
    let mut blocks = blocks(bytes);
    for (out, block) in whole.iter_mut().zip(&mut blocks) {
        let (scale, codes) = (f32::from_bits(scale_bits(block)), codes(block));
        let (low, high) = out.split_at_mut(RUN);
        for (out, code) in low.iter_mut().zip(codes) {
            take(out, value(u32::from(*code) & 15, scale));
        }
        for (out, code) in high.iter_mut().zip(codes) {
            take(out, value(u32::from(*code) >> 4, scale));
        }
    }
    for (out, value) in partial.iter_mut().zip(blocks.flat_map(values)) {
        take(out, value);
    }
}

/// The values of one block.
#[inline(always)]
fn values(block: &[u8; BYTES]) -> [f32; ELEMENTS] {
    let (scale, codes) = (f32::from_bits(scale_bits(block)), codes(block));
    let mut values = [0.0; ELEMENTS];
    let (low, high) = values.split_at_mut(RUN);
    for ((low, high), code) in low.iter_mut().zip(high).zip(codes) {
        *low = value(u32::from(*code) & 15, scale);
        *high = value(u32::from(*code) >> 4, scale);
    }
    values
}

#[inline(always)]
fn read_body(bytes: &[u8], out: &mut [f32]) {
    each(bytes, out, |out, value| *out = value);
}

#[inline(always)]
fn start_body(bytes: &[u8], weight: f32, mean: &mut [f32]) {
    each(bytes, mean, |mean, value| *mean = weight * value);
}

#[inline(always)]
fn add_body(bytes: &[u8], weight: f32, mean: &mut [f32]) {
    each(bytes, mean, |mean, value| *mean += weight * value);
}

#[inline(always)]
fn write_nearest_body(values: &[f32], out: &mut [u8]) {
    let noise = [HALF as u16; ELEMENTS];
    write(values, out, |_| noise);
}

#[inline(always)]
fn write_stochastic_body(values: &[f32], key: u64, first: u64, out: &mut [u8]) {
    write(values, out, |start| {
        noise_of_block(key, first.wrapping_add(start as u64))
    });
}

/// The noise of the 256 elements from `first` on.
#[inline(always)]
fn noise_of_block(key: u64, first: u64) -> [u16; ELEMENTS] {
    let lanes = NOISE_LANES as u64;
    let (word, skipped) = (first / lanes, (first % lanes) as usize);
    let mut noise = [0_u16; ELEMENTS + NOISE_LANES];
    for (group, noise) in noise
        .as_chunks_mut::<NOISE_LANES>()
        .0
        .iter_mut()
        .enumerate()
    {
        let word = noise_word(key, word.wrapping_add(group as u64));
        for (lane, noise) in noise.iter_mut().enumerate() {
            *noise = (word >> (16 * lane)) as u16;
        }
    }
    let mut block = [0; ELEMENTS];
    block.copy_from_slice(&noise[skipped..][..ELEMENTS]);
    block
}

/// Writes block by block; `noise` gives the noise of the block that begins at an element.
#[inline(always)]
fn write(values: &[f32], out: &mut [u8], noise: impl Fn(usize) -> [u16; ELEMENTS]) {
    let (whole, partial) = values.as_chunks::<ELEMENTS>();
    let mut outs = out.as_chunks_mut::<BYTES>().0.iter_mut();
    for (block, (values, out)) in whole.iter().zip(&mut outs).enumerate() {
        write_block(values, &noise(block * ELEMENTS), out);
    }
    if let Some(out) = outs.next() {
        let mut padded = [0.0; ELEMENTS];
        padded[..partial.len()].copy_from_slice(partial);
        write_block(&padded, &noise(whole.len() * ELEMENTS), out);
    }
}

#[inline(always)]
fn write_block(values: &[f32; ELEMENTS], noise: &[u16; ELEMENTS], out: &mut [u8; BYTES]) {
    let largest = values
        .iter()
        .fold(0, |max, value| max.max(value.to_bits() & MAGNITUDE_BITS));
    *out = [0; BYTES];
    if largest < SCALE_MIN_BITS {
        return;
    }
    out[..SCALE].copy_from_slice(&largest.to_le_bytes());
    if largest >= INFINITY_BITS {
        return;
    }
    let scale = f32::from_bits(largest);
    for (place, out) in out[SCALE..].iter_mut().enumerate() {
        let low = code(values[place], scale, noise[place]);
        let high = code(values[place + RUN], scale, noise[place + RUN]);
        *out = (low | high << 4) as u8;
    }
}

/// The code of a value, by the rule above. The mantissa of the ratio is where it lies between two
/// levels; the noise is added to its first 16 of 23 bits and carries into the exponent.
#[inline(always)]
fn code(value: f32, scale: f32, noise: u16) -> u32 {
    let bits = value.to_bits();
    let ratio = f32::from_bits(bits & MAGNITUDE_BITS) / scale;
    let lowest = f32::from_bits(LEVEL_1_EXPONENT << 23);
    let (place, zero) = if ratio < lowest {
        (ratio + lowest, LEVEL_1_EXPONENT)
    } else {
        (ratio, LEVEL_1_EXPONENT - 1)
    };
    let level = ((place.to_bits() + (u32::from(noise) << 7)) >> 23) - zero;
    let sign = if level == 0 { 0 } else { (bits >> 28) & 8 };
    level | sign
}

#[inline(always)]
fn examine_body(bytes: &[u8], elements: usize) -> Examined {
    let (mut sums, mut canonical) = (Sums::ZERO, true);
    for (block, bytes) in blocks(bytes).enumerate() {
        let values = values(bytes);
        let (mut largest, mut negative_zero) = ([0_u32; LANES], [false; LANES]);
        for group in values.as_chunks::<LANES>().0 {
            for (lane, value) in group.iter().enumerate() {
                let bits = value.to_bits();
                largest[lane] = largest[lane].max(bits & MAGNITUDE_BITS);
                negative_zero[lane] |= bits == SIGN_BITS;
                sums.take(lane, *value);
            }
        }
        let largest = largest.iter().fold(0, |max, lane| max.max(*lane));
        let negative_zero = negative_zero.iter().any(|lane| *lane);
        let scale = scale_bits(bytes);
        let empty = scale == 0 && codes(bytes).iter().fold(0, |all, code| all | code) == 0;
        let reached = (SCALE_MIN_BITS..INFINITY_BITS).contains(&scale) && largest == scale;
        canonical &= (empty || reached) && !negative_zero;
        let left = elements - block * ELEMENTS;
        canonical &= left >= ELEMENTS || ends_at(codes(bytes), left);
    }
    sums.finish(canonical)
}

/// True if all codes from value `end` on are 0.
fn ends_at(codes: &[u8; RUN], end: usize) -> bool {
    let low = codes.iter().skip(end).all(|code| code & 15 == 0);
    let high = codes
        .iter()
        .skip(end.saturating_sub(RUN))
        .all(|code| code >> 4 == 0);
    low && high
}

fn fault_of_block(block: &[u8; BYTES], elements: usize, index: usize) -> Option<Fault> {
    let (scale, codes) = (scale_bits(block), codes(block));
    if scale & MAGNITUDE_BITS >= INFINITY_BITS {
        return Some(Fault::NotFinite { index });
    }
    let has = |wanted: &dyn Fn(u8) -> bool| {
        codes
            .iter()
            .any(|code| wanted(code & 15) || wanted(code >> 4))
    };
    let why = if scale & SIGN_BITS != 0 {
        "its scale is negative"
    } else if scale != 0 && scale < SCALE_MIN_BITS {
        "its scale is below the smallest"
    } else if has(&|code| code == 8) {
        "it has a negative zero"
    } else if scale == 0 && has(&|code| code != 0) {
        "it has codes and no scale"
    } else if scale != 0 && !has(&|code| code & 7 == 7) {
        "no value reaches its scale"
    } else if !ends_at(codes, elements) {
        "it has codes behind its end"
    } else {
        return None;
    };
    Some(Fault::NotCanonical { index, why })
}
