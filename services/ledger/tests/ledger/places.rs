//! Each event has its place: an event that does not follow those before it is refused, and the
//! state is unchanged. A coordinator appends no such event; in a ledger it means a defect, another
//! release, or tampering.

use std::collections::BTreeMap;

use ledger::{ApplyError, OpenSync, RoundRecord, Run, Standing, Unit};
use schemas::contribution::Fate;
use schemas::event::{Departure, LedgerEvent};
use schemas::lease::LeaseRef;
use schemas::snapshot::MergeInput;
use schemas::{Epoch, Fragment, Round, RunId, Tokens, UnitIndex, UnixMillis, Weight};

use crate::kit::{
    Book, accepted, closed, created, ended, evaluated, evaluating, evaluation, granted, joined,
    lease, left, opened, run_id, saved, sealed, spec, worker,
};

#[test]
fn rounds_are_opened_by_number_and_no_more_than_planned() {
    let mut book = Book::of(evaluating());
    book.refuse(&opened(1));
    book.refuse(&closed(0, 1));
    for round in 0..3 {
        book.fits(&opened(round));
        book.round(round);
        book.refuse(&opened(round));
    }
    book.refuse(&opened(3));
    book.refuse(&closed(2, 3));
}

#[test]
fn a_round_is_closed_by_the_next_version_of_its_weights() {
    let mut book = Book::of(evaluating());
    book.note(&opened(0));
    book.contribute(0, 0, 0);
    book.note(&sealed(0, &[(0, 1, 32)], 0));
    for other in [closed(0, 2), closed(0, 0), closed(1, 1)] {
        book.refuse(&other);
    }
    book.fits(&closed(0, 1));
}

#[test]
fn snapshots_follow_on_each_other_and_are_of_closed_rounds() {
    let mut book = Book::of(evaluating());
    book.refuse(&saved(1));
    book.round(0);
    book.refuse(&saved(2));
    // The initial weights are those of the settings, and no snapshot stands for them.
    book.refuse(&saved(0));
    book.round(1);
    book.fits(&saved(2));
    book.note(&saved(1));
    assert_eq!(book.run().merges.len(), 1, "what is saved is not kept");
    for version in [1, 0, 3] {
        book.refuse(&saved(version));
    }
    book.note(&saved(2));
    assert!(book.run().merges.is_empty());
}

#[test]
fn a_run_completes_once_with_nothing_open() {
    let mut book = Book::of(evaluating());
    book.refuse(&LedgerEvent::RunCompleted);
    for round in 0..3 {
        book.round(round);
        book.evaluate(round, 1);
        // Between two rounds no unit is open, and yet the run is not complete.
        book.refuse(&LedgerEvent::RunCompleted);
    }
    // It is not complete while the last evaluation is held either.
    book.note(&granted(evaluation(3, 1), 2));
    book.refuse(&LedgerEvent::RunCompleted);
    book.note(&evaluated(evaluation(3, 1), 2));
    book.note(&LedgerEvent::RunCompleted);
    book.refuse(&LedgerEvent::RunCompleted);
}

#[test]
fn a_unit_is_granted_to_a_member_that_holds_none_and_under_the_next_epoch() {
    let mut book = Book::new();
    book.note(&opened(0));
    book.note(&granted(lease(0, 0, 1), 0));
    book.note(&left(2, Departure::Left));
    book.fits(&granted(lease(0, 1, 1), 1));
    for (lease, number) in [
        // The worker holds a unit; it left; it never joined.
        (lease(0, 1, 1), 0),
        (lease(0, 1, 1), 2),
        (lease(0, 1, 1), 3),
        // An older epoch, and one too high.
        (lease(0, 1, 0), 1),
        (lease(0, 1, 2), 1),
        // The unit is held; it belongs to another round; it is not on offer.
        (lease(0, 0, 2), 1),
        (lease(1, 0, 1), 1),
        (evaluation(0, 1), 1),
    ] {
        book.refuse(&granted(lease, number));
    }
    book.note(&accepted(lease(0, 0, 1), 0));
    book.refuse(&granted(lease(0, 0, 2), 1));
}

#[test]
fn a_lease_ends_and_a_result_counts_for_its_holder_only() {
    let mut book = Book::of(evaluating());
    book.note(&opened(0));
    let (train, evaluate) = (lease(0, 0, 1), evaluation(0, 1));
    book.note(&granted(train, 0));
    book.note(&granted(evaluate, 1));
    book.fits(&accepted(train, 0));
    book.fits(&evaluated(evaluate, 1));
    book.fits(&ended(train, 0));
    for event in [
        accepted(train, 1),
        accepted(lease(0, 0, 2), 0),
        accepted(evaluate, 1),
        evaluated(evaluate, 0),
        evaluated(train, 0),
        ended(train, 1),
        ended(lease(0, 0, 2), 0),
    ] {
        book.refuse(&event);
    }
    book.note(&accepted(train, 0));
    book.refuse(&ended(train, 0));
}

#[test]
fn events_of_members_are_of_members() {
    let mut book = Book::new();
    book.refuse(&left(3, Departure::Left));
    book.fits(&joined(1));
    book.note(&left(1, Departure::Removed));
    book.refuse(&joined(1));
}

#[test]
fn a_run_is_named_known_created_once_and_valid() {
    let mut book = Book::new();
    let other: RunId = "other".parse().expect("a name");
    assert!(matches!(
        book.error(None, &opened(0)),
        ApplyError::RunMissing("round-opened")
    ));
    assert!(matches!(
        book.error(Some(&other), &opened(0)),
        ApplyError::RunUnknown(_)
    ));
    assert!(matches!(
        book.error(None, &created(spec())),
        ApplyError::RunMissing("run-created")
    ));
    assert!(matches!(
        book.error(Some(&run_id()), &created(spec())),
        ApplyError::RunExists(_)
    ));
    let mut invalid = spec();
    invalid.schedule.rounds = 0;
    assert!(matches!(
        book.error(Some(&other), &created(invalid)),
        ApplyError::SpecInvalid { .. }
    ));
}

/// The check finds each of these contradictions in a run.
#[test]
fn a_run_that_contradicts_itself_is_found_out() {
    let mut book = Book::new();
    book.note(&opened(0));
    book.contribute(0, 0, 0);
    book.contribute(0, 1, 1);
    book.note(&sealed(0, &[(0, 1, 32), (1, 1, 32)], 0));
    let whole = book.clone();
    book.note(&closed(0, 1));
    book.note(&opened(1));
    let held = lease(1, 0, 1);
    book.contribute(1, 1, 1);
    book.note(&granted(held, 0));
    type Change = fn(&mut Run, LeaseRef);
    let changes: [(&str, Change); 18] = [
        ("tokens from nowhere", |run, _| {
            run.tokens.issued += Tokens(1)
        }),
        ("a holder that does not know", |run, _| {
            run.members.remove(&worker(0));
        }),
        ("two that hold one lease", |run, held| {
            let other = run.members.get_mut(&worker(1));
            other.expect("it joined").lease = Some(held);
        }),
        ("a round without its sync", |run, _| {
            run.rounds.push(RoundRecord::default())
        }),
        ("a sync without its round", |run, _| run.rounds.clear()),
        ("a set that waits and is not sealed", |run, _| {
            run.sealed.extend(run.open.keys())
        }),
        ("an input of a unit that is not done", |run, held| {
            input(run).lease = held;
        }),
        ("an input of another epoch", |run, _| {
            input(run).lease.epoch = Epoch(2);
        }),
        ("an input that was late", |run, _| {
            let accepted = run.accepted.get_mut(&lease(1, 1, 1).unit);
            accepted.expect("it counts").fate = Fate::Late;
        }),
        ("a result that counts and is in no input", |run, _| {
            collected(run).clear();
        }),
        ("an open unit of a round that is over", |run, held| {
            let unit = run.units.remove(&lease(1, 1, 1).unit);
            let mut unit = unit.expect("it is done");
            collected(run).clear();
            unit.standing = Standing::Open;
            run.units.insert(lease(0, 1, 1).unit, unit);
            assert_eq!(run.holder(&held.unit), Some((&worker(0), held.epoch)));
        }),
        ("a unit beyond those of a round", |run, _| {
            let unit = run.units[&lease(1, 1, 1).unit].clone();
            let unit = Unit {
                standing: Standing::Open,
                ..unit
            };
            run.units.insert(lease(1, 2, 1).unit, unit);
        }),
        ("a unit that starts from what is not kept", |run, held| {
            let unit = run.units.get_mut(&held.unit);
            unit.expect("it is held").base = Round(0);
        }),
        ("a merge that is not kept", |run, _| run.merges.clear()),
        ("weights that no merge gave", |run, _| {
            run.merges[0].broadcast = run.spec_digest;
        }),
        ("newest weights that are not kept", |run, _| {
            let weights = run.weights.pop_last();
            let (_, weights) = weights.expect("the newest are kept");
            run.weights.insert((Fragment::FIRST, Round(7)), weights);
        }),
        ("merged tokens from nowhere", |run, _| {
            run.rounds[0].tokens += Tokens(1)
        }),
        ("complete with open units", |run, _| {
            run.completed_at = Some(UnixMillis(1))
        }),
    ];
    for (what, change) in changes {
        let mut run = book.run().clone();
        change(&mut run, held);
        assert!(run.check().is_err(), "{what}");
    }
    let mut run = whole.run().clone();
    let sync = run.sealed[0];
    let inputs: Vec<MergeInput> = run.open[&sync].inputs().cloned().collect();
    let weightless = inputs.iter().cloned().map(|input| MergeInput {
        weight: Weight(0),
        ..input
    });
    let descending = inputs.iter().rev().cloned().collect();
    let twice = vec![inputs[0].clone(); 2];
    for wrong in [weightless.collect(), descending, twice, vec![]] {
        run.open.insert(sync, OpenSync::Sealed(wrong));
        assert!(run.check().is_err(), "{:?}", run.open);
    }
}

/// The contributions of the round that is open.
fn collected(run: &mut Run) -> &mut BTreeMap<UnitIndex, MergeInput> {
    match run.open.values_mut().next() {
        Some(OpenSync::Collecting(inputs)) => inputs,
        other => panic!("{other:?} does not collect"),
    }
}

/// The only contribution of the round that is open.
fn input(run: &mut Run) -> &mut MergeInput {
    let input = collected(run).values_mut().next();
    input.expect("one is in")
}

#[test]
fn orders_of_operators_concern_no_run() {
    let mut book = Book::of(spec());
    let order = LedgerEvent::ControlReceived {
        operator: kit::operator(),
        verb: "shutdown".to_owned(),
    };
    book.refuse(&order);
    let other = "other".parse().expect("a name");
    let unknown = book.error(Some(&other), &order);
    assert!(matches!(unknown, ApplyError::RunUnknown(_)), "{unknown}");
}
