//! A worker whose key was replaced: its record says which key it had before.

use schemas::event::{Departure, LedgerEvent};
use schemas::{Code, Rank, Seat};

use super::quarantine::shut;
use crate::fixture::*;
use crate::input::{Recorded, ReplyId};

/// Joins worker `number`, which was worker `before`.
fn renamed(world: &mut World, number: u32, before: u32, seat: Option<&Seat>) -> ReplyId {
    let recorded = Recorded {
        seat: seat.cloned(),
        before: Some(worker(before)),
    };
    world.join_recorded(join_request(number), number, recorded)
}

fn says_who_it_was(event: &LedgerEvent) -> bool {
    matches!(event, LedgerEvent::WorkerJoined { before: Some(before), .. } if *before == worker(1))
}

#[test]
fn tl_28_a_worker_that_left_goes_on_with_another_key_in_its_seat() {
    let mut world = World::with_run(spec("demo"));
    let seat = Seat::new("left".parse().expect("a name"), Rank(0), 1).expect("a seat");
    world.join_seated(1, &seat);
    let held = world.lease(1);
    world.submit(1, held);
    world.answer_pending();
    let leave = crate::WorkerRequest::Leave(leave_request(1, "told to finish"));
    world.ask(peer(1), leave);
    renamed(&mut world, 2, 1, Some(&seat));
    assert_eq!(world.count(says_who_it_was), 1);
    let next = world.lease(2);
    assert_eq!((next.epoch.get(), held.epoch.get()), (1, 1));
    world.restart();
    assert!(world.run().member(&worker(2)).is_some());
}

/// The goodbye was lost, or another process has the old key still: one worker is no member twice.
#[test]
fn tl_28_a_worker_that_comes_back_with_another_key_takes_the_place_of_the_old_one() {
    let mut world = World::with_run(spec("demo"));
    let seat = Seat::new("left".parse().expect("a name"), Rank(0), 1).expect("a seat");
    world.join_seated(1, &seat);
    world.lease(1);
    let stranger = world.join_as(join_request(3), 3, &seat);
    assert_eq!(world.refusal(stranger), Code::SeatTaken);
    renamed(&mut world, 2, 1, Some(&seat));
    assert!(world.run().member(&worker(1)).is_none());
    let replaced = |event: &LedgerEvent| {
        matches!(event, LedgerEvent::WorkerLeft { worker: left, cause: Departure::Replaced, .. }
            if *left == worker(1))
    };
    assert_eq!(world.count(replaced), 1);
    assert_eq!(world.lease(2).epoch.get(), 2, "the old one held it");
    // Its next join is a renewal of its entry, as any other's.
    renamed(&mut world, 2, 1, Some(&seat));
    assert_eq!(world.count(says_who_it_was), 1);
}

#[test]
fn tl_31_another_key_is_no_way_around_a_quarantine_or_a_removal() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    shut(&mut world, 1);
    let asked = renamed(&mut world, 2, 1, None);
    assert_eq!(world.refusal(asked), Code::WorkerQuarantined);
    world.join(3);
    for _ in 0..3 {
        let held = world.lease(3);
        let mut bad = submission(&world.run().spec.clone(), 3, held, 0).statement;
        bad.spec = object("other settings").digest;
        world.ask(peer(3), crate::WorkerRequest::Submit(stated(bad)));
    }
    let asked = renamed(&mut world, 4, 3, None);
    assert_eq!(world.refusal(asked), Code::WorkerRemoved);
    assert_eq!(
        world.count(|event| matches!(event, LedgerEvent::WorkerJoined { .. })),
        2
    );
}
