//! Orders that end leases: the order comes first, and an event for each lease after it.

use schemas::event::{LeaseEnd, LedgerEvent};
use schemas::lease::LeaseRef;
use schemas::{Epoch, Tokens};

use crate::kit::{Book, granted, lease, opened, spec, worker};

fn order(leases: u32) -> LedgerEvent {
    LedgerEvent::LeasesEnded {
        operator: kit::operator(),
        reason: "keys leaked".parse().expect("a reason"),
        leases,
    }
}

fn ended(lease: LeaseRef, number: u32) -> LedgerEvent {
    LedgerEvent::LeaseEnded {
        lease,
        worker: worker(number),
        cause: LeaseEnd::Ordered,
        tokens: Tokens(32),
    }
}

#[test]
fn tl_30_an_order_ends_as_many_leases_as_are_held_at_most() {
    let mut spec = spec();
    spec.schedule.units = 3;
    let mut book = Book::of(spec);
    book.note(&opened(0));
    for number in 0..2 {
        book.refuse(&order(1 + number));
        book.note(&granted(lease(0, number, 1), number));
    }
    book.refuse(&order(0));
    book.refuse(&order(3));
    book.note(&order(2));
    for number in 0..2 {
        book.note(&ended(lease(0, number, 1), number));
    }
    let run = book.run();
    assert_eq!(run.tokens.abandoned, Tokens(64));
    assert_eq!(run.leases().count(), 0);
    assert!(
        run.member(&worker(0)).is_some(),
        "its holder stays a member"
    );
    book.note(&granted(lease(0, 0, 2), 1));
    assert_eq!(
        book.run().holder(&lease(0, 0, 2).unit),
        Some((&worker(1), Epoch(2)))
    );
}
