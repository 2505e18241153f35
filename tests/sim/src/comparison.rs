//! The comparison of directions, on a model of them: the cosine of a contribution follows from its
//! chunks, so that the same set is compared alike after a restart. One of four points against the
//! others.

use std::collections::BTreeMap;

use schemas::lease::UnitId;
use schemas::run::RunSpec;
use schemas::snapshot::MergeInput;
use schemas::sync::ComparedInput;
use schemas::{Chunks, Weight};

/// Fewest contributions of a round whose directions are compared.
const LEAST: usize = 3;

/// The cosine of a contribution to the others.
pub(crate) fn cosine(chunks: &Chunks) -> f32 {
    match chunks.digest().as_bytes()[0] % 4 {
        0 => -0.75,
        some => f32::from(some) / 4.0,
    }
}

/// The answer of the foundry to the order to compare.
pub(crate) fn compare(inputs: &[MergeInput]) -> Vec<ComparedInput> {
    let compared = inputs.iter().map(|input| ComparedInput {
        unit: input.lease.unit.index,
        epoch: input.lease.epoch,
        cosine: cosine(&input.chunks),
    });
    compared.collect()
}

/// The norm that the record of a merge has of each contribution.
pub(crate) fn norm(spec: &RunSpec) -> Option<f32> {
    (!spec.policy.comparison.is_none()).then_some(1.0)
}

/// True if directions decide who is left out of a round with so many contributions.
fn decides(spec: &RunSpec, inputs: usize) -> bool {
    let units = spec.schedule.units as usize;
    spec.policy.comparison.cosine_min().is_some() && units >= LEAST && inputs == units
}

/// Checks cosines that the ledger names of a round's contributions, which are all in.
pub(crate) fn check(
    spec: &RunSpec,
    inputs: &BTreeMap<UnitId, MergeInput>,
    cosines: &[ComparedInput],
) {
    assert!(decides(spec, inputs.len()), "nothing is to be compared");
    for compared in cosines {
        let named = |input: &&MergeInput| {
            (input.lease.unit.index, input.lease.epoch) == (compared.unit, compared.epoch)
        };
        let input = inputs.values().find(named);
        let input = input.expect("what is compared was accepted");
        assert_eq!(compared.cosine, cosine(&input.chunks), "{}", input.lease);
    }
}

/// Takes the weight from those that point against the others, if they are fewer than half. Returns
/// their number.
pub(crate) fn leave_out(spec: &RunSpec, accepted: &mut [MergeInput]) -> u64 {
    let all = accepted.len();
    if !decides(spec, all) {
        return 0;
    }
    let mut out = Vec::new();
    for input in accepted {
        let cosine = cosine(&input.chunks);
        input.cosine = Some(cosine);
        if cosine < 0.0 {
            out.push(input);
        }
    }
    if 2 * out.len() >= all {
        return 0;
    }
    for input in &mut out {
        input.weight = Weight(0);
    }
    out.len() as u64
}
