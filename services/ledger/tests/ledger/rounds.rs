//! Rounds: several open at once, sealed sets, late results, and ledgers that name no sets.

use ledger::Fates;
use schemas::contribution::Fate;
use schemas::{Fragment, Round, Tokens, Weight};

use crate::kit::{Book, TIME, accepted, closed, ended, granted, lease, opened, saved, sealed};

/// Rounds, units and weights of the merges, in their order.
fn merges(book: &Book) -> Vec<(u64, Vec<(u32, u64)>)> {
    let merges = book.run().merges.iter();
    let one = |merge: &schemas::snapshot::MergeRecord| {
        let inputs = merge.inputs.iter();
        let inputs = inputs.map(|input| (input.lease.unit.index.get(), input.weight.get()));
        (merge.round.get(), inputs.collect())
    };
    merges.map(one).collect()
}

#[test]
fn several_rounds_are_open_and_are_merged_in_the_order_of_their_seals() {
    let mut book = Book::under_any_rule();
    for round in 0..3 {
        book.note(&opened(round));
    }
    book.refuse(&opened(3));
    for (round, unit, worker) in [(2, 1, 0), (0, 1, 1), (2, 0, 2), (1, 0, 0)] {
        book.contribute(round, unit, worker);
    }
    // All rounds start from the only weights.
    let base = |book: &Book, round| {
        let unit = lease(round, 0, 1).unit;
        book.run().base(&unit).map(|weights| weights.round).next()
    };
    assert_eq!(
        [0, 1, 2].map(|round| base(&book, round)),
        [Some(Round(0)); 3]
    );
    book.note(&sealed(2, &[(0, 1, 32), (1, 1, 8)], 0));
    book.contribute(0, 0, 1);
    book.note(&sealed(0, &[(0, 1, 32), (1, 1, 32)], 0));
    book.contribute(1, 1, 2);
    // Round 0 is older, and round 2 was sealed before it; round 1 is not sealed.
    book.refuse(&closed(0, 1));
    book.refuse(&closed(1, 1));
    book.refuse(&closed(2, 3));
    book.note(&closed(2, 1));
    book.note(&sealed(1, &[(0, 1, 32), (1, 1, 0)], 0));
    assert_eq!(book.run().rounds_closed(), Round(1));
    book.refuse(&closed(2, 2));
    book.note(&closed(0, 2));
    book.note(&closed(1, 3));
    assert_eq!(
        merges(&book),
        [
            (2, vec![(0, 32), (1, 8)]),
            (0, vec![(0, 32), (1, 32)]),
            (1, vec![(0, 32), (1, 0)]),
        ]
    );
    let run = book.run();
    assert_eq!(run.version(Fragment::FIRST), Round(3));
    assert!(run.open.is_empty() && run.sealed.is_empty() && run.units.is_empty());
    assert_eq!(run.tokens.merged, Tokens(6 * 32));
}

#[test]
fn what_comes_after_the_seal_is_late_or_abandoned_and_weighs_nothing() {
    let mut book = Book::under_any_rule();
    book.note(&opened(0));
    book.note(&opened(1));
    let slow = [lease(0, 1, 1), lease(1, 1, 1)];
    book.note(&granted(slow[0], 0));
    book.note(&granted(slow[1], 1));
    book.contribute(0, 0, 2);
    book.note(&sealed(0, &[(0, 1, 32)], 0));
    book.contribute(1, 0, 2);
    book.note(&sealed(1, &[(0, 1, 32)], 0));
    // One result comes before its round is merged; the other's lease ends long after.
    book.note(&accepted(slow[0], 0));
    let fate = |book: &Book, unit| book.run().accepted[&unit].fate;
    assert_eq!(fate(&book, slow[0].unit), Fate::Late);
    assert_eq!(fate(&book, lease(0, 0, 1).unit), Fate::Merged);
    book.note(&closed(0, 1));
    book.note(&closed(1, 2));
    assert_eq!(book.run().tokens_in_flight(), Tokens(32));
    book.note(&ended(slow[1], 1));
    let run = book.run();
    assert!(run.units.is_empty(), "nobody begins what cannot count");
    assert_eq!(
        run.tokens,
        Fates {
            issued: Tokens(4 * 32),
            merged: Tokens(2 * 32),
            late: Tokens(32),
            rejected: Tokens(0),
            abandoned: Tokens(32),
        }
    );
    assert_eq!(merges(&book), [(0, vec![(0, 32)]), (1, vec![(0, 32)])]);
}

#[test]
fn a_unit_that_nobody_holds_is_off_the_offer_when_its_round_is_sealed() {
    let mut book = Book::under_any_rule();
    book.note(&opened(0));
    book.contribute(0, 0, 0);
    book.note(&sealed(0, &[(0, 1, 32)], 0));
    book.refuse(&granted(lease(0, 1, 1), 1));
}

#[test]
fn a_seal_names_all_that_was_accepted_once_and_in_order() {
    let mut book = Book::under_any_rule();
    book.refuse(&sealed(0, &[(0, 1, 32)], 0));
    book.note(&opened(0));
    book.refuse(&sealed(0, &[], 0));
    book.contribute(0, 0, 0);
    book.contribute(0, 1, 1);
    for inputs in [
        &[(0, 1, 32)][..],
        &[(0, 2, 32), (1, 1, 32)],
        &[(1, 1, 32), (0, 1, 32)],
        &[(0, 1, 32), (0, 1, 32)],
        &[(0, 1, 32), (1, 1, 32), (2, 1, 32)],
    ] {
        book.refuse(&sealed(0, inputs, 0));
    }
    book.note(&sealed(0, &[(0, 1, 32), (1, 1, 32)], 0));
    book.refuse(&sealed(0, &[(0, 1, 32), (1, 1, 32)], 0));
}

#[test]
fn a_seal_in_parts_takes_nothing_from_its_first_part_on() {
    let mut book = Book::under_any_rule();
    book.note(&opened(0));
    book.contribute(0, 0, 0);
    book.contribute(0, 1, 1);
    book.refuse(&sealed(0, &[(0, 1, 32)], 2));
    book.note(&sealed(0, &[(0, 1, 32)], 1));
    let open = book.run().open.values().next();
    assert!(open.is_some_and(|open| !open.collects() && open.inputs().count() == 2));
    book.refuse(&closed(0, 1));
    book.refuse(&sealed(0, &[(0, 1, 32)], 0));
    book.note(&sealed(0, &[(1, 1, 16)], 0));
    book.note(&closed(0, 1));
    assert_eq!(merges(&book), [(0, vec![(0, 32), (1, 16)])]);
    assert_eq!(book.run().merges[0].inputs[1].weight, Weight(16));
}

/// A set of inputs that all weigh nothing has no mean.
#[test]
fn a_set_that_weighs_nothing_is_refused() {
    let mut book = Book::under_any_rule();
    book.note(&opened(0));
    book.contribute(0, 0, 0);
    book.contribute(0, 1, 1);
    book.refuse(&sealed(0, &[(0, 1, 0), (1, 1, 0)], 0));
    book.fits(&sealed(0, &[(0, 1, 0), (1, 1, 1)], 0));
    book.note(&sealed(0, &[(0, 1, 0)], 1));
    book.refuse(&sealed(0, &[(1, 1, 0)], 0));
    book.note(&sealed(0, &[(1, 1, 1)], 0));
}

/// Rounds may be merged in another order than they were opened in. Versions count merges, whatever
/// the numbers of the rounds.
#[test]
fn versions_are_counted_by_merges_and_not_by_rounds() {
    let mut book = Book::under_any_rule();
    for round in [0, 1] {
        book.note(&opened(round));
        book.contribute(round, 0, 0);
        book.contribute(round, 1, 1);
    }
    let both = [(0, 1, 32), (1, 1, 32)];
    book.note(&sealed(1, &both, 0));
    book.note(&closed(1, 1));
    assert!(book.run().unsaved().eq([Round(1)]));
    book.note(&sealed(0, &both, 0));
    book.note(&closed(0, 2));
    assert!(book.run().unsaved().eq([Round(1), Round(2)]));
    book.note(&saved(1));
    assert!(book.run().unsaved().eq([Round(2)]));
    let left: Vec<Round> = book.run().merges.iter().map(|merge| merge.round).collect();
    assert_eq!(left, [Round(0)], "the merge of round 1 came first");
}

#[test]
fn a_ledger_of_before_names_no_sets_and_one_that_names_them_names_all() {
    let mut book = Book::new();
    book.note(&opened(0));
    book.contribute(0, 1, 0);
    book.refuse(&closed(0, 1));
    book.contribute(0, 0, 1);
    book.note(&closed(0, 1));
    assert_eq!(merges(&book), [(0, vec![(0, 32), (1, 32)])]);
    let begin = |book: &mut Book, round| {
        book.note(&opened(round));
        book.contribute(round, 0, 0);
        book.contribute(round, 1, 0);
    };
    begin(&mut book, 1);
    book.note(&sealed(1, &[(0, 1, 32), (1, 1, 32)], 0));
    book.note(&closed(1, 2));
    begin(&mut book, 2);
    book.refuse(&closed(2, 3));
}

#[test]
fn a_run_that_waits_for_all_is_sealed_whole_by_its_tokens_and_one_round_at_a_time() {
    let mut book = Book::new();
    book.note(&opened(0));
    book.refuse(&opened(1));
    book.contribute(0, 0, 0);
    // Even the holder of the coordinator's key cannot leave a worker out.
    book.refuse(&sealed(0, &[(0, 1, 32)], 0));
    book.contribute(0, 1, 1);
    for weights in [[32, 0], [16, 32], [32, 33]] {
        book.refuse(&sealed(0, &[(0, 1, weights[0]), (1, 1, weights[1])], 0));
    }
    book.refuse(&sealed(0, &[(0, 1, 0)], 1));
    book.note(&sealed(0, &[(0, 1, 32)], 1));
    book.refuse(&sealed(0, &[(1, 1, 16)], 0));
    book.note(&sealed(0, &[(1, 1, 32)], 0));
    book.refuse(&opened(1));
    book.note(&closed(0, 1));
    book.note(&opened(1));
}

#[test]
fn a_round_has_the_times_of_its_events() {
    let mut book = Book::new();
    book.note(&opened(0));
    book.contribute(0, 0, 0);
    book.contribute(0, 1, 1);
    book.note(&sealed(0, &[(0, 1, 32), (1, 1, 32)], 0));
    assert_eq!(book.run().rounds[0].opened_at, TIME);
    assert_eq!(book.run().rounds[0].closed_at, None);
    book.note(&closed(0, 1));
    assert_eq!(book.run().rounds[0].closed_at, Some(TIME));
}
