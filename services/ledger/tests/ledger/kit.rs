//! A run whose ledger the tests write.

use kit::{BF16, object, sized};
use ledger::{ApplyError, Run, State};
use schemas::event::{Departure, LeaseEnd, LedgerEvent};
use schemas::hold::Hold;
use schemas::lease::LeaseRef;
use schemas::run::{OuterOptimizer, RunSpec};
use schemas::sync::SealedInput;
use schemas::{
    Code, Digest, Epoch, Fragment, ObjectRef, Round, RunId, Tokens, UnitIndex, UnixMillis, Weight,
};
use serde_bytes::ByteArray;

pub(crate) use kit::{run_id, worker};

/// The time of every event.
pub(crate) const TIME: UnixMillis = UnixMillis(1);

/// The settings of [`kit::run_spec`] with a third round, weights in one chunk, and an outer step
/// that keeps no state.
pub(crate) fn spec() -> RunSpec {
    kit::run_spec()
        .rounds(3)
        .initial(vec![object("initial")])
        .outer(OuterOptimizer::Average)
        .build()
}

/// The same settings with one unit a round, and an evaluation of each version of the weights.
pub(crate) fn evaluating() -> RunSpec {
    let mut spec = spec();
    spec.schedule.units = 1;
    spec.schedule.evaluation_every = 1;
    spec
}

pub(crate) fn lease(round: u64, index: u32, epoch: u64) -> LeaseRef {
    kit::lease(kit::train(round, index), epoch)
}

pub(crate) fn evaluation(version: u64, epoch: u64) -> LeaseRef {
    kit::lease(kit::evaluate(version), epoch)
}

pub(crate) fn created(spec: RunSpec) -> LedgerEvent {
    LedgerEvent::RunCreated {
        spec: Box::new(spec),
        operator: kit::operator(),
    }
}

/// An operator freezes the run, or lets it go on.
pub(crate) fn hold(placed: bool) -> LedgerEvent {
    let (hold, operator) = (Hold::Merges, kit::operator());
    let reason = "something is odd".parse().expect("a reason");
    match placed {
        true => LedgerEvent::HoldPlaced {
            hold,
            operator,
            reason,
        },
        false => LedgerEvent::HoldLifted {
            hold,
            operator,
            reason,
        },
    }
}

pub(crate) fn joined(number: u32) -> LedgerEvent {
    kit::joined(worker(number), kit::account(1), kit::join_request(number))
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
        evaluation: kit::evaluation(),
        statement: Digest::of(lease.to_string().as_bytes()),
        signature: ByteArray::new([0; 64]),
    }
}

pub(crate) fn saved(version: u64) -> LedgerEvent {
    LedgerEvent::SnapshotSaved {
        round: Round(version),
        manifest: object("snapshot"),
        statement: None,
    }
}

/// The manifest of the full snapshot of a version.
pub(crate) fn manifest(version: u64) -> ObjectRef {
    object(&format!("snapshot {version}"))
}

/// A full snapshot with a statement of its provenance.
pub(crate) fn stated(version: u64) -> LedgerEvent {
    LedgerEvent::SnapshotSaved {
        round: Round(version),
        manifest: manifest(version),
        statement: Some(object(&format!("statement {version}"))),
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
    let contribution = kit::contribution(&spec(), vec![sized(&lease.to_string(), 16)]);
    LedgerEvent::ContributionAccepted {
        lease,
        worker: worker(number),
        contribution: Box::new(contribution),
        norm: 1.0,
        statement: Digest::of(lease.to_string().as_bytes()),
        signature: ByteArray::new([0; 64]),
        provenance: Some(ByteArray::new([1; 64])),
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
        left_out: inputs
            .iter()
            .filter(|(.., weight)| *weight == 0)
            .map(|(unit, ..)| (UnitIndex(*unit), Code::NormOutlier))
            .collect(),
        rest,
    }
}

pub(crate) fn closed(round: u64, version: u64) -> LedgerEvent {
    LedgerEvent::RoundClosed {
        round: Round(round),
        fragment: Fragment::FIRST,
        broadcast: kit::weights(version, BF16, vec![object(&format!("weights {version}"))]),
        norm: 1.0,
        tokens: Tokens(64),
    }
}

/// A ledger in the making: the state's invariants are checked after each event.
#[derive(Clone)]
pub(crate) struct Book(State);

impl Book {
    /// A book with a run and three workers in it.
    pub(crate) fn new() -> Self {
        Self::of(spec())
    }

    pub(crate) fn of(spec: RunSpec) -> Self {
        Self::begin(State::default(), spec)
    }

    /// Does the same as [`Book::new`], in a state without closing rules.
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

    /// Checks that an event would follow here, so that its refusal elsewhere is due to its place
    /// and not to its form.
    pub(crate) fn fits(&self, event: &LedgerEvent) {
        self.clone().note(event);
    }

    /// Writes an event that does not follow, and checks that nothing changes.
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

    /// The reason why an event does not follow.
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

    pub(crate) fn state(&self) -> &State {
        &self.0
    }

    pub(crate) fn run(&self) -> &Run {
        self.0.run(&run_id()).expect("it was created")
    }
}
