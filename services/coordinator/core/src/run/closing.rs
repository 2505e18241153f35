//! The condition under which a round is complete.

use ledger::OpenSync;
use schemas::run::Closing;
use schemas::snapshot::MergeInput;
use schemas::sync::SealedInput;

/// The inputs of a set that is sealed now, ascending by unit; none while its round still waits.
/// `units` is how many training units the round has. A seal that a coordinator began before it died
/// is completed with the inputs that are left, by the rule.
pub(super) fn due(closing: Closing, units: u32, open: &OpenSync) -> Option<Vec<SealedInput>> {
    let unnamed = open.unnamed()?;
    match closing {
        Closing::All => (open.inputs().count() as u64 == u64::from(units))
            .then(|| unnamed.map(by_tokens).collect()),
    }
}

/// An input that counts by the tokens that it was trained on.
fn by_tokens(input: &MergeInput) -> SealedInput {
    SealedInput {
        unit: input.lease.unit.index,
        epoch: input.lease.epoch,
        weight: input.weight,
    }
}
