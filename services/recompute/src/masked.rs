//! The sum of a masked round's contributions. Nothing else can be made of them.

use masking::{FixedPoint, UnmaskError};
use merge::codec::encoded_bytes;
use schemas::masking::Unmasking;
use schemas::run::{CodecKind, RunSpec};
use schemas::{Code, Refusal};

use crate::weights::Part;

/// The parts that a step takes: those that are given, or in a run with secure aggregation one part,
/// their mean without the masks. `start` is the position of the chunk in the flat vector.
///
/// # Errors
/// [`Code::MaskRange`] for a sum that no contributions within the run's bound can have, and
/// [`Code::Internal`] for contributions that cannot be summed.
pub fn unmasked(
    spec: &RunSpec,
    unmasking: Option<&Unmasking>,
    start: u64,
    elements: usize,
    parts: Vec<Part>,
) -> Result<Vec<Part>, Refusal> {
    let wrong = |detail: String| Err(Refusal::new(Code::Internal, detail));
    let unmasking = match (&spec.secure_aggregation, unmasking) {
        (None, None) => return Ok(parts),
        (Some(aggregation), Some(unmasking)) => (aggregation, unmasking),
        (Some(_), None) => {
            return wrong("a masked sum of which nothing takes the masks".to_owned());
        }
        (None, Some(_)) => return wrong("masks in a run without secure aggregation".to_owned()),
    };
    let (aggregation, unmasking) = unmasking;
    let expected = encoded_bytes(CodecKind::Fp32, elements);
    if let Some(part) = parts.iter().find(|part| part.bytes.len() != expected) {
        return wrong(format!(
            "a chunk of {} bytes, expected {expected}",
            part.bytes.len()
        ));
    }
    let fixed = FixedPoint::new(aggregation.largest, spec.schedule.units);
    let chunks: Vec<&[u8]> = parts.iter().map(|part| &part.bytes[..]).collect();
    let mean = masking::unmask(unmasking, &fixed, start, &chunks);
    let mean = mean.map_err(|error| {
        let code = match error {
            UnmaskError::Range => Code::MaskRange,
            _ => Code::Internal,
        };
        Refusal::new(code, error.to_string())
    })?;
    Ok(vec![Part {
        weight: 1,
        norm: None,
        cosine: None,
        bytes: mean.into(),
    }])
}

#[cfg(test)]
mod tests {
    use schemas::Digest;
    use schemas::UnitIndex;
    use schemas::masking::{Bytes32, UnitKey};

    use super::*;

    fn part(bytes: usize) -> Part {
        Part {
            weight: 32,
            norm: None,
            cosine: None,
            bytes: vec![0; bytes].into(),
        }
    }

    fn unmasking() -> Unmasking {
        let seed = |unit| UnitKey {
            unit: UnitIndex(unit),
            key: Bytes32([unit as u8; 32]),
        };
        Unmasking {
            cohort: Digest::of(b"cohort"),
            seeds: (0..3).map(seed).collect(),
            masking: vec![],
            gone: vec![],
        }
    }

    #[test]
    fn tl_17_masked_parts_become_one_and_others_stay() {
        let plain = kit::run_spec().build();
        let masked = kit::masked_run_spec(3).build();
        let unmasking = unmasking();
        let parts = |count: usize, bytes| vec![part(bytes); count];
        let run = |spec, unmasking, parts| unmasked(spec, unmasking, 0, 5, parts);
        // Three of this largest value fill the words, so any words are a sum.
        let mut wide = masked.clone();
        let aggregation = wide.secure_aggregation.as_mut();
        aggregation.expect("it is masked").largest = 715_827_881.0 / 2_f64.powi(29);
        assert_eq!(
            run(&plain, None, parts(2, 10)).map(|parts| parts.len()),
            Ok(2)
        );
        let one = run(&wide, Some(&unmasking), parts(3, 20)).expect("a sum");
        assert_eq!((one.len(), one[0].weight, one[0].bytes.len()), (1, 1, 20));
        // Its streams are left when the words are zeros, so it is not zeros.
        assert!(one[0].bytes.iter().any(|byte| *byte != 0));
        // No contributions within the bound sum to these streams.
        let refused = unmasked(&masked, Some(&unmasking), 0, 1000, parts(3, 4000));
        let refused = refused.err().map(|refusal| refusal.code);
        assert_eq!(refused, Some(Code::MaskRange));
        for (spec, unmasking, parts) in [
            (&masked, None, parts(3, 20)),
            (&plain, Some(&unmasking), parts(3, 20)),
            (&masked, Some(&unmasking), parts(2, 20)),
            (&masked, Some(&unmasking), parts(3, 16)),
        ] {
            assert!(run(spec, unmasking, parts).is_err());
        }
    }
}
