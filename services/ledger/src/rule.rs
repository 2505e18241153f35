//! The bounds that a ledger keeps a run to under its closing rule, one arm a rule.

use schemas::run::Closing;

use crate::state::Run;

/// Most rounds that are open at once: each keeps its units and the results that are in.
const ROUNDS_OPEN_MAX: usize = 64;

/// The bounds of a closing rule, so that nobody who can write the ledger leaves a result out
/// unnoticed.
pub(crate) struct Rule {
    /// Most rounds that are open at once.
    pub(crate) open_max: usize,
    /// A seal that names fewer inputs is refused.
    pub(crate) inputs_min: u32,
    /// Each input weighs the tokens that it was trained on.
    pub(crate) by_tokens: bool,
}

impl Run {
    /// The rule that this run's ledger is held to.
    pub(crate) fn rule(&self) -> Rule {
        if self.any_rule {
            return Rule {
                open_max: ROUNDS_OPEN_MAX,
                inputs_min: 0,
                by_tokens: false,
            };
        }
        match self.spec.policy.closing {
            // A round that waits for all ends before the next begins.
            Closing::All => Rule {
                open_max: 1,
                inputs_min: self.spec.schedule.units,
                by_tokens: true,
            },
        }
    }
}
