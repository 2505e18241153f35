//! Tests of the fold's counts and memory, and of the views that readers get.

use ledger::{ReplayError, Run, State};
use schemas::contribution::Fate;
use schemas::event::{Departure, Event, EventBody, LedgerEvent, WorkerEvent};
use schemas::lease::LeaseRef;
use schemas::member::{Posture, Session};
use schemas::{
    Bytes, ChainSequence, Code, Fragment, Round, Steps, Tokens, UnitIndex, UnixMillis, V,
};

use crate::kit::{
    Book, TIME, accepted, closed, created, ended, evaluated, evaluating, evaluation, granted,
    joined, lease, left, opened, run_id, saved, sealed, spec, worker,
};

fn rejected(lease: LeaseRef, number: u32) -> LedgerEvent {
    LedgerEvent::ContributionRejected {
        lease,
        worker: worker(number),
        code: Code::EventRefused,
        detail: String::new(),
        tokens: Tokens(32),
    }
}

/// Round, unit and epoch, whose sealed set is one unit.
fn merge(book: &mut Book, round: u64, epoch: u64) {
    book.note(&sealed(round, &[(0, epoch, 32)], 0));
    book.note(&closed(round, round + 1));
}

#[test]
fn events_of_the_whole_coordinator_change_what_they_say_and_no_run() {
    let mut state = State::default();
    let mut note = |time: u64, event: LedgerEvent| {
        let before = state.clone();
        let applied = state.apply(UnixMillis(time), None, &event);
        applied.unwrap_or_else(|error| panic!("{event:?}: {error}"));
        assert_eq!(state.time(), UnixMillis(time));
        (before, state.clone())
    };
    let operator = match created(spec()) {
        LedgerEvent::RunCreated { operator, .. } => operator,
        other => panic!("{other:?}"),
    };
    note(
        5,
        LedgerEvent::CoordinatorStarted {
            release: "1".to_owned(),
            posture: Posture::default(),
            session: Session(1),
        },
    );
    let (leading, stopped) = note(
        5,
        LedgerEvent::CoordinatorStopped {
            reason: "x".to_owned(),
        },
    );
    assert!(leading != stopped);
    let verb = "run.new".to_owned();
    let (before, after) = note(
        5,
        LedgerEvent::ControlReceived {
            operator,
            verb: verb.clone(),
        },
    );
    let (before, after) = (before.to_checkpoint(), after.to_checkpoint());
    let changed = before
        .iter()
        .zip(&after)
        .filter(|(one, other)| one != other);
    assert_eq!(
        (before.len(), changed.count()),
        (after.len(), 1),
        "a control is counted and changes nothing else"
    );
    let LedgerEvent::WorkerJoined { account, .. } = joined(0) else {
        panic!("it is a join")
    };
    let denied = |suppressed| LedgerEvent::RequestDenied {
        account: account.clone(),
        worker: worker(0),
        verb: verb.clone(),
        code: Code::EventRefused,
        suppressed,
    };
    let (before, once) = note(5, denied(0));
    let (_, thrice) = note(5, denied(1));
    assert!(before != once && once != thrice);
}

#[test]
fn the_chain_is_followed_and_names_the_event_that_does_not_fit() {
    let body = |sequence, event| EventBody {
        v: V,
        known: None,
        emitter: format!("U{}", "A".repeat(55)).parse().expect("a key"),
        sequence: ChainSequence(sequence),
        previous: None,
        time: UnixMillis(9),
        run: Some(run_id()),
        event,
    };
    let mut state = State::default();
    let create = body(0, Event::Ledger(created(spec())));
    state.follow(&create).expect("it follows");
    assert_eq!(
        state.run(&run_id()).map(|run| run.created_at),
        Some(UnixMillis(9))
    );
    let again = state.follow(&body(1, Event::Ledger(created(spec()))));
    assert!(
        matches!(again, Err(ReplayError::Apply { sequence, .. }) if sequence == ChainSequence(1)),
        "{again:?}"
    );
    let lease = lease(0, 0, 1);
    let foreign = state.follow(&body(2, Event::Worker(WorkerEvent::Started { lease })));
    assert!(
        matches!(foreign, Err(ReplayError::Foreign(sequence)) if sequence == ChainSequence(2)),
        "{foreign:?}"
    );
}

#[test]
fn a_refused_result_is_a_strike_and_its_unit_is_open_again() {
    let mut book = Book::of(evaluating());
    book.note(&opened(0));
    let first = lease(0, 0, 1);
    book.note(&granted(first, 0));
    book.refuse(&rejected(first, 1));
    book.note(&rejected(first, 0));
    let run = book.run();
    assert_eq!(run.tokens.rejected, Tokens(32));
    assert_eq!(run.tokens_in_flight(), Tokens(0));
    let member = &run.members[&worker(0)];
    assert_eq!(
        (member.rejected, member.accepted, member.lease),
        (1, 0, None)
    );
    assert_eq!(run.units[&first.unit].failed_by, Some(worker(0)));
    let second = lease(0, 0, 2);
    book.note(&granted(second, 0));
    book.note(&rejected(second, 0));
    assert_eq!(book.run().members[&worker(0)].rejected, 2);
    assert_eq!(book.run().tokens.rejected, Tokens(64));
    book.note(&granted(lease(0, 0, 3), 1));
    book.note(&accepted(lease(0, 0, 3), 1));
    merge(&mut book, 0, 3);
    assert_eq!(book.run().members[&worker(1)].accepted, 1);
}

#[test]
fn a_lease_that_ends_gives_its_unit_back_while_the_unit_is_of_use() {
    let mut book = Book::of(evaluating());
    book.note(&opened(0));
    book.note(&granted(lease(0, 0, 1), 0));
    book.note(&ended(lease(0, 0, 1), 0));
    book.note(&granted(lease(0, 0, 2), 1));
    book.note(&accepted(lease(0, 0, 2), 1));
    merge(&mut book, 0, 2);
    book.round(1);
    book.round(2);
    // No round collects any more; evaluations are still open.
    for epoch in 1..3 {
        let last = evaluation(3, epoch);
        book.note(&granted(last, 0));
        let LedgerEvent::LeaseEnded { cause, .. } = ended(last, 0) else {
            panic!("it ends a lease")
        };
        book.note(&LedgerEvent::LeaseEnded {
            lease: last,
            worker: worker(0),
            cause,
            tokens: Tokens(0),
        });
    }
    book.note(&granted(evaluation(3, 3), 1));
    book.note(&evaluated(evaluation(3, 3), 1));
    assert_eq!(book.run().members[&worker(1)].accepted, 2);
}

#[test]
fn only_who_is_replaced_leaves_a_fenced_lease() {
    let mut book = Book::new();
    book.note(&opened(0));
    for (number, cause, is_fenced) in [(0, Departure::Left, false), (1, Departure::Replaced, true)]
    {
        let held = lease(0, number, 1);
        book.note(&granted(held, number));
        assert_eq!(book.run().present(), 3 - number);
        assert!(book.run().member(&worker(number)).is_some());
        book.note(&left(number, cause));
        assert!(book.run().member(&worker(number)).is_none());
        let member = &book.run().members[&worker(number)];
        assert_eq!(member.fenced, is_fenced.then_some(held), "{cause:?}");
    }
    assert_eq!(book.run().present(), 1);
}

#[test]
fn a_version_is_evaluated_once_though_several_rounds_start_from_it() {
    let mut state = State::under_any_rule();
    let mut note = |event: &LedgerEvent| {
        let applied = state.apply(TIME, Some(&run_id()), event);
        applied.unwrap_or_else(|error| panic!("{event:?}: {error}"));
        state.run(&run_id()).expect("it was created").clone()
    };
    note(&created(evaluating()));
    note(&joined(0));
    note(&opened(0));
    let of_first = evaluation(0, 1);
    note(&granted(of_first, 0));
    // The unit is held: the next round does not touch it.
    let run = note(&opened(1));
    assert_eq!(
        run.holder(&of_first.unit),
        Some((&worker(0), of_first.epoch))
    );
    note(&evaluated(of_first, 0));
    // The unit is done.
    let run = note(&opened(2));
    assert!(!run.units.contains_key(&of_first.unit));
}

#[test]
fn statements_are_remembered_for_sixteen_rounds() {
    let mut long = evaluating();
    long.schedule.rounds = 20;
    long.schedule.evaluation_every = 0;
    let mut book = Book::of(long);
    let remembered = |run: &Run| {
        let rounds = run.accepted.keys().map(|unit| unit.round.get());
        (rounds.clone().min(), rounds.max())
    };
    for round in 0..18 {
        book.round(round);
        let oldest = (round + 1).saturating_sub(16);
        assert_eq!(remembered(book.run()), (Some(oldest), Some(round)));
    }
    let last = &book.run().accepted[&lease(17, 0, 1).unit];
    assert_eq!(
        (last.epoch, last.fate),
        (lease(17, 0, 1).epoch, Fate::Merged)
    );
}

#[test]
fn old_weights_are_kept_while_a_unit_starts_from_them() {
    let mut book = Book::of(evaluating());
    let versions = |book: &Book| -> Vec<u64> {
        let keys = book.run().weights.keys();
        keys.map(|(_, version)| version.get()).collect()
    };
    book.round(0);
    assert_eq!(
        versions(&book),
        [0, 1],
        "the evaluation of version 0 is open"
    );
    book.round(1);
    assert_eq!(versions(&book), [0, 1, 2]);
    book.evaluate(0, 1);
    assert_eq!(versions(&book), [1, 2]);
    book.evaluate(1, 1);
    assert_eq!(versions(&book), [2], "the newest is kept for good");
}

#[test]
fn a_reader_is_told_what_the_rounds_came_to() {
    let mut two = evaluating();
    two.schedule.units = 2;
    let mut book = Book::of(two);
    book.note(&opened(0));
    book.contribute(0, 0, 0);
    let round = |book: &Book, at: usize| book.run().round_views().swap_remove(at);
    let first = round(&book, 0);
    assert_eq!(first.done, [lease(0, 0, 1).unit], "the other is not in");
    assert_eq!((first.tokens, first.train_loss), (Tokens(32), Some(2.5)));
    assert_eq!((first.held_out_loss, first.norm), (None, None));
    book.contribute(0, 1, 1);
    book.evaluate(0, 2);
    assert_eq!(round(&book, 0).held_out_loss, Some(2.0));
    assert_eq!(book.run().held_out_loss(Round(1)), None);
    assert_eq!(book.run().rounds[0].loss_sum, 2.0 * 32.0 * 2.5);
    book.note(&sealed(0, &[(0, 1, 32), (1, 1, 32)], 0));
    book.note(&closed(0, 1));
    let first = round(&book, 0);
    assert!(first.done.is_empty(), "of a closed round all are in");
    assert_eq!((first.tokens, first.train_loss), (Tokens(64), Some(2.5)));
    assert_eq!((first.opened_at, first.closed_at), (TIME, Some(TIME)));
    book.note(&opened(1));
    book.contribute(1, 1, 0);
    let views = book.run().round_views();
    assert_eq!(views.len(), 2);
    assert_eq!((views[0].round, views[1].round), (Round(0), Round(1)));
    assert_eq!(views[1].done, [lease(1, 1, 1).unit]);
    assert!(book.run().snapshot_views().is_empty());
    book.note(&saved(1));
    let snapshots = book.run().snapshot_views();
    assert_eq!((snapshots.len(), snapshots[0].round), (1, Round(1)));
    let run = book.run();
    assert_eq!(run.steps_before(Round(2)), Steps(8));
    assert_eq!(run.version(Fragment::FIRST), Round(1));
    assert_eq!(run.uploaded, Bytes(3 * 16));
    let open = run.open.values().next().expect("round 1 is open");
    assert_eq!(
        open.inputs()
            .map(|input| input.lease.unit.index)
            .collect::<Vec<_>>(),
        [UnitIndex(1)]
    );
}

#[test]
fn a_round_lists_what_is_done_in_it_and_in_no_other() {
    let mut book = Book::under_any_rule();
    book.note(&opened(0));
    book.note(&opened(1));
    book.contribute(0, 0, 0);
    book.contribute(1, 1, 1);
    let views = book.run().round_views();
    assert_eq!(views[0].done, [lease(0, 0, 1).unit]);
    assert_eq!(views[1].done, [lease(1, 1, 1).unit]);
}

#[test]
fn a_round_without_a_contribution_has_no_loss() {
    let mut book = Book::new();
    book.note(&opened(0));
    assert_eq!(book.run().round_views()[0].train_loss, None);
}

/// Everything is merged, and an evaluation is left: the run is not over.
#[test]
fn a_run_that_is_complete_with_an_open_evaluation_contradicts_itself() {
    let mut book = Book::of(evaluating());
    (0..3).for_each(|round| book.round(round));
    let mut run = book.run().clone();
    assert!(run.open.is_empty() && !run.units.is_empty());
    run.check().expect("it is not complete yet");
    run.completed_at = Some(TIME);
    assert!(run.check().is_err());
}
