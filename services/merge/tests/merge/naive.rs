//! The rules of the crate's documentation, followed with the plainest loops, and numbers to follow
//! them on.

use merge::SeededRounding;
use schemas::run::{CodecKind, OuterOptimizer, Rounding};

/// Finite numbers of many magnitudes, the same ones for the same seed.
pub(crate) fn numbers(seed: u64, count: usize) -> Vec<f32> {
    (0..count as u64)
        .map(|index| {
            let word = split_mix(seed, index);
            let unit = (word >> 40) as f32 / (1 << 24) as f32 - 0.5;
            unit * 10_f32.powi((word % 9) as i32 - 6)
        })
        .collect()
}

/// Output `index` of SplitMix64 from `state`.
pub(crate) fn split_mix(state: u64, index: u64) -> u64 {
    mix(state.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

pub(crate) fn encode(codec: CodecKind, values: &[f32], rounding: SeededRounding) -> Vec<u8> {
    let halves = values.iter().enumerate().map(|(place, value)| {
        let (upper, lower) = (value.to_bits() >> 16, value.to_bits() & 0xffff);
        let up = match rounding.rule {
            Rounding::Nearest => lower > 0x8000 || (lower == 0x8000 && upper % 2 == 1),
            Rounding::Stochastic => lower + noise(rounding, place) > 0xffff,
        };
        upper as u16 + u16::from(up)
    });
    match codec {
        CodecKind::Fp32 => values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect(),
        CodecKind::Bf16 => halves.flat_map(u16::to_le_bytes).collect(),
        CodecKind::E3m0 => encode_e3m0(values, rounding),
    }
}

/// The noise of element `place` of a slice, 16 bits.
fn noise(rounding: SeededRounding, place: usize) -> u32 {
    let index = rounding.first_element + place as u64;
    let word = split_mix(mix(rounding.seed), index / 4) >> (16 * (index % 4));
    word as u32 & 0xffff
}

fn encode_e3m0(values: &[f32], rounding: SeededRounding) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (block, values) in values.chunks(256).enumerate() {
        let largest = values
            .iter()
            .fold(0.0_f32, |max, value| max.max(value.abs()));
        let scale = if largest < 2_f32.powi(-100) {
            0.0
        } else {
            largest
        };
        let mut codes = [0_u8; 256];
        for (place, value) in values.iter().enumerate() {
            let noise = match rounding.rule {
                Rounding::Nearest => 32_768,
                Rounding::Stochastic => noise(rounding, 256 * block + place),
            };
            let level = if scale == 0.0 {
                0
            } else {
                level(value.abs() / scale, noise)
            };
            let sign = u8::from(*value < 0.0 && level > 0);
            codes[place] = level as u8 + 8 * sign;
        }
        bytes.extend(scale.to_le_bytes());
        bytes.extend((0..128).map(|place| codes[place] + 16 * codes[place + 128]));
    }
    bytes
}

/// The level of a ratio between 0 and 1, by doubling from the lowest.
fn level(ratio: f32, noise: u32) -> u32 {
    let carries = |part: f64| (part * 65_536.0).floor() as u32 + noise >= 65_536;
    let lowest = 1.0 / 64.0;
    if ratio < lowest {
        return u32::from(carries(f64::from((ratio + lowest) / lowest) - 1.0));
    }
    let (mut below, mut level) = (lowest, 1);
    while 2.0 * below <= ratio {
        (below, level) = (2.0 * below, level + 1);
    }
    level + u32::from(carries(f64::from(ratio / below) - 1.0))
}

pub(crate) fn decode(codec: CodecKind, bytes: &[u8], elements: usize) -> Vec<f32> {
    match codec {
        CodecKind::Fp32 => bytes
            .chunks(4)
            .map(|b| f32::from_bits(u32::from_le_bytes(b.try_into().unwrap())))
            .collect(),
        CodecKind::Bf16 => bytes
            .chunks(2)
            .map(|b| f32::from_bits(u32::from_le_bytes([0, 0, b[0], b[1]])))
            .collect(),
        CodecKind::E3m0 => bytes
            .chunks(132)
            .flat_map(|block| {
                let scale = f32::from_le_bytes(block[..4].try_into().unwrap());
                let low = block[4..].iter().map(|codes| codes % 16);
                let high = block[4..].iter().map(|codes| codes / 16);
                low.chain(high).map(move |code| {
                    let sign = if code >= 8 { -1.0 } else { 1.0 };
                    match code % 8 {
                        0 => 0.0,
                        level => sign * scale * 2_f32.powi(i32::from(level) - 7),
                    }
                })
            })
            .take(elements)
            .collect(),
    }
}

/// A whole-number weight, a codec, and the encoded elements.
pub(crate) type Given = (u64, CodecKind, Vec<u8>);

/// Mean and outer step, element by element.
pub(crate) fn merge(
    given: &[Given],
    outer: OuterOptimizer,
    params: &mut [f32],
    buffer: &mut [f32],
    first: bool,
) {
    let total: u128 = given.iter().map(|(weight, ..)| u128::from(*weight)).sum();
    let weights: Vec<f32> = given
        .iter()
        .map(|(weight, ..)| (*weight as f64 / total as f64) as f32)
        .collect();
    let decoded: Vec<Vec<f32>> = given
        .iter()
        .map(|(_, codec, bytes)| decode(*codec, bytes, params.len()))
        .collect();
    for element in 0..params.len() {
        let mut gradient = weights[0] * decoded[0][element];
        for other in 1..given.len() {
            let product = weights[other] * decoded[other][element];
            gradient += product;
        }
        match outer {
            OuterOptimizer::Average => params[element] -= gradient,
            OuterOptimizer::Sgd { learning_rate } => params[element] -= learning_rate * gradient,
            OuterOptimizer::Nesterov {
                learning_rate,
                momentum,
            } => {
                buffer[element] = if first {
                    gradient
                } else {
                    momentum * buffer[element] + gradient
                };
                let ahead = momentum * buffer[element];
                params[element] -= learning_rate * (gradient + ahead);
            }
        }
    }
}

/// The sum of squares in the order that `merge::screen` documents.
pub(crate) fn sum_of_squares(values: &[f32]) -> f64 {
    let mut total = 0.0;
    for block in values.chunks(65_536) {
        let mut sums = [0.0_f64; 16];
        for (place, value) in block.iter().enumerate() {
            sums[place % 16] += f64::from(*value) * f64::from(*value);
        }
        for half in [8, 4, 2, 1] {
            for lane in 0..half {
                sums[lane] += sums[lane + half];
            }
        }
        total += sums[0];
    }
    total
}
