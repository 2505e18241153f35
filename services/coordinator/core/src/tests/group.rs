//! Groups of workers: a group gets work while a worker sits in each of its seats, it ends as a
//! whole, and nobody takes another's seat.

use schemas::event::{Departure, Event, EventBody, LeaseEnd, LedgerEvent};
use schemas::member::Session;
use schemas::{Code, Rank, Seat};

use super::trouble::{failure, give_back, one_unit};

use crate::fixture::*;
use crate::{Answer, WorkerRequest};

fn seat(rank: u32, of: u32) -> Seat {
    Seat::new("left".parse().expect("a name"), Rank(rank), of).expect("a seat")
}

/// A run with a sealed group of three, workers 1 to 3, by rank.
fn sealed() -> World {
    let mut world = World::with_run(spec("demo"));
    for rank in 0..3 {
        world.join_seated(rank + 1, &seat(rank, 3));
    }
    world
}

/// The workers whose membership ended, with the cause, since event `from`.
fn departures(world: &World, from: usize) -> Vec<(u32, Departure)> {
    let number = |name| (1..9).find(|number| worker(*number) == name);
    let ended = world.journal[from..]
        .iter()
        .filter_map(|body| match &body.event {
            Event::Ledger(LedgerEvent::WorkerLeft { worker, cause, .. }) => {
                Some((number(worker.clone()).expect("one of ours"), *cause))
            }
            _ => None,
        });
    ended.collect()
}

fn is_present(world: &World, number: u32) -> bool {
    world.run().member(&worker(number)).is_some()
}

#[test]
fn fg_03_a_group_gets_no_work_before_each_of_its_seats_is_taken() {
    // In every order of joining.
    for order in [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ] {
        let mut world = World::with_run(spec("demo"));
        for (joined, rank) in order.into_iter().enumerate() {
            world.join_seated(rank + 1, &seat(rank, 3));
            for asks in &order[..=joined] {
                let claim = world.claim(asks + 1);
                if joined < 2 {
                    assert_eq!(world.refusal(claim), Code::GroupWaits, "{order:?}");
                } else if *asks > 0 {
                    assert_eq!(world.refusal(claim), Code::RankFollows, "{order:?}");
                } else {
                    assert!(world.manifests.contains_key(&claim), "{order:?}");
                }
            }
        }
        assert_eq!(
            world.count(|event| matches!(event, LedgerEvent::LeaseGranted { .. })),
            1
        );
        // Nothing is wrong with those who wait.
        assert_eq!(
            world.count(|event| matches!(event, LedgerEvent::RequestDenied { .. })),
            0
        );
    }
}

/// A run that waits for two workers waits for two that train: a group is one, once it is complete.
#[test]
fn fg_03_a_run_that_waits_for_workers_counts_groups_and_not_seats() {
    let mut spec = spec("demo");
    (spec.policy.workers_min, spec.schedule.units) = (2, 2);
    let mut world = World::with_run(spec);
    let opened = |event: &LedgerEvent| matches!(event, LedgerEvent::RoundOpened { .. });
    for rank in 0..3 {
        world.join_seated(rank + 1, &seat(rank, 3));
        assert_eq!(world.count(opened), 0, "rank {rank}");
        let trouble = world.view().trouble.expect("it waits");
        assert_eq!(trouble.code, Code::TooFewWorkers);
        let ready = u32::from(rank == 2);
        let starts = format!("{ready} of at least 2 workers");
        assert!(trouble.detail.starts_with(&starts), "{}", trouble.detail);
    }
    world.join(4);
    assert_eq!(world.count(opened), 1);
    assert!(world.view().trouble.is_none());
}

#[test]
fn fg_03_a_worker_without_a_seat_and_a_group_of_one_work_alone() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    world.join_seated(2, &seat(0, 1));
    for number in [1, 2] {
        let held = world.lease(number);
        world.submit(number, held);
        world.answer_pending();
    }
    let before = world.journal.len();
    world.ask(peer(2), WorkerRequest::Leave(leave_request(2, "")));
    assert_eq!(departures(&world, before), [(2, Departure::Left)]);
    assert!(is_present(&world, 1));
}

#[test]
fn fg_03_the_end_of_one_rank_evicts_the_group_and_its_unit_is_granted_anew() {
    for lost in 1..=3_u32 {
        let mut world = sealed();
        world.join(4);
        let held = world.lease(1);
        let before = world.journal.len();
        world.ask(peer(lost), WorkerRequest::Leave(leave_request(lost, "")));
        let mut expected = vec![(lost, Departure::Left)];
        let rest = (1..=3).filter(|number| *number != lost);
        expected.extend(rest.map(|number| (number, Departure::GroupEnded)));
        assert_eq!(departures(&world, before), expected);
        let orphaned = |event: &LedgerEvent| matches!(event, LedgerEvent::LeaseEnded { lease, cause: LeaseEnd::Orphaned, .. } if *lease == held);
        assert_eq!(world.count(orphaned), 1);
        // What the group does afterwards counts no more, and its unit goes to another.
        let submit = world.submit(1, held);
        assert_eq!(world.refusal(submit), Code::NotJoined);
        let claim = world.claim(2);
        assert_eq!(world.refusal(claim), Code::NotJoined);
        let granted = world.lease(4);
        assert_eq!(
            (granted.unit, granted.epoch),
            (held.unit, held.epoch.next())
        );

        // All join again, and the group gets work when the last one is there.
        for rank in 0..3 {
            let claim = if rank > 0 { Some(world.claim(1)) } else { None };
            let code = claim.map(|claim| world.refusal(claim));
            assert!(code.is_none_or(|code| code == Code::GroupWaits));
            let reply = world.join_seated(rank + 1, &seat(rank, 3));
            assert!(matches!(world.answers[&reply], Ok(Answer::Join(_))));
        }
        let again = world.lease(1);
        assert_ne!(again.unit, granted.unit, "that one is another's now");
    }
}

#[test]
fn fg_03_silence_quarantine_removal_and_replacement_of_a_rank_end_the_group_too() {
    // Silence of one: the others are heard.
    let mut world = sealed();
    world.lease(1);
    let before = world.journal.len();
    world.wait(SILENCE - schemas::Millis(1));
    for number in [1, 3] {
        world.claim(number);
    }
    world.wait(schemas::Millis(1));
    let causes = departures(&world, before);
    assert_eq!(causes[0], (2, Departure::Silent));
    assert_eq!(causes.len(), 3);
    assert!(
        causes[1..]
            .iter()
            .all(|(_, cause)| *cause == Departure::GroupEnded)
    );

    let mut world = sealed();
    let held = world.lease(1);
    let before = world.journal.len();
    super::quarantine::shut(&mut world, 3);
    let evicted = [(1, Departure::GroupEnded), (2, Departure::GroupEnded)];
    assert_eq!(departures(&world, before), evicted);
    assert!(world.run().units[&held.unit].epoch == held.epoch);
    assert!(world.run().leases().next().is_none());

    // A second process with the credentials of rank 2 has nothing of what the group has done.
    let mut world = sealed();
    world.lease(1);
    let before = world.journal.len();
    let mut request = join_request(2);
    request.session = Session(77);
    world.join_as(request, 2, &seat(1, 3));
    let causes = departures(&world, before);
    assert_eq!(causes[0], (2, Departure::Replaced));
    assert_eq!(
        causes[1..],
        [(1, Departure::GroupEnded), (3, Departure::GroupEnded)]
    );
    assert!(is_present(&world, 2) && !is_present(&world, 1) && !is_present(&world, 3));
}

/// While it is not sealed, a group has nothing that could be lost.
#[test]
fn the_end_of_a_worker_of_an_unsealed_group_is_its_own() {
    let mut world = World::with_run(spec("demo"));
    world.join_seated(1, &seat(0, 3));
    world.join_seated(2, &seat(1, 3));
    let before = world.journal.len();
    world.ask(peer(2), WorkerRequest::Leave(leave_request(2, "")));
    assert_eq!(departures(&world, before), [(2, Departure::Left)]);
    assert!(is_present(&world, 1));
}

#[test]
fn fg_03_nobody_takes_anothers_seat_and_none_changes_its_own() {
    let mut world = sealed();
    for (number, wanted) in [
        (4, seat(0, 3)),
        (4, seat(1, 3)),
        (4, seat(0, 2)),
        (4, seat(3, 4)),
    ] {
        let reply = world.join_seated(number, &wanted);
        assert_eq!(world.refusal(reply), Code::SeatTaken, "{wanted}");
    }
    // The record of a member's credentials names another seat, or none, all at once.
    for wanted in [Some(seat(2, 3)), None] {
        let reply = match &wanted {
            Some(wanted) => world.join_seated(2, wanted),
            None => world.join(2),
        };
        assert_eq!(world.refusal(reply), Code::IdentityMismatch);
    }
    world.join(5);
    let reply = world.join_seated(5, &seat(0, 1));
    assert_eq!(world.refusal(reply), Code::IdentityMismatch);
    // Another group has seats of its own.
    let right = Seat::new("right".parse().expect("a name"), Rank(0), 2).expect("a seat");
    let reply = world.join_seated(4, &right);
    assert!(matches!(world.answers[&reply], Ok(Answer::Join(_))));
    assert!(world.run().is_group_sealed(&seat(0, 3)));
    assert!(!world.run().is_group_sealed(&right));
}

/// A machine whose predecessor in the seat is gone takes it over.
#[test]
fn a_seat_is_free_when_its_worker_is_gone() {
    let mut world = sealed();
    world.ask(peer(2), WorkerRequest::Leave(leave_request(2, "")));
    for (number, rank) in [(1, 0), (6, 1), (3, 2)] {
        world.join_seated(number, &seat(rank, 3));
    }
    world.lease(1);
    let reply = world.join_seated(2, &seat(1, 3));
    assert_eq!(world.refusal(reply), Code::SeatTaken);
}

#[test]
fn fg_03_a_sealed_group_survives_the_coordinator_and_a_broken_one_is_evicted() {
    let mut world = sealed();
    let held = world.lease(1);
    world.restart();
    world.answer_pending();
    assert!((1..=3).all(|number| is_present(&world, number)));
    assert_eq!(world.lease(1), held, "the same lease again");

    // It dies after it has written that rank 2 left, and nothing of what follows from that.
    world.ask(peer(3), WorkerRequest::Leave(leave_request(3, "")));
    let left =
        |body: &EventBody| matches!(body.event, Event::Ledger(LedgerEvent::WorkerLeft { .. }));
    let first = world.journal.iter().position(left).expect("it left");
    world.journal.truncate(first + 1);
    world.restart();
    world.answer_pending();
    let evicted = [
        (3, Departure::Left),
        (1, Departure::GroupEnded),
        (2, Departure::GroupEnded),
    ];
    assert_eq!(departures(&world, first), evicted);
    assert!(world.run().leases().next().is_none());
}

/// Failures of a unit are judged by those who may hold it: the other ranks never can.
#[test]
fn a_unit_that_the_only_speaker_fails_halts_the_run() {
    let mut world = World::with_run(one_unit());
    for rank in 0..2 {
        world.join_seated(rank + 1, &seat(rank, 2));
    }
    for _ in 0..4 {
        assert_eq!(world.view().halted, None);
        let held = world.lease(1);
        give_back(&mut world, 1, held, &failure());
    }
    let halted = world.view().halted.expect("nobody else can do it");
    assert_eq!(halted.code, Code::UnitFails);
}
