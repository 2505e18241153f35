//! A run of which the tests write the ledger.

use ledger::{ApplyError, Run, State};
use schemas::contribution::Contribution;
use schemas::event::{LeaseEnd, LedgerEvent};
use schemas::lease::{LeaseRef, UnitId, UnitKind, Weights};
use schemas::member::{Posture, Session};
use schemas::run::{
    Closing, Codec, CodecKind, InnerOptimizer, ModelSpec, OuterOptimizer, Policy, Precision,
    Rounding, RunSpec, Schedule, TrainerKind,
};
use schemas::sync::SealedInput;
use schemas::{
    Bytes, Digest, Epoch, Fragment, Millis, ObjectRef, Round, RunId, Steps, Tokens, UnitIndex,
    UnixMillis, V, Weight, WorkerId,
};
use serde_bytes::ByteArray;

const BF16: Codec = Codec {
    kind: CodecKind::Bf16,
    rounding: Rounding::Nearest,
};

fn object(name: &str) -> ObjectRef {
    ObjectRef::of(name.as_bytes())
}

/// Three rounds of two units of 4 * 2 * 4 = 32 tokens.
fn spec() -> RunSpec {
    RunSpec {
        v: V,
        run: run_id(),
        model: ModelSpec {
            trainer: TrainerKind::Reference,
            config: object("config"),
            layout: object("layout"),
            chunk_elements: 8,
            initial: vec![object("initial")],
            precision: Precision::Fp32,
        },
        data: object("data"),
        schedule: Schedule {
            rounds: 3,
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
        outer: OuterOptimizer::Average,
        upload: BF16,
        download: BF16,
        policy: Policy {
            workers_min: 1,
            lease: Millis::from_secs(30),
            silence_max: Millis::from_secs(90),
            norm_max: 10.0,
            strikes_max: 3,
            closing: Closing::All,
        },
        error_feedback: false,
        seed: 7,
    }
}

pub(crate) fn run_id() -> RunId {
    "demo".parse().expect("a name")
}

fn key(kind: char, number: u32) -> String {
    let letter = char::from(b'A' + number as u8);
    format!("{kind}{}{letter}", "A".repeat(54))
}

pub(crate) fn worker(number: u32) -> WorkerId {
    key('U', number).parse().expect("a key")
}

pub(crate) fn lease(round: u64, index: u32, epoch: u64) -> LeaseRef {
    let unit = UnitId {
        round: Round(round),
        kind: UnitKind::Train,
        index: UnitIndex(index),
    };
    LeaseRef {
        unit,
        epoch: Epoch(epoch),
    }
}

pub(crate) fn opened(round: u64) -> LedgerEvent {
    let round = Round(round);
    LedgerEvent::RoundOpened { round }
}

pub(crate) fn granted(lease: LeaseRef, number: u32) -> LedgerEvent {
    let worker = worker(number);
    LedgerEvent::LeaseGranted { lease, worker }
}

pub(crate) fn ended(lease: LeaseRef, number: u32) -> LedgerEvent {
    LedgerEvent::LeaseEnded {
        lease,
        worker: worker(number),
        cause: LeaseEnd::Expired,
        tokens: Tokens(32),
    }
}

pub(crate) fn accepted(lease: LeaseRef, number: u32) -> LedgerEvent {
    let contribution = Contribution {
        layout: spec().model.layout.digest,
        codec: BF16,
        chunks: vec![ObjectRef {
            bytes: Bytes(16),
            ..object(&lease.to_string())
        }],
        tokens: Tokens(32),
        steps: Steps(4),
        loss: 2.5,
        train_ms: 10,
    };
    LedgerEvent::ContributionAccepted {
        lease,
        worker: worker(number),
        contribution: Box::new(contribution),
        norm: 1.0,
        statement: Digest::of(lease.to_string().as_bytes()),
        signature: ByteArray::new([0; 64]),
    }
}

/// `(unit, epoch, weight)` for each input.
pub(crate) fn sealed(round: u64, inputs: &[(u32, u64, u64)], rest: u32) -> LedgerEvent {
    let input = |&(unit, epoch, weight): &(u32, u64, u64)| SealedInput {
        unit: UnitIndex(unit),
        epoch: Epoch(epoch),
        weight: Weight(weight),
    };
    LedgerEvent::RoundSealed {
        round: Round(round),
        fragment: Fragment::FIRST,
        inputs: inputs.iter().map(input).collect(),
        rest,
    }
}

pub(crate) fn closed(round: u64, version: u64) -> LedgerEvent {
    LedgerEvent::RoundClosed {
        round: Round(round),
        fragment: Fragment::FIRST,
        broadcast: Weights {
            round: Round(version),
            codec: BF16,
            chunks: vec![object(&format!("weights {version}"))],
        },
        norm: 1.0,
        tokens: Tokens(64),
    }
}

/// A ledger in the making: the state's invariants are checked after each event.
pub(crate) struct Book(State);

impl Book {
    /// With a run and three workers in it.
    pub(crate) fn new() -> Self {
        let mut book = Self(State::default());
        book.note(&LedgerEvent::RunCreated {
            spec: Box::new(spec()),
            operator: key('U', 25).parse().expect("a key"),
        });
        for number in 0..3 {
            book.note(&LedgerEvent::WorkerJoined {
                worker: worker(number),
                account: key('A', 1).parse().expect("a key"),
                audit_key: key('U', 10 + number).parse().expect("a key"),
                trainers: vec![TrainerKind::Reference],
                device: "cpu".to_owned(),
                release: "1".to_owned(),
                posture: Posture::default(),
                session: Session(number.into()),
            });
        }
        book
    }

    /// Writes an event that follows.
    pub(crate) fn note(&mut self, event: &LedgerEvent) {
        self.try_note(event)
            .unwrap_or_else(|error| panic!("{event:?}: {error}"));
        self.0.check().expect("the state's invariants hold");
    }

    /// Writes an event that does not follow, which changes nothing.
    pub(crate) fn refuse(&mut self, event: &LedgerEvent) {
        let before = self.0.clone();
        let error = self.try_note(event).expect_err("it does not follow");
        assert!(matches!(error, ApplyError::OutOfPlace { .. }), "{error}");
        assert!(self.0 == before, "a refused event changed the state");
    }

    /// A unit from its grant to its contribution.
    pub(crate) fn contribute(&mut self, round: u64, index: u32, number: u32) {
        let lease = lease(round, index, 1);
        self.note(&granted(lease, number));
        self.note(&accepted(lease, number));
    }

    fn try_note(&mut self, event: &LedgerEvent) -> Result<(), ApplyError> {
        self.0.apply(UnixMillis(1), Some(&run_id()), event)
    }

    pub(crate) fn run(&self) -> &Run {
        self.0.run(&run_id()).expect("it was created")
    }
}
