//! Promises of the arithmetic: right weights, unbiased rounding, no panic and no change on bad
//! input.

use merge::{
    Broadcast, CodecError, ContributionChunk, MeanError, MergeError, Momentum, OuterError,
    ScreenError, SeededRounding, codec,
};
use proptest::prelude::*;
use schemas::run::{CodecKind, OuterOptimizer, Rounding};
use schemas::{Round, UnitIndex};

use crate::naive;

const STOCK: OuterOptimizer = OuterOptimizer::Nesterov {
    learning_rate: 0.7,
    momentum: 0.9,
};

fn fp32(values: &[f32]) -> Vec<u8> {
    naive::encode(CodecKind::Fp32, values, SeededRounding::NEAREST)
}

/// The mean of one-element contributions: averaging subtracts it from 0, so the sign is turned.
fn mean(given: &[(u64, f32)]) -> f32 {
    let encoded: Vec<Vec<u8>> = given.iter().map(|(_, value)| fp32(&[*value])).collect();
    let chunk = |(bytes, (weight, _)): (_, &(u64, f32))| ContributionChunk {
        weight: *weight,
        codec: CodecKind::Fp32,
        bytes,
    };
    let chunks: Vec<_> = encoded
        .iter()
        .map(Vec::as_slice)
        .zip(given)
        .map(chunk)
        .collect();
    let mut params = [0.0];
    assert!(
        merge::merge_chunk(
            &chunks,
            OuterOptimizer::Average,
            &mut params,
            Momentum::Absent
        )
        .unwrap()
        .is_finite()
    );
    -params[0]
}

proptest! {
    /// Averaging pair by pair would be wrong: it would give the last arrival half of the weight.
    #[test]
    fn every_contribution_has_its_share(tokens in prop::collection::vec(1..1_u64 << 50, 1..=16)) {
        let total: f64 = tokens.iter().map(|tokens| *tokens as f64).sum();
        for present in 0..tokens.len() {
            let alone = |index| if index == present { 1.0 } else { 0.0 };
            let given: Vec<_> = tokens.iter().enumerate().map(|(index, tokens)| (*tokens, alone(index))).collect();
            let share = tokens[present] as f64 / total;
            prop_assert!((f64::from(mean(&given)) - share).abs() <= share * 2_f64.powi(-23), "{share}");
        }
    }

    #[test]
    fn mean_is_near_the_exact_one(given in prop::collection::vec((1..1_u64 << 40, -1e3_f32..1e3), 1..=16)) {
        let total: f64 = given.iter().map(|(tokens, _)| *tokens as f64).sum();
        let exact: f64 = given.iter().map(|(tokens, value)| *tokens as f64 / total * f64::from(*value)).sum();
        let scale: f64 = given.iter().map(|(tokens, value)| *tokens as f64 / total * f64::from(value.abs())).sum();
        let bound = 1.01 * (given.len() + 1) as f64 * 2_f64.powi(-24) * scale;
        prop_assert!((f64::from(mean(&given)) - exact).abs() <= bound + 1e-40);
    }

    #[test]
    fn mean_of_equal_values_is_the_value(
        tokens in prop::collection::vec(1..u64::MAX, 1..=16),
        value in (1e-20_f32..1e20, any::<bool>()).prop_map(|(value, minus)| if minus { -value } else { value }),
    ) {
        let given: Vec<_> = tokens.iter().map(|tokens| (*tokens, value)).collect();
        let bound = 1.01 * (tokens.len() + 1) as f64 * 2_f64.powi(-24) * f64::from(value.abs());
        prop_assert!((f64::from(mean(&given)) - f64::from(value)).abs() <= bound);
        prop_assert_eq!(mean(&given[..1]), value);
        // The values of a bf16 contribution have spare bits, so that halves, quarters, … add up
        // without rounding.
        let narrow = f32::from_bits(value.to_bits() & 0xffff_0000);
        for count in [2, 4, 8, 16] {
            prop_assert_eq!(mean(&vec![(tokens[0], narrow); count]), narrow);
        }
    }

    #[test]
    fn decoders_accept_or_refuse_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300), elements in 0..100_usize) {
        for codec in [CodecKind::Fp32, CodecKind::Bf16] {
            let fits = bytes.len() == codec::encoded_bytes(codec, elements);
            let mut out = vec![0.0; elements];
            prop_assert_eq!(codec::decode(codec, &bytes, &mut out).is_ok(), fits);
            let finite = fits && out.iter().all(|value| value.is_finite());
            let screened = merge::screen(codec, &bytes, elements);
            prop_assert_eq!(screened.is_ok(), finite);
            if let Err(ScreenError::NotFinite { index }) = screened {
                prop_assert_eq!(Some(index), out.iter().position(|value| !value.is_finite()));
            }
            let chunk = ContributionChunk { weight: 1, codec, bytes: &bytes };
            let merged = merge::merge_chunk(&[chunk], OuterOptimizer::Average, &mut vec![0.0; elements], Momentum::Absent);
            prop_assert_eq!(merged.is_ok(), fits);
            if let Ok(merged) = merged {
                prop_assert_eq!(merged.is_finite(), finite);
            }
        }
    }

    #[test]
    fn fp32_round_trip_keeps_every_bit(patterns in prop::collection::vec(any::<u32>(), 0..100)) {
        let values: Vec<f32> = patterns.iter().map(|bits| f32::from_bits(*bits)).collect();
        let (mut bytes, mut back) = (vec![0; 4 * values.len()], vec![0.0_f32; values.len()]);
        codec::encode(CodecKind::Fp32, &values, SeededRounding::NEAREST, &mut bytes).unwrap();
        codec::decode(CodecKind::Fp32, &bytes, &mut back).unwrap();
        prop_assert_eq!(back.iter().map(|value| value.to_bits()).collect::<Vec<_>>(), patterns);
    }

    #[test]
    fn bf16_round_trip_is_near_and_then_exact(values in prop::collection::vec(-1e30_f32..1e30, 0..100), seed in any::<u64>()) {
        for (rule, steps) in [(Rounding::Nearest, 0.5), (Rounding::Stochastic, 1.0)] {
            let rounding = SeededRounding { rule, seed, first_element: 0 };
            let (mut bytes, mut back) = (vec![0; 2 * values.len()], vec![0.0; values.len()]);
            codec::encode(CodecKind::Bf16, &values, rounding, &mut bytes).unwrap();
            codec::decode(CodecKind::Bf16, &bytes, &mut back).unwrap();
            for (value, back) in values.iter().zip(&back) {
                let error = (f64::from(*value) - f64::from(*back)).abs();
                prop_assert!(error <= steps * 2_f64.powi(-7) * f64::from(value.abs()) + 1e-38);
            }
            let mut again = vec![0; bytes.len()];
            codec::encode(CodecKind::Bf16, &back, rounding, &mut again).unwrap();
            prop_assert_eq!(&again, &bytes);
        }
    }
}

/// Decoded stochastic roundings of `count` copies of `value`.
fn roundings(value: f32, seed: u64, count: usize) -> Vec<f32> {
    let rounding = SeededRounding {
        rule: Rounding::Stochastic,
        seed,
        first_element: 0,
    };
    let (mut bytes, mut back) = (vec![0; 2 * count], vec![0.0; count]);
    codec::encode(CodecKind::Bf16, &vec![value; count], rounding, &mut bytes).unwrap();
    codec::decode(CodecKind::Bf16, &bytes, &mut back).unwrap();
    back
}

#[test]
fn stochastic_rounding_is_unbiased_and_without_memory() {
    let count = 1 << 20;
    for (seed, part) in [(1, 0.5), (2, 0.25), (3, 0.9), (4, 0.01)] {
        let step = 2_f64.powi(-7);
        let value = (1.0 + part * step) as f32;
        let up: Vec<f64> = roundings(value, seed, count)
            .iter()
            .map(|back| (f64::from(*back) - 1.0) / step)
            .collect();
        assert!(up.iter().all(|up| *up == 0.0 || *up == 1.0));
        let exact = (f64::from(value) - 1.0) / step;
        let variance = exact * (1.0 - exact);
        // Five standard deviations; the noise is fixed by the seed, so this passes always or never.
        let bound = 5.0 * (variance / count as f64).sqrt();
        let found = up.iter().sum::<f64>() / count as f64;
        assert!(
            (found - exact).abs() < bound,
            "{part}: {found} instead of {exact}"
        );
        for lag in 1..=8 {
            let products = up
                .iter()
                .zip(&up[lag..])
                .map(|(one, other)| (one - exact) * (other - exact));
            let covariance = products.sum::<f64>() / count as f64;
            assert!(
                covariance.abs() < 5.0 * variance / (count as f64).sqrt(),
                "{part}, lag {lag}: {covariance}"
            );
        }
    }
}

#[test]
fn stochastic_rounding_differs_by_seed() {
    let halfway = 1.0 + 1.0 / 256.0;
    let (one, other) = (roundings(halfway, 1, 10_000), roundings(halfway, 2, 10_000));
    let equal = one
        .iter()
        .zip(&other)
        .filter(|(one, other)| one == other)
        .count();
    assert!(
        (4700..5300).contains(&equal),
        "{equal} of 10000 equal; unrelated fair choices agree in half"
    );
}

/// Computed once by a few lines of Python from the documentation, so that the noise cannot change
/// unnoticed.
#[test]
fn stochastic_rounding_is_pinned() {
    let values = [1.003, -1.003, 0.1, 3.15, -2.7, 1e-40, 6.02e23, 0.333_333];
    let rounding = SeededRounding {
        rule: Rounding::Stochastic,
        seed: 42,
        first_element: 10,
    };
    let mut bytes = [0; 16];
    codec::encode(CodecKind::Bf16, &values, rounding, &mut bytes).unwrap();
    let found: Vec<u16> = bytes
        .chunks(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
        .collect();
    assert_eq!(
        found,
        [
            0x3f80, 0xbf80, 0x3dcd, 0x404a, 0xc02d, 0x0001, 0x66ff, 0x3eaa
        ]
    );
    assert_eq!(
        merge::contribution_seed(7, Round(3), UnitIndex(2)),
        2_001_159_302_247_651_654
    );
    assert_eq!(
        merge::broadcast_seed(7, Round(3)),
        10_067_245_283_416_703_313
    );
}

#[test]
fn refused_merges_change_nothing() {
    let bytes = fp32(&[1.0, 2.0]);
    let good = ContributionChunk {
        weight: 1,
        codec: CodecKind::Fp32,
        bytes: &bytes,
    };
    let idle = ContributionChunk { weight: 0, ..good };
    let short = ContributionChunk {
        bytes: &bytes[..7],
        ..good
    };
    let wrong_length = CodecError::WrongLength {
        elements: 2,
        expected_bytes: 8,
        got_bytes: 7,
    };
    let (mut params, mut buffer) = ([5.0, 6.0], [7.0, 8.0]);
    for (chunks, expected) in [
        (vec![], MeanError::NoContributions),
        (vec![idle, idle], MeanError::NoWeight { contributions: 2 }),
        (
            vec![good, short],
            MeanError::WrongLength {
                index: 1,
                source: wrong_length,
            },
        ),
    ] {
        let refused =
            merge::merge_chunk(&chunks, STOCK, &mut params, Momentum::Running(&mut buffer));
        assert_eq!(refused, Err(MergeError::Mean(expected)));
    }
    let refused = merge::merge_chunk(
        &[good],
        STOCK,
        &mut params,
        Momentum::Running(&mut buffer[..1]),
    );
    assert_eq!(
        refused,
        Err(MergeError::Outer(OuterError::Momentum {
            expected: 2,
            got: 1
        }))
    );
    let mut out = [0; 3];
    let broadcast = Broadcast {
        codec: CodecKind::Bf16,
        rounding: SeededRounding::NEAREST,
        out: &mut out,
    };
    let refused = merge::merge_chunk_and_encode(
        &[good],
        STOCK,
        &mut params,
        Momentum::Running(&mut buffer),
        broadcast,
    );
    let wrong_length = CodecError::WrongLength {
        elements: 2,
        expected_bytes: 4,
        got_bytes: 3,
    };
    assert_eq!(refused, Err(MergeError::Broadcast(wrong_length)));
    assert_eq!((params, buffer, out), ([5.0, 6.0], [7.0, 8.0], [0; 3]));
}

#[test]
fn a_merge_out_of_range_is_reported() {
    let bytes = fp32(&[f32::MAX, 0.0]);
    let chunk = ContributionChunk {
        weight: 1,
        codec: CodecKind::Fp32,
        bytes: &bytes,
    };
    let sgd = OuterOptimizer::Sgd { learning_rate: 2.0 };
    let merged = merge::merge_chunk(&[chunk], sgd, &mut [0.0; 2], Momentum::Absent).unwrap();
    assert!(!merged.is_finite());
}
