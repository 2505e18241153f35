//! Answers of the state to other crates: its runs, and the inputs that a seal can still name.

use ledger::{OpenSync, State};
use schemas::{Fragment, Round, RunId, SyncId};

use crate::kit::{Book, TIME, created, joined, opened, sealed, spec};

/// The units that a seal can still name.
fn unnamed(book: &Book) -> Option<Vec<u32>> {
    let (round, fragment) = (Round(0), Fragment::FIRST);
    let open = &book.run().open[&SyncId { round, fragment }];
    let inputs = OpenSync::unnamed(open)?;
    Some(inputs.map(|input| input.lease.unit.index.get()).collect())
}

#[test]
fn each_part_of_a_seal_leaves_what_it_did_not_name() {
    let mut spec = spec();
    spec.schedule.units = 3;
    let mut book = Book::of(spec);
    book.note(&joined(3));
    book.note(&opened(0));
    assert_eq!(unnamed(&book), Some(vec![]));
    // Results arrive in another order than the one in which they are named.
    for unit in [2, 0, 1] {
        book.contribute(0, unit, unit);
    }
    assert_eq!(unnamed(&book), Some(vec![0, 1, 2]));
    book.note(&sealed(0, &[(0, 1, 32)], 2));
    assert_eq!(unnamed(&book), Some(vec![1, 2]));
    book.note(&sealed(0, &[(1, 1, 32), (2, 1, 32)], 0));
    assert_eq!(unnamed(&book), None);
}

#[test]
fn every_run_stands_under_its_name() {
    let mut state = State::default();
    let names = ["one", "two"].map(|name| name.parse::<RunId>().expect("a name"));
    for name in &names {
        let mut spec = spec();
        spec.run = name.clone();
        let applied = state.apply(TIME, Some(name), &created(spec));
        applied.expect("it is the first of its name");
    }
    let runs: Vec<(&RunId, &RunId)> = state
        .runs()
        .map(|(name, run)| (name, &run.spec.run))
        .collect();
    assert_eq!(runs, names.each_ref().map(|name| (name, name)));
}
