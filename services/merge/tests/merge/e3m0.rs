//! The 4-bit codec by hand: its levels, its rounding, and the bytes that the screen refuses.

use merge::{ScreenError, SeededRounding, codec};
use proptest::prelude::*;
use schemas::Code;
use schemas::run::{CodecKind, Rounding};

use crate::naive;

const KIND: CodecKind = CodecKind::E3m0;
const BLOCK_BYTES: usize = 132;

fn encode(values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; codec::encoded_bytes(KIND, values.len())];
    codec::encode(KIND, values, SeededRounding::NEAREST, &mut bytes).unwrap();
    bytes
}

fn decode(bytes: &[u8], elements: usize) -> Vec<f32> {
    let mut values = vec![0.0; elements];
    codec::decode(KIND, bytes, &mut values).unwrap();
    values
}

/// The values after they are encoded and decoded.
fn passed(values: &[f32]) -> Vec<f32> {
    decode(&encode(values), values.len())
}

#[test]
fn levels_are_powers_of_two_from_the_largest_downward() {
    let levels = [64.0, -32.0, 16.0, 8.0, -4.0, 2.0, 1.0, 0.0];
    assert_eq!(passed(&levels), levels);
    let bytes = encode(&levels);
    assert_eq!(bytes.len(), BLOCK_BYTES);
    assert_eq!(bytes[..4], 64.0_f32.to_le_bytes());
    assert_eq!(bytes[4..12], [7, 8 + 6, 5, 4, 8 + 3, 2, 1, 0]);
    assert!(bytes[12..].iter().all(|codes| *codes == 0));
}

#[test]
fn a_byte_holds_two_values_half_a_block_apart() {
    let mut values = [0.0; 256];
    (values[3], values[131]) = (1.0, -0.5);
    let bytes = encode(&values);
    assert_eq!(bytes[4 + 3], 7 + 16 * (8 + 6));
    assert_eq!(passed(&values), values);
}

#[test]
fn nearest_takes_the_nearer_level_and_the_larger_of_two() {
    for (value, expected) in [
        (0.75, 1.0),
        (0.749_999_9, 0.5),
        (-0.375, -0.5),
        (1.0 / 64.0, 1.0 / 64.0),
        (1.0 / 128.0, 1.0 / 64.0),
        (-1.0 / 129.0, 0.0),
        (1e-30, 0.0),
    ] {
        let found = passed(&[1.0, value])[1];
        assert_eq!(
            found.to_bits(),
            f32::to_bits(expected),
            "{value} became {found}"
        );
    }
}

#[test]
fn each_block_has_its_own_scale_and_the_last_may_be_short() {
    for elements in [1_usize, 127, 128, 129, 255, 256, 257, 513] {
        let values: Vec<f32> = (0..elements)
            .map(|place| if place < 256 { 1e6 } else { -1e-6 })
            .collect();
        let bytes = encode(&values);
        assert_eq!(bytes.len(), elements.div_ceil(256) * BLOCK_BYTES);
        assert_eq!(decode(&bytes, elements), values);
        let found = merge::screen(KIND, &bytes, elements).unwrap();
        assert_eq!(found.elements, elements as u64);
    }
}

#[test]
fn magnitudes_that_move_nothing_become_zero() {
    let least = 2_f32.powi(-100);
    assert_eq!(passed(&[least, -least / 64.0]), [least, -least / 64.0]);
    let below = f32::from_bits(least.to_bits() - 1);
    assert_eq!(
        encode(&[below, -below, f32::MIN_POSITIVE / 2.0]),
        [0; BLOCK_BYTES]
    );
    let largest = [f32::MAX, -f32::MAX / 64.0];
    assert_eq!(passed(&largest), largest);
}

/// A value that is no number must not turn into one.
#[test]
fn what_is_not_finite_is_refused_wherever_it_lies() {
    for special in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut values = vec![1.0; 600];
        values[300] = special;
        let bytes = encode(&values);
        assert!(
            decode(&bytes, 600)[256..512]
                .iter()
                .all(|value| value.is_nan())
        );
        let refused = merge::screen(KIND, &bytes, 600).unwrap_err();
        assert_eq!(refused, ScreenError::NotFinite { index: 256 });
    }
}

/// The screen's verdict on one full block, changed by hand.
fn screened(change: impl Fn(&mut [u8])) -> Result<(), (usize, &'static str)> {
    let values: Vec<f32> = (0..300).map(|place| (place % 7) as f32).collect();
    let mut bytes = encode(&values);
    change(&mut bytes[BLOCK_BYTES..]);
    match merge::screen(KIND, &bytes, 300) {
        Ok(_) => Ok(()),
        Err(ScreenError::NotCanonical { index, why }) => Err((index, why)),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn an_encoding_that_no_encoder_writes_is_refused() {
    let scale =
        |scale: f32| move |block: &mut [u8]| block[..4].copy_from_slice(&scale.to_le_bytes());
    assert_eq!(screened(|_| ()), Ok(()));
    assert_eq!(screened(scale(-6.0)), Err((256, "its scale is negative")));
    assert_eq!(screened(scale(-0.0)), Err((256, "its scale is negative")));
    assert_eq!(
        screened(scale(1e-40)),
        Err((256, "its scale is below the smallest"))
    );
    assert_eq!(
        screened(scale(0.0)),
        Err((256, "it has codes and no scale"))
    );
    // Any other scale is the encoding of other values, and equally valid.
    assert_eq!(screened(scale(f32::MAX)), Ok(()));
    let no_largest = |block: &mut [u8]| block[4..].fill(0x06);
    assert_eq!(
        screened(no_largest),
        Err((256, "no value reaches its scale"))
    );
    assert_eq!(
        screened(|block| block[4] = 8),
        Err((256, "it has a negative zero"))
    );
    assert_eq!(
        screened(|block| block[4 + 44] = 1),
        Err((256, "it has codes behind its end"))
    );
    assert_eq!(
        screened(|block| block[4] |= 0x10),
        Err((256, "it has codes behind its end"))
    );
    let refused = merge::screen(KIND, &[&[0; 4][..], &[1; 128]].concat(), 256).unwrap_err();
    assert_eq!(refused.code(), Code::EncodingInvalid);
}

/// The first block is whole, and just within the limits; the second is changed by hand.
#[test]
fn a_fault_is_found_in_either_half_of_a_byte_and_in_its_own_block() {
    let least = 2_f32.powi(-100);
    for first in [least, 0.0, 1.0] {
        let mut values = vec![first; 256];
        values.extend((0..256).map(|place| if place < 128 { 1.0 } else { 2.0 }));
        let good = encode(&values);
        let screened = |change: &dyn Fn(&mut [u8])| {
            let mut bytes = good.clone();
            change(&mut bytes[BLOCK_BYTES..]);
            match merge::screen(KIND, &bytes, 512) {
                Ok(_) => Ok(()),
                Err(ScreenError::NotCanonical { index, why }) => Err((index, why)),
                Err(error) => panic!("{error}"),
            }
        };
        assert_eq!(
            screened(&|_| ()),
            Ok(()),
            "the largest lie in the upper halves"
        );
        // A code of 8 in the lower half, and in the upper one.
        for codes in [0x78, 0x87] {
            assert_eq!(
                screened(&|block| block[4 + 100] = codes),
                Err((256, "it has a negative zero"))
            );
        }
        for codes in [0x01, 0x10, 0x11] {
            assert_eq!(
                screened(&|block| {
                    block[..4].fill(0);
                    block[4..].fill(codes);
                }),
                Err((256, "it has codes and no scale"))
            );
        }
    }
}

#[test]
fn noise_is_right_on_average() {
    let (value, count) = (0.6_f32, 1 << 16);
    for value in [value, 0.3, 0.005, -0.01] {
        let mut values = vec![value; count];
        values
            .iter_mut()
            .step_by(256)
            .for_each(|value| *value = 1.0);
        let rounding = SeededRounding {
            rule: Rounding::Stochastic,
            seed: 5,
            first_element: 1,
        };
        let mut bytes = vec![0; codec::encoded_bytes(KIND, count)];
        codec::encode(KIND, &values, rounding, &mut bytes).unwrap();
        let decoded = decode(&bytes, count);
        let kept = decoded
            .iter()
            .enumerate()
            .filter(|(place, _)| place % 256 != 0);
        let mean = kept.map(|(_, value)| f64::from(*value)).sum::<f64>() / (count - 256) as f64;
        assert!(
            (mean - f64::from(value)).abs() < 2e-3,
            "{value} became {mean} on average"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// No other level is nearer.
    #[test]
    fn rounding_errs_by_no_more_than_half_a_gap(seed in any::<u64>(), elements in 1..600_usize) {
        let values = naive::numbers(seed, elements);
        let found = passed(&values);
        for (values, found) in values.chunks(256).zip(found.chunks(256)) {
            let scale = values.iter().fold(0.0_f32, |max, value| max.max(value.abs()));
            for (value, found) in values.iter().zip(found) {
                let nearest = (0..8_i32)
                    .map(|level| if level == 0 { 0.0 } else { scale * 2_f32.powi(level - 7) })
                    .map(|level| f64::from(level.copysign(*value)) - f64::from(*value))
                    .fold(f64::MAX, |least, error| least.min(error.abs()));
                let error = (f64::from(*found) - f64::from(*value)).abs();
                prop_assert!(error <= nearest + 1e-7 * f64::from(scale), "{value} became {found}");
            }
        }
    }

    /// A chunk that passes the screen is the encoding of the values read from it: a contribution
    /// has no second encoding.
    #[test]
    fn what_passes_the_screen_is_the_only_encoding_of_its_values(
        seed in any::<u64>(),
        elements in 1..600_usize,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let mut bytes = encode(&naive::numbers(seed, elements));
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        let values = decode(&bytes, elements);
        let only = values.iter().all(|value| value.is_finite()) && encode(&values) == bytes;
        prop_assert_eq!(merge::screen(KIND, &bytes, elements).is_ok(), only);
    }
}
