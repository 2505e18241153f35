//! Error feedback against the plain loops, and its effect: nothing is lost for good.

use merge::{CodecError, FeedbackChunk, SeededRounding, codec, encode_with_feedback};
use proptest::prelude::*;
use schemas::run::CodecKind;

use crate::naive;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn feedback_follows_its_rule(
        seed in any::<u64>(),
        elements in 0..140_000_usize,
        kind in prop::sample::select(CodecKind::ALL),
    ) {
        let (base, local) = (naive::numbers(seed, elements), naive::numbers(!seed, elements));
        let residual = naive::numbers(seed ^ 77, elements);
        let sums: Vec<f32> = (0..elements)
            .map(|place| (base[place] - local[place]) + residual[place])
            .collect();
        let expected = naive::encode(kind, &sums, SeededRounding::NEAREST);
        let sent = naive::decode(kind, &expected, elements);
        let mut out = vec![0; codec::encoded_bytes(kind, elements)];
        let mut left = vec![f32::NAN; elements];
        let owed = FeedbackChunk { base: &base, local: &local, residual: &residual };
        encode_with_feedback(kind, owed, SeededRounding::NEAREST, &mut out, &mut left).unwrap();
        prop_assert!(out == expected);
        let short = sums.iter().zip(&sent).map(|(sum, sent)| (sum - sent).to_bits());
        prop_assert!(short.eq(left.iter().map(|left| left.to_bits())));
    }
}

/// Values that the codec alone rounds to zero each time arrive completely in the end.
#[test]
fn what_is_too_small_for_one_round_arrives_in_several() {
    let kind = CodecKind::E3m0;
    let (base, mut local) = (vec![1.0_f32; 512], vec![0.0_f32; 512]);
    local.fill(1.0 - 1.0 / 512.0);
    local[0] = 0.0;
    let arrived = |feedback: bool| {
        let (mut residual, mut sum) = (vec![0.0; 512], 0.0);
        for _ in 0..64 {
            let mut out = vec![0; codec::encoded_bytes(kind, 512)];
            let (mut left, mut sent) = (vec![0.0; 512], vec![0.0; 512]);
            let owed = FeedbackChunk {
                base: &base,
                local: &local,
                residual: &residual,
            };
            encode_with_feedback(kind, owed, SeededRounding::NEAREST, &mut out, &mut left).unwrap();
            codec::decode(kind, &out, &mut sent).unwrap();
            sum += sent[100];
            if feedback {
                residual = left;
            }
        }
        sum
    };
    let whole = 64.0 / 512.0;
    assert_eq!(arrived(false), 0.0, "the largest of the block hides it");
    assert!(
        (arrived(true) - whole).abs() <= 1.0 / 64.0,
        "{}",
        arrived(true)
    );
}

#[test]
fn slices_of_other_lengths_are_refused() {
    let (three, two) = ([0.0; 3], [0.0; 2]);
    let attempt = |local: &[f32], residual: &[f32], left: &mut [f32]| {
        let owed = FeedbackChunk {
            base: &three,
            local,
            residual,
        };
        encode_with_feedback(
            CodecKind::Bf16,
            owed,
            SeededRounding::NEAREST,
            &mut [0; 6],
            left,
        )
    };
    let unequal = Err(CodecError::Unequal { base: 3, local: 2 });
    assert_eq!(attempt(&three, &three, &mut [0.0; 3]), Ok(()));
    assert_eq!(attempt(&two, &three, &mut [0.0; 3]), unequal);
    assert_eq!(attempt(&three, &two, &mut [0.0; 3]), unequal);
    assert_eq!(attempt(&three, &three, &mut [0.0; 2]), unequal);
}
