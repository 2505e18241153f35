//! A run: one training job, whose settings are fixed at its creation and named by their digest.

mod aggregation;
mod privacy;
mod rules;

use serde::{Deserialize, Serialize};

pub use self::aggregation::{Beside, SecureAggregation};
pub use self::privacy::Privacy;
pub use self::rules::{Closing, Combination, Comparison, check_transfer};
use crate::code::{Code, Refusal};
pub use crate::codec::{Carries, Codec, CodecKind, Rounding};
use crate::limits::{NAMED_CHUNKS_MAX, SEQUENCE_TOKENS_MAX, UNITS_MAX};
use crate::message::{V, message};
use crate::weights::Weights;
use crate::{
    Bytes, Chunks, Digest, Fragment, Listed, Message, Millis, ObjectRef, Round, RunId, Steps,
    Tokens,
};

/// Everything that decides a run's result. Workers get these settings when they join, and every
/// lease names their digest, so that a worker with other settings is refused and never differs in
/// silence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSpec {
    /// Version.
    pub v: V<1>,
    /// Its name.
    pub run: RunId,
    /// The model to train.
    pub model: ModelSpec,
    /// The data set: an object holding a `DataManifest`.
    pub data: ObjectRef,
    /// The signed statement of the data set's provenance. Left out of the message if there is none,
    /// so that settings of earlier releases keep their digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_provenance: Option<ObjectRef>,
    /// The numbers of rounds, units and steps.
    pub schedule: Schedule,
    /// The optimizer inside a unit.
    pub inner: InnerOptimizer,
    /// The optimizer between rounds.
    pub outer: OuterOptimizer,
    /// The rule by which the contributions of a round become one. Left out of the message if it is
    /// the weighted mean, so that settings from before there was a choice keep their digest.
    #[serde(default, skip_serializing_if = "Combination::is_mean")]
    pub combination: Combination,
    /// The encoding of contributions.
    pub upload: Codec,
    /// The encoding of global weights.
    pub download: Codec,
    /// True if a worker adds its residual to a contribution: the part that the codec took from the
    /// worker's last contribution that counted. Left out of the message when false, so that older
    /// settings keep their digest.
    #[serde(default, skip_serializing_if = "is_false")]
    pub error_feedback: bool,
    /// Differential privacy of contributions. Left out of the message if there is none, so that
    /// settings from before there was a choice keep their digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub privacy: Option<Privacy>,
    /// Secure aggregation of contributions. Left out of the message if there is none, like the
    /// privacy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secure_aggregation: Option<SecureAggregation>,
    /// Rules for workers and leases.
    pub policy: Policy,
    /// Seed of initial weights, data order and stochastic rounding.
    pub seed: u64,
}

message!(RunSpec, "RunSpec", 64 << 10);

/// The model to train, and the implementation that trains it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// The trainer that a worker uses.
    pub trainer: TrainerKind,
    /// The model's `config.json`.
    pub config: ObjectRef,
    /// The layout of its parameters.
    pub layout: ObjectRef,
    /// Elements of a chunk; the last chunk of a fragment may have fewer.
    pub chunk_elements: u64,
    /// The initial weights, fp32 little endian. If their chunks are listed, all chunks of the run
    /// are listed.
    pub initial: Chunks,
    /// Arithmetic of the inner steps.
    pub precision: Precision,
}

/// An implementation of the inner steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrainerKind {
    /// A Llama-style decoder on libtorch.
    Torch,
    /// A small model in plain Rust, for tests.
    Reference,
    /// No mathematics, any size, for load tests.
    Synthetic,
}

/// Arithmetic of the inner steps. Parameters and optimizer state are always fp32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// bf16 on a CUDA device (older ones than Ampere emulate it: choose fp32 for them) and on a
    /// processor with instructions for bf16, fp32 elsewhere. Each worker finds out for itself.
    Auto,
    /// fp32 throughout.
    Fp32,
    /// bf16 matrix products under autocast. A processor without instructions for it takes many
    /// times longer than in fp32.
    Bf16,
}

/// The numbers of rounds, units and steps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Rounds of the run.
    pub rounds: u64,
    /// Training units of a round; each becomes one contribution.
    pub units: u32,
    /// Inner steps of a unit (H).
    pub inner_steps: Steps,
    /// Sequences of one inner step, over all accumulated micro-batches.
    pub batch_sequences: u32,
    /// Micro-batches that an inner step accumulates; divides `batch_sequences`.
    pub accumulation: u32,
    /// Tokens that the model predicts in one sequence.
    pub sequence_tokens: u32,
    /// Every n-th snapshot, and the last, are evaluated on held-out text; 0 for none.
    pub evaluation_every: u32,
    /// Held-out sequences of one evaluation.
    pub evaluation_sequences: u32,
    /// Every n-th round, and the last, save a full snapshot (fp32 weights and outer state).
    pub snapshot_every: u32,
}

/// AdamW with warm-up and cosine decay, clipping by global norm (DiLoCo, arXiv 2311.08105, section
/// 3).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InnerOptimizer {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Inner steps of linear warm-up, counted over the run.
    pub warmup_steps: Steps,
    /// Learning rate at the end of the run as a part of the peak.
    pub final_ratio: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Largest global gradient norm; 0 for no clipping.
    pub clip_norm: f64,
}

/// The rule by which the coordinator applies the mean of a round's contributions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum OuterOptimizer {
    /// Plain averaging of the weights: subtract the mean.
    Average,
    /// Subtract `learning_rate` times the mean.
    Sgd {
        /// Outer learning rate.
        #[serde(serialize_with = "shortest_decimal")]
        learning_rate: f32,
    },
    /// Nesterov momentum in PyTorch's form (DiLoCo, arXiv 2311.08105, section 3.2).
    Nesterov {
        /// Outer learning rate.
        #[serde(serialize_with = "shortest_decimal")]
        learning_rate: f32,
        /// Outer momentum.
        #[serde(serialize_with = "shortest_decimal")]
        momentum: f32,
    },
}

/// Rules for workers and leases.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Number of workers that must have joined before the first lease is granted. A group is one,
    /// once a member sits in each of its seats.
    pub workers_min: u32,
    /// Life of a lease without renewal; holders renew after a third of this.
    pub lease: Millis,
    /// Silence after which a worker counts as lost, and is no longer a member.
    pub silence_max: Millis,
    /// A contribution with a larger Euclidean norm is refused; 0 for no bound.
    pub norm_max: f64,
    /// Refused results after which a worker is removed from the run.
    pub strikes_max: u32,
    /// A lease of a training unit ends once it is this many times as old as the units of other
    /// workers took, whatever progress its holder reports; 0 for a day. Left out of the message if
    /// it is 0, so that settings from before there was a choice keep their digest.
    #[serde(default, skip_serializing_if = "rules::is_zero")]
    pub pace_ratio_max: u32,
    /// The rule by which a round is sealed. Left out of the message if it is the oldest rule, so
    /// that settings from before there was a choice keep their digest.
    #[serde(default, skip_serializing_if = "Closing::is_all")]
    pub closing: Closing,
    /// The comparison with other contributions. Left out of the message if there is none, so that
    /// settings from before there was one keep their digest.
    #[serde(default, skip_serializing_if = "Comparison::is_none")]
    pub comparison: Comparison,
}

impl RunSpec {
    /// The encoding, which is signed, stored and hashed, and its digest.
    pub fn to_object(&self) -> (Vec<u8>, Digest) {
        let bytes = self.encode();
        let digest = Digest::of(&bytes);
        (bytes, digest)
    }

    /// Inner steps of the whole run, for the learning-rate schedule: rounds follow one another, and
    /// the units of a round run in parallel.
    pub fn inner_steps_total(&self) -> Steps {
        Steps(
            self.schedule
                .rounds
                .saturating_mul(self.schedule.inner_steps.get()),
        )
    }

    /// The fragments of the weights, each synchronised by itself; for now there is one.
    pub fn fragments(&self) -> impl Iterator<Item = Fragment> + use<> {
        std::iter::once(Fragment::FIRST)
    }

    /// Tokens of one training unit.
    pub fn unit_tokens(&self) -> Tokens {
        self.schedule.unit_tokens()
    }

    /// The initial weights as the broadcast of round 0.
    pub fn initial_weights(&self) -> Weights {
        let codec = Codec {
            kind: CodecKind::Fp32,
            rounding: Rounding::Nearest,
        };
        Weights {
            round: Round(0),
            codec,
            chunks: self.model.initial.clone(),
        }
    }

    /// Names chunks in the way of this run, and returns the list to store if there is one.
    pub fn name_chunks(&self, chunks: Vec<ObjectRef>) -> (Chunks, Option<Vec<u8>>) {
        match self.model.initial {
            Chunks::Named(_) => (Chunks::Named(chunks), None),
            Chunks::Listed(_) => Chunks::listing(&chunks),
        }
    }

    /// Checks that chunks in this codec are named in the way of this run, and that their number is
    /// right. The length of each is checked when the list is read.
    ///
    /// # Errors
    /// [`Code::SizeMismatch`] or [`Code::ListMismatch`].
    pub fn check_chunks(&self, chunks: &Chunks, codec: CodecKind) -> Result<(), Refusal> {
        let (got, expected) = (chunks.count(), self.model.initial.count());
        let form = |chunks: &Chunks| match chunks {
            Chunks::Named(_) => "named",
            Chunks::Listed(_) => "listed",
        };
        let (got_form, expected_form) = (form(chunks), form(&self.model.initial));
        if (got, got_form) != (expected, expected_form) {
            let detail =
                format!("{got} chunks are {got_form}, the run has {expected} {expected_form}");
            return Err(Refusal::new(Code::SizeMismatch, detail));
        }
        let Some(listed) = chunks.listed() else {
            return Ok(());
        };
        listed.check()?;
        let most = codec
            .encoded_bytes(self.chunk_elements())
            .saturating_mul(expected as u64);
        if listed.total.get() > most {
            let detail = format!("{got} chunks of {} bytes, at most {most}", listed.total);
            return Err(Refusal::new(Code::ListMismatch, detail));
        }
        Ok(())
    }

    /// Number of objects of one contribution: its chunks, and their list.
    pub fn uploads(&self) -> usize {
        self.model.initial.count() + usize::from(self.model.initial.listed().is_some())
    }

    /// True if an object that a worker uploads for a contribution may have this length. A chunk has
    /// the length of one of the initial weights' chunks in the upload codec. The chunks' lengths
    /// were compared with the layout when the run was created. In a run with lists, the length of
    /// the list is allowed too, and any length up to that of the largest chunk: the check of the
    /// result then reads the list, and is exact.
    pub fn is_upload_length(&self, bytes: Bytes) -> bool {
        let encoded = |elements| self.upload.kind.encoded_bytes(elements);
        match &self.model.initial {
            Chunks::Named(chunks) => chunks.iter().any(|chunk| {
                let elements = CodecKind::Fp32.elements_in(chunk.bytes.get());
                encoded(elements) == bytes.get()
            }),
            Chunks::Listed(listed) => {
                bytes == Listed::length(listed.chunks as usize)
                    || (1..=encoded(self.chunk_elements())).contains(&bytes.get())
            }
        }
    }

    /// Most elements of a chunk, limited by the model's.
    pub(crate) fn chunk_elements(&self) -> u64 {
        self.model.chunk_elements.min(self.parameters())
    }

    /// True if snapshot `round` is evaluated on held-out text.
    pub fn evaluates(&self, round: Round) -> bool {
        every(self.schedule.evaluation_every, round)
            || self.schedule.evaluation_every > 0 && self.is_last(round)
    }

    /// True if a full snapshot of `round` is saved.
    pub fn saves(&self, round: Round) -> bool {
        every(self.schedule.snapshot_every, round) || self.is_last(round)
    }

    fn is_last(&self, round: Round) -> bool {
        round.get() == self.schedule.rounds
    }

    /// Checks every limit that the rest of the program assumes.
    ///
    /// # Errors
    /// [`Code::SpecInvalid`], naming the field, its value and the bound.
    pub fn validate(&self) -> Result<(), Refusal> {
        self.schedule.validate()?;
        check_chunk_elements(self.model.chunk_elements)?;
        self.model.validate_initial()?;
        self.inner.validate()?;
        self.outer.validate()?;
        self.combination.validate()?;
        check_transfer(self.upload, self.download, self.error_feedback)?;
        self.policy.validate()?;
        if let Some(privacy) = &self.privacy {
            privacy.check(self.parameters(), self.error_feedback, &self.policy)?;
        }
        match &self.secure_aggregation {
            None => Ok(()),
            Some(aggregation) => aggregation.check(&Beside {
                units: self.schedule.units,
                upload: self.upload.kind,
                error_feedback: self.error_feedback,
                combination: self.combination,
                private: self.privacy.is_some(),
                policy: &self.policy,
            }),
        }
    }

    /// Parameters of the model, by the length of its initial weights.
    pub fn parameters(&self) -> u64 {
        CodecKind::Fp32.elements_in(self.model.initial.total().get())
    }
}

impl ModelSpec {
    fn validate_initial(&self) -> Result<(), Refusal> {
        match &self.initial {
            Chunks::Named(chunks) => whole(
                "model.initial (chunks)",
                chunks.len() as u64,
                1,
                NAMED_CHUNKS_MAX as u64,
            ),
            Chunks::Listed(listed) => listed.check().map_err(|refusal| {
                let detail = format!("model.initial: {}", refusal.detail);
                Refusal::new(Code::SpecInvalid, detail)
            }),
        }
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands fields over by reference"
)]
fn is_false(value: &bool) -> bool {
    !value
}

/// Checks a run's number of elements in a chunk.
///
/// # Errors
/// As [`RunSpec::validate`].
pub fn check_chunk_elements(elements: u64) -> Result<(), Refusal> {
    whole("model.chunk_elements", elements, 1, 1 << 26)
}

/// Writes a 32-bit number for people as the shortest decimal that reads back as the same number.
/// Formats that hold numbers in 64 bits, such as TOML and JSON trees, would otherwise print 0.7 as
/// 0.699999988079071. On the wire the number is unchanged.
///
/// # Errors
/// The serializer's own.
pub fn shortest_decimal<S: serde::Serializer>(
    value: &f32,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    if !serializer.is_human_readable() {
        return serializer.serialize_f32(*value);
    }
    serializer.serialize_f64(
        value
            .to_string()
            .parse()
            .unwrap_or_else(|_| f64::from(*value)),
    )
}

fn every(n: u32, round: Round) -> bool {
    n > 0 && round.get().is_multiple_of(u64::from(n))
}

impl Schedule {
    /// Tokens of one training unit.
    pub fn unit_tokens(&self) -> Tokens {
        let step = u64::from(self.batch_sequences) * u64::from(self.sequence_tokens);
        Tokens(self.inner_steps.get().saturating_mul(step))
    }

    /// Checks that every number is within its bounds.
    ///
    /// # Errors
    /// As [`RunSpec::validate`].
    pub fn validate(&self) -> Result<(), Refusal> {
        whole("schedule.rounds", self.rounds, 1, 1_000_000)?;
        whole("schedule.units", self.units.into(), 1, UNITS_MAX.into())?;
        whole("schedule.inner_steps", self.inner_steps.get(), 1, 1_000_000)?;
        whole(
            "schedule.batch_sequences",
            self.batch_sequences.into(),
            1,
            65_536,
        )?;
        whole(
            "schedule.accumulation",
            self.accumulation.into(),
            1,
            self.batch_sequences.into(),
        )?;
        if !self.batch_sequences.is_multiple_of(self.accumulation) {
            return Err(invalid(
                "schedule.accumulation",
                &self.accumulation,
                "a divisor of batch_sequences",
            ));
        }
        whole(
            "schedule.sequence_tokens",
            self.sequence_tokens.into(),
            1,
            SEQUENCE_TOKENS_MAX.into(),
        )?;
        whole(
            "schedule.evaluation_sequences",
            self.evaluation_sequences.into(),
            1,
            65_536,
        )?;
        whole(
            "schedule.snapshot_every",
            self.snapshot_every.into(),
            1,
            1_000_000,
        )
    }
}

impl InnerOptimizer {
    /// AdamW with the usual settings for decoders (arXiv 2005.14165, appendix B), at a constant
    /// learning rate.
    pub const fn adamw(learning_rate: f64) -> Self {
        Self {
            learning_rate,
            warmup_steps: Steps(0),
            final_ratio: 1.0,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            weight_decay: 0.1,
            clip_norm: 1.0,
        }
    }

    /// Checks that every number is within its bounds.
    ///
    /// # Errors
    /// As [`RunSpec::validate`].
    pub fn validate(&self) -> Result<(), Refusal> {
        real("inner.learning_rate", self.learning_rate, 0.0, 10.0)?;
        real("inner.final_ratio", self.final_ratio, 0.0, 1.0)?;
        real("inner.beta1", self.beta1, 0.0, 0.999_999)?;
        real("inner.beta2", self.beta2, 0.0, 0.999_999)?;
        real("inner.epsilon", self.epsilon, 1e-30, 1.0)?;
        real("inner.weight_decay", self.weight_decay, 0.0, 10.0)?;
        real("inner.clip_norm", self.clip_norm, 0.0, 1e9)
    }
}

impl OuterOptimizer {
    /// Checks that every number is within its bounds.
    ///
    /// # Errors
    /// As [`RunSpec::validate`].
    pub fn validate(&self) -> Result<(), Refusal> {
        match *self {
            Self::Average => Ok(()),
            Self::Sgd { learning_rate } => {
                real("outer.learning_rate", learning_rate.into(), 0.0, 10.0)
            }
            Self::Nesterov {
                learning_rate,
                momentum,
            } => {
                real("outer.learning_rate", learning_rate.into(), 0.0, 10.0)?;
                real("outer.momentum", momentum.into(), 0.0, 0.999)
            }
        }
    }
}

fn invalid(field: &str, value: &dyn std::fmt::Display, wanted: &str) -> Refusal {
    Refusal::new(
        Code::SpecInvalid,
        format!("{field} is {value}, expected {wanted}"),
    )
}

fn whole(field: &str, value: u64, min: u64, max: u64) -> Result<(), Refusal> {
    if (min..=max).contains(&value) {
        Ok(())
    } else {
        Err(invalid(field, &value, &format!("{min} to {max}")))
    }
}

fn real(field: &str, value: f64, min: f64, max: f64) -> Result<(), Refusal> {
    if value.is_finite() && (min..=max).contains(&value) {
        Ok(())
    } else {
        Err(invalid(field, &value, &format!("{min} to {max}")))
    }
}
