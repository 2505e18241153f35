//! The condition under which a round is complete.

use ledger::{OpenSync, Run};
use schemas::run::Closing;
use schemas::snapshot::MergeInput;
use schemas::sync::SealedInput;
use schemas::{SyncId, Weight};

/// The contributions whose directions are compared now, before their round is sealed: it has all
/// that it waits for.
pub(super) fn to_compare(run: &Run, sync: SyncId, open: &OpenSync) -> Vec<MergeInput> {
    let in_set = open.inputs().count() as u64;
    match open.collects() && in_set == u64::from(run.spec.schedule.units) {
        true => run.uncompared(sync.round),
        false => Vec::new(),
    }
}

/// The inputs of a set that is sealed now, ascending by unit; none while its round still waits. If
/// a coordinator died while it wrote a seal, the rule gives the inputs that are left to complete
/// it.
pub(super) fn due(run: &Run, sync: SyncId, open: &OpenSync) -> Option<Vec<SealedInput>> {
    let unnamed = open.unnamed()?;
    let in_set = open.inputs().count() as u64;
    let is_due = match &run.spec.secure_aggregation {
        // A worker that is gone is left out, and cannot be replaced.
        Some(aggregation) => {
            run.is_settled(sync.round) && in_set >= u64::from(aggregation.threshold)
        }
        None => in_set == u64::from(run.spec.schedule.units),
    };
    let is_due = is_due && to_compare(run, sync, open).is_empty();
    match run.spec.policy.closing {
        Closing::All => is_due.then(|| {
            let outliers = run.outliers(sync.round);
            let weighed = unnamed.map(by_tokens).map(|input| SealedInput {
                weight: match outliers.contains_key(&input.unit) {
                    true => Weight(0),
                    false => input.weight,
                },
                ..input
            });
            weighed.collect()
        }),
    }
}

/// Counts an input by the tokens that it was trained on.
fn by_tokens(input: &MergeInput) -> SealedInput {
    SealedInput {
        unit: input.lease.unit.index,
        epoch: input.lease.epoch,
        weight: input.weight,
    }
}
