//! The settings of a run that protect the data: differential privacy and secure aggregation.

use schemas::run::{Privacy, SecureAggregation};
use serde::{Deserialize, Serialize};

use super::RunSettings;

/// An outcome that is `e` to this power times as likely with somebody's data tells whose data it
/// was.
const EPSILON_WEAK: f64 = 10.0;

/// Differential privacy of contributions; off by default. The budget that one number of rounds
/// costs is printed when the run is created.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PrivacySettings {
    pub(crate) enabled: bool,
    /// The largest norm of a contribution; longer ones are scaled down to it.
    pub(crate) clip: f64,
    /// The deviation of the noise of each parameter, as a multiple of `clip`.
    pub(crate) noise_multiplier: f64,
    pub(crate) delta: f64,
    /// The budget: no round is opened that could pass it.
    pub(crate) epsilon: f64,
}

impl Default for PrivacySettings {
    /// A budget that is common in the literature, and noise that lets it last for eight rounds.
    fn default() -> Self {
        Self {
            enabled: false,
            clip: 1.0,
            noise_multiplier: 4.0,
            delta: 1e-6,
            epsilon: 8.0,
        }
    }
}

/// Secure aggregation of contributions; off by default. It needs `transfer.upload` fp32, and no
/// `policy.norm_max` and no `policy.norm_ratio_max`, with which directions are not compared either.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct AggregationSettings {
    /// Workers of a round whose contributions must be in, and who must reveal shares; 0 for no
    /// secure aggregation.
    pub(crate) threshold: u32,
    /// The largest magnitude of a value in a contribution; a larger one fails its unit.
    pub(crate) largest: f64,
}

impl Default for AggregationSettings {
    fn default() -> Self {
        Self {
            threshold: 0,
            largest: 8.0,
        }
    }
}

impl RunSettings {
    /// Secure aggregation, if it is on.
    pub(crate) fn secure_aggregation(&self) -> Option<SecureAggregation> {
        let AggregationSettings { threshold, largest } = self.secure_aggregation;
        (threshold > 0).then_some(SecureAggregation { threshold, largest })
    }

    /// Differential privacy, if it is on.
    pub(crate) fn privacy(&self) -> Option<Privacy> {
        let PrivacySettings {
            enabled,
            clip,
            noise_multiplier,
            delta,
            epsilon,
        } = self.privacy;
        enabled.then_some(Privacy {
            clip,
            noise_multiplier,
            delta,
            epsilon,
        })
    }

    /// What the privacy budget lasts for, in words, and what its number is worth.
    pub(crate) fn privacy_words(&self) -> Option<String> {
        let privacy = self.privacy()?;
        let units = u64::from(self.schedule.units);
        let each = units.div_ceil(u64::from(self.policy().workers_min).max(1));
        let lasts = privacy::disclosures_within(&privacy) / each;
        let (rounds, planned) = (lasts.min(self.schedule.rounds), self.schedule.rounds);
        let mut text = format!(
            "the privacy budget (epsilon {} at delta {:e}) lasts for {lasts} rounds",
            privacy.epsilon, privacy.delta
        );
        if lasts < planned {
            text.push_str(&format!(
                " of the {planned} that are planned; the run ends after them"
            ));
        } else {
            let cost = privacy::epsilon(&privacy, rounds * each);
            text.push_str(&format!(
                ", and {planned} are planned, which cost {cost:.3}"
            ));
        }
        if each > 1 {
            text.push_str(&format!(
                "; each costs {each} contributions, since there are more units than workers"
            ));
        }
        text.push_str("; directions of contributions are not compared, since the noise hides them");
        if privacy.epsilon > EPSILON_WEAK {
            text.push_str(&format!(
                "; warning: an epsilon above {EPSILON_WEAK} promises next to nothing"
            ));
        }
        Some(text)
    }
}
