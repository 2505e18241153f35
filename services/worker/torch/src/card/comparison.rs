//! One course of events, with weights on a device and with weights in this machine's memory. Every
//! step must give the same bits in both.

use std::ops::{ControlFlow, Range};

use bytes::Bytes;
use merge::codec::encoded_bytes;
use merge::{FeedbackChunk, SeededRounding, encode_with_feedback};
use schemas::run::{CodecKind, Rounding};
use trainer::{Alpha, Arrival, HostWeights, Weights};

/// Fewest weights that can be compared.
pub(crate) const ELEMENTS_MIN: usize = 256 * 40;

/// Plays the course with weights of `elements` parameters.
pub(crate) fn compare(card: &mut dyn Weights, elements: usize) {
    assert!(elements >= ELEMENTS_MIN, "several blocks of every codec");
    let (mut global, mut local) = (vec![0.0; elements], vec![0.0; elements]);
    let host = &mut HostWeights::new(&mut global, &mut local);
    let roundings = [
        SeededRounding::NEAREST,
        stochastic(3, 0),
        stochastic(4, (1 << 33) + 5),
    ];
    for codec in CodecKind::ALL.iter().copied() {
        for rounding in roundings {
            start(card, elements);
            start(host, elements);
            same(card, host, elements, "fp32 weights loaded");
            let encoded = encode(card, elements, codec, rounding);
            let expected = encode(host, elements, codec, rounding);
            for (piece, (encoded, expected)) in encoded.iter().zip(&expected).enumerate() {
                let differs = encoded.iter().zip(expected).position(|(a, b)| a != b);
                assert_eq!(differs, None, "{codec:?} {rounding:?} piece {piece}");
            }
            assert_eq!(encoded, expected, "{codec:?} {rounding:?}");
            let (encoded, left) = with_feedback(card, elements, codec, rounding);
            let (expected_bytes, expected_left) = with_feedback(host, elements, codec, rounding);
            assert!(
                encoded == expected_bytes,
                "{codec:?} {rounding:?} with feedback"
            );
            assert_eq!(left, expected_left, "{codec:?} {rounding:?} is owed");
            for (at, (piece, bytes)) in pieces(elements).iter().zip(&expected).enumerate() {
                let arrival = match at {
                    1 => Arrival::TakesOver,
                    _ => Arrival::Waits,
                };
                let loaded = card.load(codec, piece.clone(), bytes, arrival);
                loaded.expect("it fits");
                let loaded = host.load(codec, piece.clone(), bytes, arrival);
                loaded.expect("it fits");
            }
            same(card, host, elements, "an encoding loaded");
        }
    }
    for share in [0.0, 0.3, 0.5, 1.0] {
        start(card, elements);
        start(host, elements);
        let alpha = Alpha::new(share).expect("a share");
        let range = 100..elements - 3;
        card.blend(range.clone(), alpha).expect("within");
        card.settle().expect("the device is well");
        host.blend(range, alpha).expect("within");
        same(card, host, elements, "blended");
    }
}

fn stochastic(seed: u64, first_element: u64) -> SeededRounding {
    SeededRounding {
        rule: Rounding::Stochastic,
        seed,
        first_element,
    }
}

/// All but a few; the last one ends within a block.
fn pieces(elements: usize) -> [Range<usize>; 4] {
    let (first, second, third) = (256, 256 * 14, 256 * 30);
    let end = elements - elements % 256 - 3;
    [0..first, first..second, second..third, third..end]
}

/// Global and local weights with differences of every size: none, tiny, of the weights' own size,
/// and too large for a number.
fn start(weights: &mut dyn Weights, elements: usize) {
    let global: Vec<f32> = (0..elements as u64).map(number).collect();
    let local = |(at, global): (usize, &f32)| match at % 5 {
        0 => *global,
        1 | 2 => global * (1.0 + 1e-4 * (at % 97) as f32),
        3 => f32::from_bits(global.to_bits() ^ 1),
        _ => number(at as u64 + 1_000_000) * 1e-3,
    };
    let mut local: Vec<f32> = global.iter().enumerate().map(local).collect();
    let mut global = global;
    (global[4], local[4]) = (f32::MAX, -f32::MAX);
    // Blocks of E3M0 that hold zeros, and numbers too small for it.
    global[512..768].copy_from_slice(&local[512..768]);
    local[768..1024].fill(0.0);
    global[768..1024].fill(1e-38);
    for (values, arrival) in [(local, Arrival::TakesOver), (global, Arrival::Waits)] {
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let loaded = weights.load(CodecKind::Fp32, 0..elements, &bytes, arrival);
        loaded.expect("it fits");
    }
}

/// A finite number with any bits, most of them of a size that weights have.
fn number(index: u64) -> f32 {
    let hash = (index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let bits = (hash ^ (hash >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32;
    let any = f32::from_bits(bits as u32);
    let usual = f32::from_bits(bits as u32 & 0x807f_ffff | (127 - 6) << 23);
    if index.is_multiple_of(3) && any.is_finite() {
        any
    } else {
        usual
    }
}

fn encode(
    weights: &mut dyn Weights,
    elements: usize,
    codec: CodecKind,
    rounding: SeededRounding,
) -> Vec<Bytes> {
    let mut encoded = Vec::new();
    let mut take = |bytes| {
        encoded.push(bytes);
        ControlFlow::Continue(())
    };
    weights
        .encode(codec, rounding, &pieces(elements), &mut take)
        .expect("within");
    encoded
}

/// Each piece encoded with error feedback, and the bits of what the encodings lack.
fn with_feedback(
    weights: &mut dyn Weights,
    elements: usize,
    codec: CodecKind,
    rounding: SeededRounding,
) -> (Vec<Vec<u8>>, Vec<Vec<u32>>) {
    let encoded = pieces(elements).into_iter().map(|piece| {
        let residual: Vec<f32> = piece.clone().map(|at| number(at as u64 + 77)).collect();
        let mut out = vec![0; encoded_bytes(codec, piece.len())];
        let mut left = vec![f32::NAN; piece.len()];
        let rounding = rounding.skip(piece.start);
        let owed = FeedbackChunk {
            difference: weights.difference(piece).expect("within"),
            residual: &residual,
        };
        encode_with_feedback(codec, owed, rounding, &mut out, &mut left).expect("they fit");
        (out, left.iter().map(|left| bits(*left)).collect())
    });
    encoded.unzip()
}

/// The bits of a number; those that are none are one.
fn bits(value: f32) -> u32 {
    if value.is_nan() {
        u32::MAX
    } else {
        value.to_bits()
    }
}

fn same(card: &mut dyn Weights, host: &mut dyn Weights, elements: usize, when: &str) {
    let range = 1..elements;
    let found = card.read(range.clone()).expect("within");
    let expected = host.read(range).expect("within");
    for (found, expected) in [(found.0, expected.0), (found.1, expected.1)] {
        let differs = found
            .iter()
            .zip(expected)
            .position(|(a, b)| a.to_bits() != b.to_bits() && !(a.is_nan() && b.is_nan()));
        assert_eq!(differs, None, "{when}");
    }
}
