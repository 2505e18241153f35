//! What tests share: a small run and its messages, and a world that carries effects out.

mod world;

use schemas::contribution::{Contribution, Evaluation, Outcome, Statement};
use schemas::data::{DataManifest, Entropy, Shard, Tokenizer};
use schemas::event::LedgerEvent;
use schemas::lease::{ClaimRequest, LeaseRef, UnitId, UnitKind, Weights};
use schemas::member::{JoinRequest, LeaveRequest, Posture, Session};
use schemas::run::{
    Closing, Codec, CodecKind, InnerOptimizer, ModelSpec, OuterOptimizer, Policy, Precision,
    Rounding, RunSpec, Schedule, TrainerKind,
};
use schemas::{
    AccountId, Bytes, Epoch, Fragment, Message, Millis, ObjectRef, PublicKey, Round, RunId, Steps,
    SyncId, Tokens, UnitIndex, UnixMillis, V, WorkerId,
};
use serde_bytes::ByteArray;

use crate::{Merged, Peer, Settings, Submission};

pub(crate) use world::World;

pub(crate) const BF16: Codec = Codec {
    kind: CodecKind::Bf16,
    rounding: Rounding::Nearest,
};
pub(crate) const LEASE: Millis = Millis::from_secs(30);
pub(crate) const SILENCE: Millis = Millis::from_secs(90);
pub(crate) const START: UnixMillis = UnixMillis(1_700_000_000_000);

pub(crate) fn object(name: &str) -> ObjectRef {
    ObjectRef::of(name.as_bytes())
}

/// The pattern of an effect that gives this order to a foundry.
macro_rules! order {
    ($order:ident) => {
        $crate::effect::Effect::Foundry {
            order: schemas::foundry::Order::$order { .. },
            ..
        }
    };
}
pub(crate) use order;

/// The fp32 initial weights of a chunk.
fn initial(index: usize, elements: u64) -> ObjectRef {
    ObjectRef {
        bytes: Bytes(4 * elements),
        ..object(&format!("initial {index}"))
    }
}

/// A chunk of a contribution: 8 elements in bf16.
pub(crate) fn upload(name: &str) -> ObjectRef {
    ObjectRef {
        bytes: Bytes(16),
        ..object(name)
    }
}

/// Two units of 4 * 2 * 4 = 32 tokens a round, two rounds, one worker at least, two chunks.
pub(crate) fn spec(run: &str) -> RunSpec {
    RunSpec {
        v: V,
        run: run.parse().unwrap(),
        model: ModelSpec {
            trainer: TrainerKind::Reference,
            config: object("config"),
            layout: object("layout"),
            chunk_elements: 8,
            initial: vec![initial(0, 8), initial(1, 5)],
            precision: Precision::Fp32,
        },
        data: object("data"),
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
        upload: BF16,
        download: BF16,
        error_feedback: false,
        policy: Policy {
            workers_min: 1,
            lease: LEASE,
            silence_max: SILENCE,
            norm_max: 10.0,
            strikes_max: 3,
            closing: Closing::All,
        },
        seed: 7,
    }
}

pub(crate) fn data(shards: usize, shard_tokens: u64) -> DataManifest {
    let shard = |name: String| Shard {
        object: object(&name),
        tokens: Tokens(shard_tokens),
    };
    DataManifest {
        v: V,
        source: "test".to_owned(),
        tokenizer: Tokenizer::HuggingFace(object("tokenizer")),
        vocabulary: 256,
        token_bytes: 1,
        train: (0..shards).map(|n| shard(format!("train {n}"))).collect(),
        held_out: vec![shard("held out".to_owned())],
        entropy: Entropy {
            unigram: 3.0,
            bigram: 2.0,
        },
    }
}

fn key(kind: char, number: u32) -> String {
    let letters = ['A', 'B', 'C', 'D', 'E', 'F', 'G', 'H'];
    let digits: String = (0..8)
        .rev()
        .map(|at| letters[(number >> (3 * at)) as usize % 8])
        .collect();
    format!("{kind}{}{digits}", "A".repeat(47))
}

pub(crate) fn worker(number: u32) -> WorkerId {
    key('U', number).parse().unwrap()
}

pub(crate) fn account(number: u32) -> AccountId {
    key('A', number).parse().unwrap()
}

pub(crate) fn public_key(number: u32) -> PublicKey {
    key('U', number).parse().unwrap()
}

pub(crate) fn run_id() -> RunId {
    "demo".parse().unwrap()
}

pub(crate) fn peer(number: u32) -> Peer {
    Peer {
        account: account(1),
        run: run_id(),
        worker: worker(number),
    }
}

pub(crate) fn settings() -> Settings {
    let audit_key = public_key(1);
    Settings {
        release: "1".to_owned(),
        audit_key,
        posture: Posture::default(),
        heartbeat: Millis::from_secs(5),
        session: Session(99),
        checkpoint_every: u64::MAX,
    }
}

/// The session of worker `number`'s first process.
pub(crate) fn session(number: u32) -> Session {
    Session(number.into())
}

pub(crate) fn claim_request(number: u32, wait: Millis) -> ClaimRequest {
    ClaimRequest {
        v: V,
        session: session(number),
        wait,
    }
}

pub(crate) fn leave_request(number: u32, reason: &str) -> LeaveRequest {
    LeaveRequest {
        v: V,
        session: session(number),
        reason: reason.to_owned(),
    }
}

pub(crate) fn join_request(number: u32) -> JoinRequest {
    JoinRequest {
        v: V,
        session: session(number),
        audit_key: public_key(1000 + number),
        proof: ByteArray::new([0; 64]),
        trainers: vec![TrainerKind::Reference],
        device: "cpu x1".to_owned(),
        release: "1".to_owned(),
        posture: Posture::default(),
    }
}

/// What the ledger holds when worker `number` joined.
pub(crate) fn joined(number: u32) -> LedgerEvent {
    let request = join_request(number);
    LedgerEvent::WorkerJoined {
        worker: worker(number),
        account: account(1),
        audit_key: request.audit_key,
        trainers: request.trainers,
        device: request.device,
        release: request.release,
        posture: request.posture,
        session: request.session,
    }
}

pub(crate) fn train(round: u64, index: u32) -> UnitId {
    UnitId {
        round: Round(round),
        kind: UnitKind::Train,
        index: UnitIndex(index),
    }
}

pub(crate) fn sync(round: u64) -> SyncId {
    SyncId {
        round: Round(round),
        fragment: Fragment::FIRST,
    }
}

pub(crate) fn evaluate(round: u64) -> UnitId {
    UnitId {
        round: Round(round),
        kind: UnitKind::Evaluate,
        index: UnitIndex(0),
    }
}

pub(crate) fn lease(unit: UnitId, epoch: u64) -> LeaseRef {
    LeaseRef {
        unit,
        epoch: Epoch(epoch),
    }
}

/// A result as worker `number` would state it; `salt` makes it another one.
pub(crate) fn submission(spec: &RunSpec, number: u32, lease: LeaseRef, salt: u32) -> Submission {
    let outcome = match lease.unit.kind {
        UnitKind::Train => Outcome::Contribution(Contribution {
            layout: spec.model.layout.digest,
            codec: spec.upload,
            chunks: (0..spec.model.initial.len())
                .map(|n| object(&format!("{number} {lease} {salt} {n}")))
                .collect(),
            tokens: spec.unit_tokens(),
            steps: spec.schedule.inner_steps,
            loss: 2.5,
            train_ms: 10,
        }),
        UnitKind::Evaluate => Outcome::Evaluation(Evaluation {
            loss_sum: 32.0,
            tokens: Tokens(16),
        }),
    };
    stated(Statement {
        v: V,
        run: spec.run.clone(),
        spec: spec.to_object().1,
        worker: worker(number),
        lease,
        outcome,
    })
}

pub(crate) fn stated(statement: Statement) -> Submission {
    Submission {
        bytes: statement.encode(),
        statement,
        signature: [7; 64],
    }
}

pub(crate) fn merged(spec: &RunSpec, round: Round) -> Merged {
    let next = round.next();
    let chunks = (0..spec.model.initial.len())
        .map(|n| object(&format!("weights {next} {n}")))
        .collect();
    Merged {
        broadcast: Weights {
            round: next,
            codec: spec.download,
            chunks,
        },
        norm: 1.0,
    }
}
