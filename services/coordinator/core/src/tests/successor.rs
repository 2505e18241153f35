//! A worker whose key was replaced: its record says which key it had before.

use ledger::UrlHolders;
use schemas::event::{Departure, LedgerEvent};
use schemas::hold::AtStore;
use schemas::{Code, Rank, Seat};

use super::quarantine::{readmit, shut};
use crate::fixture::*;
use crate::input::{Input, Recorded, ReplyId};
use crate::{Effect, Stop};

/// Joins worker `number`, which was worker `before`.
fn renamed(world: &mut World, number: u32, before: u32, seat: Option<&Seat>) -> ReplyId {
    renamed_often(world, number, &[before], seat)
}

/// Joins worker `number`, which was these workers, the last one first.
fn renamed_often(world: &mut World, number: u32, before: &[u32], seat: Option<&Seat>) -> ReplyId {
    let recorded = Recorded {
        seat: seat.cloned(),
        before: before.iter().copied().map(worker).collect(),
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

#[test]
fn tl_31_the_answer_to_a_readmission_names_the_other_keys_that_are_still_shut_out() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let leave = crate::WorkerRequest::Leave(leave_request(1, "told to finish"));
    world.ask(peer(1), leave);
    renamed(&mut world, 2, 1, None);
    assert!(shut(&mut world, 2).other_keys.is_empty());
    assert_eq!(shut(&mut world, 1).other_keys, [worker(2)]);
    assert_eq!(readmit(&mut world, 2).other_keys, [worker(1)]);
    assert!(readmit(&mut world, 1).other_keys.is_empty());
}

#[test]
fn tl_31_two_other_keys_are_no_way_around_either() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    shut(&mut world, 1);
    // The run never saw the key between.
    let asked = renamed_often(&mut world, 3, &[2, 1], None);
    assert_eq!(world.refusal(asked), Code::WorkerQuarantined);
    // It saw all of them, and the record of the last one names the one before alone.
    world.join(4);
    renamed(&mut world, 5, 4, None);
    shut(&mut world, 4);
    let asked = renamed(&mut world, 6, 5, None);
    assert_eq!(world.refusal(asked), Code::WorkerQuarantined);
    // The ledger names the newest key that the run knows.
    world.join(7);
    renamed_often(&mut world, 9, &[8, 7], None);
    assert!(world.run().keys(&worker(9)).eq([&worker(9), &worker(7)]));
    assert!(world.run().member(&worker(7)).is_none());
}

/// The old key is valid until it is revoked: nobody is a member with both.
#[test]
fn tl_31_the_old_key_joins_no_more_once_the_new_one_has() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    renamed(&mut world, 2, 1, None);
    let asked = world.join(1);
    assert_eq!(world.refusal(asked), Code::Replaced);
    assert!(world.run().member(&worker(2)).is_some());
    // Nor does a third, of which the records say that the run's second was none of its keys.
    let asked = renamed(&mut world, 3, 1, None);
    assert_eq!(world.refusal(asked), Code::Replaced);
    shut(&mut world, 2);
    for asked in [world.join(1), renamed(&mut world, 3, 1, None)] {
        assert_eq!(world.refusal(asked), Code::WorkerQuarantined);
    }
    // Records that were altered end nobody but the asker.
    world.join(4);
    renamed(&mut world, 5, 4, None);
    world.ask(
        peer(5),
        crate::WorkerRequest::Leave(leave_request(5, "done")),
    );
    let asked = renamed(&mut world, 4, 5, None);
    assert_eq!(world.refusal(asked), Code::RegistrationInvalid);
}

#[test]
fn tl_31_a_quarantine_withdraws_what_the_worker_did_with_its_key_from_before() {
    let mut of_three = spec("demo");
    of_three.schedule.units = 3;
    let mut world = World::with_run(of_three);
    world.join(1);
    let counts = world.lease(1);
    world.submit(1, counts);
    world.answer_pending();
    let late = world.lease(1);
    let waits = world.submit(1, late);
    world.wait(SILENCE);
    let recorded = Recorded {
        seat: None,
        before: vec![worker(1)],
    };
    world.input(Input::Request {
        peer: peer(2),
        recorded: Some(Box::new(recorded)),
        request: crate::WorkerRequest::Join(join_request(2)),
        reply: ReplyId(7_000),
    });
    assert_eq!(world.run().members[&worker(1)].lease, Some(late));
    let told = shut(&mut world, 2);
    assert_eq!(told.withdrawn, [counts]);
    assert_eq!(world.refusal(waits), Code::WorkerQuarantined);
    // A result of before that was still checked counts no more.
    world.answer_pending();
    assert!(world.run().withdrawable(&worker(1)).is_empty());
    assert_eq!(world.run().members[&worker(1)].lease, None);
}

/// A token of the earlier key may be valid still, and so may its URLs.
#[test]
fn tl_31_tl_20_the_urls_of_a_worker_that_is_shut_out_are_stopped_with_those_of_its_key_from_before()
{
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    world.join(3);
    renamed(&mut world, 2, 1, None);
    let stopped = |world: &World| world.core.state().stopped_urls();
    let of = |number| UrlHolders::of_worker(run_id(), worker(number));
    assert!(stopped(&world).is_empty());
    let told = shut(&mut world, 2);
    assert_eq!(told.store, Some(AtStore::ShutOut));
    // The store is told before the uploads go, and tried with a URL of each key.
    let orders = |world: &World| {
        let orders = world.seen.iter().filter_map(|effect| match effect {
            Effect::Purge { stop, .. } => stop.clone(),
            Effect::StopUrls { stop, .. } => Some(stop.clone()),
            _ => None,
        });
        orders.collect::<Vec<_>>()
    };
    let first = Stop {
        holders: [(of(1), None), (of(2), None)].into(),
        concerned: [of(1), of(2)].into(),
    };
    assert_eq!(orders(&world), std::slice::from_ref(&first));
    world.restart();
    world.answer_pending();
    assert_eq!(
        stopped(&world),
        first.holders,
        "it is told at the next start"
    );
    // An order that changes nothing tells it again.
    shut(&mut world, 2);
    assert_eq!(orders(&world), [first.clone(), first]);
    let lifted = readmit(&mut world, 2);
    assert_eq!(lifted.store, Some(AtStore::Taken));
    let last = Stop {
        holders: [].into(),
        concerned: [of(2)].into(),
    };
    assert_eq!(orders(&world).last(), Some(&last));
    assert!(stopped(&world).is_empty());
}
