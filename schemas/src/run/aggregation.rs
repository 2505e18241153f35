//! The settings of secure aggregation. The crate `masking` says what they promise.

use serde::{Deserialize, Serialize};

use super::{CodecKind, Combination, Policy, real};
use crate::code::{Code, Refusal};
use crate::masking::{COHORT_MAX, COHORT_MIN};

/// Secure aggregation of a run's contributions: workers mask them, and the coordinator learns their
/// sum alone.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecureAggregation {
    /// Workers of a round whose contributions must be in, and who must reveal shares.
    pub threshold: u32,
    /// The largest magnitude of a value in a contribution. A larger one is an error of its worker;
    /// the smaller this is, the finer is the grid of the values.
    pub largest: f64,
}

/// The settings of a run that secure aggregation may not go with.
#[derive(Clone, Copy, Debug)]
pub struct Beside<'a> {
    /// Training units of a round.
    pub units: u32,
    /// The encoding of contributions.
    pub upload: CodecKind,
    /// True if workers add their residual.
    pub error_feedback: bool,
    /// The rule of combination.
    pub combination: Combination,
    /// True for a private run.
    pub private: bool,
    /// Rules for workers.
    pub policy: &'a Policy,
}

impl SecureAggregation {
    /// Checks the numbers, and the settings that cannot be kept together with them: all those that
    /// need a contribution by itself.
    ///
    /// # Errors
    /// [`Code::SpecInvalid`] or [`Code::AggregationUnfit`].
    pub fn check(&self, beside: &Beside<'_>) -> Result<(), Refusal> {
        real("secure_aggregation.largest", self.largest, 1e-6, 1e6)?;
        let unfit = |detail: String| Err(Refusal::new(Code::AggregationUnfit, detail));
        let (units, threshold) = (beside.units, self.threshold);
        if !(COHORT_MIN..=COHORT_MAX).contains(&units) {
            return unfit(format!(
                "schedule.units is {units}, expected {COHORT_MIN} to {COHORT_MAX}: of a sum of two each worker knows the other's part"
            ));
        }
        if threshold > units || threshold.saturating_mul(3) < units * 2 {
            return unfit(format!(
                "secure_aggregation.threshold is {threshold}, expected two thirds of the {units} units or more, and no more than all: with fewer, a few workers and a coordinator that lies to the others get both secrets of a worker"
            ));
        }
        if threshold < COHORT_MIN {
            return unfit(format!(
                "secure_aggregation.threshold is {threshold}, expected at least {COHORT_MIN}: a round closes with as many contributions, and of a sum of two each worker knows the other's part"
            ));
        }
        if beside.policy.workers_min < units {
            return unfit(format!(
                "policy.workers_min is {}, and each of the {units} units of a round needs a worker of its own",
                beside.policy.workers_min
            ));
        }
        let needs_one = [
            (
                beside.upload != CodecKind::Fp32,
                "upload",
                "a codec other than fp32, and masks are added to whole numbers that are made from the values themselves",
            ),
            (
                beside.error_feedback,
                "error_feedback",
                "on, and with masks there is no error of a codec to feed back",
            ),
            (
                !beside.combination.is_mean(),
                "combination",
                "a rule other than the mean, which looks at each contribution by itself",
            ),
            (
                !beside.policy.comparison.is_none(),
                "policy.comparison",
                "a comparison of norms and chunks, which looks at each contribution by itself",
            ),
            (
                beside.policy.norm_max > 0.0,
                "policy.norm_max",
                "a bound on the norm of each contribution, which nobody can see",
            ),
            (
                beside.private,
                "privacy",
                "set, and the coordinator checks the noise by the norm of each contribution, which nobody can see",
            ),
        ];
        match needs_one.iter().find(|(is_so, ..)| *is_so) {
            Some((_, field, why)) => unfit(format!("{field} is {why}")),
            None => Ok(()),
        }
    }
}
