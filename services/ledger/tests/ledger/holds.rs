//! Holds of operators: what they forbid, and where they stand in a checkpoint.

use ledger::{FORMAT, State, UrlHolders};
use schemas::event::LedgerEvent;
use schemas::hold::Hold;
use schemas::limits::URLS_OUT_MAX;
use schemas::{Digest, UnixMillis};

use crate::kit::{
    Book, TIME, closed, created, evaluating, granted, joined, lease, opened, run_id, sealed, spec,
};

fn placed() -> LedgerEvent {
    LedgerEvent::HoldPlaced {
        hold: Hold::Merges,
        operator: kit::operator(),
        reason: "odd norms".parse().expect("a reason"),
    }
}

fn lifted() -> LedgerEvent {
    LedgerEvent::HoldLifted {
        hold: Hold::Merges,
        operator: kit::operator(),
        reason: "it was the network".parse().expect("a reason"),
    }
}

#[test]
fn no_round_is_sealed_or_merged_while_merges_are_held() {
    let mut book = Book::new();
    book.note(&opened(0));
    book.contribute(0, 0, 0);
    book.contribute(0, 1, 1);
    let (seal, close) = (sealed(0, &[(0, 1, 32), (1, 1, 32)], 0), closed(0, 1));
    book.fits(&seal);
    book.note(&placed());
    book.refuse(&seal);
    book.note(&lifted());
    book.note(&seal);
    book.fits(&close);
    book.note(&placed());
    book.refuse(&close);
    book.note(&lifted());
    book.note(&close);
}

#[test]
fn a_run_does_not_complete_while_merges_are_held() {
    let mut book = Book::of(evaluating());
    for round in 0..3 {
        book.round(round);
        book.evaluate(round, 0);
    }
    book.evaluate(3, 0);
    let complete = LedgerEvent::RunCompleted;
    book.fits(&complete);
    book.note(&placed());
    book.refuse(&complete);
    book.note(&lifted());
    book.note(&complete);
    book.refuse(&placed());
}

/// No lease begins without URLs; what is under way goes on, and the run may complete.
#[test]
fn tl_20_no_lease_is_granted_while_urls_are_held_and_a_complete_run_may_be_held() {
    let placed = LedgerEvent::HoldPlaced {
        hold: Hold::Urls,
        operator: kit::operator(),
        reason: "a log has urls".parse().expect("a reason"),
    };
    let lifted = LedgerEvent::HoldLifted {
        hold: Hold::Urls,
        operator: kit::operator(),
        reason: "they ended".parse().expect("a reason"),
    };
    let mut book = Book::of(evaluating());
    book.note(&opened(0));
    book.note(&joined(0));
    let grant = granted(lease(0, 0, 1), 0);
    book.fits(&grant);
    book.note(&placed);
    book.refuse(&grant);
    book.note(&lifted);
    book.note(&grant);
    let mut book = Book::of(evaluating());
    for round in 0..3 {
        book.round(round);
        book.evaluate(round, 0);
    }
    book.evaluate(3, 0);
    book.note(&placed);
    let stopped = |book: &Book| {
        let stopped = book.state().stopped_urls().into_iter();
        stopped.collect::<Vec<_>>()
    };
    let all = UrlHolders::of_run(run_id());
    assert_eq!(stopped(&book), [(all.clone(), None)]);
    assert_eq!(book.run().urls_end(), None);
    assert!(book.run().may_have_urls(UnixMillis(u64::MAX)));
    book.note(&LedgerEvent::RunCompleted);
    book.refuse(&placed);
    let end = TIME.after(URLS_OUT_MAX);
    assert_eq!(stopped(&book), [(all, Some(end))]);
    let may = |time| book.run().may_have_urls(UnixMillis(time));
    assert_eq!((may(end.get() - 1), may(end.get())), (true, false));
    book.note(&lifted);
    assert!(stopped(&book).is_empty());
    book.note(&placed);
}

#[test]
fn a_hold_is_placed_once_and_lifted_once() {
    let mut book = Book::new();
    book.refuse(&lifted());
    book.note(&placed());
    book.refuse(&placed());
    let record = &book.run().holds[&Hold::Merges];
    assert_eq!(
        (
            record.operator.clone(),
            record.reason.as_str(),
            record.since
        ),
        (kit::operator(), "odd norms", TIME)
    );
    let shown = book.run().view(&run_id()).holds;
    let [shown] = &shown[..] else {
        panic!("one hold stands: {shown:?}");
    };
    assert_eq!(
        (
            shown.hold,
            &shown.operator,
            shown.reason.as_str(),
            shown.since
        ),
        (Hold::Merges, &record.operator, "odd norms", TIME)
    );
    book.note(&lifted());
    assert!(book.run().holds.is_empty() && book.run().view(&run_id()).holds.is_empty());
    book.refuse(&lifted());
}

/// If these bytes change, [`FORMAT`] must become the next number.
#[test]
fn a_hold_stands_in_a_checkpoint() {
    let mut state = State::default();
    for event in [created(spec()), placed()] {
        let applied = state.apply(TIME, Some(&run_id()), &event);
        applied.expect("it follows");
    }
    let bytes = state.to_checkpoint();
    let mut back = State::from_checkpoint(&bytes).expect("these are its bytes");
    assert_eq!(back.run(&run_id()), state.run(&run_id()));
    let refused = back.apply(TIME, Some(&run_id()), &placed());
    assert!(refused.is_err(), "the hold stands");
    assert_eq!(
        (FORMAT, Digest::of(&bytes).hex().as_str()),
        (
            2,
            "8d3d6867055df6e46ccc193d6d03dc79740667df8c31d8e96473005eb5b4b1ca"
        )
    );
}
