//! One course of events, with weights on a device and with weights in this machine's memory. Every
//! step must give the same bits in both.

use std::ops::{ControlFlow, Range};

use bytes::Bytes;
use merge::SeededRounding;
use schemas::run::{CodecKind, Rounding};
use trainer::{Alpha, Arrival, Feedback, HostFeedback, HostResidual, HostWeights, Weights};

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

/// Weights with a residual beside them.
pub(crate) trait WithFeedback {
    fn weights(&mut self) -> Box<dyn Weights + '_>;
    fn feedback(&mut self) -> Box<dyn Feedback + '_>;
}

/// The weights and the residual in this machine's memory.
struct Host {
    global: Vec<f32>,
    local: Vec<f32>,
    residual: HostResidual,
}

impl WithFeedback for Host {
    fn weights(&mut self) -> Box<dyn Weights + '_> {
        Box::new(HostWeights::new(&mut self.global, &mut self.local))
    }

    fn feedback(&mut self) -> Box<dyn Feedback + '_> {
        Box::new(HostFeedback::new(
            &self.global,
            &self.local,
            &mut self.residual,
        ))
    }
}

/// Plays contributions with error feedback.
pub(crate) fn compare_feedback(card: &mut dyn WithFeedback, elements: usize) {
    assert!(elements >= ELEMENTS_MIN, "several blocks of every codec");
    let mut host = Host {
        global: vec![0.0; elements],
        local: vec![0.0; elements],
        residual: HostResidual::default(),
    };
    for codec in CodecKind::ALL.iter().copied() {
        for rounding in [SeededRounding::NEAREST, stochastic(3, (1 << 33) + 5)] {
            let found = contributions(card, elements, codec, rounding);
            let expected = contributions(&mut host, elements, codec, rounding);
            assert!(found.0 == expected.0, "{codec:?} {rounding:?} encoded");
            assert!(found.1 == expected.1, "{codec:?} {rounding:?} owed");
        }
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

/// Everything that comes out of contributions with error feedback, as bits.
fn contributions(
    weights: &mut dyn WithFeedback,
    elements: usize,
    codec: CodecKind,
    rounding: SeededRounding,
) -> (Vec<Bytes>, Vec<Vec<u32>>) {
    start(&mut *weights.weights(), elements);
    let values = &mut *weights.feedback();
    let residual: Vec<f32> = (0..elements as u64).map(|at| number(at + 77)).collect();
    values.owe(0, &residual[..500]).expect("within");
    values.owe(500, &residual[500..]).expect("within");
    let (mut encoded, mut owed) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let mut take = |bytes| {
            encoded.push(bytes);
            ControlFlow::Continue(())
        };
        let made = values.encode(codec, rounding, &pieces(elements), &mut take);
        made.expect("within");
        let [first, second, third, fourth] = pieces(elements);
        // The first piece holds a difference that is too large for a number.
        assert!(
            !values.keep(first).expect("within"),
            "{codec:?} {rounding:?}"
        );
        assert!(
            values.keep(second).expect("within"),
            "{codec:?} {rounding:?}"
        );
        values.forget(third).expect("within");
        assert!(
            values.keep(fourth).expect("within"),
            "{codec:?} {rounding:?}"
        );
        let mut now = Vec::new();
        values.copy_owed(&mut now).expect("the device is well");
        assert!(
            now.iter().any(|owed| *owed != 0.0),
            "feedback has an effect"
        );
        owed.push(now.iter().map(|owed| owed.to_bits()).collect());
    }
    (encoded, owed)
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
