//! The condition under which a round is complete.

use ledger::OpenSync;
use schemas::run::Closing;
use schemas::snapshot::MergeInput;
use schemas::sync::SealedInput;

/// The inputs of a set that is sealed now, ascending by unit; none while its round still waits.
/// `units` is the number of training units of the round. If a coordinator died while it wrote a
/// seal, the rule gives the inputs that are left to complete it.
pub(super) fn due(closing: Closing, units: u32, open: &OpenSync) -> Option<Vec<SealedInput>> {
    let unnamed = open.unnamed()?;
    match closing {
        Closing::All => (open.inputs().count() as u64 == u64::from(units))
            .then(|| unnamed.map(by_tokens).collect()),
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
