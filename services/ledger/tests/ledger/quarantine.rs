//! Quarantine of workers: what it ends and what it forbids, and its place in a checkpoint.

use ledger::{FORMAT, State};
use schemas::contribution::Fate;
use schemas::event::{Departure, LedgerEvent};
use schemas::lease::LeaseRef;
use schemas::quarantine::{MergedRounds, QUARANTINED_MAX};
use schemas::run::{Comparison, RunSpec};
use schemas::{Digest, Fragment, Round, SyncId, Tokens, UnixMillis};

use crate::kit::{
    Book, TIME, accepted, closed, created, ended, evaluated, evaluating, evaluation, granted,
    joined, lease, left, opened, run_id, saved, sealed, spec, worker,
};

fn shut(number: u32, lease: Option<LeaseRef>, withdrawn: u32) -> LedgerEvent {
    LedgerEvent::WorkerQuarantined {
        worker: worker(number),
        operator: kit::operator(),
        reason: "odd norms".parse().expect("a reason"),
        lease,
        withdrawn,
    }
}

fn readmitted(number: u32) -> LedgerEvent {
    LedgerEvent::WorkerReadmitted {
        worker: worker(number),
        operator: kit::operator(),
        reason: "it was the card".parse().expect("a reason"),
    }
}

fn of_loss(lease: LeaseRef, number: u32, stated: f64) -> LedgerEvent {
    let mut event = accepted(lease, number);
    if let LedgerEvent::ContributionAccepted { contribution, .. } = &mut event {
        contribution.loss = stated;
    }
    event
}

fn of_units(units: u32) -> RunSpec {
    let mut spec = spec();
    spec.schedule.units = units;
    spec
}

/// A book in which worker 0 has a contribution to the open round and holds another unit of it, and
/// worker 1 has a contribution.
fn at_work(spec: RunSpec) -> Book {
    let mut book = Book::of(spec);
    book.note(&opened(0));
    for (unit, number, loss) in [(0, 0, 3.0), (1, 1, 2.0)] {
        let lease = lease(0, unit, 1);
        book.note(&granted(lease, number));
        book.note(&of_loss(lease, number, loss));
    }
    book.note(&granted(lease(0, 2, 1), 0));
    book
}

#[test]
fn tl_31_a_quarantine_ends_the_lease_and_takes_back_what_no_seal_names() {
    let mut book = at_work(of_units(3));
    let before = book.run().tokens.clone();
    book.note(&shut(0, Some(lease(0, 2, 1)), 1));
    let run = book.run();
    assert!(run.is_quarantined(&worker(0)) && run.member(&worker(0)).is_none());
    assert_eq!(run.tokens.issued, before.issued);
    assert_eq!(run.tokens.merged, before.merged - Tokens(32));
    assert_eq!(run.tokens.rejected, Tokens(32));
    assert_eq!(run.tokens.abandoned, Tokens(32));
    assert_eq!(run.rounds[0].tokens, Tokens(32));
    let record = &run.quarantined[&worker(0)];
    let told = (
        record.operator.clone(),
        record.reason.as_str(),
        record.since,
    );
    assert_eq!(told, (kit::operator(), "odd norms", TIME));
    // Both units are open again, each under its next epoch, and another contribution counts there.
    for unit in [0, 2] {
        book.refuse(&granted(lease(0, unit, 1), 2));
        book.note(&granted(lease(0, unit, 2), 2));
        book.note(&accepted(lease(0, unit, 2), 2));
    }
    // The seal cannot name what was withdrawn.
    book.refuse(&sealed(0, &[(0, 1, 32), (1, 1, 32), (2, 2, 32)], 0));
    book.note(&sealed(0, &[(0, 2, 32), (1, 1, 32), (2, 2, 32)], 0));
    book.note(&closed(0, 1));
    let merged = |number| book.run().members[&worker(number)].merged;
    assert_eq!(merged(0), None);
    assert_eq!(merged(2).map(|merged| merged.rounds), Some(1));
}

/// A contribution is named in each fragment of its round: where one is merged, or sealed, nothing
/// is withdrawn from the others.
#[test]
fn a_round_of_which_a_fragment_is_open_no_more_is_withdrawn_in_none() {
    let book = at_work(of_units(3));
    let mut run = book.run().clone();
    assert_eq!(run.withdrawable(&worker(0)), [lease(0, 0, 1)]);
    let (round, fragment) = (Round(0), Fragment::FIRST);
    let open = run.open.remove(&SyncId { round, fragment });
    let (fragment, open) = (Fragment(1), open.expect("the round is open"));
    run.open.insert(SyncId { round, fragment }, open);
    assert!(run.withdrawable(&worker(0)).is_empty());
}

#[test]
fn tl_31_an_event_that_ends_something_else_is_refused() {
    let mut book = at_work(of_units(3));
    let held = Some(lease(0, 2, 1));
    for (lease, withdrawn) in [
        (None, 1),
        (held, 0),
        (held, 2),
        (Some(lease(0, 2, 2)), 1),
        (Some(lease(0, 1, 1)), 1),
    ] {
        book.refuse(&shut(0, lease, withdrawn));
    }
    // Worker 1 holds nothing, and worker 2 has done nothing; a stranger may be shut out as well.
    book.refuse(&shut(1, held, 1));
    book.fits(&shut(1, None, 1));
    book.fits(&shut(2, None, 0));
    book.fits(&shut(7, None, 0));
    book.fits(&shut(0, held, 1));
}

#[test]
fn fg_04_nothing_of_a_worker_in_quarantine_counts_until_it_is_let_in_again() {
    let mut book = Book::new();
    book.note(&opened(0));
    book.note(&granted(lease(0, 0, 1), 0));
    book.refuse(&readmitted(0));
    book.note(&shut(0, Some(lease(0, 0, 1)), 0));
    for event in [
        joined(0),
        granted(lease(0, 1, 1), 0),
        granted(lease(0, 0, 2), 0),
        accepted(lease(0, 0, 1), 0),
        ended(lease(0, 0, 1), 0),
        shut(0, None, 0),
        readmitted(1),
    ] {
        book.refuse(&event);
    }
    // The others go on.
    book.fits(&granted(lease(0, 0, 2), 1));
    book.note(&readmitted(0));
    book.refuse(&granted(lease(0, 0, 2), 0));
    book.note(&joined(0));
    book.note(&granted(lease(0, 0, 2), 0));
    // A stranger is kept out too.
    book.note(&shut(7, None, 0));
    book.refuse(&joined(7));
    book.note(&readmitted(7));
    book.note(&joined(7));
}

#[test]
fn a_set_that_a_seal_has_begun_to_name_stays_and_is_merged() {
    for rest in [1, 0] {
        let mut book = Book::new();
        book.note(&opened(0));
        book.contribute(0, 0, 0);
        book.contribute(0, 1, 1);
        let inputs = [(0, 1, 32), (1, 1, 32)];
        book.note(&sealed(0, &inputs[..2 - rest], rest as u32));
        for number in [0, 1] {
            book.refuse(&shut(number, None, 1));
        }
        let sealed_with = |book: &Book, number| {
            let rounds = book.run().sealed_with(&worker(number)).into_iter();
            rounds.map(Round::get).collect::<Vec<_>>()
        };
        assert_eq!(sealed_with(&book, 0), [0]);
        assert!(sealed_with(&book, 2).is_empty());
        book.note(&shut(0, None, 0));
        if rest > 0 {
            book.note(&sealed(0, &inputs[1..], 0));
        }
        book.note(&closed(0, 1));
        assert!(sealed_with(&book, 0).is_empty());
        let merged = book.run().members[&worker(0)].merged;
        assert_eq!(merged.map(|merged| merged.rounds), Some(1));
    }
}

#[test]
fn an_evaluation_that_it_held_is_open_again_and_a_late_unit_is_gone() {
    let mut book = Book::of(evaluating());
    book.round(0);
    book.note(&opened(1));
    book.note(&granted(evaluation(1, 1), 0));
    book.note(&shut(0, Some(evaluation(1, 1)), 0));
    assert_eq!(book.run().tokens.abandoned, Tokens(0));
    book.note(&granted(evaluation(1, 2), 1));
    book.note(&evaluated(evaluation(1, 2), 1));

    let mut book = Book::under_any_rule();
    book.note(&opened(0));
    book.contribute(0, 0, 1);
    book.note(&granted(lease(0, 1, 1), 0));
    book.note(&sealed(0, &[(0, 1, 32)], 0));
    book.note(&shut(0, Some(lease(0, 1, 1)), 0));
    assert!(!book.run().units.contains_key(&lease(0, 1, 1).unit));
    book.refuse(&granted(lease(0, 1, 2), 1));
}

/// A round keeps the mean of the losses that count: exactly in a run that compares, and otherwise
/// as it was.
#[test]
fn a_withdrawn_loss_leaves_the_mean_of_its_round() {
    let mut comparing = of_units(3);
    comparing.policy.comparison = Comparison::of_norms(4.0);
    for (spec, loss) in [(comparing, 2.0), (of_units(3), 2.5)] {
        let mut book = at_work(spec);
        book.note(&shut(0, Some(lease(0, 2, 1)), 1));
        let run = book.run();
        assert_eq!(run.round_views()[0].train_loss, Some(loss));
        assert!(run.measured.keys().all(|unit| unit.index.get() == 1));
        book.note(&shut(1, None, 1));
        assert_eq!(book.run().rounds[0].loss_sum, 0.0);
        assert_eq!(book.run().round_views()[0].train_loss, None);
        assert!(book.run().measured.is_empty());
        assert!(book.run().open_rounds().eq([Round(0)]), "it goes on");
    }
}

#[test]
fn a_statement_that_was_withdrawn_is_not_remembered_as_one_that_counts() {
    let mut book = Book::new();
    book.note(&opened(0));
    book.contribute(0, 0, 0);
    let unit = lease(0, 0, 1).unit;
    assert_eq!(book.run().accepted[&unit].fate, Fate::Merged);
    book.note(&shut(0, None, 1));
    assert!(!book.run().accepted.contains_key(&unit));
}

/// Five rounds of one unit: worker 0 does rounds 1 and 3, and of round 3 nothing is merged.
#[test]
fn the_ledger_knows_which_merged_rounds_a_worker_is_part_of() {
    let mut spec = of_units(1);
    spec.schedule.rounds = 6;
    let mut book = Book::of(spec);
    let clean = |book: &Book, number| {
        let snapshot = book.run().last_snapshot_without([worker(number)].iter());
        snapshot.map(|snapshot| snapshot.round.get())
    };
    for (round, number) in [(0, 1), (1, 0), (2, 1), (3, 0), (4, 1)] {
        assert_eq!(clean(&book, 2), (round > 0).then_some(round));
        book.note(&opened(round));
        book.contribute(round, 0, number);
        book.note(&sealed(round, &[(0, 1, 32)], 0));
        book.note(&closed(round, round + 1));
        book.note(&saved(round + 1));
    }
    let merged = |first, last, rounds| {
        Some(MergedRounds {
            first: Round(first),
            last: Round(last),
            rounds,
        })
    };
    let of = |number| book.run().members[&worker(number)].merged;
    assert_eq!(of(0), merged(1, 3, 2));
    assert_eq!(of(1), merged(0, 4, 3));
    assert_eq!(of(2), None);
    // The snapshot that round 1 starts from is the last one before worker 0.
    assert_eq!(clean(&book, 0), Some(1));
    assert_eq!(clean(&book, 1), None);
    assert_eq!(clean(&book, 2), Some(5));
    // It outlives another join.
    let mut book = book.clone();
    book.note(&joined(0));
    assert_eq!(book.run().members[&worker(0)].merged, merged(1, 3, 2));
}

#[test]
fn what_weighs_nothing_is_in_no_merge() {
    let mut spec = of_units(2);
    spec.policy.comparison = Comparison::of_norms(4.0);
    let mut book = Book::of(spec);
    book.note(&opened(0));
    for (unit, size) in [(0, 1.0), (1, 100.0)] {
        let lease = lease(0, unit, 1);
        book.note(&granted(lease, unit));
        let mut event = accepted(lease, unit);
        if let LedgerEvent::ContributionAccepted { norm, .. } = &mut event {
            *norm = size;
        }
        book.note(&event);
    }
    book.note(&sealed(0, &[(0, 1, 32), (1, 1, 0)], 0));
    assert!(book.run().sealed_with(&worker(1)).is_empty());
    book.note(&closed(0, 1));
    assert_eq!(book.run().members[&worker(1)].merged, None);
    assert!(book.run().members[&worker(0)].merged.is_some());
}

#[test]
fn a_run_that_is_over_keeps_a_worker_out_of_its_record() {
    let mut book = Book::of(of_units(1));
    for round in 0..3 {
        book.round(round);
    }
    book.note(&LedgerEvent::RunCompleted);
    book.note(&shut(0, None, 0));
    book.refuse(&joined(0));
    book.note(&readmitted(0));
}

/// If these bytes change, [`FORMAT`] must become the next number.
#[test]
fn a_quarantine_stands_in_a_checkpoint() {
    let mut state = State::default();
    for event in [created(spec()), joined(0), shut(0, None, 0)] {
        let applied = state.apply(TIME, Some(&run_id()), &event);
        applied.expect("it follows");
    }
    let bytes = state.to_checkpoint();
    let mut back = State::from_checkpoint(&bytes).expect("these are its bytes");
    assert_eq!(back.run(&run_id()), state.run(&run_id()));
    let refused = back.apply(TIME, Some(&run_id()), &joined(0));
    assert!(refused.is_err(), "the quarantine stands");
    assert_eq!(
        (FORMAT, Digest::of(&bytes).hex().as_str()),
        (
            2,
            "98186e80055def7193703b9d42680fb971131aa83455375769ef0125f4f88846"
        )
    );
}

/// A state in which somebody in quarantine takes part is one that no ledger leads to.
#[test]
fn a_checkpoint_with_a_member_in_quarantine_is_refused() {
    let mut state = State::default();
    for event in [created(spec()), joined(0), shut(1, None, 0)] {
        let applied = state.apply(TIME, Some(&run_id()), &event);
        applied.expect("it follows");
    }
    let mut bytes = state.to_checkpoint();
    let (member, out) = (worker(0), worker(1));
    let at = |bytes: &[u8], name: &str| {
        let mut windows = bytes.windows(name.len());
        windows.position(|window| window == name.as_bytes())
    };
    let place = at(&bytes, out.as_str()).expect("it is named");
    bytes[place..place + out.as_str().len()].copy_from_slice(member.as_str().as_bytes());
    let refused = State::from_checkpoint(&bytes).expect_err("it contradicts itself");
    assert!(
        refused.to_string().contains("is in quarantine"),
        "{refused}"
    );
}

#[test]
fn a_run_keeps_only_so_many_in_quarantine() {
    let mut state = State::default();
    let mut fold = |event: &LedgerEvent| state.apply(TIME, Some(&run_id()), event);
    fold(&created(spec())).expect("it is the first");
    let most = u32::try_from(QUARANTINED_MAX).expect("it is small");
    for number in 0..most {
        fold(&shut(number, None, 0)).expect("there is room");
    }
    fold(&shut(most, None, 0)).expect_err("there is none");
    fold(&readmitted(0)).expect("it stands");
    fold(&shut(most, None, 0)).expect("there is room again");
}

/// An entry says when its worker joined or left, and an absent worker does not leave again.
#[test]
fn a_worker_leaves_once() {
    let at = |leaves: bool| {
        let mut state = State::default();
        let events = [
            (1, created(spec())),
            (2, joined(0)),
            (3, left(0, Departure::Left)),
            (4, shut(0, None, 0)),
        ];
        let events = events.iter().filter(|(time, _)| leaves || *time != 3);
        for (time, event) in events {
            let applied = state.apply(UnixMillis(*time), Some(&run_id()), event);
            applied.expect("it follows");
        }
        state.run(&run_id()).expect("it is there").members[&worker(0)].since
    };
    assert_eq!((at(true), at(false)), (UnixMillis(3), UnixMillis(4)));
}

fn renamed(number: u32, before: u32) -> LedgerEvent {
    let mut event = joined(number);
    if let LedgerEvent::WorkerJoined { before: key, .. } = &mut event {
        *key = Some(worker(before));
    }
    event
}

#[test]
fn tl_31_a_worker_is_shut_out_with_all_its_keys() {
    let mut book = at_work(of_units(3));
    book.refuse(&renamed(5, 0));
    book.note(&left(0, Departure::Left));
    book.note(&ended(lease(0, 2, 1), 0));
    book.note(&renamed(5, 0));
    // One worker is no member twice, and no keys come before each other.
    book.refuse(&joined(0));
    book.refuse(&renamed(0, 5));
    // What it did with its key from before is taken back as well.
    book.refuse(&shut(5, None, 0));
    book.note(&shut(5, None, 1));
    assert!(book.run().withdrawable(&worker(0)).is_empty());
    for event in [joined(0), joined(5), renamed(6, 5), renamed(6, 0)] {
        book.refuse(&event);
    }
    book.note(&readmitted(5));
    book.note(&renamed(6, 5));
    book.note(&left(6, Departure::Left));
    // Two changes later, by the first key.
    book.note(&shut(0, None, 0));
    book.refuse(&renamed(7, 6));
    let kept = book.state().to_checkpoint();
    let resumed = State::from_checkpoint(&kept).expect("these are its bytes");
    let kept = resumed.run(&run_id());
    assert_eq!(kept, book.state().run(&run_id()), "the keys are in it");
}

/// The lists of both are empty, and the keys of a stranger are one key.
#[test]
fn tl_31_a_stranger_in_quarantine_joins_an_empty_run_with_no_other_key() {
    let mut state = State::default();
    let mut fold = |event: &LedgerEvent| state.apply(TIME, Some(&run_id()), event);
    fold(&created(spec())).expect("it is the first");
    fold(&shut(0, None, 0)).expect("it need not have joined");
    fold(&renamed(1, 0)).expect_err("it is the same worker");
    fold(&renamed(1, 2)).expect("that is another one");
}

/// The sum of no losses is 0, whatever the numbers that were added and taken away leave behind.
#[test]
fn a_round_whose_last_contribution_is_withdrawn_has_no_losses() {
    let mut spec = of_units(3);
    spec.policy.comparison = Comparison::of_norms(4.0);
    let mut book = Book::of(spec);
    book.note(&opened(0));
    // Beside the first loss the second one is lost in the sum.
    for (unit, loss) in [(0, 1e17), (1, 1.0)] {
        let lease = lease(0, unit, 1);
        book.note(&granted(lease, unit));
        book.note(&of_loss(lease, unit, loss));
    }
    book.note(&shut(0, None, 1));
    book.note(&shut(1, None, 1));
    assert_eq!(book.run().rounds[0].loss_sum, 0.0);
}
