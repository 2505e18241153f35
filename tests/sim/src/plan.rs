//! What a seed stands for: a run, its workers, and how bad the world is to them.

use schemas::data::{DataManifest, Entropy, Shard, Tokenizer};
use schemas::run::{
    Closing, Codec, CodecKind, InnerOptimizer, ModelSpec, OuterOptimizer, Policy, Precision,
    Rounding, RunSpec, Schedule, TrainerKind,
};
use schemas::{AccountId, Bytes, Millis, ObjectRef, PublicKey, RunId, Steps, Tokens, V, WorkerId};

use crate::chance::Chance;

/// Rounds of every simulated run.
pub(crate) const ROUNDS: u64 = 3;

/// The plan of one simulation.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) spec: RunSpec,
    pub(crate) data: DataManifest,
    pub(crate) workers: usize,
    pub(crate) faults: Faults,
    /// Faults end after this.
    pub(crate) faults_last: Millis,
    /// How often an input finds the coordinator waiting for its disk, in a thousand.
    pub(crate) disk: u64,
}

/// How often things go wrong, in a thousand.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// A message is lost.
    pub(crate) loss: u64,
    /// A message comes twice.
    pub(crate) copies: u64,
    /// A message takes seconds.
    pub(crate) slow: u64,
    /// The coordinator dies before one of its effects.
    pub(crate) crash: u64,
    /// The store, the merge or a save fails.
    pub(crate) store: u64,
    /// The queue loses an offer that it acknowledged.
    pub(crate) queue: u64,
    /// A contribution is not finite.
    pub(crate) poison: u64,
    /// Training fails.
    pub(crate) training: u64,
    /// How long until the next process dies or is cut off, at most.
    pub(crate) calm: Millis,
}

impl Plan {
    pub(crate) fn new(chance: &mut Chance) -> Self {
        let workers = chance.between(1, 5) as usize;
        let mut spec = spec();
        spec.schedule.units = chance.between(1, 6) as u32;
        spec.schedule.evaluation_every = chance.between(0, 2) as u32;
        spec.schedule.snapshot_every = chance.between(1, 3) as u32;
        spec.policy.workers_min = chance.between(1, workers as u64) as u32;
        spec.policy.lease = chance.millis(6_000, 20_000);
        spec.policy.silence_max = chance.millis(10_000, 60_000);
        spec.seed = chance.between(0, u64::MAX - 1);
        // One seed of eight is a fine day.
        let bad = !chance.hits(125);
        let level = |chance: &mut Chance, most: u64| if bad { chance.between(0, most) } else { 0 };
        let faults = Faults {
            loss: level(chance, 120),
            copies: level(chance, 150),
            slow: level(chance, 100),
            crash: level(chance, 6),
            store: level(chance, 150),
            queue: level(chance, 200),
            poison: level(chance, 100),
            training: level(chance, 60),
            calm: if bad {
                chance.millis(5_000, 60_000)
            } else {
                Millis::from_secs(1_000_000)
            },
        };
        Self {
            spec,
            data: data(),
            workers,
            faults,
            faults_last: chance.millis(20_000, 180_000),
            disk: chance.between(0, 800),
        }
    }
}

/// A named object; names stand for contents.
pub(crate) fn object(name: &str) -> ObjectRef {
    ObjectRef::of(name.as_bytes())
}

pub(crate) fn run_id() -> RunId {
    "sim".parse().expect("a valid name")
}

fn key(kind: char, number: usize) -> String {
    let digits: String = (0..4)
        .map(|at| char::from(b'A' + (number >> (4 * at) & 15) as u8))
        .collect();
    format!("{kind}{}{digits}", "A".repeat(51))
}

pub(crate) fn worker_id(number: usize) -> WorkerId {
    key('U', number).parse().expect("a valid key")
}

/// The key that signs what worker `number` states.
pub(crate) fn audit_key(number: usize) -> PublicKey {
    key('U', 1000 + number).parse().expect("a valid key")
}

pub(crate) fn operator() -> PublicKey {
    key('U', 2000).parse().expect("a valid key")
}

/// Even and odd workers belong to two tenants.
pub(crate) fn account(number: usize) -> AccountId {
    key('A', number % 2).parse().expect("a valid key")
}

fn spec() -> RunSpec {
    let bf16 = Codec {
        kind: CodecKind::Bf16,
        rounding: Rounding::Nearest,
    };
    RunSpec {
        v: V,
        run: run_id(),
        model: ModelSpec {
            trainer: TrainerKind::Reference,
            config: object("config"),
            layout: object("layout"),
            chunk_elements: 8,
            initial: (0..2)
                .map(|n| ObjectRef {
                    bytes: Bytes(32),
                    ..object(&format!("initial {n}"))
                })
                .collect(),
            precision: Precision::Fp32,
        },
        data: object("data"),
        schedule: Schedule {
            rounds: ROUNDS,
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
        upload: bf16,
        download: bf16,
        error_feedback: false,
        policy: Policy {
            workers_min: 1,
            lease: Millis(10_000),
            silence_max: Millis(30_000),
            norm_max: 10.0,
            // Removal for good would leave a run without workers; the core's own tests cover it.
            strikes_max: 1_000_000,
            closing: Closing::default(),
        },
        seed: 0,
    }
}

fn data() -> DataManifest {
    let shard = |name: String| Shard {
        object: object(&name),
        tokens: Tokens(20),
    };
    DataManifest {
        v: V,
        source: "simulated".to_owned(),
        tokenizer: Tokenizer::Byte,
        vocabulary: 256,
        token_bytes: 1,
        train: (0..7).map(|n| shard(format!("train {n}"))).collect(),
        held_out: vec![shard("held out".to_owned())],
        entropy: Entropy {
            unigram: 3.0,
            bigram: 2.0,
        },
    }
}
