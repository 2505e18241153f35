//! The comparison of directions, on a model of them: the cosine of a worker follows from all that
//! is compared, so that the same set is compared alike after a restart, and a cosine of another set
//! is told from it. One of four points against the others.

use std::collections::{BTreeMap, BTreeSet};

use schemas::lease::UnitId;
use schemas::run::RunSpec;
use schemas::snapshot::MergeInput;
use schemas::sync::ComparedInput;
use schemas::{Digest, Weight, WorkerId};

/// Fewest workers of a round whose directions are compared.
const LEAST: usize = 3;

/// The cosine of each contribution to those of the other workers. It is one for each worker.
fn cosines(inputs: &[&MergeInput]) -> Vec<f32> {
    let named = |input: &&MergeInput| format!("{} {}", input.lease, input.chunks.digest());
    let set: String = inputs.iter().map(named).collect();
    let cosine = |input: &&MergeInput| {
        let digest = Digest::of(format!("{set} {}", input.worker).as_bytes());
        match digest.as_bytes()[0] % 4 {
            0 => -0.75 - f32::from(digest.as_bytes()[1]) / 1024.0,
            some => (f32::from(some) - f32::from(digest.as_bytes()[1]) / 256.0) / 4.0,
        }
    };
    inputs.iter().map(cosine).collect()
}

/// The answer of the foundry to the order to compare.
pub(crate) fn compare(inputs: &[MergeInput]) -> Vec<ComparedInput> {
    let all: Vec<&MergeInput> = inputs.iter().collect();
    let compared = inputs.iter().zip(cosines(&all));
    let compared = compared.map(|(input, cosine)| ComparedInput {
        unit: input.lease.unit.index,
        epoch: input.lease.epoch,
        cosine,
    });
    compared.collect()
}

/// The norm that the record of a merge has of each contribution.
pub(crate) fn norm(spec: &RunSpec) -> Option<f32> {
    (!spec.policy.comparison.is_none()).then_some(1.0)
}

/// The workers of a round whose contributions are all in, if directions decide who is left out.
fn voices(spec: &RunSpec, inputs: &[&MergeInput]) -> Option<BTreeSet<WorkerId>> {
    let all = spec.policy.comparison.cosine_min().is_some()
        && inputs.len() == spec.schedule.units as usize;
    let workers: BTreeSet<_> = inputs.iter().map(|input| input.worker.clone()).collect();
    (all && workers.len() >= LEAST).then_some(workers)
}

/// Checks cosines that the ledger names of a round's contributions, which are all in.
pub(crate) fn check(
    spec: &RunSpec,
    inputs: &BTreeMap<UnitId, MergeInput>,
    compared: &[ComparedInput],
) {
    let inputs: Vec<&MergeInput> = inputs.values().collect();
    assert!(voices(spec, &inputs).is_some(), "nothing is to be compared");
    let expected = cosines(&inputs);
    for compared in compared {
        let named = |input: &&MergeInput| {
            (input.lease.unit.index, input.lease.epoch) == (compared.unit, compared.epoch)
        };
        let at = inputs.iter().position(named);
        let at = at.expect("what is compared was accepted");
        assert_eq!(compared.cosine, expected[at], "{}", inputs[at].lease);
    }
}

/// Takes the weight from those that point against the others, if they are of fewer than half of the
/// workers. Returns their number.
pub(crate) fn leave_out(spec: &RunSpec, accepted: &mut [MergeInput]) -> u64 {
    let all: Vec<&MergeInput> = accepted.iter().collect();
    let Some(workers) = voices(spec, &all) else {
        return 0;
    };
    let cosines = cosines(&all);
    let mut out = Vec::new();
    for (input, cosine) in accepted.iter_mut().zip(cosines) {
        input.cosine = Some(cosine);
        if cosine < 0.0 {
            out.push(input);
        }
    }
    let fallen: BTreeSet<&WorkerId> = out.iter().map(|input| &input.worker).collect();
    if 2 * fallen.len() >= workers.len() {
        return 0;
    }
    for input in &mut out {
        input.weight = Weight(0);
    }
    out.len() as u64
}
