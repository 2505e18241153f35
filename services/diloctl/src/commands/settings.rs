//! The settings of a new run: defaults, then a TOML file, then `--set`, then flags.

mod protection;

use std::path::PathBuf;

use clap::Args;
use model::{ModelConfig, Preset};
use runtime::{ConfigArgs, ConfigDuration, Failure};
use schemas::run::{
    Beside, Closing, Codec, CodecKind, Combination, Comparison, InnerOptimizer, OuterOptimizer,
    Policy, Precision, Rounding, Schedule, TrainerKind,
};
use schemas::{Code, Digest, RunId, Steps};
use serde::{Deserialize, Serialize};

use self::protection::{AggregationSettings, PrivacySettings};

/// Flags of `run new`. All other settings come from the settings file or from `--set`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Name of the run: 1 to 32 characters out of a-z, 0-9 and -.
    pub(crate) run: RunId,
    /// A preset (reference, tiny, demo, 25m, 100m) or a config.json.
    #[arg(long)]
    pub(crate) model: Option<String>,
    /// Digest of the data set, `sha256:…`. It must have been imported into this domain's folder; by
    /// default the newest import is taken.
    #[arg(long, value_name = "DIGEST", value_parser = crate::cli::parse_digest)]
    pub(crate) data: Option<Digest>,
    /// Rounds of the run.
    #[arg(long)]
    rounds: Option<u64>,
    /// Training units of a round, which is how many workers can work at the same time.
    #[arg(long)]
    units: Option<u32>,
    /// Inner steps of a unit (H).
    #[arg(long)]
    steps: Option<u64>,
    /// Seed of the initial weights and of the data order.
    #[arg(long)]
    seed: Option<u64>,
    /// Workers clip their contributions and add noise to them before they send anything, and the
    /// run ends before its privacy budget is passed. `privacy.clip`, `.noise_multiplier`, `.delta`
    /// and `.epsilon` say how much; docs/privacy.md says what is protected.
    #[arg(long)]
    privacy: bool,
    /// Workers mask their contributions so that the coordinator learns the sum alone: so many of a
    /// round's workers must have contributed and must reveal what takes the masks from it, more
    /// than half of the units. The mean in fp32 is the only rule that goes with it, without a bound
    /// on norms. docs/privacy.md says what is protected.
    #[arg(long, value_name = "THRESHOLD")]
    secure_aggregation: Option<u32>,
    #[command(flatten)]
    config: ConfigArgs,
}

/// All settings of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RunSettings {
    pub(crate) seed: u64,
    pub(crate) model: ModelSettings,
    pub(crate) schedule: Schedule,
    pub(crate) inner: InnerOptimizer,
    pub(crate) combination: CombinationSettings,
    pub(crate) outer: OuterSettings,
    pub(crate) transfer: TransferSettings,
    pub(crate) policy: PolicySettings,
    pub(crate) privacy: PrivacySettings,
    pub(crate) secure_aggregation: AggregationSettings,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ModelSettings {
    /// A preset or the path of a config.json.
    pub(crate) config: String,
    /// The trainer that a config.json is for; a preset knows its own.
    pub(crate) trainer: TrainerKind,
    pub(crate) precision: Precision,
    pub(crate) chunk_elements: u64,
}

/// The rule by which the contributions of a round become one. The weighted mean is the default: it
/// learns most where workers are honest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct CombinationSettings {
    pub(crate) rule: CombinationRule,
    /// Of `clipped`: the largest norm, as a multiple of the lower median of the round's norms that
    /// are above 0.
    #[serde(serialize_with = "schemas::run::shortest_decimal")]
    pub(crate) norm_ratio: f32,
    /// Of `trimmed`: the values of each parameter that are left out at each end.
    pub(crate) each_end: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum CombinationRule {
    Mean,
    Clipped,
    Trimmed,
    Median,
    Radial,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct OuterSettings {
    pub(crate) rule: OuterRule,
    #[serde(serialize_with = "schemas::run::shortest_decimal")]
    pub(crate) learning_rate: f32,
    #[serde(serialize_with = "schemas::run::shortest_decimal")]
    pub(crate) momentum: f32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OuterRule {
    Average,
    Sgd,
    Nesterov,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct TransferSettings {
    pub(crate) upload: CodecKind,
    pub(crate) download: CodecKind,
    pub(crate) rounding: Rounding,
    /// Workers add to a contribution what the codec took from the one before. Off by default: small
    /// runs with 4-bit uploads reached the same loss without it, and it costs 8 bytes a parameter.
    pub(crate) error_feedback: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PolicySettings {
    /// 0 stands for the number of units: the run waits, and says so, until the planned team is
    /// complete.
    pub(crate) workers_min: u32,
    pub(crate) lease: ConfigDuration,
    pub(crate) silence_max: ConfigDuration,
    pub(crate) norm_max: f64,
    /// A contribution whose norm is more than this many times that of the others is left out; 0
    /// compares nothing. Honest workers differ by far less: in a small run on two halves of a
    /// corpus by a tenth.
    pub(crate) norm_ratio_max: f64,
    /// A worker's contributions to a round are left out if the cosine of their direction to the
    /// mean direction of the others' is below this; -1 compares no directions. It takes three
    /// workers to tell who is wrong, and no more than a minority of them is left out. Honest
    /// workers agree more than they differ, also on different texts; a flipped sign is far below. A
    /// private run compares no directions, since its noise hides them.
    pub(crate) cosine_min: f64,
    /// A contribution is left out if the training loss that it states is more than this many times
    /// the median of its round, or that many times less; 0 compares no losses. Off by default: a
    /// loss decides nothing, and an honest worker with simple data has a small one.
    pub(crate) loss_ratio_max: f64,
    pub(crate) strikes_max: u32,
    /// A training unit is given to another worker once its lease is this many times as old as the
    /// units of the others took, and at least ten minutes old, whatever steps its holder reports; 0
    /// leaves a day. It takes the times of two other workers, and the longer ones of them count.
    pub(crate) pace_ratio_max: u32,
    pub(crate) closing: Closing,
}

impl Default for RunSettings {
    /// Settings of the demonstration: a small decoder over bytes on two CPU workers, minutes long.
    fn default() -> Self {
        Self {
            seed: 0,
            model: ModelSettings::default(),
            schedule: Schedule {
                rounds: 8,
                units: 2,
                inner_steps: Steps(60),
                batch_sequences: 8,
                accumulation: 1,
                sequence_tokens: 256,
                evaluation_every: 1,
                evaluation_sequences: 128,
                snapshot_every: 1,
            },
            inner: InnerOptimizer {
                warmup_steps: Steps(40),
                final_ratio: 0.1,
                ..InnerOptimizer::adamw(4e-3)
            },
            combination: CombinationSettings::default(),
            outer: OuterSettings::default(),
            transfer: TransferSettings::default(),
            policy: PolicySettings::default(),
            privacy: PrivacySettings::default(),
            secure_aggregation: AggregationSettings::default(),
        }
    }
}

impl Default for ModelSettings {
    fn default() -> Self {
        Self {
            config: "demo".to_owned(),
            trainer: TrainerKind::Torch,
            precision: Precision::Auto,
            chunk_elements: 1 << 20,
        }
    }
}

impl Default for CombinationSettings {
    fn default() -> Self {
        Self {
            rule: CombinationRule::Mean,
            norm_ratio: 1.5,
            each_end: 1,
        }
    }
}

impl Default for OuterSettings {
    /// Plain averaging: in a run of a few rounds momentum has no time to pay for its overshoot. One
    /// run of each, not a study: the demonstration ended at a held-out loss of 1.87 with it and
    /// 2.11 with Nesterov. Long runs want `nesterov`, with the paper's values as below.
    fn default() -> Self {
        Self {
            rule: OuterRule::Average,
            learning_rate: 0.7,
            momentum: 0.9,
        }
    }
}

impl Default for TransferSettings {
    fn default() -> Self {
        Self {
            upload: CodecKind::Bf16,
            download: CodecKind::Bf16,
            rounding: Rounding::Nearest,
            error_feedback: false,
        }
    }
}

impl Default for PolicySettings {
    fn default() -> Self {
        Self {
            workers_min: 0,
            lease: ConfigDuration::from_secs(30),
            silence_max: ConfigDuration::from_secs(60),
            norm_max: 0.0,
            // `services/worker/torch/tests/poisoning.rs` measures what both keep out.
            norm_ratio_max: Comparison::NORM_RATIO_MAX,
            cosine_min: Comparison::COSINE_MIN,
            loss_ratio_max: 0.0,
            strikes_max: 3,
            pace_ratio_max: 50,
            closing: Closing::default(),
        }
    }
}

/// The use that the command line asks for, with the settings.
pub(crate) enum SettingsUse {
    /// Create a run with them.
    Run(RunSettings),
    /// Compare them with the data sets and models that are known here.
    Check(RunSettings),
    /// Show this text.
    Print(String),
}

impl RunArgs {
    /// Reads all layers and checks the settings as far as they can be checked by themselves.
    pub(crate) fn settings(&self) -> Result<SettingsUse, Failure> {
        let mut flags: Vec<(&str, &str, String)> = Vec::new();
        let mut flag =
            |key, name, value: Option<String>| flags.extend(value.map(|value| (key, name, value)));
        flag("model.config", "--model", self.model.clone());
        flag(
            "schedule.rounds",
            "--rounds",
            self.rounds.map(|value| value.to_string()),
        );
        flag(
            "schedule.units",
            "--units",
            self.units.map(|value| value.to_string()),
        );
        flag(
            "schedule.inner_steps",
            "--steps",
            self.steps.map(|value| value.to_string()),
        );
        let private = self.privacy.then(|| true.to_string());
        flag("privacy.enabled", "--privacy", private);
        flag(
            "secure_aggregation.threshold",
            "--secure-aggregation",
            self.secure_aggregation.map(|value| value.to_string()),
        );
        flag("seed", "--seed", self.seed.map(|value| value.to_string()));
        let loaded =
            runtime::config::load_from::<RunSettings>(&self.config, &flags, std::iter::empty())?;
        if self.config.print_config {
            return Ok(SettingsUse::Print(loaded.print()));
        }
        loaded.value.validate()?;
        Ok(if self.config.check_config {
            SettingsUse::Check(loaded.value)
        } else {
            SettingsUse::Run(loaded.value)
        })
    }
}

impl RunSettings {
    /// Checks all that can be checked before anything is uploaded.
    fn validate(&self) -> Result<(), Failure> {
        let invalid = |error: schemas::layout::LayoutError| Failure::new(Code::ModelInvalid, error);
        let model = self.model()?;
        let layout = model.layout();
        layout.validate().map_err(invalid)?;
        schemas::run::check_chunk_elements(self.model.chunk_elements)?;
        layout.chunks(self.model.chunk_elements).map_err(invalid)?;
        self.schedule.validate()?;
        model.check_sequence(&self.schedule)?;
        self.inner.validate()?;
        self.combination().validate()?;
        self.outer().validate()?;
        let feedback = self.transfer.error_feedback;
        schemas::run::check_transfer(self.upload(), self.download(), feedback)?;
        self.policy().validate()?;
        if let Some(privacy) = self.privacy() {
            privacy.check(model.parameters(), feedback, &self.policy())?;
            privacy::check_budget(&privacy)?;
        }
        if let Some(aggregation) = self.secure_aggregation() {
            let (upload, combination) = (self.upload(), self.combination());
            aggregation.check(&Beside {
                units: self.schedule.units,
                upload: upload.kind,
                error_feedback: feedback,
                combination,
                private: self.privacy.enabled,
                policy: &self.policy(),
            })?;
        }
        Ok(())
    }

    /// The model that the settings name: a preset or a file.
    pub(crate) fn model(&self) -> Result<ModelConfig, Failure> {
        let name = &self.model.config;
        if let Some(preset) = Preset::named(name) {
            return Ok(preset.config);
        }
        let path = PathBuf::from(name);
        let json = std::fs::read(&path).map_err(|error| {
            let presets = model::PRESETS.join(", ");
            Failure::new(
                Code::ModelInvalid,
                format!("{name} is no preset ({presets}) and no readable file: {error}"),
            )
        })?;
        ModelConfig::parse(self.model.trainer, &json).map_err(Failure::from)
    }

    pub(crate) fn combination(&self) -> Combination {
        let CombinationSettings {
            rule,
            norm_ratio,
            each_end,
        } = self.combination;
        match rule {
            CombinationRule::Mean => Combination::Mean,
            CombinationRule::Clipped => Combination::Clipped { norm_ratio },
            CombinationRule::Trimmed => Combination::Trimmed { each_end },
            CombinationRule::Median => Combination::Median,
            CombinationRule::Radial => Combination::Radial,
        }
    }

    pub(crate) fn outer(&self) -> OuterOptimizer {
        let OuterSettings {
            rule,
            learning_rate,
            momentum,
        } = self.outer;
        match rule {
            OuterRule::Average => OuterOptimizer::Average,
            OuterRule::Sgd => OuterOptimizer::Sgd { learning_rate },
            OuterRule::Nesterov => OuterOptimizer::Nesterov {
                learning_rate,
                momentum,
            },
        }
    }

    pub(crate) fn upload(&self) -> Codec {
        Codec {
            kind: self.transfer.upload,
            rounding: self.transfer.rounding,
        }
    }

    pub(crate) fn download(&self) -> Codec {
        Codec {
            kind: self.transfer.download,
            rounding: self.transfer.rounding,
        }
    }

    pub(crate) fn policy(&self) -> Policy {
        let policy = &self.policy;
        let workers_min = if policy.workers_min == 0 {
            self.schedule.units
        } else {
            policy.workers_min
        };
        Policy {
            workers_min,
            lease: policy.lease.millis(),
            silence_max: policy.silence_max.millis(),
            norm_max: policy.norm_max,
            strikes_max: policy.strikes_max,
            pace_ratio_max: policy.pace_ratio_max,
            closing: policy.closing,
            comparison: match policy.norm_ratio_max {
                0.0 => Comparison::None,
                norm_ratio_max => Comparison::Others {
                    norm_ratio_max,
                    cosine_min: (policy.cosine_min != -1.0 && !self.privacy.enabled)
                        .then_some(policy.cosine_min),
                    loss_ratio_max: (policy.loss_ratio_max != 0.0).then_some(policy.loss_ratio_max),
                },
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codecs_that_cannot_carry_what_they_are_for_are_refused_before_anything_is_uploaded() {
        let refused = |change: &dyn Fn(&mut TransferSettings)| {
            let mut settings = RunSettings::default();
            change(&mut settings.transfer);
            settings.validate().err().map(|failure| failure.code())
        };
        let unfit = Some(Code::CodecUnfit);
        assert_eq!(refused(&|transfer| transfer.upload = CodecKind::E3m0), None);
        assert_eq!(
            refused(&|transfer| transfer.download = CodecKind::E3m0),
            unfit
        );
        let exact = |transfer: &mut TransferSettings| {
            (transfer.upload, transfer.error_feedback) = (CodecKind::Fp32, true);
        };
        assert_eq!(refused(&exact), unfit);
    }

    #[test]
    fn tl_16_a_budget_says_how_many_rounds_it_lasts_for() {
        let mut settings = RunSettings::default();
        assert_eq!((settings.privacy(), settings.privacy_words()), (None, None));
        settings.privacy.enabled = true;
        settings.validate().expect("the defaults are sound");
        let words = |settings: &RunSettings| settings.privacy_words().expect("it is private");
        assert!(words(&settings).contains("lasts for 8 rounds, and 8 are planned"));
        settings.schedule.rounds = 9;
        assert!(words(&settings).contains("8 rounds of the 9 that are planned"));
        // Half as many workers as units take two units a round.
        settings.policy.workers_min = 1;
        let text = words(&settings);
        assert!(
            text.contains("4 rounds of the 9") && text.contains("costs 2"),
            "{text}"
        );
        assert!(!text.contains("warning"), "{text}");
        settings.privacy.epsilon = 11.0;
        assert!(words(&settings).contains("warning"));
        settings.privacy.epsilon = 2.0;
        let refused = settings.validate().err().map(|failure| failure.code());
        assert_eq!(refused, Some(Code::PrivacyUnfit));
    }

    #[test]
    fn numbers_print_as_they_were_written() {
        let settings =
            toml::to_string(&toml::Table::try_from(RunSettings::default()).expect("it is TOML"));
        let settings = settings.expect("it is TOML");
        assert!(
            settings.contains("learning_rate = 0.7\n") && settings.contains("momentum = 0.9\n"),
            "{settings}"
        );
        let outer = OuterOptimizer::Nesterov {
            learning_rate: 0.7,
            momentum: 0.9,
        };
        let tree = serde_json::to_value(outer).expect("it is JSON");
        assert_eq!(
            tree,
            serde_json::json!({ "nesterov": { "learning_rate": 0.7, "momentum": 0.9 } })
        );
        for learning_rate in [1e-8, 0.1, 1.0 / 3.0, f32::MAX, f32::MIN_POSITIVE] {
            let text = serde_json::to_value(OuterOptimizer::Sgd { learning_rate })
                .expect("it is JSON")
                .to_string();
            let read: OuterOptimizer = serde_json::from_str(&text).expect("it reads back");
            assert_eq!(read, OuterOptimizer::Sgd { learning_rate }, "{text}");
        }
    }
}
