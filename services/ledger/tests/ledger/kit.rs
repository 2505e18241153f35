//! A run of which the tests write the ledger.

use ledger::{ApplyError, Run, State};
use schemas::contribution::{Contribution, Evaluation};
use schemas::event::{Departure, LeaseEnd, LedgerEvent};
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

/// When every event happened.
pub(crate) const TIME: UnixMillis = UnixMillis(1);

fn object(name: &str) -> ObjectRef {
    ObjectRef::of(name.as_bytes())
}

/// Three rounds of two units of 4 * 2 * 4 = 32 tokens.
pub(crate) fn spec() -> RunSpec {
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

/// The same with one unit a round and an evaluation of each version of the weights.
pub(crate) fn evaluating() -> RunSpec {
    let mut spec = spec();
    spec.schedule.units = 1;
    spec.schedule.evaluation_every = 1;
    spec
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

pub(crate) fn evaluation(version: u64, epoch: u64) -> LeaseRef {
    let mut lease = lease(version, 0, epoch);
    lease.unit.kind = UnitKind::Evaluate;
    lease
}

pub(crate) fn created(spec: RunSpec) -> LedgerEvent {
    LedgerEvent::RunCreated {
        spec: Box::new(spec),
        operator: key('U', 25).parse().expect("a key"),
    }
}

pub(crate) fn joined(number: u32) -> LedgerEvent {
    LedgerEvent::WorkerJoined {
        worker: worker(number),
        account: key('A', 1).parse().expect("a key"),
        audit_key: key('U', 10 + number).parse().expect("a key"),
        trainers: vec![TrainerKind::Reference],
        device: "cpu".to_owned(),
        release: "1".to_owned(),
        posture: Posture::default(),
        session: Session(number.into()),
    }
}

pub(crate) fn left(number: u32, cause: Departure) -> LedgerEvent {
    LedgerEvent::WorkerLeft {
        worker: worker(number),
        cause,
        detail: String::new(),
    }
}

pub(crate) fn evaluated(lease: LeaseRef, number: u32) -> LedgerEvent {
    LedgerEvent::EvaluationAccepted {
        lease,
        worker: worker(number),
        evaluation: Evaluation {
            loss_sum: 32.0,
            tokens: Tokens(16),
        },
        statement: Digest::of(lease.to_string().as_bytes()),
        signature: ByteArray::new([0; 64]),
    }
}

pub(crate) fn saved(version: u64) -> LedgerEvent {
    LedgerEvent::SnapshotSaved {
        round: Round(version),
        manifest: object("snapshot"),
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
#[derive(Clone)]
pub(crate) struct Book(State);

impl Book {
    /// With a run and three workers in it.
    pub(crate) fn new() -> Self {
        Self::of(spec())
    }

    pub(crate) fn of(spec: RunSpec) -> Self {
        Self::begin(State::default(), spec)
    }

    /// As [`Book::new`], in a state that holds the run to no closing rule.
    pub(crate) fn under_any_rule() -> Self {
        Self::begin(State::under_any_rule(), spec())
    }

    fn begin(state: State, spec: RunSpec) -> Self {
        let mut book = Self(state);
        book.note(&created(spec));
        for number in 0..3 {
            book.note(&joined(number));
        }
        book
    }

    /// Writes an event that follows.
    pub(crate) fn note(&mut self, event: &LedgerEvent) {
        self.try_note(Some(&run_id()), event)
            .unwrap_or_else(|error| panic!("{event:?}: {error}"));
        self.0.check().expect("the state's invariants hold");
    }

    /// An event that would follow, so that what is refused elsewhere is refused for its place, not
    /// for its form.
    pub(crate) fn fits(&self, event: &LedgerEvent) {
        self.clone().note(event);
    }

    /// Writes an event that does not follow, which changes nothing.
    pub(crate) fn refuse(&mut self, event: &LedgerEvent) {
        let error = self.error(Some(&run_id()), event);
        let expected = matches!(
            error,
            ApplyError::OutOfPlace { .. }
                | ApplyError::NotHeld { .. }
                | ApplyError::WorkerUnknown { .. }
        );
        assert!(expected, "{event:?}: {error}");
    }

    /// Why an event does not follow.
    pub(crate) fn error(&mut self, run: Option<&RunId>, event: &LedgerEvent) -> ApplyError {
        let before = self.0.clone();
        let error = self.try_note(run, event).expect_err("it does not follow");
        assert!(self.0 == before, "a refused event changed the state");
        error
    }

    /// A unit from its grant to its contribution.
    pub(crate) fn contribute(&mut self, round: u64, index: u32, number: u32) {
        let lease = lease(round, index, 1);
        self.note(&granted(lease, number));
        self.note(&accepted(lease, number));
    }

    /// An evaluation from its grant to its result.
    pub(crate) fn evaluate(&mut self, version: u64, number: u32) {
        let lease = evaluation(version, 1);
        self.note(&granted(lease, number));
        self.note(&evaluated(lease, number));
    }

    /// A round of one unit from its beginning to its end.
    pub(crate) fn round(&mut self, round: u64) {
        self.note(&opened(round));
        self.contribute(round, 0, 0);
        self.note(&sealed(round, &[(0, 1, 32)], 0));
        self.note(&closed(round, round + 1));
    }

    fn try_note(&mut self, run: Option<&RunId>, event: &LedgerEvent) -> Result<(), ApplyError> {
        self.0.apply(TIME, run, event)
    }

    pub(crate) fn run(&self) -> &Run {
        self.0.run(&run_id()).expect("it was created")
    }
}
