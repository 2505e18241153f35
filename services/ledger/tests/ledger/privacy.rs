//! Private runs: ledgers that pass a budget or end it early do not follow, and what is spent is in
//! a checkpoint.

use ledger::{BudgetEnd, State};
use schemas::contribution::Fate;
use schemas::event::{Departure, LedgerEvent};
use schemas::run::{Comparison, RunSpec};
use schemas::view::RunPhase;
use schemas::{Round, Tokens};

use crate::groups::{seat, seated};
use crate::kit::{
    Book, TIME, accepted, closed, ended, evaluation, granted, joined, lease, left, opened, run_id,
    sealed, spec,
};

/// Settings whose budget lasts for exactly so many disclosures.
fn private(disclosures: u64) -> RunSpec {
    let mut privacy = kit::privacy();
    privacy.epsilon = ::privacy::epsilon(&privacy, disclosures);
    let mut spec = spec();
    spec.policy.norm_max = 0.0;
    spec.privacy = Some(privacy);
    spec
}

/// A round of which workers 0 and 1 take a unit each.
fn round(book: &mut Book, round: u64) {
    book.note(&opened(round));
    book.contribute(round, 0, 0);
    book.contribute(round, 1, 1);
    merge(book, round);
}

fn merge(book: &mut Book, round: u64) {
    book.note(&sealed(round, &[(0, 1, 32), (1, 1, 32)], 0));
    book.note(&closed(round, round + 1));
}

fn spent(book: &Book, disclosures: u64) -> LedgerEvent {
    let privacy = book.run().spec.privacy.expect("it is private");
    LedgerEvent::PrivacySpent {
        disclosures,
        epsilon: ::privacy::epsilon(&privacy, disclosures),
    }
}

#[test]
fn tl_16_a_grant_or_a_round_that_passes_the_budget_does_not_follow() {
    let mut book = Book::of(private(1));
    book.note(&opened(0));
    // A second lease of a worker, and a second lease of a unit.
    book.contribute(0, 0, 0);
    book.refuse(&granted(lease(0, 1, 1), 0));
    book.fits(&granted(lease(0, 1, 1), 1));
    book.contribute(0, 1, 1);
    merge(&mut book, 0);
    book.refuse(&opened(1));
    let mut book = Book::of(private(2));
    round(&mut book, 0);
    book.fits(&opened(1));
    // What its workers state is no loss.
    assert_eq!(book.run().view(&run_id()).train_loss, None);
}

#[test]
fn tl_16_a_budget_ends_when_it_is_spent_and_says_what_it_has_cost() {
    let mut book = Book::of(private(2));
    book.refuse(&spent(&book, 0));
    round(&mut book, 0);
    book.refuse(&spent(&book, 1));
    book.note(&opened(1));
    book.refuse(&spent(&book, 1));
    book.contribute(1, 0, 0);
    book.contribute(1, 1, 1);
    // The set is merged first.
    book.refuse(&spent(&book, 2));
    merge(&mut book, 1);
    let mut wrong = spent(&book, 2);
    if let LedgerEvent::PrivacySpent { epsilon, .. } = &mut wrong {
        *epsilon /= 2.0;
    }
    book.refuse(&wrong);
    book.refuse(&spent(&book, 1));
    book.note(&spent(&book, 2));
    assert!(book.run().all_rounds_closed());
    book.refuse(&spent(&book, 2));
    book.refuse(&opened(2));
    // A run without a budget has none to spend.
    let mut book = Book::new();
    let disclosures = 0;
    let epsilon = 0.0;
    book.refuse(&LedgerEvent::PrivacySpent {
        disclosures,
        epsilon,
    });
}

#[test]
fn tl_16_what_is_spent_in_an_open_round_is_in_a_checkpoint() {
    let mut book = Book::of(private(3));
    round(&mut book, 0);
    book.note(&opened(1));
    book.note(&granted(lease(1, 0, 1), 0));
    let state = book.state();
    let again = State::from_checkpoint(&state.to_checkpoint()).expect("it reads back");
    let run = again.run(&run_id()).expect("it is there");
    assert_eq!(run, book.run());
    assert_eq!(run.privacy_view().map(|view| view.disclosures), Some(2));
    assert_eq!(run.disclosures_max, 3);
    // The counts of the open round are there too: worker 0 has two disclosures left, and spends
    // one.
    let spend = |state: &mut State, event| state.apply(TIME, Some(&run_id()), &event).is_ok();
    let mut again = again;
    assert!(spend(&mut again, ended(lease(1, 0, 1), 0)));
    assert!(spend(&mut again, granted(lease(1, 0, 2), 0)));
    assert!(spend(&mut again, ended(lease(1, 0, 2), 0)));
    assert!(
        !spend(&mut again, granted(lease(1, 0, 3), 1)),
        "of the unit"
    );
    assert!(
        !spend(&mut again, granted(lease(1, 1, 1), 0)),
        "of the worker"
    );
    assert!(spend(&mut again, granted(lease(1, 1, 1), 1)));
}

/// The ranks of a group that take no units of their own do not keep a budget open.
#[test]
fn tl_16_a_budget_that_nobody_may_spend_any_more_ends() {
    let mut book = Book::of(private(1));
    book.note(&opened(0));
    for number in 0..3 {
        book.note(&left(number, Departure::Left));
    }
    book.note(&seated(5, Some(seat(0, 2))));
    book.note(&seated(6, Some(seat(1, 2))));
    book.contribute(0, 0, 5);
    assert_eq!(
        book.run().budget_end(),
        Some(BudgetEnd::WithTheseMembers),
        "rank 1 has spent nothing, and gets no unit"
    );
    book.note(&joined(7));
    assert_eq!(
        book.run().budget_end(),
        None,
        "somebody may do the other unit"
    );
}

/// Nobody who is here may do the other unit: the round is taken back as if it had not been opened,
/// and nothing before it changes.
#[test]
fn tl_16_a_budget_that_ends_in_an_open_round_drops_that_round_and_no_other() {
    let mut spec = private(2);
    spec.schedule.evaluation_every = 2;
    spec.policy.comparison = Comparison::of_norms(4.0);
    let mut book = Book::of(spec);
    book.note(&opened(0));
    book.evaluate(0, 2);
    book.contribute(0, 0, 0);
    book.contribute(0, 1, 1);
    merge(&mut book, 0);
    book.note(&opened(1));
    book.contribute(1, 0, 0);
    book.note(&left(1, Departure::Left));
    book.note(&left(2, Departure::Left));
    assert_eq!(book.run().budget_end(), Some(BudgetEnd::WithTheseMembers));
    assert!(!book.run().units.contains_key(&kit::evaluate(1)));
    let before = book.run().tokens.clone();
    book.note(&spent(&book, 2));
    let run = book.run();
    assert_eq!((run.rounds.len(), run.open.len()), (1, 0));
    assert_eq!(
        (run.rounds_closed(), run.phase()),
        (Round(1), RunPhase::Finishing)
    );
    // Only the evaluation of the last weights is left to do.
    assert_eq!(run.units.keys().collect::<Vec<_>>(), [&kit::evaluate(1)]);
    assert_eq!(
        (run.tokens.merged, run.tokens.late),
        (before.merged - Tokens(32), Tokens(32))
    );
    let fate = |unit| run.accepted[&unit].fate;
    assert_eq!(fate(kit::train(1, 0)), Fate::Late);
    for unit in [kit::train(0, 0), kit::train(0, 1), kit::evaluate(0)] {
        assert_eq!(fate(unit), Fate::Merged);
    }
    let measured: Vec<u64> = run.measured.keys().map(|unit| unit.round.get()).collect();
    assert_eq!(measured, [0, 0]);
    let spending = run.spending.as_ref().expect("it is private");
    assert_eq!(
        (spending.closed, spending.open.len(), spending.over),
        (2, 0, true)
    );
    assert_eq!((run.budget_end(), run.affords_round()), (None, false));
    book.refuse(&opened(1));
    book.evaluate(1, 0);
    book.note(&LedgerEvent::RunCompleted);
}

#[test]
fn a_run_without_evaluations_that_a_budget_ends_is_over_at_once() {
    let mut book = Book::of(private(1));
    round(&mut book, 0);
    book.note(&spent(&book, 1));
    assert!(book.run().units.is_empty());
    book.note(&LedgerEvent::RunCompleted);
    assert_eq!(book.run().budget_end(), None);
}

/// The rounds of the schedule were all there before the budget was spent, and it was spent exactly.
#[test]
fn a_budget_that_lasts_for_the_whole_schedule_ends_nothing() {
    let mut book = Book::of(private(3));
    for number in 0..3 {
        round(&mut book, number);
    }
    assert_eq!(
        (book.run().budget_end(), book.run().affords_round()),
        (None, false)
    );
    book.refuse(&spent(&book, 3));
    book.note(&LedgerEvent::RunCompleted);
    book.refuse(&spent(&book, 3));
}

/// A lease of a training unit may still bring a result; that of an evaluation changes nothing.
#[test]
fn tl_16_no_budget_ends_a_round_while_somebody_trains() {
    let mut spec = private(1);
    spec.schedule.units = 3;
    spec.schedule.evaluation_every = 1;
    let mut book = Book::of(spec);
    book.note(&opened(0));
    book.contribute(0, 0, 0);
    book.note(&granted(lease(0, 1, 1), 1));
    book.note(&left(2, Departure::Left));
    assert_eq!(book.run().budget_end(), None);
    book.refuse(&spent(&book, 1));
    book.note(&accepted(lease(0, 1, 1), 1));
    book.note(&granted(evaluation(0, 1), 0));
    assert_eq!(book.run().budget_end(), Some(BudgetEnd::WithTheseMembers));
    book.fits(&spent(&book, 1));
    // While nobody is here, a worker that comes may do it.
    for number in [0, 1] {
        book.note(&left(number, Departure::Left));
    }
    assert_eq!(book.run().budget_end(), None);
}

/// A unit that somebody has failed at costs one disclosure more, for anybody.
#[test]
fn tl_16_a_budget_that_lasts_for_no_second_attempt_ends_for_certain() {
    let mut book = Book::of(private(1));
    book.note(&opened(0));
    book.note(&granted(lease(0, 0, 1), 0));
    book.note(&ended(lease(0, 0, 1), 0));
    assert_eq!(book.run().budget_end(), Some(BudgetEnd::Certain));
    let mut book = Book::of(private(2));
    book.note(&opened(0));
    book.note(&granted(lease(0, 0, 1), 0));
    book.note(&ended(lease(0, 0, 1), 0));
    assert_eq!(book.run().budget_end(), None);
}
