//! The settings of differential privacy. The crate `privacy` says what they promise.

use serde::{Deserialize, Serialize};

use super::{Policy, real};
use crate::code::{Code, Refusal};
use crate::contribution::Applied;

/// A norm of noise is this many deviations off its mean once in `10^21` contributions.
const NOISE_DEVIATIONS: f64 = 10.0;
/// Largest error of an upload codec as a part of a value, and room: `e3m0` errs by up to a third.
const CODEC_ERROR_MAX: f64 = 0.5;

/// Differential privacy of a run's contributions, each of which its worker clips and noises before
/// anything of it leaves the process.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Privacy {
    /// The largest norm of a contribution before the noise: longer ones are scaled down to it.
    pub clip: f64,
    /// The deviation of the noise of each parameter, as a multiple of `clip`.
    pub noise_multiplier: f64,
    /// The probability with which the promise may fail.
    pub delta: f64,
    /// The budget: the run's rounds end before what is spent could pass it.
    pub epsilon: f64,
}

impl Privacy {
    /// The part that a contribution's statement names.
    pub const fn applied(&self) -> Applied {
        Applied {
            clip: self.clip,
            noise_multiplier: self.noise_multiplier,
        }
    }

    /// Checks that every number is within its bounds. The accountant checks beyond this that the
    /// budget lasts for one round.
    ///
    /// # Errors
    /// As [`RunSpec::validate`](super::RunSpec::validate).
    pub fn validate(&self) -> Result<(), Refusal> {
        real("privacy.clip", self.clip, 1e-6, 1e6)?;
        real("privacy.noise_multiplier", self.noise_multiplier, 1e-3, 1e3)?;
        real("privacy.delta", self.delta, 1e-30, 1e-2)?;
        real("privacy.epsilon", self.epsilon, 1e-3, 1e6)
    }

    /// The norms that a clipped and noised contribution of so many parameters can have once it is
    /// encoded, for all but one in `10^21` honest workers: least and most.
    pub fn norms(&self, parameters: u64) -> (f64, f64) {
        let root = (parameters as f64).sqrt();
        let noise = self.clip * self.noise_multiplier;
        let least = noise * (root - NOISE_DEVIATIONS) - self.clip;
        let most = noise * (root + NOISE_DEVIATIONS) + self.clip;
        let (least, most) = (
            least * (1.0 - CODEC_ERROR_MAX),
            most * (1.0 + CODEC_ERROR_MAX),
        );
        (least.max(0.0), most)
    }

    /// Checks the numbers, and the settings that cannot be kept together with them.
    ///
    /// # Errors
    /// [`Code::SpecInvalid`] or [`Code::PrivacyUnfit`].
    pub fn check(
        &self,
        parameters: u64,
        error_feedback: bool,
        policy: &Policy,
    ) -> Result<(), Refusal> {
        self.validate()?;
        if error_feedback {
            let detail = "transfer.error_feedback is on: a residual carries what the codec took from one contribution into the next, so that each depends on the data of all before";
            return Err(Refusal::new(Code::PrivacyUnfit, detail));
        }
        if policy.comparison.cosine_min().is_some() {
            let detail = "policy.cosine_min compares directions, and noise of this size hides the direction of every contribution";
            return Err(Refusal::new(Code::PrivacyUnfit, detail));
        }
        if policy.comparison.loss_ratio_max().is_some() {
            let detail = "policy.loss_ratio_max compares training losses, and the workers of a private run state none";
            return Err(Refusal::new(Code::PrivacyUnfit, detail));
        }
        let (_, most) = self.norms(parameters);
        if policy.norm_max > 0.0 && policy.norm_max < most {
            let detail = format!(
                "policy.norm_max is {}, and a contribution with its noise has a norm of up to {most}",
                policy.norm_max
            );
            return Err(Refusal::new(Code::PrivacyUnfit, detail));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRIVACY: Privacy = Privacy {
        clip: 2.0,
        noise_multiplier: 0.5,
        delta: 1e-5,
        epsilon: 8.0,
    };

    #[test]
    fn tl_16_numbers_that_protect_nothing_are_refused() {
        let refused = |change: &dyn Fn(&mut Privacy)| {
            let mut privacy = PRIVACY;
            change(&mut privacy);
            privacy.validate().err().map(|refusal| refusal.code)
        };
        assert_eq!(refused(&|_| {}), None);
        let invalid = Some(Code::SpecInvalid);
        assert_eq!(refused(&|privacy| privacy.clip = 0.0), invalid);
        assert_eq!(refused(&|privacy| privacy.noise_multiplier = 0.0), invalid);
        assert_eq!(refused(&|privacy| privacy.epsilon = 0.0), invalid);
        for delta in [0.0, 0.5, 1.0, 2.0, f64::NAN] {
            assert_eq!(refused(&|privacy| privacy.delta = delta), invalid);
        }
        assert_eq!(refused(&|privacy| privacy.epsilon = f64::INFINITY), invalid);
    }

    #[test]
    fn the_noise_of_many_parameters_has_a_norm_within_narrow_bounds() {
        // Noise of 1 for each of a million parameters: norms of 990 to 1010, 2 for the clipped
        // contribution, and half of that for the codec.
        let (least, most) = PRIVACY.norms(1_000_000);
        assert_eq!((least, most), (988.0 / 2.0, 1012.0 * 1.5));
        // The noise of a few parameters may be small by chance.
        assert_eq!(PRIVACY.norms(13).0, 0.0);
    }
}
