//! The rules of a run that have a choice: how contributions are compared and combined, and when a
//! round is sealed. The oldest choice of each is left out of the settings' message.

use serde::{Deserialize, Serialize};

use super::{Carries, Codec, CodecKind, Policy, real, shortest_decimal, whole};
use crate::limits::{LEASE_MAX, LEASE_MIN, UNITS_MAX, WORKERS_MAX};
use crate::{Code, Refusal};

/// The rule by which the contributions of a round become one, before the outer optimizer applies
/// the result. Only contributions with a weight take part. The crate `merge` has the formulas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Combination {
    /// The weighted mean.
    #[default]
    Mean,
    /// The weighted mean of contributions, each of which is first scaled down to at most
    /// `norm_ratio` times the lower median of their norms above 0.
    Clipped {
        /// Largest norm, as a multiple of the lower median.
        #[serde(serialize_with = "shortest_decimal")]
        norm_ratio: f32,
    },
    /// For each parameter, the mean of the values that are left when the `each_end` lowest and as
    /// many of the highest are left out: that many hostile contributions cannot choose the result.
    /// Weights do not matter.
    Trimmed {
        /// Values left out at each end.
        each_end: u32,
    },
    /// The median for each parameter. Weights do not matter.
    Median,
    /// Radial-directional averaging: for each tensor the weighted mean of the norms, in the
    /// direction of the weighted mean of the unit vectors. Embeddings get the weighted mean.
    Radial,
}

impl Combination {
    /// True for the oldest rule, which settings without a rule follow.
    pub const fn is_mean(&self) -> bool {
        matches!(self, Self::Mean)
    }

    /// True for a rule that depends on the norms of whole contributions.
    pub const fn needs_norms(self) -> bool {
        match self {
            Self::Clipped { .. } => true,
            Self::Mean | Self::Trimmed { .. } | Self::Median | Self::Radial => false,
        }
    }

    /// What is left of the rule's protection where a round has so few units that it cannot do what
    /// it says; none where it can.
    pub fn weakened(self, units: u32) -> Option<String> {
        let most = units.saturating_sub(1) / 2;
        match self {
            Self::Trimmed { each_end } if most < each_end => Some(match most {
                0 => format!(
                    "with {units} units a round `trimmed` is the mean, which any worker can move"
                ),
                most => format!(
                    "with {units} units a round `trimmed` leaves out {most} at each end, not {each_end}"
                ),
            }),
            Self::Median if most == 0 => Some(format!(
                "with {units} units a round `median` is the mean, which any worker can move"
            )),
            Self::Mean
            | Self::Clipped { .. }
            | Self::Trimmed { .. }
            | Self::Median
            | Self::Radial => None,
        }
    }

    /// Checks that every number is within its bounds.
    ///
    /// # Errors
    /// As [`RunSpec::validate`](super::RunSpec::validate).
    pub fn validate(&self) -> Result<(), Refusal> {
        match *self {
            Self::Mean | Self::Median | Self::Radial => Ok(()),
            Self::Clipped { norm_ratio } => {
                real("combination.norm_ratio", norm_ratio.into(), 1.0, 1e6)
            }
            Self::Trimmed { each_end } => {
                whole("combination.each_end", each_end.into(), 1, UNITS_MAX.into())
            }
        }
    }
}

/// The condition under which a round is sealed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Closing {
    /// All its training units have a contribution, which counts by its tokens.
    #[default]
    All,
}

/// The comparison that a contribution must stand beside its own checks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Comparison {
    /// None: only [`Policy::norm_max`](super::Policy::norm_max) bounds its norm.
    #[default]
    None,
    /// Its norm is compared with what the inner steps can reach, and with the norms of other
    /// contributions, and its chunks with theirs.
    Others {
        /// A contribution is left out of the merge if its norm is more than this many times that of
        /// the others.
        norm_ratio_max: f64,
        /// A contribution is left out of the merge if the cosine of its direction to the mean
        /// direction of the others is below this. Left out of the message if there is none, so that
        /// settings from before there was one keep their digest; so is the ratio of losses.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cosine_min: Option<f64>,
        /// A contribution is left out of the merge if the training loss that it states is more than
        /// this many times the median of its round, or that many times less.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        loss_ratio_max: Option<f64>,
    },
}

impl Comparison {
    /// The ratio of norms of a new run that says nothing else.
    pub const NORM_RATIO_MAX: f64 = 4.0;
    /// The least cosine of a new run that says nothing else.
    pub const COSINE_MIN: f64 = -0.25;

    /// The comparison of norms and chunks alone.
    pub const fn of_norms(norm_ratio_max: f64) -> Self {
        Self::Others {
            norm_ratio_max,
            cosine_min: None,
            loss_ratio_max: None,
        }
    }

    /// Least cosine of a contribution to the others, if directions are compared.
    pub const fn cosine_min(&self) -> Option<f64> {
        match self {
            Self::Others { cosine_min, .. } => *cosine_min,
            Self::None => None,
        }
    }

    /// Largest ratio of a stated loss to the median, if losses are compared.
    pub const fn loss_ratio_max(&self) -> Option<f64> {
        match self {
            Self::Others { loss_ratio_max, .. } => *loss_ratio_max,
            Self::None => None,
        }
    }

    /// True for the oldest rule, which settings without a rule follow.
    pub const fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    /// Checks that every number is within its bounds.
    ///
    /// # Errors
    /// As [`RunSpec::validate`](super::RunSpec::validate).
    pub fn validate(&self) -> Result<(), Refusal> {
        match *self {
            Self::None => Ok(()),
            Self::Others {
                norm_ratio_max,
                cosine_min,
                loss_ratio_max,
            } => {
                real("policy.norm_ratio_max", norm_ratio_max, 1.0, 1e6)?;
                if let Some(least) = cosine_min {
                    real("policy.cosine_min", least, -1.0, 1.0)?;
                }
                match loss_ratio_max {
                    Some(most) => real("policy.loss_ratio_max", most, 1.0, 1e6),
                    None => Ok(()),
                }
            }
        }
    }
}

impl Closing {
    /// True for the oldest rule, which settings without a rule follow.
    pub const fn is_all(&self) -> bool {
        matches!(self, Self::All)
    }
}

/// Checks that the codecs of a run can carry the values that they are used for.
///
/// # Errors
/// [`Code::CodecUnfit`].
pub fn check_transfer(upload: Codec, download: Codec, error_feedback: bool) -> Result<(), Refusal> {
    if download.kind.carries() == Carries::Contributions {
        let detail = format!(
            "download is {}, which errs by up to a third of a value: a copy of the weights would \
             keep that, only a mean of contributions evens it out",
            download.kind.name()
        );
        return Err(Refusal::new(Code::CodecUnfit, detail));
    }
    if error_feedback && upload.kind == CodecKind::Fp32 {
        let detail = "upload is fp32, which loses nothing that error feedback could bring back";
        return Err(Refusal::new(Code::CodecUnfit, detail));
    }
    Ok(())
}

impl Policy {
    /// Checks that every number is within its bounds.
    ///
    /// # Errors
    /// As [`RunSpec::validate`](crate::run::RunSpec::validate).
    pub fn validate(&self) -> Result<(), Refusal> {
        whole(
            "policy.workers_min",
            self.workers_min.into(),
            1,
            WORKERS_MAX as u64,
        )?;
        whole(
            "policy.lease (ms)",
            self.lease.get(),
            LEASE_MIN.get(),
            LEASE_MAX.get(),
        )?;
        whole(
            "policy.silence_max (ms)",
            self.silence_max.get(),
            LEASE_MIN.get(),
            LEASE_MAX.get(),
        )?;
        real("policy.norm_max", self.norm_max, 0.0, f64::MAX)?;
        self.comparison.validate()?;
        if self.pace_ratio_max > 0 {
            let ratio = self.pace_ratio_max.into();
            whole("policy.pace_ratio_max", ratio, PACE_RATIO_MIN, 1_000_000)?;
        }
        whole("policy.strikes_max", self.strikes_max.into(), 1, 1_000_000)
    }
}

/// Least [`Policy::pace_ratio_max`]: honest machines differ by more than a little.
const PACE_RATIO_MIN: u64 = 2;

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands fields over by reference"
)]
pub(super) fn is_zero(value: &u32) -> bool {
    *value == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_that_has_too_few_contributions_to_choose_from_says_so() {
        let trimmed = |each_end| Combination::Trimmed { each_end };
        for (rule, units) in [
            (Combination::Mean, 1),
            (Combination::Radial, 2),
            (Combination::Clipped { norm_ratio: 1.0 }, 2),
            (trimmed(1), 3),
            (trimmed(3), 7),
            (Combination::Median, 3),
        ] {
            assert_eq!(rule.weakened(units), None, "{rule:?} {units}");
        }
        for (rule, units, words) in [
            (trimmed(1), 2, "is the mean"),
            (trimmed(1), 0, "is the mean"),
            (trimmed(3), 6, "2 at each end, not 3"),
            (Combination::Median, 2, "is the mean"),
        ] {
            let found = rule.weakened(units).expect("it is too few");
            assert!(found.contains(words), "{found}");
        }
    }
}
