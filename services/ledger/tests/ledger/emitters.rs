//! Another key goes on with the ledger: an event of the whole coordinator, which takes nothing from
//! a run.

use ledger::{ApplyError, State};
use schemas::UnixMillis;
use schemas::event::LedgerEvent;

use crate::kit::{Book, TIME, accepted, granted, lease, opened, run_id};

fn named() -> LedgerEvent {
    LedgerEvent::EmitterSucceeded {
        next: kit::public_key(90),
    }
}

#[test]
fn tl_28_a_change_of_the_event_key_leaves_leases_and_everything_else_as_they_are() {
    let mut book = Book::new();
    book.note(&opened(0));
    let held = lease(0, 0, 1);
    book.note(&granted(held, 0));
    let mut state = book.state().clone();
    let (run, events) = (state.run(&run_id()).cloned(), state.events());
    let later = UnixMillis(TIME.get() + 9);
    state.apply(later, None, &named()).expect("it may be named");
    assert_eq!(state.run(&run_id()).cloned(), run);
    assert_eq!((state.events(), state.time()), (events + 1, later));
    state.check().expect("the state's invariants hold");
    // A checkpoint behind it leads to the same state.
    state
        .apply(later, None, &LedgerEvent::CheckpointTaken)
        .expect("it may be taken");
    let bytes = state.taken().expect("it was taken").to_checkpoint();
    let read = State::from_checkpoint(&bytes).expect("it is one");
    assert_eq!(read.events(), state.events());
    state
        .apply(later, Some(&run_id()), &accepted(held, 0))
        .expect("the lease is held on");
}

#[test]
fn a_run_names_no_key_for_the_ledger() {
    let mut book = Book::new();
    let error = book.error(Some(&run_id()), &named());
    assert!(matches!(error, ApplyError::OutOfPlace { .. }), "{error}");
}
