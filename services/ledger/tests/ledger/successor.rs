//! A worker with another key than before, in the ledger: it is the same worker, so it was not shut
//! out and is no member twice.

use ledger::KeyState;
use schemas::event::{Departure, LedgerEvent};

use crate::groups::seat;
use crate::kit::{Book, granted, joined, lease, left, opened, run_id, worker};

/// The join of worker `number`, which was worker `earlier`.
fn renamed(number: u32, earlier: u32) -> LedgerEvent {
    let mut event = joined(number);
    if let LedgerEvent::WorkerJoined { before, .. } = &mut event {
        *before = Some(worker(earlier));
    }
    event
}

#[test]
fn tl_28_a_worker_joins_with_another_key_after_it_left_and_takes_its_seat() {
    let mut book = Book::new();
    book.note(&opened(0));
    let present = book.error(Some(&run_id()), &renamed(5, 0)).to_string();
    assert!(present.contains("which is a member still"), "{present}");
    book.refuse(&renamed(0, 0));
    book.note(&left(0, Departure::Left));
    let mut seated = renamed(5, 0);
    if let LedgerEvent::WorkerJoined { seat: own, .. } = &mut seated {
        *own = Some(seat(0, 1));
    }
    book.note(&seated);
    book.note(&granted(lease(0, 0, 1), 5));
    // A key that never joined is no obstacle, and neither is another worker that has changed its
    // key.
    book.fits(&renamed(6, 9));
    book.fits(&joined(8));
    // A worker is not in its own way.
    let in_the_way = |number, spared: u32| {
        let found = book
            .run()
            .successor_in_the_way(&worker(number), |key| *key == worker(spared));
        found.map(|(key, state)| (key.clone(), state))
    };
    assert_eq!(in_the_way(5, 9), None);
    assert_eq!(in_the_way(0, 9), Some((worker(5), KeyState::Present)));
    assert_eq!(in_the_way(0, 5), None);
}

#[test]
fn tl_31_another_key_is_no_way_around_a_quarantine_or_a_removal() {
    let mut book = Book::new();
    book.note(&LedgerEvent::WorkerQuarantined {
        worker: worker(0),
        operator: kit::operator(),
        reason: "odd norms".parse().expect("a reason"),
        lease: None,
        withdrawn: 0,
    });
    let shut = book.error(Some(&run_id()), &renamed(5, 0)).to_string();
    assert!(shut.contains("which is in quarantine"), "{shut}");
    book.note(&LedgerEvent::WorkerReadmitted {
        worker: worker(0),
        operator: kit::operator(),
        reason: "it was the card".parse().expect("a reason"),
    });
    book.fits(&renamed(5, 0));
    book.note(&left(1, Departure::Removed));
    let removed = book.error(Some(&run_id()), &renamed(5, 1)).to_string();
    assert!(removed.contains("which was removed before"), "{removed}");
}

/// A key that never joined got no URLs.
#[test]
fn tl_31_tl_20_the_keys_of_a_worker_that_may_have_urls_are_those_that_joined() {
    let mut book = Book::new();
    book.note(&left(0, Departure::Left));
    book.note(&renamed(5, 0));
    book.note(&renamed(6, 9));
    let keys = |of: u32| {
        let of = worker(of);
        book.run().url_keys(&of).cloned().collect::<Vec<_>>()
    };
    assert_eq!(keys(5), [worker(5), worker(0)]);
    assert_eq!(keys(0), [worker(0)]);
    assert_eq!(keys(6), [worker(6)]);
    assert!(keys(9).is_empty());
}

#[test]
fn tl_31_the_keys_of_one_worker_that_are_shut_out_are_known_from_each_of_them() {
    let mut book = Book::new();
    book.note(&left(0, Departure::Left));
    book.note(&renamed(5, 0));
    book.note(&left(5, Departure::Left));
    book.note(&renamed(6, 5));
    for number in [0, 1, 6] {
        book.note(&LedgerEvent::WorkerQuarantined {
            worker: worker(number),
            operator: kit::operator(),
            reason: "odd norms".parse().expect("a reason"),
            lease: None,
            withdrawn: 0,
        });
    }
    let stranger = LedgerEvent::WorkerQuarantined {
        worker: worker(7),
        operator: kit::operator(),
        reason: "odd norms".parse().expect("a reason"),
        lease: None,
        withdrawn: 0,
    };
    book.note(&stranger);
    assert_eq!(book.run().keys_shut_out(), 3, "of 4, one never joined");
    for (of, others) in [(0, &[6][..]), (5, &[0, 6]), (6, &[0]), (1, &[]), (9, &[])] {
        let of = worker(of);
        let found: Vec<_> = book.run().other_keys_shut_out(&of).cloned().collect();
        let mut others: Vec<_> = others.iter().map(|number| worker(*number)).collect();
        others.sort();
        assert_eq!(found, others, "{of}");
    }
}
