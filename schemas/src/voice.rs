//! The voices in the comparison of a round's directions: each worker has one, however many units of
//! the round it took. The foundry, the fold and auditors count them by this rule alone.

use crate::WorkerId;
use crate::run::Comparison;
use crate::snapshot::MergeInput;

/// A worker's part in a comparison of directions.
#[derive(Clone, Debug, PartialEq)]
pub struct Voice {
    /// The worker.
    pub worker: WorkerId,
    /// The positions of its contributions among those that are compared.
    pub inputs: Vec<usize>,
    /// The factor that gives the sum of its contributions the length 1 if they agree, and less if
    /// they do not: the inverse of the sum of their norms. The ledger records the norms, so that
    /// everybody who compares scales alike.
    pub scale: f64,
    /// True if the others are compared with it too. A worker whose contributions are all much
    /// shorter than usual is judged and has no vote: what moves nothing should not decide.
    pub votes: bool,
}

/// The voices of the contributions that are compared, ascending by worker. A worker votes if its
/// longest contribution times `norm_ratio_max` reaches the lower median of the longest of each
/// worker.
pub fn voices<'a>(
    comparison: &Comparison,
    inputs: impl IntoIterator<Item = &'a MergeInput>,
) -> Vec<Voice> {
    let ratio = match comparison {
        Comparison::Others { norm_ratio_max, .. } => *norm_ratio_max,
        Comparison::None => return Vec::new(),
    };
    let mut of: Vec<(usize, &MergeInput)> = inputs.into_iter().enumerate().collect();
    of.sort_by_key(|(position, input)| (&input.worker, *position));
    let by_worker = of.chunk_by(|(_, one), (_, other)| one.worker == other.worker);
    let by_worker: Vec<&[(usize, &MergeInput)]> = by_worker.collect();
    let norms = |of_worker: &[(usize, &MergeInput)]| -> Vec<f64> {
        let norms = of_worker.iter().map(|(_, input)| input.norm);
        let norms = norms.map(|norm| f64::from(norm.unwrap_or_default()));
        norms.collect()
    };
    let longest = |norms: Vec<f64>| norms.into_iter().fold(0.0, f64::max);
    let mut sorted: Vec<f64> = by_worker.iter().map(|of| longest(norms(of))).collect();
    sorted.sort_unstable_by(f64::total_cmp);
    let usual = sorted.get(sorted.len().saturating_sub(1) / 2);
    let usual = usual.copied().unwrap_or_default();
    let voice = |of_worker: &&[(usize, &MergeInput)]| {
        let all: f64 = norms(of_worker).iter().sum();
        Voice {
            worker: of_worker[0].1.worker.clone(),
            inputs: of_worker.iter().map(|(position, _)| *position).collect(),
            scale: match all > 0.0 && all.is_finite() {
                true => 1.0 / all,
                false => 0.0,
            },
            votes: longest(norms(of_worker)) * ratio >= usual,
        }
    };
    by_worker.iter().map(voice).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::{LeaseRef, UnitId, UnitKind};
    use crate::{Epoch, Round, Tokens, UnitIndex, Weight};

    /// A key that consists of a letter.
    fn key(letter: &str) -> String {
        format!("U{}", letter.to_uppercase().repeat(55))
    }

    fn inputs(given: &[(&str, f32)]) -> Vec<MergeInput> {
        let input = |(unit, (worker, norm)): (u32, &(&str, f32))| MergeInput {
            lease: LeaseRef {
                unit: UnitId {
                    round: Round(0),
                    kind: UnitKind::Train,
                    index: UnitIndex(unit),
                },
                epoch: Epoch(1),
            },
            worker: key(worker).parse().expect("a key"),
            tokens: Tokens(32),
            weight: Weight(32),
            norm: Some(*norm),
            cosine: None,
            chunks: Vec::new().into(),
        };
        (0..).zip(given).map(input).collect()
    }

    #[test]
    fn a_worker_has_one_voice_however_many_units_it_took() {
        let inputs = inputs(&[("b", 1.0), ("a", 1.0), ("b", 2.0), ("b", 1.0)]);
        let found = voices(&Comparison::of_norms(4.0), &inputs);
        let found: Vec<_> = found
            .iter()
            .map(|voice| (voice.worker.to_string(), &voice.inputs[..], voice.votes))
            .collect();
        assert_eq!(
            found,
            [(key("a"), &[1][..], true), (key("b"), &[0, 2, 3], true)]
        );
        let found = voices(&Comparison::of_norms(4.0), &inputs);
        assert_eq!((found[0].scale, found[1].scale), (1.0, 0.25));
        assert!(voices(&Comparison::None, &inputs).is_empty());
        assert!(voices(&Comparison::of_norms(4.0), []).is_empty());
    }

    #[test]
    fn who_is_much_shorter_than_usual_has_no_vote() {
        let votes = |given: &[(&str, f32)]| -> Vec<bool> {
            let found = voices(&Comparison::of_norms(4.0), &inputs(given));
            found.iter().map(|voice| voice.votes).collect()
        };
        assert_eq!(
            votes(&[
                ("a", 1.0),
                ("b", 0.25),
                ("c", 0.249),
                ("d", 1.5),
                ("e", 1.0)
            ]),
            [true, true, false, true, true]
        );
        // The longest of a worker counts, and many of one worker do not make theirs the usual one.
        assert_eq!(
            votes(&[("a", 0.1), ("a", 0.2), ("a", 0.1), ("b", 1.0), ("c", 1.0)]),
            [false, true, true]
        );
        assert_eq!(
            votes(&[("a", 1e-6), ("a", 0.3), ("b", 1.0), ("c", 1.0)]),
            [true; 3]
        );
    }
}
