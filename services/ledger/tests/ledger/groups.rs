//! Seats in the ledger: an auditor sees that a group got work only while each of its seats was
//! taken.

use schemas::event::{Departure, LedgerEvent};
use schemas::{Rank, Seat};

use crate::kit::{Book, accepted, ended, granted, joined, lease, left, opened};

pub(crate) fn seat(rank: u32, of: u32) -> Seat {
    Seat::new("left".parse().expect("a name"), Rank(rank), of).expect("a seat")
}

/// The join of worker `number`, which has no place in the book yet.
pub(crate) fn seated(number: u32, wanted: Option<Seat>) -> LedgerEvent {
    let mut event = joined(number);
    if let LedgerEvent::WorkerJoined { seat, .. } = &mut event {
        *seat = wanted;
    }
    event
}

#[test]
fn fg_03_only_rank_0_of_a_sealed_group_is_granted_a_unit() {
    let mut book = Book::new();
    book.note(&opened(0));
    book.note(&seated(5, Some(seat(0, 2))));
    book.refuse(&granted(lease(0, 0, 1), 5));
    book.note(&seated(6, Some(seat(1, 2))));
    book.refuse(&granted(lease(0, 0, 1), 6));
    book.fits(&granted(lease(0, 0, 1), 5));
    book.note(&left(6, Departure::Silent));
    book.refuse(&granted(lease(0, 0, 1), 5));
    // A worker without a seat, and a group of one, work alone.
    book.note(&granted(lease(0, 0, 1), 0));
    book.note(&left(5, Departure::GroupEnded));
    book.note(&seated(7, Some(seat(0, 1))));
    book.note(&granted(lease(0, 1, 1), 7));
}

/// What a group has handed in whole counts, also if the group ends while it is being checked.
#[test]
fn a_result_of_a_group_that_ended_since_is_accepted_or_its_lease_ended() {
    let mut book = Book::new();
    book.note(&opened(0));
    for rank in 0..2 {
        book.note(&seated(5 + rank, Some(seat(rank, 2))));
    }
    book.note(&granted(lease(0, 0, 1), 5));
    book.note(&left(6, Departure::Left));
    book.note(&left(5, Departure::GroupEnded));
    book.fits(&accepted(lease(0, 0, 1), 5));
    book.fits(&ended(lease(0, 0, 1), 5));
}

#[test]
fn fg_03_a_seat_is_one_members_and_a_member_keeps_its_own() {
    let mut book = Book::new();
    book.note(&seated(5, Some(seat(0, 2))));
    for (number, wanted) in [
        (6, Some(seat(0, 2))),
        (6, Some(seat(1, 3))),
        (5, Some(seat(1, 2))),
        (5, None),
        (0, Some(seat(1, 2))),
    ] {
        book.refuse(&seated(number, wanted));
    }
    book.fits(&seated(5, Some(seat(0, 2))));
    book.fits(&seated(6, None));
    book.fits(&seated(6, Some(seat(1, 2))));
    // A seat is free when its worker is gone, for others and for itself.
    book.note(&left(5, Departure::Left));
    book.refuse(&seated(5, Some(seat(1, 2))));
    book.fits(&seated(5, Some(seat(0, 2))));
    book.fits(&seated(6, Some(seat(0, 2))));
}

#[test]
fn missing_ranks_are_those_in_which_nobody_sits_now() {
    let mut book = Book::new();
    book.note(&seated(5, Some(seat(2, 4))));
    book.note(&seated(6, Some(seat(0, 4))));
    assert_eq!(book.run().missing_ranks(&seat(0, 4)), [Rank(1), Rank(3)]);
    book.note(&left(6, Departure::Left));
    assert_eq!(book.run().missing_ranks(&seat(0, 4)), [0, 1, 3].map(Rank));
    let other = Seat::new("right".parse().expect("a name"), Rank(1), 2).expect("a seat");
    assert_eq!(book.run().missing_ranks(&other), [Rank(0), Rank(1)]);
}

/// A checkpoint keeps the seats: an auditor that starts there refuses the same events.
#[test]
fn a_checkpoint_keeps_the_seats() {
    let mut book = Book::new();
    book.note(&seated(5, Some(seat(0, 2))));
    let bytes = book.state().to_checkpoint();
    let back = ledger::State::from_checkpoint(&bytes).expect("it is whole");
    assert_eq!(back.to_checkpoint(), bytes);
    let run = back.run(&crate::kit::run_id()).expect("it is there");
    assert_eq!(run.missing_ranks(&seat(0, 2)), [Rank(1)]);
}

#[test]
fn what_is_ready_for_units_are_workers_alone_and_groups_that_are_whole() {
    let mut book = Book::new();
    assert_eq!(book.run().ready(), 3);
    book.note(&seated(5, Some(seat(0, 2))));
    assert_eq!(book.run().ready(), 3);
    book.note(&seated(6, Some(seat(1, 2))));
    assert_eq!(book.run().ready(), 4);
    book.note(&left(5, Departure::Left));
    book.note(&left(0, Departure::Left));
    assert_eq!(book.run().ready(), 2);
}
