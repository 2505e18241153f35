//! The condition under which a round is complete.

use ledger::{OpenSync, Run};
use schemas::run::Closing;
use schemas::snapshot::MergeInput;
use schemas::sync::SealedInput;
use schemas::{SyncId, Weight};

/// The contributions whose directions are compared now, before their round is sealed: it has all
/// that it waits for.
pub(super) fn to_compare(run: &Run, sync: SyncId, open: &OpenSync) -> Vec<MergeInput> {
    match open.collects() && is_complete(run, sync, open) {
        true => run.uncompared(sync.round),
        false => Vec::new(),
    }
}

/// The inputs of a set that is sealed now, ascending by unit; none while its round still waits. If
/// a coordinator died while it wrote a seal, the rule gives the inputs that are left to complete
/// it.
pub(super) fn due(run: &Run, sync: SyncId, open: &OpenSync) -> Option<Vec<SealedInput>> {
    let unnamed = open.unnamed()?;
    if !is_complete(run, sync, open) || !to_compare(run, sync, open).is_empty() {
        return None;
    }
    let outliers = run.outliers(sync.round);
    let weighed = unnamed.map(by_tokens).map(|input| SealedInput {
        weight: match outliers.contains_key(&input.unit) {
            true => Weight(0),
            false => input.weight,
        },
        ..input
    });
    Some(weighed.collect())
}

/// True if a round waits for no contribution any more: what the run's closing rule decides.
fn is_complete(run: &Run, sync: SyncId, open: &OpenSync) -> bool {
    let in_set = open.inputs().count() as u64;
    if let Some(aggregation) = &run.spec.secure_aggregation {
        // A worker that is gone is left out, and cannot be replaced.
        return run.is_settled(sync.round) && in_set >= u64::from(aggregation.threshold);
    }
    match run.spec.policy.closing {
        Closing::All => in_set == u64::from(run.spec.schedule.units),
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
