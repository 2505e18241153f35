//! A run's settings.

use schemas::run::{
    Closing, Codec, CodecKind, Combination, Comparison, InnerOptimizer, ModelSpec, OuterOptimizer,
    Policy, Precision, Privacy, Rounding, RunSpec, Schedule, SecureAggregation, TrainerKind,
};
use schemas::{Chunks, Millis, ObjectRef, RunId, Steps, V};

use crate::name::{object, run_id, sized};

/// bf16, rounded to the nearest.
pub const BF16: Codec = Codec {
    kind: CodecKind::Bf16,
    rounding: Rounding::Nearest,
};
/// The values themselves.
pub const FP32: Codec = Codec {
    kind: CodecKind::Fp32,
    rounding: Rounding::Nearest,
};

/// Settings in the making. A method sets the field of its name; `build` ends it.
#[derive(Clone, Debug)]
#[must_use]
pub struct RunSpecBuilder(RunSpec);

/// A small run on the reference trainer: two rounds of two units of 4 * 2 * 4 = 32 tokens, 13
/// parameters in chunks of 8 and 5, bf16 both ways, no evaluation, a snapshot each round.
pub fn run_spec() -> RunSpecBuilder {
    RunSpecBuilder(RunSpec {
        v: V,
        run: run_id(),
        model: ModelSpec {
            trainer: TrainerKind::Reference,
            config: object("config"),
            layout: object("layout"),
            chunk_elements: 8,
            initial: vec![sized("initial 0", 4 * 8), sized("initial 1", 4 * 5)].into(),
            precision: Precision::Fp32,
        },
        data: object("data"),
        data_provenance: None,
        schedule: Schedule {
            rounds: 2,
            units: 2,
            inner_steps: Steps(4),
            batch_sequences: 2,
            accumulation: 1,
            sequence_tokens: 4,
            evaluation_every: 0,
            evaluation_sequences: 4,
            snapshot_every: 1,
        },
        inner: InnerOptimizer {
            warmup_steps: Steps(1),
            final_ratio: 0.1,
            beta2: 0.99,
            ..InnerOptimizer::adamw(1e-3)
        },
        outer: OuterOptimizer::Nesterov {
            learning_rate: 0.7,
            momentum: 0.9,
        },
        combination: Combination::Mean,
        upload: BF16,
        download: BF16,
        error_feedback: false,
        privacy: None,
        secure_aggregation: None,
        policy: Policy {
            workers_min: 1,
            lease: Millis::from_secs(30),
            silence_max: Millis::from_secs(90),
            norm_max: 10.0,
            strikes_max: 3,
            pace_ratio_max: 0,
            closing: Closing::All,
            comparison: Comparison::None,
        },
        seed: 7,
    })
}

macro_rules! setters {
    ($($name:ident: $type:ty => $($path:ident).+;)*) => {
        impl RunSpecBuilder {
            $(
                #[doc = concat!("Sets `", stringify!($($path).+), "`.")]
                pub fn $name(mut self, $name: $type) -> Self {
                    self.0.$($path).+ = $name;
                    self
                }
            )*
        }
    };
}

impl RunSpecBuilder {
    /// Sets `model.initial`.
    pub fn initial(mut self, initial: impl Into<Chunks>) -> Self {
        self.0.model.initial = initial.into();
        self
    }
}

setters! {
    run: RunId => run;
    trainer: TrainerKind => model.trainer;
    config: ObjectRef => model.config;
    layout: ObjectRef => model.layout;
    chunk_elements: u64 => model.chunk_elements;
    precision: Precision => model.precision;
    data: ObjectRef => data;
    data_provenance: Option<ObjectRef> => data_provenance;
    rounds: u64 => schedule.rounds;
    units: u32 => schedule.units;
    inner_steps: Steps => schedule.inner_steps;
    batch_sequences: u32 => schedule.batch_sequences;
    accumulation: u32 => schedule.accumulation;
    sequence_tokens: u32 => schedule.sequence_tokens;
    evaluation_every: u32 => schedule.evaluation_every;
    evaluation_sequences: u32 => schedule.evaluation_sequences;
    snapshot_every: u32 => schedule.snapshot_every;
    inner: InnerOptimizer => inner;
    outer: OuterOptimizer => outer;
    combination: Combination => combination;
    upload: Codec => upload;
    download: Codec => download;
    error_feedback: bool => error_feedback;
    privacy: Option<Privacy> => privacy;
    secure_aggregation: Option<SecureAggregation> => secure_aggregation;
    workers_min: u32 => policy.workers_min;
    lease: Millis => policy.lease;
    silence_max: Millis => policy.silence_max;
    norm_max: f64 => policy.norm_max;
    strikes_max: u32 => policy.strikes_max;
    pace_ratio_max: u32 => policy.pace_ratio_max;
    closing: Closing => policy.closing;
    comparison: Comparison => policy.comparison;
    seed: u64 => seed;
}

impl RunSpecBuilder {
    /// Sets `upload` and `download`.
    pub fn codec(self, codec: Codec) -> Self {
        self.upload(codec).download(codec)
    }

    /// The settings.
    pub fn build(self) -> RunSpec {
        self.0
    }
}

/// Noise that a test can compute with. How long its budget lasts is the test's choice.
pub const fn privacy() -> Privacy {
    Privacy {
        clip: 1.0,
        noise_multiplier: 4.0,
        delta: 1e-6,
        epsilon: 8.0,
    }
}

/// Settings of a run with secure aggregation: so many units and workers, of which three must be in.
pub fn masked_run_spec(units: u32) -> RunSpecBuilder {
    run_spec()
        .units(units)
        .workers_min(units)
        .upload(FP32)
        .norm_max(0.0)
        .secure_aggregation(Some(SecureAggregation {
            threshold: 3,
            largest: 1.0,
        }))
}

#[cfg(test)]
mod tests {
    use super::run_spec;

    #[test]
    fn the_settings_are_such_as_a_coordinator_takes() {
        run_spec().build().validate().expect("valid");
        let other = run_spec().units(7).lease(schemas::Millis(20_000)).build();
        other.validate().expect("valid");
        assert_eq!(other.schedule.units, 7);
        assert_eq!(other.policy.lease, schemas::Millis(20_000));
    }
}
