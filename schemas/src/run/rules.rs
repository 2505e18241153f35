//! The rules of a run that have a choice: how contributions are compared and combined, and when a
//! round is sealed. The oldest choice of each is left out of the settings' message.

use serde::{Deserialize, Serialize};

use super::{real, shortest_decimal, whole};
use crate::Refusal;
use crate::limits::UNITS_MAX;

/// The rule by which the contributions of a round become one, before the outer optimizer applies
/// the result. Only contributions with a weight take part. The crate `merge` has the formulas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Combination {
    /// The weighted mean.
    #[default]
    Mean,
    /// The weighted mean of contributions, each of which is first scaled down to at most
    /// `norm_ratio` times the lower median of their norms.
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
    },
}

impl Comparison {
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
            Self::Others { norm_ratio_max } => {
                real("policy.norm_ratio_max", norm_ratio_max, 1.0, 1e6)
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
