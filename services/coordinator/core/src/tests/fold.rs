//! The fold by itself: an event that does not follow on those before it is refused, and the state
//! stays as it was. Live, the core never appends such an event; in a ledger it means a defect,
//! another release, or somebody's hand.

use ledger::{ApplyError, RoundRecord, Run, State};
use schemas::contribution::{Contribution, Evaluation, Outcome};
use schemas::event::{Departure, LeaseEnd, LedgerEvent};
use schemas::lease::{LeaseRef, Weights};
use schemas::{Digest, Fragment, Round, RunId, Tokens, UnixMillis};
use serde_bytes::ByteArray;

use crate::Coordinator;
use crate::fixture::*;

/// The state after the first `events` of a ledger.
fn at(world: &World, events: usize) -> State {
    Coordinator::replay(settings(), &world.journal[..events])
        .unwrap()
        .state()
        .clone()
}

fn refused_for(state: &State, run: Option<&RunId>, event: &LedgerEvent) -> ApplyError {
    let mut changed = state.clone();
    let error = changed
        .apply(state.time(), run, event)
        .expect_err(&format!("{event:?} does not follow"));
    assert!(
        changed == *state,
        "a refused event changed the state: {event:?}"
    );
    error
}

fn refused(state: &State, event: &LedgerEvent) {
    let error = refused_for(state, Some(&run_id()), event);
    let expected = matches!(
        error,
        ApplyError::OutOfPlace { .. }
            | ApplyError::NotHeld { .. }
            | ApplyError::WorkerUnknown { .. }
    );
    assert!(expected, "{event:?}: {error}");
}

/// What is refused elsewhere is refused for its place, not for its form.
fn fits(state: &State, event: &LedgerEvent) {
    let mut changed = state.clone();
    changed
        .apply(state.time(), Some(&run_id()), event)
        .unwrap_or_else(|error| panic!("{event:?}: {error}"));
    changed.check().unwrap();
}

fn closed(round: u64, next: u64) -> LedgerEvent {
    let merged = merged(&spec("demo"), Round(round));
    let broadcast = Weights {
        round: Round(next),
        ..merged.broadcast
    };
    LedgerEvent::RoundClosed {
        round: Round(round),
        fragment: Fragment::FIRST,
        broadcast,
        norm: 1.0,
        tokens: Tokens(64),
    }
}

fn saved(round: u64) -> LedgerEvent {
    LedgerEvent::SnapshotSaved {
        round: Round(round),
        manifest: object("snapshot"),
    }
}

fn granted(lease: LeaseRef, number: u32) -> LedgerEvent {
    LedgerEvent::LeaseGranted {
        lease,
        worker: worker(number),
    }
}

fn ended(lease: LeaseRef, number: u32) -> LedgerEvent {
    LedgerEvent::LeaseEnded {
        lease,
        worker: worker(number),
        cause: LeaseEnd::Expired,
        tokens: Tokens(32),
    }
}

fn contribution(lease: LeaseRef) -> Box<Contribution> {
    let stated = submission(&spec("demo"), 1, lease, 0).statement.outcome;
    let Outcome::Contribution(contribution) = stated else {
        panic!("of a training unit")
    };
    Box::new(contribution)
}

fn accepted(lease: LeaseRef, number: u32) -> LedgerEvent {
    let contribution = contribution(lease_of_training());
    let (worker, statement, signature) =
        (worker(number), Digest::of(b"it"), ByteArray::new([0; 64]));
    LedgerEvent::ContributionAccepted {
        lease,
        worker,
        contribution,
        norm: 1.0,
        statement,
        signature,
    }
}

fn lease_of_training() -> LeaseRef {
    lease(train(0, 0), 1)
}

fn evaluated(lease: LeaseRef, number: u32) -> LedgerEvent {
    let evaluation = Evaluation {
        loss_sum: 32.0,
        tokens: Tokens(16),
    };
    let (worker, statement, signature) =
        (worker(number), Digest::of(b"it"), ByteArray::new([0; 64]));
    LedgerEvent::EvaluationAccepted {
        lease,
        worker,
        evaluation,
        statement,
        signature,
    }
}

#[test]
fn a_round_closes_when_all_its_units_are_in_and_not_before() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    refused(world.core.state(), &closed(0, 1));
    let held = world.lease(1);
    world.submit(1, held);
    world.answer_pending();
    refused(world.core.state(), &closed(0, 1));
    let held = world.lease(1);
    world.submit(1, held);
    let screened = world.take_pending(|effect| matches!(effect, crate::Effect::Screen { .. }));
    world.answer_one(screened);
    // The merge that was asked for is not answered.
    let full = world.core.state();
    fits(full, &closed(0, 1));
    for other in [closed(0, 2), closed(0, 0), closed(1, 2)] {
        refused(full, &other);
    }
    refused(full, &LedgerEvent::RoundOpened { round: Round(0) });
}

#[test]
fn rounds_open_one_after_the_other_and_no_more_than_planned() {
    let mut world = World::with_run(spec("demo"));
    let open = |round| LedgerEvent::RoundOpened {
        round: Round(round),
    };
    let before = world.core.state().clone();
    refused(&before, &open(1));
    fits(&before, &open(0));
    refused(&before, &closed(0, 1));
    world.join(1);
    for _ in 0..4 {
        let held = world.lease(1);
        world.submit(1, held);
        world.answer_pending();
    }
    let all = world.core.state();
    assert!(all.run(&run_id()).unwrap().is_complete());
    refused(all, &open(2));
    refused(all, &closed(1, 2));
}

#[test]
fn snapshots_follow_on_each_other_and_are_of_closed_rounds() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    refused(world.core.state(), &saved(1));
    for _ in 0..2 {
        let held = world.lease(1);
        world.submit(1, held);
        world.answer_pending();
    }
    let before = world
        .journal
        .iter()
        .position(|body| body.event.kind() == "snapshot-saved")
        .expect("one was saved");
    let unsaved = at(&world, before);
    fits(&unsaved, &saved(1));
    refused(&unsaved, &saved(2));
    // Between two rounds no unit is open, and yet the run is not at its end.
    let between = world
        .journal
        .iter()
        .position(|body| body.event.kind() == "round-closed")
        .expect("one is closed");
    refused(&at(&world, between + 1), &LedgerEvent::RunCompleted);
    let state = world.core.state();
    // Again, and an older one.
    for round in [1, 0, 2] {
        refused(state, &saved(round));
    }
}

#[test]
fn a_run_completes_once_with_nothing_open() {
    let mut evaluating = spec("demo");
    evaluating.schedule.evaluation_every = 1;
    let mut world = World::with_run(evaluating);
    world.join(1);
    refused(world.core.state(), &LedgerEvent::RunCompleted);
    for _ in 0..20 {
        if world.run().is_complete() {
            break;
        }
        let held = world.lease(1);
        world.submit(1, held);
        world.answer_pending();
    }
    let kinds = world.kinds(0);
    let end = kinds
        .iter()
        .position(|kind| *kind == "run-completed")
        .expect("it ends");
    fits(&at(&world, end), &LedgerEvent::RunCompleted);
    refused(world.core.state(), &LedgerEvent::RunCompleted);
    // All rounds are closed, and the last evaluation is not in: on offer, and held.
    let last = kinds
        .iter()
        .rposition(|kind| *kind == "evaluation-accepted")
        .expect("it evaluates");
    let closed = kinds
        .iter()
        .rposition(|kind| *kind == "round-closed")
        .expect("it closes");
    assert!(closed < last && last < end, "{kinds:?}");
    for events in closed + 1..=last {
        refused(&at(&world, events), &LedgerEvent::RunCompleted);
    }
}

#[test]
fn a_unit_is_granted_to_a_member_that_holds_none_and_under_the_next_epoch() {
    let mut world = World::with_run(spec("demo"));
    for number in 1..=3 {
        world.join(number);
    }
    let held = world.lease(1);
    world.ask(peer(3), crate::WorkerRequest::Leave(leave_request(3, "")));
    let state = world.core.state();
    let other = train(0, 1 - held.unit.index.get());
    fits(state, &granted(lease(other, 1), 2));
    for (unit, epoch, number, why) in [
        (other, 1, 1, "it holds one"),
        (other, 1, 3, "it left"),
        (other, 1, 4, "it never joined"),
        (other, 0, 2, "an old epoch"),
        (other, 2, 2, "an epoch too far"),
        (held.unit, 2, 2, "it is held"),
        (train(1, 0), 1, 2, "another round's"),
        (evaluate(0), 1, 2, "not on offer"),
    ] {
        let event = granted(lease(unit, epoch), number);
        let error = refused_for(state, Some(&run_id()), &event);
        assert!(
            matches!(
                error,
                ApplyError::OutOfPlace { .. } | ApplyError::WorkerUnknown { .. }
            ),
            "{why}: {error}"
        );
    }
    world.submit(1, held);
    world.answer_pending();
    refused(world.core.state(), &granted(lease(held.unit, 2), 2));
}

#[test]
fn a_lease_ends_and_a_result_counts_for_its_holder_only() {
    let mut evaluating = spec("demo");
    evaluating.schedule.evaluation_every = 1;
    evaluating.schedule.units = 1;
    let mut world = World::with_run(evaluating);
    world.join(1);
    world.join(2);
    let first = [world.lease(1), world.lease(2)];
    world.submit(1, first[0]);
    world.answer_pending();
    world.submit(2, first[1]);
    world.answer_pending();
    let leases = [world.lease(1), world.lease(2)];
    let (at_train, at_evaluate) = if leases[0].unit.kind == schemas::lease::UnitKind::Train {
        (0, 1)
    } else {
        (1, 0)
    };
    let (train_lease, evaluate_lease) = (leases[at_train], leases[at_evaluate]);
    let (trains, evaluates) = (at_train as u32 + 1, at_evaluate as u32 + 1);
    let state = world.core.state();
    fits(state, &accepted(train_lease, trains));
    fits(state, &evaluated(evaluate_lease, evaluates));
    fits(state, &ended(train_lease, trains));
    let later = LeaseRef {
        epoch: train_lease.epoch.next(),
        ..train_lease
    };
    for event in [
        accepted(train_lease, evaluates),
        accepted(later, trains),
        accepted(evaluate_lease, evaluates),
        evaluated(evaluate_lease, trains),
        evaluated(train_lease, trains),
        ended(train_lease, evaluates),
        ended(later, trains),
        ended(first[0], 1),
    ] {
        refused(state, &event);
    }
}

#[test]
fn events_of_members_are_of_members() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let state = world.core.state().clone();
    let left = |number, cause| LedgerEvent::WorkerLeft {
        worker: worker(number),
        cause,
        detail: String::new(),
    };
    refused(&state, &left(2, Departure::Left));
    let mut removed = state.clone();
    removed
        .apply(state.time(), Some(&run_id()), &left(1, Departure::Removed))
        .unwrap();
    let joined = joined(1);
    fits(&state, &joined);
    refused(&removed, &joined);
}

#[test]
fn a_run_is_named_known_created_once_and_valid() {
    let world = World::with_run(spec("demo"));
    let state = world.core.state();
    let operator = public_key(2);
    let created = |spec| LedgerEvent::RunCreated {
        spec: Box::new(spec),
        operator: operator.clone(),
    };
    let opened = LedgerEvent::RoundOpened { round: Round(0) };
    let other: RunId = "other".parse().unwrap();
    assert!(matches!(
        refused_for(state, None, &opened),
        ApplyError::RunMissing("round-opened")
    ));
    assert!(matches!(
        refused_for(state, Some(&other), &opened),
        ApplyError::RunUnknown(_)
    ));
    assert!(matches!(
        refused_for(state, None, &created(spec("other"))),
        ApplyError::RunMissing("run-created")
    ));
    assert!(matches!(
        refused_for(state, Some(&run_id()), &created(spec("demo"))),
        ApplyError::RunExists(_)
    ));
    let mut invalid = spec("other");
    invalid.schedule.rounds = 0;
    assert!(matches!(
        refused_for(state, Some(&other), &created(invalid)),
        ApplyError::SpecInvalid { .. }
    ));
}

/// Each fault that [`Run::check`] looks for is found.
#[test]
fn a_run_that_contradicts_itself_is_found_out() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    world.join(2);
    let held = world.lease(1);
    let sound = world.run();
    sound.check().unwrap();
    type Change = fn(&mut Run, LeaseRef);
    let changes: [(&str, Change); 6] = [
        ("tokens from nowhere", |run, _| {
            run.tokens.issued += Tokens(1)
        }),
        ("a holder who does not know", |run, _| {
            run.members.get_mut(&worker(1)).unwrap().lease = None
        }),
        ("two who hold one lease", |run, held| {
            run.members.get_mut(&worker(2)).unwrap().lease = Some(held)
        }),
        ("two open rounds", |run, _| {
            run.rounds.push(RoundRecord::default())
        }),
        ("merged tokens from nowhere", |run, _| {
            run.rounds[0].tokens += Tokens(1)
        }),
        ("complete with open units", |run, _| {
            run.completed_at = Some(UnixMillis(1))
        }),
    ];
    for (what, change) in changes {
        let mut run = sound.clone();
        change(&mut run, held);
        assert!(run.check().is_err(), "{what}");
    }
}

#[test]
fn time_in_the_ledger_never_goes_back_with_the_clock() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    world.wait(schemas::Millis::from_secs(10));
    let held = world.lease(1);
    let late = world.now;
    world.now = START;
    world.join(2);
    world.submit(1, held);
    world.answer_pending();
    world.lease(2);
    world.restart();
    let times: Vec<UnixMillis> = world.journal.iter().map(|body| body.time).collect();
    assert!(times.is_sorted(), "{times:?}");
    assert_eq!(
        world
            .journal
            .last()
            .map(|body| (body.event.kind(), body.time)),
        Some(("coordinator-started", late))
    );
}
