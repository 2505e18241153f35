//! The comparison of norms and chunks, and ledgers that leave out another contribution.

use kit::sized;
use ledger::{OpenSync, State};
use schemas::contribution::Fate;
use schemas::event::LedgerEvent;
use schemas::lease::LeaseRef;
use schemas::run::{Comparison, RunSpec};
use schemas::{Chunks, Fragment, Round, SyncId, Tokens, UnitIndex, Weight};

use crate::kit::{Book, accepted, closed, granted, lease, opened, sealed, spec};

fn compared(units: u32) -> RunSpec {
    let mut spec = spec();
    spec.schedule.units = units;
    spec.schedule.rounds = 40;
    spec.policy.comparison = Comparison::of_norms(4.0);
    spec
}

fn of_norm(lease: LeaseRef, number: u32, size: f64) -> LedgerEvent {
    let mut event = accepted(lease, number);
    if let LedgerEvent::ContributionAccepted { norm, .. } = &mut event {
        *norm = size;
    }
    event
}

/// A round with these norms, one worker for each unit, up to its seal.
fn round(book: &mut Book, round: u64, norms: &[f64]) -> Vec<u32> {
    book.note(&opened(round));
    for (unit, norm) in (0..).zip(norms) {
        let lease = lease(round, unit, 1);
        book.note(&granted(lease, unit % 3));
        book.note(&of_norm(lease, unit % 3, *norm));
    }
    let outliers = book.run().outliers(schemas::Round(round));
    outliers.into_keys().map(UnitIndex::get).collect()
}

/// Seals and closes a round of which these units are left out.
fn finish(book: &mut Book, round: u64, units: u32, out: &[u32]) {
    let weight = |unit: u32| if out.contains(&unit) { 0 } else { 32 };
    let inputs: Vec<_> = (0..units).map(|unit| (unit, 1, weight(unit))).collect();
    book.note(&sealed(round, &inputs, 0));
    book.note(&closed(round, round + 1));
}

#[test]
fn a_norm_is_compared_with_half_of_the_others() {
    let judged = |norms: &[f64], older: &[f64]| -> Vec<usize> {
        let outliers = ledger::outliers(4.0, norms, older);
        (0..norms.len()).filter(|place| outliers[*place]).collect()
    };
    let none: [usize; 0] = [];
    assert_eq!(judged(&[1.0, 1.2, 4.0, 0.9], &[]), none);
    assert_eq!(judged(&[1.0, 1.2, 4.1, 0.9], &[]), [2]);
    // Of two without a history the larger one is left out, for safety.
    assert_eq!(judged(&[1.0, 100.0], &[]), [1]);
    assert_eq!(judged(&[0.01, 1.0], &[]), [1]);
    // With a history the honest one stays.
    assert_eq!(judged(&[1.0, 100.0], &[1.0, 1.1]), [1]);
    assert_eq!(judged(&[0.01, 1.0], &[1.0, 1.1, 0.9]), none);
    // The whole round may grow, and a round of one always counts.
    assert_eq!(judged(&[9.0, 10.0], &[1.0; 8]), none);
    assert_eq!(judged(&[100.0], &[1.0; 8]), none);
    // Zeros say nothing.
    assert_eq!(judged(&[0.0, 1.0, 0.0], &[]), none);
    assert_eq!(judged(&[0.0, 0.0], &[]), none);
    assert_eq!(judged(&[0.0, 1.0, 100.0], &[]), [2]);
    assert_eq!(judged(&[0.0, 0.0, 1.0, 100.0], &[]), [3]);
    // Half of the contributions cannot raise the bound.
    assert_eq!(
        judged(&[1.0, 1.0, 99.0, 99.0], &[1.0, 1.0, 4.0, 4.0]),
        [2, 3]
    );
}

#[test]
fn an_outlier_weighs_nothing_and_is_no_strike() {
    let mut book = Book::of(compared(3));
    assert_eq!(round(&mut book, 0, &[1.0, 1.0, 4.5]), [2]);
    let before = book.run().clone();
    // Nothing else may be left out, and the outlier must be.
    book.refuse(&sealed(0, &[(0, 1, 32), (1, 1, 32), (2, 1, 32)], 0));
    book.refuse(&sealed(0, &[(0, 1, 0), (1, 1, 32), (2, 1, 32)], 0));
    book.refuse(&sealed(0, &[(0, 1, 0), (1, 1, 32), (2, 1, 0)], 0));
    book.refuse(&sealed(0, &[(0, 1, 32), (1, 1, 32)], 0));
    book.note(&sealed(0, &[(0, 1, 32), (1, 1, 32), (2, 1, 0)], 0));
    let run = book.run();
    assert_eq!(run.tokens.merged, Tokens(64));
    assert_eq!(run.tokens.rejected, Tokens(32));
    assert_eq!(run.rounds[0].tokens, Tokens(64));
    assert_eq!(run.rounds[0].loss_sum, 2.5 * 64.0);
    let fates = run.accepted.values().map(|accepted| accepted.fate);
    assert!(fates.eq([Fate::Merged, Fate::Merged, Fate::Rejected]));
    for (worker, member) in &run.members {
        assert_eq!(member.rejected, before.members[worker].rejected);
    }
    book.note(&closed(0, 1));
    let weights = book.run().merges[0]
        .inputs
        .iter()
        .map(|input| input.weight.get());
    assert!(weights.eq([32, 32, 0]));
    // An auditor compares the norms that decided.
    let norms = book.run().merges[0].inputs.iter().map(|input| input.norm);
    assert!(norms.eq([Some(1.0), Some(1.0), Some(4.5)]));
}

/// A forged checkpoint could merge what the ledger has left out.
#[test]
fn a_state_in_which_a_rejected_result_has_a_weight_is_no_ledgers() {
    let mut book = Book::of(compared(3));
    assert_eq!(round(&mut book, 0, &[1.0, 1.0, 4.5]), [2]);
    book.note(&sealed(0, &[(0, 1, 32), (1, 1, 32), (2, 1, 0)], 0));
    let mut run = book.run().clone();
    run.check().expect("nothing is wrong with it");
    let first = SyncId {
        round: Round(0),
        fragment: Fragment::FIRST,
    };
    match run.open.get_mut(&first) {
        Some(OpenSync::Sealed(set)) => set[2].weight = Weight(32),
        other => panic!("{other:?}"),
    }
    let fault = run.check().expect_err("no ledger comes to this");
    assert!(fault.contains("does not count"), "{fault}");
}

#[test]
fn a_set_in_parts_leaves_out_the_same() {
    let mut book = Book::of(compared(4));
    assert_eq!(round(&mut book, 0, &[9.0, 1.0, 1.0, 9.0]), [0, 3]);
    book.note(&sealed(0, &[(0, 1, 0), (1, 1, 32)], 2));
    assert_eq!(book.run().tokens.rejected, Tokens(32));
    book.refuse(&sealed(0, &[(2, 1, 32), (3, 1, 32)], 0));
    book.note(&sealed(0, &[(2, 1, 32), (3, 1, 0)], 0));
    assert_eq!(book.run().tokens.rejected, Tokens(64));
}

#[test]
fn what_was_left_out_is_no_measure_for_the_next_round() {
    let mut book = Book::of(compared(2));
    assert_eq!(round(&mut book, 0, &[1.0, 100.0]), [1]);
    finish(&mut book, 0, 2, &[1]);
    // The honest one stays.
    assert_eq!(round(&mut book, 1, &[1.0, 100.0]), [1]);
    finish(&mut book, 1, 2, &[1]);
    assert_eq!(round(&mut book, 2, &[0.01, 1.0]), [0_u32; 0]);
}

/// The norms of a round count once beside those before it.
#[test]
fn a_round_that_takes_short_steps_is_compared_with_the_longer_ones_before() {
    let mut book = Book::of(compared(4));
    assert_eq!(round(&mut book, 0, &[10.0; 4]), [0_u32; 0]);
    finish(&mut book, 0, 4, &[]);
    assert_eq!(round(&mut book, 1, &[1.0, 1.0, 1.0, 35.0]), [0_u32; 0]);
    finish(&mut book, 1, 4, &[]);
    assert_eq!(round(&mut book, 2, &[1.0, 1.0, 1.0, 41.0]), [3]);
}

#[test]
fn a_few_older_contributions_are_kept() {
    let mut book = Book::of(compared(2));
    for number in 0..30 {
        assert_eq!(round(&mut book, number, &[1.0, 1.0]), [0_u32; 0]);
        finish(&mut book, number, 2, &[]);
        let kept = book.run().measured.len() as u64;
        assert_eq!(kept, (2 * number + 2).min(18));
    }
    let bytes = book.state().to_checkpoint();
    let again = State::from_checkpoint(&bytes).expect("it reads back");
    assert_eq!(again.run(&crate::kit::run_id()), Some(book.run()));
    // A run that compares nothing keeps nothing.
    let mut book = Book::new();
    assert_eq!(round(&mut book, 0, &[1.0, 100.0]), [0_u32; 0]);
    assert!(book.run().measured.is_empty());
}

#[test]
fn a_copy_of_the_round_before_is_found_and_of_no_other() {
    let mut book = Book::of(compared(2));
    let chunks = |round, unit| {
        let name = lease(round, unit, 1).to_string();
        Chunks::from(vec![sized(&name, 16)]).digest()
    };
    for number in 0..3 {
        round(&mut book, number, &[1.0, 1.0]);
        finish(&mut book, number, 2, &[]);
    }
    round(&mut book, 3, &[1.0]);
    let copied = |unit: LeaseRef, of| book.run().copied_from(&unit.unit, of);
    let unit = lease(3, 1, 1);
    assert_eq!(copied(unit, chunks(3, 0)), None);
    assert_eq!(copied(unit, chunks(2, 1)), Some(lease(2, 1, 1).unit));
    assert_eq!(copied(unit, chunks(1, 1)), None);
    assert_eq!(copied(unit, chunks(3, 1)), None);
    assert_eq!(copied(lease(3, 0, 1), chunks(3, 0)), None);
}
