//! Tensor operations against the plain codecs, on tensors of the CPU.

use merge::codec::encoded_bytes;
use tch::Device;

use super::*;
use crate::shim::most_memory;

/// Around the runs and blocks of E3M0 and the words of noise: whole blocks, tails of every kind,
/// less than a block.
const LENGTHS: [usize; 18] = [
    1, 2, 3, 4, 5, 127, 128, 129, 255, 256, 257, 383, 384, 385, 511, 512, 513, 1151,
];

fn roundings() -> [SeededRounding; 4] {
    let stochastic = |first_element| SeededRounding {
        rule: Rounding::Stochastic,
        seed: 11,
        first_element,
    };
    [
        SeededRounding::NEAREST,
        stochastic(0),
        // In the middle of a word of noise, and past 32 bits.
        stochastic(3),
        stochastic((1 << 33) + 6),
    ]
}

/// Numbers of every size and sign, zeros and infinities among them; the last element is never the
/// largest, so that a tail has a scale of its own.
fn values(count: usize) -> Vec<f32> {
    let value = |at: usize| {
        let bits = (at as u32 + 1).wrapping_mul(0x9e37_79b1);
        match at % 11 {
            0 => f32::from_bits(bits & 0x807f_ffff | 0x3d00_0000),
            1 => 0.0,
            2 => -0.0,
            3 => f32::from_bits(bits & 0x8000_ffff),
            4 if at.is_multiple_of(7) && at > 600 => f32::INFINITY.copysign(at as f32 - 900.0),
            _ => f32::from_bits(bits & 0x83ff_ffff | 0x3800_0000),
        }
    };
    (0..count).map(value).collect()
}

fn encoded(codec: CodecKind, values: &[f32], rounding: SeededRounding) -> Vec<u8> {
    let bytes = encoded_bytes(codec, values.len());
    let place = Tensor::zeros([bytes as i64], (Kind::Uint8, Device::Cpu));
    encode(codec, Tensor::from_slice(values), rounding, &place).expect("encoded");
    Vec::try_from(place).expect("bytes")
}

fn decoded(codec: CodecKind, bytes: &[u8], elements: usize) -> Vec<f32> {
    let place = Tensor::full([elements as i64], 7.0, (Kind::Float, Device::Cpu));
    decode(codec, &Tensor::from_slice(bytes), &place).expect("decoded");
    Vec::try_from(place).expect("numbers")
}

#[test]
fn every_length_is_bit_for_bit_that_of_the_plain_codec() {
    for codec in CodecKind::ALL.iter().copied() {
        for (length, rounding) in LENGTHS
            .into_iter()
            .flat_map(|length| roundings().map(|rounding| (length, rounding)))
        {
            let values = values(length);
            let mut expected = vec![0; encoded_bytes(codec, length)];
            merge::codec::encode(codec, &values, rounding, &mut expected).expect("it fits");
            let found = encoded(codec, &values, rounding);
            let differs = found.iter().zip(&expected).position(|(a, b)| a != b);
            assert_eq!(differs, None, "{codec:?} {length} {rounding:?}");
            let mut back = vec![0.0; length];
            merge::codec::decode(codec, &expected, &mut back).expect("it fits");
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(
                bits(&decoded(codec, &expected, length)),
                bits(&back),
                "{codec:?} {length} {rounding:?}"
            );
        }
    }
}

#[test]
fn temporaries_stay_within_their_bound() {
    const ELEMENTS: usize = 1 << 18;
    let numbers = values(ELEMENTS);
    for codec in CodecKind::ALL.iter().copied() {
        let place = Tensor::zeros(
            [encoded_bytes(codec, ELEMENTS) as i64],
            (Kind::Uint8, Device::Cpu),
        );
        for rounding in roundings() {
            let most = most_memory(|| {
                let values = Tensor::from_slice(&numbers);
                encode(codec, values, rounding, &place).expect("encoded");
            });
            let bound = ENCODING_BYTES_MAX * ELEMENTS;
            assert!(
                (ELEMENTS * 4..=bound).contains(&most),
                "{codec:?} {:?} takes {:.1} bytes an element",
                rounding.rule,
                most as f64 / ELEMENTS as f64
            );
        }
        let back = Tensor::zeros([ELEMENTS as i64], (Kind::Float, Device::Cpu));
        let most = most_memory(|| decode(codec, &place, &back).expect("decoded"));
        assert!(
            most <= DECODING_BYTES_MAX * ELEMENTS,
            "{codec:?} takes {:.1} bytes an element to decode",
            most as f64 / ELEMENTS as f64
        );
    }
}
