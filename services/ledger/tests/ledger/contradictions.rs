//! States that no ledger leads to, such as those of a forged checkpoint or of a wrong fold: the
//! check of a state notices them.

use ledger::{CheckpointError, OpenSync, Run, State};
use schemas::checkpoint::CHECKPOINT_BYTES_MAX;
use schemas::{Fragment, Round, SyncId, UnitIndex};

use crate::kit::{Book, closed, evaluating, granted, joined, lease, opened, saved, sealed, spec};

/// The first round and its one fragment.
const FIRST: SyncId = SyncId {
    round: Round(0),
    fragment: Fragment::FIRST,
};

/// A run with these many units done in its first round.
fn with_units(done: u32) -> Book {
    let mut spec = spec();
    spec.schedule.units = 3;
    let mut book = Book::of(spec);
    book.note(&joined(3));
    book.note(&opened(0));
    for unit in 0..done {
        book.contribute(0, unit, unit);
    }
    book
}

/// Applies a change that no event makes, and returns the fault that the check finds.
fn fault(book: &Book, change: impl FnOnce(&mut Run)) -> String {
    let mut run = book.run().clone();
    run.check().expect("nothing is wrong with it");
    change(&mut run);
    run.check().expect_err("no ledger comes to this")
}

#[test]
fn a_run_has_no_more_rounds_than_are_planned_and_those_without_end_are_open() {
    let mut book = Book::of(evaluating());
    book.round(0);
    let more = fault(&book, |run| run.spec.schedule.rounds = 0);
    assert_eq!(more, "1 rounds were opened, of 0 planned");
    let endless = fault(&book, |run| run.rounds[0].closed_at = None);
    assert_eq!(endless, "0 rounds are open, of 1 that were opened");
}

#[test]
fn what_is_sealed_ascends_and_names_no_result_twice() {
    let mut book = with_units(3);
    let mut parts = book.clone();
    parts.note(&sealed(0, &[(0, 1, 32), (1, 1, 32)], 1));
    let turned = fault(&parts, |run| match run.open.get_mut(&FIRST) {
        Some(OpenSync::Sealing { set, .. }) => set.reverse(),
        other => panic!("{other:?}"),
    });
    assert!(turned.ends_with("does not ascend"), "{turned}");
    book.note(&sealed(0, &[(0, 1, 32), (1, 1, 32), (2, 1, 32)], 0));
    for change in [(0, 1), (1, 2), (2, 0)] {
        let twice = fault(&book, |run| match run.open.get_mut(&FIRST) {
            Some(OpenSync::Sealed(set)) => set[change.0] = set[change.1].clone(),
            other => panic!("{other:?}"),
        });
        assert!(
            twice.contains("does not ascend, or weighs nothing"),
            "{twice}"
        );
    }
}

#[test]
fn nobody_holds_a_unit_of_a_round_that_was_not_opened() {
    let mut book = with_units(2);
    let held = lease(0, 2, 1);
    book.note(&granted(held, 2));
    let ahead = fault(&book, |run| {
        let unit = run.units.remove(&held.unit).expect("it is held");
        let mut moved = held;
        moved.unit.round = Round(1);
        run.units.insert(moved.unit, unit);
        let members = run.members.values_mut();
        let mut holders = members.filter(|member| member.lease == Some(held));
        holders.next().expect("somebody holds it").lease = Some(moved);
    });
    assert!(ahead.contains("has no place"), "{ahead}");
}

#[test]
fn a_result_that_counts_has_a_place_in_its_round() {
    let book = with_units(2);
    let lost = fault(&book, |run| match run.open.get_mut(&FIRST) {
        Some(OpenSync::Collecting(inputs)) => drop(inputs.remove(&UnitIndex(1))),
        other => panic!("{other:?}"),
    });
    assert!(lost.contains("has no place"), "{lost}");
}

/// A snapshot of older weights keeps the merges since those weights.
#[test]
fn a_snapshot_takes_the_place_of_the_merges_that_it_holds_and_of_no_other() {
    let mut book = Book::of(evaluating());
    book.round(0);
    book.note(&saved(1));
    book.note(&opened(1));
    book.contribute(1, 0, 0);
    book.note(&sealed(1, &[(0, 1, 32)], 0));
    book.note(&closed(1, 2));
    book.round(2);
    book.note(&saved(2));
    let left: Vec<Round> = book.run().merges.iter().map(|merge| merge.round).collect();
    assert_eq!(left, [Round(2)]);
}

#[test]
fn a_checkpoint_has_a_longest_length() {
    let longest = CHECKPOINT_BYTES_MAX.get() as usize;
    let mut bytes = vec![0; longest + 1];
    let error = State::from_checkpoint(&bytes).expect_err("no state is so long");
    assert!(
        matches!(error, CheckpointError::TooLong(found) if found == longest + 1),
        "{error}"
    );
    bytes.truncate(longest);
    let error = State::from_checkpoint(&bytes).expect_err("it is no state");
    assert!(matches!(error, CheckpointError::Malformed(_)), "{error}");
}
