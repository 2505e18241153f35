//! The comparison of directions and of stated losses, and ledgers that leave out another
//! contribution, or without a reason.

use ledger::{State, unlike};
use schemas::event::LedgerEvent;
use schemas::hold::Reason;
use schemas::run::{Comparison, RunSpec};
use schemas::sync::ComparedInput;
use schemas::{Code, Epoch, Round, Tokens, UnitIndex};

use crate::kit::{
    Book, accepted, closed, granted, hold, joined, lease, opened, run_id, sealed, spec, worker,
};

/// The settings compare directions; a cosine below -0.1 falls out.
fn compared(units: u32) -> RunSpec {
    with(units, Some(-0.1), None)
}

fn with(units: u32, cosine_min: Option<f64>, loss_ratio_max: Option<f64>) -> RunSpec {
    let mut spec = spec();
    spec.schedule.units = units;
    spec.schedule.rounds = 40;
    spec.policy.comparison = Comparison::Others {
        norm_ratio_max: 4.0,
        cosine_min,
        loss_ratio_max,
    };
    spec
}

/// The contributions of a round, each with its norm and its stated loss, each of another worker.
fn hand_in(book: &mut Book, round: u64, given: &[(f64, f64)]) {
    let makers: Vec<u32> = (0..given.len() as u32).collect();
    hand_in_of(book, round, &makers, given);
}

/// The same, of these workers.
fn hand_in_of(book: &mut Book, round: u64, makers: &[u32], given: &[(f64, f64)]) {
    for maker in makers {
        if !book.run().members.contains_key(&worker(*maker)) {
            book.note(&joined(*maker));
        }
    }
    book.note(&opened(round));
    for ((unit, maker), given) in (0..).zip(makers).zip(given) {
        let lease = lease(round, unit, 1);
        book.note(&granted(lease, *maker));
        let mut event = accepted(lease, *maker);
        if let LedgerEvent::ContributionAccepted {
            norm, contribution, ..
        } = &mut event
        {
            (*norm, contribution.loss) = *given;
        }
        book.note(&event);
    }
}

const USUAL: (f64, f64) = (1.0, 2.5);

/// `(unit, epoch, cosine)` for each contribution.
fn cosines(round: u64, cosines: &[(u32, u64, f32)]) -> LedgerEvent {
    let one = |&(unit, epoch, cosine): &(u32, u64, f32)| ComparedInput {
        unit: UnitIndex(unit),
        epoch: Epoch(epoch),
        cosine,
    };
    LedgerEvent::RoundCompared {
        round: Round(round),
        cosines: cosines.iter().map(one).collect(),
    }
}

/// A seal that leaves out what weighs nothing, each with this reason.
fn seal_for(round: u64, inputs: &[(u32, u64, u64)], code: Code) -> LedgerEvent {
    let mut event = sealed(round, inputs, 0);
    if let LedgerEvent::RoundSealed { left_out, .. } = &mut event {
        for (_, reason) in left_out {
            *reason = code;
        }
    }
    event
}

fn out(book: &Book, round: u64) -> Vec<(u32, Code)> {
    let outliers = book.run().outliers(Round(round));
    let out = outliers.into_iter();
    out.map(|(unit, code)| (unit.get(), code)).collect()
}

const ALL: [(u32, u64, u64); 3] = [(0, 1, 32), (1, 1, 32), (2, 1, 32)];
const WITHOUT_2: [(u32, u64, u64); 3] = [(0, 1, 32), (1, 1, 32), (2, 1, 0)];

#[test]
fn who_points_against_the_others_is_left_out_with_its_reason() {
    let mut book = Book::of(compared(3));
    hand_in(&mut book, 0, &[USUAL; 3]);
    assert_eq!(book.run().uncompared(Round(0)).len(), 3);
    book.refuse(&sealed(0, &ALL, 0));
    book.note(&cosines(0, &[(0, 1, 0.5), (1, 1, -0.1), (2, 1, -0.11)]));
    assert!(book.run().uncompared(Round(0)).is_empty());
    // The bound itself stays.
    assert_eq!(out(&book, 0), [(2, Code::DirectionOutlier)]);
}

#[test]
fn a_seal_leaves_out_exactly_those_and_says_why() {
    let mut book = Book::of(compared(3));
    hand_in(&mut book, 0, &[USUAL; 3]);
    book.note(&cosines(0, &[(0, 1, 0.5), (1, 1, -0.05), (2, 1, -0.5)]));
    assert_eq!(out(&book, 0), [(2, Code::DirectionOutlier)]);
    book.refuse(&sealed(0, &ALL, 0));
    book.refuse(&seal_for(
        0,
        &[(0, 1, 32), (1, 1, 0), (2, 1, 0)],
        Code::DirectionOutlier,
    ));
    // Another reason, or none, is another seal.
    book.refuse(&seal_for(0, &WITHOUT_2, Code::NormOutlier));
    let mut silent = sealed(0, &WITHOUT_2, 0);
    if let LedgerEvent::RoundSealed { left_out, .. } = &mut silent {
        left_out.clear();
    }
    book.refuse(&silent);
    book.note(&seal_for(0, &WITHOUT_2, Code::DirectionOutlier));
    let run = book.run();
    assert_eq!(
        (run.tokens.merged, run.tokens.rejected),
        (Tokens(64), Tokens(32))
    );
    let shown = &run.view(&run_id()).left_out;
    assert_eq!(shown.len(), 1);
    assert_eq!(
        (shown[0].unit, shown[0].code),
        (lease(0, 2, 1).unit, Code::DirectionOutlier)
    );
    assert_eq!(shown[0].worker, worker(2));
    book.note(&closed(0, 1));
    // An auditor compares the cosines that decided.
    let merged = &book.run().merges[0].inputs;
    let recorded = merged.iter().map(|input| input.cosine);
    assert!(recorded.eq([Some(0.5), Some(-0.05), Some(-0.5)]));
    let bytes = book.state().to_checkpoint();
    let again = State::from_checkpoint(&bytes).expect("it reads back");
    assert_eq!(again.run(&run_id()), Some(book.run()));
}

#[test]
fn a_comparison_is_of_all_that_is_to_be_compared_and_of_nothing_else() {
    let mut book = Book::of(compared(3));
    let good = [(0, 1, 0.5), (1, 1, 0.5), (2, 1, 0.5)];
    book.refuse(&cosines(0, &good));
    hand_in(&mut book, 0, &[USUAL; 2]);
    // Not all are in.
    book.refuse(&cosines(0, &good[..2]));
    let last = lease(0, 2, 1);
    book.note(&granted(last, 2));
    book.note(&accepted(last, 2));
    for wrong in [
        &[][..],
        &[(3, 1, 0.5)],
        &[(0, 2, 0.5)],
        &[(0, 1, 1.5)],
        &[(0, 1, -1.5)],
        &[(0, 1, f32::NAN)],
        &[(1, 1, 0.5), (0, 1, 0.5)],
        &[(0, 1, 0.5), (0, 1, 0.5)],
    ] {
        book.refuse(&cosines(0, wrong));
    }
    book.refuse(&cosines(1, &good));
    // A hold keeps merges, and no comparison.
    book.note(&hold(true));
    // In parts; between them nothing is sealed, and a part may be written again.
    book.note(&cosines(0, &good[..2]));
    book.note(&hold(false));
    book.refuse(&sealed(0, &ALL, 0));
    book.note(&cosines(0, &good));
    book.refuse(&cosines(0, &good));
    book.note(&sealed(0, &ALL, 0));
    book.refuse(&cosines(0, &good));
    assert_eq!(book.run().tokens.rejected, Tokens(0));
}

/// Three are enough to compare with each other, and the round waits for a fourth.
#[test]
fn a_comparison_waits_for_all_that_its_round_waits_for() {
    let mut book = Book::of(compared(4));
    hand_in(&mut book, 0, &[USUAL; 3]);
    let good = [(0, 1, 0.5), (1, 1, 0.5), (2, 1, 0.5), (3, 1, 0.5)];
    book.refuse(&cosines(0, &good[..3]));
    let last = lease(0, 3, 1);
    book.note(&joined(3));
    book.note(&granted(last, 3));
    book.note(&accepted(last, 3));
    book.fits(&cosines(0, &good[..3]));
    book.note(&cosines(0, &good));
}

/// The bounds themselves are usual.
#[test]
fn a_loss_is_unlike_at_least_two_others_that_say_something() {
    let out = |losses: &[f64]| unlike(4.0, losses);
    assert_eq!(out(&[4.0, 4.0, 1.0, 16.0]), [false; 4]);
    assert_eq!(out(&[4.0, 4.0, 0.99, 16.01]), [false, false, true, true]);
    assert_eq!(out(&[1.0, 100.0]), [false; 2]);
    assert_eq!(out(&[0.0; 3]), [false; 3]);
    assert_eq!(out(&[-1.0, -9.0, 0.0]), [false; 3]);
}

#[test]
fn of_two_and_of_half_of_a_round_nobody_can_tell_who_is_wrong() {
    let mut book = Book::of(compared(2));
    hand_in(&mut book, 0, &[USUAL; 2]);
    assert!(book.run().uncompared(Round(0)).is_empty());
    book.refuse(&cosines(0, &[(0, 1, -1.0), (1, 1, -1.0)]));
    book.note(&sealed(0, &[(0, 1, 32), (1, 1, 32)], 0));
    for (given, falls) in [
        (&[0.5, -0.5, -0.5][..], 0),
        (&[0.5, 0.5, -0.5, -0.5], 0),
        (&[0.5, 0.5, 0.5, -0.5], 1),
        (&[0.5, 0.5, 0.5, -0.5, -0.5], 2),
        (&[-0.5, -0.5, 0.5, -0.5, 0.5], 0),
    ] {
        let mut book = Book::of(compared(given.len() as u32));
        hand_in(&mut book, 0, &vec![USUAL; given.len()]);
        book.note(&cosines(0, &named(given)));
        assert_eq!(out(&book, 0).len(), falls, "{given:?}");
    }
}

/// `(unit, epoch, cosine)` for each contribution of a round, all of the first epoch.
fn named(cosines: &[f32]) -> Vec<(u32, u64, f32)> {
    let units = 0..cosines.len() as u32;
    units
        .zip(cosines)
        .map(|(unit, cosine)| (unit, 1, *cosine))
        .collect()
}

/// One worker takes as many units of a round as it likes: it is one of the workers all the same.
#[test]
fn a_worker_with_most_of_a_rounds_units_is_one_of_its_workers() {
    // Two workers, of which one has two units of three.
    let mut book = Book::of(compared(3));
    hand_in_of(&mut book, 0, &[0, 1, 1], &[USUAL; 3]);
    assert!(book.run().uncompared(Round(0)).is_empty());
    book.refuse(&cosines(0, &named(&[-1.0, 0.5, 0.5])));
    book.note(&sealed(0, &ALL, 0));
    // Two honest ones, and one with three units of five.
    for (given, falls) in [
        (&[-0.5, -0.5, 0.5, 0.5, 0.5], &[][..]),
        (&[0.5, 0.5, -0.5, -0.5, -0.5], &[2, 3, 4]),
        (&[-0.5, 0.5, 0.5, 0.5, 0.5], &[0]),
        (&[-0.5, 0.5, -0.5, -0.5, -0.5], &[]),
    ] {
        let mut book = Book::of(compared(5));
        hand_in_of(&mut book, 0, &[0, 1, 2, 2, 2], &[USUAL; 5]);
        book.note(&cosines(0, &named(given)));
        let due: Vec<_> = falls
            .iter()
            .map(|unit| (*unit, Code::DirectionOutlier))
            .collect();
        assert_eq!(out(&book, 0), due, "{given:?}");
    }
    // All contributions of a worker have the cosine of the worker.
    let mut book = Book::of(compared(5));
    hand_in_of(&mut book, 0, &[0, 1, 2, 2, 2], &[USUAL; 5]);
    book.refuse(&cosines(0, &named(&[0.5, 0.5, 0.5, 0.5, 0.4])));
}

#[test]
fn a_worker_whose_contributions_are_tiny_is_judged_and_decides_nothing() {
    let tiny = (1e-6, 2.5);
    // With it there are three workers, of which two vote.
    let mut book = Book::of(compared(3));
    hand_in(&mut book, 0, &[USUAL, USUAL, tiny]);
    assert!(book.run().uncompared(Round(0)).is_empty());
    // It falls, and does not keep another from falling.
    for (given, falls) in [
        (&[0.5, 0.5, 0.5, -0.5, -0.5, -0.5][..], &[3, 4, 5][..]),
        (&[0.5, 0.5, -0.5, -0.5, 0.5, 0.5], &[]),
    ] {
        let mut book = Book::of(compared(6));
        hand_in(&mut book, 0, &[USUAL, USUAL, USUAL, USUAL, tiny, tiny]);
        book.note(&cosines(0, &named(given)));
        let due: Vec<_> = falls
            .iter()
            .map(|unit| (*unit, Code::DirectionOutlier))
            .collect();
        assert_eq!(out(&book, 0), due, "{given:?}");
    }
}

#[test]
fn losses_are_judged_by_workers_too() {
    for (makers, falls) in [
        (&[0, 1, 2, 3, 4], 2),
        (&[0, 1, 2, 2, 2], 0),
        (&[0, 0, 1, 1, 1], 0),
    ] {
        let mut book = Book::of(with(5, None, Some(10.0)));
        let given = [99.0, 99.0, 2.5, 2.5, 2.5].map(|loss| (1.0, loss));
        hand_in_of(&mut book, 0, makers, &given);
        assert_eq!(out(&book, 0).len(), falls, "{makers:?}");
    }
}

#[test]
fn what_is_left_out_anyway_or_has_no_length_is_not_compared() {
    let mut book = Book::of(compared(5));
    let (long, zeros) = ((50.0, 2.5), (0.0, 2.5));
    hand_in(&mut book, 0, &[USUAL, long, USUAL, zeros, USUAL]);
    let due = book.run().uncompared(Round(0));
    let units = due.iter().map(|input| input.lease.unit.index.get());
    assert!(units.eq([0, 2, 4]));
    let good = [(0, 1, 0.5), (2, 1, 0.5), (4, 1, -0.5)];
    for more in [(1, 1, 0.5), (3, 1, 0.5)] {
        let mut wrong = good.to_vec();
        wrong.push(more);
        wrong.sort_by_key(|(unit, ..)| *unit);
        book.refuse(&cosines(0, &wrong));
    }
    book.note(&cosines(0, &good));
    assert_eq!(
        out(&book, 0),
        [(1, Code::NormOutlier), (4, Code::DirectionOutlier)]
    );
    // A run that compares norms alone compares no directions.
    let mut book = Book::of(with(3, None, None));
    hand_in(&mut book, 0, &[USUAL; 3]);
    book.refuse(&cosines(0, &[(0, 1, 0.5)]));
    book.note(&sealed(0, &ALL, 0));
}

#[test]
fn contributions_that_stay_are_compared_anew_when_one_is_withdrawn() {
    let mut book = Book::of(compared(3));
    hand_in(&mut book, 0, &[USUAL; 3]);
    let all = [(0, 1, 0.5), (1, 1, 0.5), (2, 1, -0.5)];
    book.note(&cosines(0, &all));
    let reason: Reason = "it lies".parse().expect("a reason");
    book.note(&LedgerEvent::WorkerQuarantined {
        worker: worker(2),
        operator: kit::operator(),
        reason,
        lease: None,
        withdrawn: 1,
    });
    assert!(out(&book, 0).is_empty());
    let again = lease(0, 2, 2);
    book.note(&joined(3));
    book.note(&granted(again, 3));
    book.note(&accepted(again, 3));
    book.refuse(&sealed(0, &[(0, 1, 32), (1, 1, 32), (2, 2, 32)], 0));
    assert_eq!(book.run().uncompared(Round(0)).len(), 3);
    book.note(&cosines(0, &[(0, 1, 0.5), (1, 1, 0.5), (2, 2, 0.5)]));
    book.note(&sealed(0, &[(0, 1, 32), (1, 1, 32), (2, 2, 32)], 0));
}

#[test]
fn a_loss_unlike_the_others_is_left_out_where_losses_are_compared() {
    for (losses, falls) in [
        (&[2.5, 2.4, 2.6, 26.1][..], &[3][..]),
        (&[2.5, 2.4, 2.6, 25.0], &[]),
        (&[2.5, 2.4, 0.2, 2.6], &[2]),
        (&[2.5, 2.4, 0.3, 2.6], &[]),
        // Of two nobody can tell; nor of half of them.
        (&[2.5, 99.0], &[]),
        (&[2.5, 2.5, 99.0, 99.0], &[]),
        // A median of 0 says nothing.
        (&[0.0, 0.0, 0.0], &[]),
        (&[2.0, 0.0, 2.0], &[1]),
    ] {
        let mut book = Book::of(with(losses.len() as u32, None, Some(10.0)));
        let given: Vec<_> = losses.iter().map(|loss| (1.0, *loss)).collect();
        hand_in(&mut book, 0, &given);
        let due: Vec<_> = falls
            .iter()
            .map(|unit| (*unit, Code::LossOutlier))
            .collect();
        assert_eq!(out(&book, 0), due, "{losses:?}");
        let weight = |unit: u32| if falls.contains(&unit) { 0 } else { 32 };
        let units = losses.len() as u32;
        let inputs: Vec<_> = (0..units).map(|unit| (unit, 1, weight(unit))).collect();
        if !falls.is_empty() {
            // Where more than norms is compared, a seal says why.
            let mut silent = seal_for(0, &inputs, Code::LossOutlier);
            if let LedgerEvent::RoundSealed { left_out, .. } = &mut silent {
                left_out.clear();
            }
            book.refuse(&silent);
        }
        book.note(&seal_for(0, &inputs, Code::LossOutlier));
    }
    // Nobody is left out for it where they are not.
    let mut book = Book::of(with(3, None, None));
    hand_in(&mut book, 0, &[USUAL, USUAL, (1.0, 9999.0)]);
    assert!(out(&book, 0).is_empty());
}

#[test]
fn the_newest_that_were_left_out_are_shown() {
    let mut book = Book::of(compared(3));
    for round in 0..11 {
        hand_in(&mut book, round, &[USUAL; 3]);
        book.note(&cosines(round, &[(0, 1, 0.5), (1, 1, 0.5), (2, 1, -0.5)]));
        book.note(&seal_for(round, &WITHOUT_2, Code::DirectionOutlier));
        book.note(&closed(round, round + 1));
    }
    let shown = book.run().left_out.iter().map(|one| one.unit.round.get());
    assert!(shown.eq(3..11));
}
