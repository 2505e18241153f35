//! Runs with secure aggregation: ledgers in which a cohort, its sum or its end does not fit do not
//! follow, and an open cohort is in a checkpoint.

use std::collections::BTreeSet;

use ledger::{OpenSync, Run, State};
use schemas::contribution::Fate;
use schemas::event::LedgerEvent;
use schemas::hold::Hold;
use schemas::masking::{Bytes32, CohortMember, UnitKey, Unmasking};
use schemas::snapshot::MergeInput;
use schemas::{Digest, Epoch, Round, Tokens, UnitIndex, Weight};
use serde_bytes::ByteArray;

use crate::kit::{
    Book, TIME, accepted, closed, ended, evaluation, granted, joined, lease, opened, run_id,
    sealed, worker,
};

const UNITS: u32 = 4;

fn book() -> Book {
    let mut book = Book::of(
        kit::masked_run_spec(UNITS)
            .initial(vec![kit::object("initial")])
            .build(),
    );
    book.note(&joined(3));
    book.note(&opened(0));
    book
}

/// Random bytes of a worker.
fn entropy(unit: u32) -> [u8; 128] {
    let mut bytes = [unit as u8 + 1; 128];
    (0..4).for_each(|part| bytes[32 * part] = part as u8 * 16);
    bytes
}

fn member(unit: u32) -> CohortMember {
    CohortMember {
        unit: UnitIndex(unit),
        epoch: Epoch(1),
        worker: worker(unit),
        audit_key: kit::audit_key(unit),
        keys: masking::Keys::new(&entropy(unit).into()).announced(),
        signature: ByteArray::new([0; 64]),
    }
}

fn cohort(members: Vec<CohortMember>) -> LedgerEvent {
    let round = Round(0);
    LedgerEvent::CohortSealed { round, members }
}

fn all() -> Vec<CohortMember> {
    (0..UNITS).map(member).collect()
}

/// The contribution of a unit, under the masks of this cohort.
fn named(unit: u32, cohort: Option<Digest>) -> LedgerEvent {
    let mut event = accepted(lease(0, unit, 1), unit);
    if let LedgerEvent::ContributionAccepted { contribution, .. } = &mut event {
        contribution.cohort = cohort;
    }
    event
}

/// The digest of the cohort of all.
fn digest() -> Digest {
    let run = kit::masked_run_spec(UNITS)
        .initial(vec![kit::object("initial")])
        .build();
    let spec = run.to_object().1;
    masking::Cohort::digest_of(&run.run, &spec, Round(0), 3, &all())
}

fn given(unit: u32) -> LedgerEvent {
    named(unit, Some(digest()))
}

/// The seeds of those that count, and the masking keys of those that are gone.
fn unmasked(gone: &[u32]) -> LedgerEvent {
    let secret = |unit: u32| {
        let at = if gone.contains(&unit) { 32 } else { 64 };
        let key = entropy(unit)[at..at + 32].try_into().expect("32 bytes");
        UnitKey {
            unit: UnitIndex(unit),
            key: Bytes32(key),
        }
    };
    LedgerEvent::RoundUnmasked {
        round: Round(0),
        secrets: (0..UNITS).map(secret).collect(),
    }
}

const fn dissolved(contributions: u32) -> LedgerEvent {
    LedgerEvent::CohortDissolved {
        round: Round(0),
        contributions,
    }
}

/// A book in which each worker holds a unit, and their cohort is sealed.
fn agreed() -> Book {
    let mut book = book();
    for unit in 0..UNITS {
        book.note(&granted(lease(0, unit, 1), unit));
    }
    book.note(&cohort(all()));
    book
}

#[test]
fn tl_17_a_cohort_is_of_all_units_their_holders_and_the_keys_with_which_they_joined() {
    let mut book = book();
    for unit in 0..UNITS - 1 {
        book.note(&granted(lease(0, unit, 1), unit));
    }
    // The last unit has no holder yet, and nothing counts before there is a cohort.
    book.refuse(&cohort(all()));
    book.refuse(&accepted(lease(0, 0, 1), 0));
    book.note(&granted(lease(0, 3, 1), 3));
    book.fits(&cohort(all()));
    book.refuse(&cohort(all()[..3].to_vec()));
    for change in [
        (|member| member.epoch = Epoch(2)) as fn(&mut CohortMember),
        |member| member.worker = worker(0),
        |member| member.audit_key = kit::audit_key(0),
        |member| member.unit = UnitIndex(0),
        |member| member.keys = self::member(0).keys,
    ] {
        let mut members = all();
        change(&mut members[2]);
        book.refuse(&cohort(members));
    }
    book.note(&cohort(all()));
    book.refuse(&cohort(all()));
    // A run without secure aggregation has none.
    let mut plain = Book::new();
    plain.note(&opened(0));
    let refused = plain.error(Some(&run_id()), &cohort(vec![]));
    assert!(
        refused.to_string().contains("no masks to agree on"),
        "{refused}"
    );
    plain.refuse(&dissolved(0));
    plain.refuse(&unmasked(&[]));
}

#[test]
fn tl_17_a_contribution_counts_for_the_cohort_that_the_ledger_has_and_for_no_other() {
    let mut book = agreed();
    let other = |change: fn(&mut CohortMember)| {
        let (run, mut members) = (book.run(), all());
        change(&mut members[1]);
        let (name, spec) = (&run.spec.run, &run.spec_digest);
        masking::Cohort::digest_of(name, spec, Round(0), 3, &members)
    };
    let others = [
        other(|member| member.epoch = Epoch(2)),
        other(|member| member.worker = worker(9)),
        other(|member| member.audit_key = kit::audit_key(9)),
        other(|member| member.keys = self::member(9).keys),
        other(|member| member.keys.commitment = Digest::of(b"another seed")),
        masking::Cohort::digest_of(&run_id(), &book.run().spec_digest, Round(1), 3, &all()),
        masking::Cohort::digest_of(&run_id(), &book.run().spec_digest, Round(0), 4, &all()),
        masking::Cohort::digest_of(&run_id(), &Digest::of(b"settings"), Round(0), 3, &all()),
    ];
    for other in others {
        assert_ne!(other, digest());
        book.refuse(&named(0, Some(other)));
    }
    assert_eq!(book.run().cohort_digest(Round(0)), Some(digest()));
    // One ledger is of all runs, and contributions did not always name their cohort: a run of
    // before must not keep the others from being read.
    book.fits(&named(0, None));
    book.note(&given(0));
    // A run without masks has no cohort that a contribution could name.
    let mut plain = Book::new();
    plain.note(&joined(3));
    plain.note(&opened(0));
    plain.note(&granted(lease(0, 0, 1), 0));
    plain.refuse(&named(0, Some(digest())));
    plain.note(&named(0, None));
}

#[test]
fn tl_17_a_set_is_sealed_when_nobody_can_add_to_it_and_closed_when_it_is_unmasked() {
    let mut book = agreed();
    for unit in [0, 1, 3] {
        book.note(&given(unit));
    }
    let three = sealed(0, &[(0, 1, 32), (1, 1, 32), (3, 1, 32)], 0);
    book.refuse(&three);
    book.refuse(&unmasked(&[2]));
    book.note(&ended(lease(0, 2, 1), 2));
    // The unit of a worker that is gone is nobody else's.
    book.refuse(&granted(lease(0, 2, 2), 2));
    book.note(&three);
    book.refuse(&closed(0, 1));
    book.refuse(&unmasked(&[]));
    book.refuse(&unmasked(&[1]));
    book.note(&unmasked(&[2]));
    book.refuse(&unmasked(&[2]));
    book.refuse(&dissolved(3));
    book.note(&closed(0, 1));
    let merge = book.run().merges.last().expect("it was merged");
    let unmasking = merge.unmasking.as_ref().expect("a masked sum");
    assert_eq!((unmasking.seeds.len(), unmasking.gone.len()), (3, 1));
    assert!(book.run().cohorts.is_empty());
}

#[test]
fn tl_17_fewer_than_the_threshold_are_never_sealed() {
    let mut book = agreed();
    for unit in [0, 1] {
        book.note(&given(unit));
    }
    book.note(&ended(lease(0, 2, 1), 2));
    book.refuse(&dissolved(2));
    book.note(&ended(lease(0, 3, 1), 3));
    book.refuse(&sealed(0, &[(0, 1, 32), (1, 1, 32)], 0));
    book.refuse(&dissolved(1));
    book.note(&dissolved(2));
    let (run, tokens) = (book.run(), &book.run().tokens);
    assert_eq!((tokens.merged.get(), tokens.abandoned.get()), (0, 128));
    assert_eq!((run.open.len(), run.cohorts.len()), (1, 0));
    // All units are granted again, each under the next epoch.
    for unit in 0..UNITS {
        book.refuse(&granted(lease(0, unit, 1), unit));
        book.note(&granted(lease(0, unit, 2), unit));
    }
}

#[test]
fn tl_17_a_sealed_set_that_nobody_unmasks_can_be_given_up() {
    let mut book = agreed();
    for unit in 0..UNITS {
        book.note(&given(unit));
    }
    let inputs = [(0, 1, 32), (1, 1, 32), (2, 1, 32), (3, 1, 32)];
    // Before the seal they are enough for a sum, and under a hold there is none.
    book.refuse(&dissolved(4));
    book.note(&sealed(0, &inputs, 0));
    book.note(&LedgerEvent::HoldPlaced {
        hold: Hold::Merges,
        operator: kit::operator(),
        reason: "test".parse().expect("a reason"),
    });
    book.refuse(&dissolved(4));
    book.note(&LedgerEvent::HoldLifted {
        hold: Hold::Merges,
        operator: kit::operator(),
        reason: "test".parse().expect("a reason"),
    });
    book.note(&dissolved(4));
    assert!(book.run().sealed.is_empty());
    book.note(&granted(lease(0, 0, 2), 0));
}

#[test]
fn tl_17_an_open_cohort_is_in_a_checkpoint() {
    let mut book = agreed();
    for unit in 0..UNITS {
        book.note(&given(unit));
    }
    let inputs = [(0, 1, 32), (1, 1, 32), (2, 1, 32), (3, 1, 32)];
    book.note(&sealed(0, &inputs, 0));
    let again = |book: &Book| {
        let state = State::from_checkpoint(&book.state().to_checkpoint());
        let state = state.expect("it reads back");
        assert_eq!(state.run(&run_id()), Some(book.run()));
        state
    };
    again(&book);
    book.note(&unmasked(&[]));
    let mut state = again(&book);
    let close = closed(0, 1);
    state
        .apply(TIME, Some(&run_id()), &close)
        .expect("it goes on");
}

/// The first input of the round that is open.
fn input(run: &mut Run) -> &mut MergeInput {
    match run.open.values_mut().next() {
        Some(OpenSync::Collecting(inputs)) => inputs.values_mut().next().expect("one is in"),
        other => panic!("{other:?} does not collect"),
    }
}

/// A forged checkpoint must not bring in what the cohort did not do.
#[test]
fn tl_17_a_state_in_which_a_stranger_counts_in_a_masked_round_contradicts_itself() {
    let mut book = agreed();
    (0..UNITS).for_each(|unit| book.note(&given(unit)));
    book.run().check().expect("nothing is wrong with it");
    let (strange, early) = ("is none of its cohort's", "is unmasked and not sealed");
    type Change = fn(&mut Run);
    let changes: [(Change, &str); 7] = [
        (|run| drop(cohort_of(run).remove(0)), strange),
        (|run| cohort_of(run)[0].epoch = Epoch(2), strange),
        (|run| input(run).weight = Weight(0), strange),
        (
            |run| {
                let accepted = run.accepted.get_mut(&kit::train(0, 0));
                accepted.expect("it counts").fate = Fate::Late;
            },
            strange,
        ),
        (
            |run| {
                let record = run.cohorts.get_mut(&Round(0)).expect("it is sealed");
                record.unmasking = Some(Unmasking {
                    cohort: digest(),
                    seeds: vec![],
                    masking: vec![],
                    gone: vec![],
                });
            },
            early,
        ),
        (
            |run| {
                let record = run.cohorts[&Round(0)].clone();
                run.cohorts.insert(Round(1), record);
            },
            "round 1 has a cohort and is not open",
        ),
        (
            |run| run.spec.secure_aggregation = None,
            "round 0 has a cohort and is not open",
        ),
    ];
    for (change, wanted) in changes {
        let mut run = book.run().clone();
        change(&mut run);
        let found = run.check().expect_err("no ledger comes to this");
        assert!(found.contains(wanted), "{found}");
    }
}

fn cohort_of(run: &mut Run) -> &mut Vec<CohortMember> {
    let record = run.cohorts.get_mut(&Round(0));
    &mut record.expect("it is sealed").members
}

/// A masked run of several rounds, in which worker 4 evaluates.
fn evaluating() -> Book {
    let mut spec = kit::masked_run_spec(UNITS)
        .initial(vec![kit::object("initial")])
        .build();
    spec.schedule.evaluation_every = 1;
    let mut book = Book::of(spec);
    book.note(&joined(3));
    book.note(&joined(4));
    book
}

/// Fixes the workers of a round.
fn agree(book: &mut Book, round: u64) {
    book.note(&opened(round));
    for unit in 0..UNITS {
        book.note(&granted(lease(round, unit, 1), unit));
    }
    let (round, members) = (Round(round), all());
    book.note(&LedgerEvent::CohortSealed { round, members });
}

fn done(book: &mut Book, round: u64, units: std::ops::Range<u32>) {
    for unit in units {
        book.note(&accepted(lease(round, unit, 1), unit));
    }
}

#[test]
fn tl_17_an_evaluation_that_is_under_way_keeps_no_masked_round_from_its_seal() {
    let mut book = evaluating();
    agree(&mut book, 0);
    book.note(&granted(evaluation(0, 1), 4));
    done(&mut book, 0, 0..UNITS);
    assert!(book.run().is_settled(Round(0)) && !book.run().is_settled(Round(1)));
    book.note(&sealed(
        0,
        &[(0, 1, 32), (1, 1, 32), (2, 1, 32), (3, 1, 32)],
        0,
    ));
    let units = (0..UNITS).map(UnitIndex).collect();
    assert_eq!(book.run().sealed_masked(), Some((Round(0), units)));
    book.note(&unmasked(&[]));
    assert_eq!(book.run().sealed_masked(), None);
    book.note(&closed(0, 1));
    assert_eq!(book.run().view(&run_id()).train_loss, None);
}

/// Results of another round, and the evaluation of the same number, stay known.
#[test]
fn tl_17_a_cohort_that_is_given_up_takes_nothing_from_other_rounds() {
    let mut book = evaluating();
    agree(&mut book, 0);
    done(&mut book, 0, 0..UNITS);
    book.note(&sealed(
        0,
        &[(0, 1, 32), (1, 1, 32), (2, 1, 32), (3, 1, 32)],
        0,
    ));
    book.note(&unmasked(&[]));
    book.note(&closed(0, 1));
    agree(&mut book, 1);
    book.evaluate(1, 4);
    done(&mut book, 1, 0..2);
    for unit in 2..UNITS {
        book.note(&ended(lease(1, unit, 1), unit));
    }
    let (round, contributions) = (Round(1), 2);
    book.note(&LedgerEvent::CohortDissolved {
        round,
        contributions,
    });
    let run = book.run();
    let mut expected: Vec<_> = (0..UNITS).map(|unit| kit::train(0, unit)).collect();
    expected.push(kit::evaluate(1));
    expected.sort();
    assert_eq!(run.accepted.keys().copied().collect::<Vec<_>>(), expected);
    let (old, new) = (&run.rounds[0], &run.rounds[1]);
    assert_eq!(
        (old.tokens, new.tokens, new.loss_sum),
        (Tokens(128), Tokens(0), 0.0)
    );
    assert_eq!(
        (run.tokens.merged, run.tokens.abandoned),
        (Tokens(128), Tokens(128))
    );
    let offered: BTreeSet<_> = run.units.keys().copied().collect();
    let training = (0..UNITS).map(|unit| kit::train(1, unit));
    assert_eq!(offered, training.chain([kit::evaluate(0)]).collect());
    assert!(
        run.base(&kit::train(1, 0))
            .all(|weights| weights.round == Round(1))
    );
}
