//! The limits of each closing rule, which a run's ledger must keep; one arm for each rule.

use schemas::run::Closing;

use crate::state::Run;

/// Most rounds that are open at once: each keeps its units and the results that are in.
const ROUNDS_OPEN_MAX: usize = 64;

/// The limits of a closing rule. With them, nobody who can write the ledger can leave a result out
/// unnoticed.
pub(crate) struct Rule {
    /// Most rounds that are open at once.
    pub(crate) open_max: usize,
    /// Fewest inputs of a seal.
    pub(crate) inputs_min: u32,
    /// True if each input must weigh the tokens that it was trained on.
    pub(crate) by_tokens: bool,
}

impl Run {
    /// The limits that this run's ledger must keep.
    pub(crate) fn rule(&self) -> Rule {
        if self.any_rule {
            return Rule {
                open_max: ROUNDS_OPEN_MAX,
                inputs_min: 0,
                by_tokens: false,
            };
        }
        match self.spec.policy.closing {
            // A round that waits for all its units ends before the next one begins.
            Closing::All => Rule {
                open_max: 1,
                // A masked round closes without the workers that are gone.
                inputs_min: match &self.spec.secure_aggregation {
                    Some(aggregation) => aggregation.threshold,
                    None => self.spec.schedule.units,
                },
                by_tokens: true,
            },
        }
    }
}
