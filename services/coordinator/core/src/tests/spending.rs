//! A worker cannot fill the ledger by joining and leaving, and a worker that works never meets the
//! limit.

use schemas::event::{LeaseEnd, LedgerEvent};
use schemas::lease::{LeaseRef, ReleaseRequest};
use schemas::member::Session;
use schemas::{Code, Millis, V};

use crate::fixture::*;
use crate::run::spending::FRUITLESS_MAX;
use crate::{Answer, ReplyId, WorkerRequest};

/// Requests of a flood; a worker may send some 30 a second.
const FLOOD: u64 = 1000;
/// Denials of one worker that are recorded at once.
const DENIALS: usize = 16;

fn join_as(world: &mut World, session: u64) -> ReplyId {
    let request = schemas::member::JoinRequest {
        session: Session(session),
        ..join_request(1)
    };
    world.ask(peer(1), WorkerRequest::Join(request))
}

fn leave(world: &mut World) {
    world.ask(peer(1), WorkerRequest::Leave(leave_request(1, "x")));
}

fn release(world: &mut World, lease: LeaseRef) {
    let request = ReleaseRequest {
        v: V,
        lease,
        reason: String::new(),
    };
    world.ask(peer(1), WorkerRequest::Release(request));
}

/// Claims. Returns the lease, or nothing if the worker asked too much.
fn try_lease(world: &mut World) -> Option<LeaseRef> {
    let reply = world.claim(1);
    match world.manifests.get(&reply) {
        Some(manifest) => Some(manifest.lease),
        None => {
            assert_eq!(world.refusal(reply), Code::AskedTooMuch);
            None
        }
    }
}

fn flooded(flood: impl Fn(&mut World, u64)) -> (World, usize) {
    let mut world = World::with_run(spec("demo"));
    let before = world.journal.len();
    (0..FLOOD).for_each(|number| flood(&mut world, number));
    world.answer_pending();
    let denials = world.count(|event| matches!(event, LedgerEvent::RequestDenied { .. }));
    assert_eq!(denials, DENIALS, "the refusals are denials like others");
    let events = world.journal.len() - before - denials;
    (world, events)
}

#[test]
fn joins_with_two_sessions_in_turn_end_at_a_bound_and_go_on_slowly() {
    let (mut world, events) = flooded(|world, number| {
        join_as(world, 1 + number % 2);
    });
    // The first join replaces no process; it opens the round.
    assert_eq!(events, 2 * FRUITLESS_MAX - 1 + 1);
    let before = world.journal.len();
    // A member stays a member, and still gets answers.
    let again = join_as(&mut world, 2);
    assert!(
        matches!(world.answers[&again], Ok(Answer::Join(_))),
        "{:?}",
        world.answers[&again]
    );
    world.wait(Millis::from_secs(10));
    let joined = join_as(&mut world, 1);
    assert!(matches!(world.answers[&joined], Ok(Answer::Join(_))));
    let refused = join_as(&mut world, 2);
    assert_eq!(world.refusal(refused), Code::AskedTooMuch);
    assert_eq!(world.kinds(before), ["worker-left", "worker-joined"]);
}

#[test]
fn leaving_and_coming_again_ends_at_the_same_bound() {
    let (mut world, events) = flooded(|world, _| {
        world.ask(peer(1), WorkerRequest::Join(join_request(1)));
        leave(world);
    });
    assert_eq!(events, 2 * FRUITLESS_MAX + 1);
    // Another worker notices nothing.
    world.join(2);
    world.lease(2);
}

#[test]
fn leases_that_are_taken_and_given_back_end_at_a_bound_until_a_result_counts() {
    let (mut world, events) = flooded(|world, number| {
        if number == 0 {
            world.join(1);
        }
        if let Some(lease) = try_lease(world) {
            release(world, lease);
        }
    });
    let released = |event: &LedgerEvent| {
        matches!(
            event,
            LedgerEvent::LeaseEnded {
                cause: LeaseEnd::Released,
                ..
            }
        )
    };
    assert_eq!(world.count(released), FRUITLESS_MAX - 1);
    assert_eq!(events, 1 + 1 + 2 * (FRUITLESS_MAX - 1));
    // A new session is no way around the limit.
    leave(&mut world);
    let refused = world.join(1);
    assert_eq!(world.refusal(refused), Code::AskedTooMuch);
    world.wait(Millis::from_secs(20));
    world.join(1);
    let lease = try_lease(&mut world).expect("one more was forgotten meanwhile");
    assert_eq!(
        try_lease(&mut world),
        Some(lease),
        "a lease that is held is told again and again"
    );
    world.submit(1, lease);
    world.answer_pending();
    for _ in 0..FRUITLESS_MAX {
        let lease = try_lease(&mut world).expect("a result that counts gives it all back");
        release(&mut world, lease);
    }
    assert_eq!(try_lease(&mut world), None);
}

#[test]
fn an_honest_life_of_a_thousand_units_and_of_days_without_work_meets_no_bound() {
    let mut many = spec("demo");
    (
        many.schedule.rounds,
        many.schedule.units,
        many.schedule.snapshot_every,
    ) = (50, 20, 10);
    let mut world = World::with_run(many);
    world.join(1);
    for unit in 0..1000_u64 {
        // From time to time the worker is started again, and sometimes the first lease of a session
        // gives no result.
        if unit % 50 == 49 {
            leave(&mut world);
            world.join(1);
        }
        let lease = try_lease(&mut world).expect("there is work");
        let lease = if unit % 7 == 6 {
            release(&mut world, lease);
            try_lease(&mut world).expect("there is work")
        } else {
            lease
        };
        world.submit(1, lease);
        world.answer_pending();
    }
    assert!(world.run().is_complete());
    // Another worker waits for a team that does not come: it claims every five seconds.
    let mut alone = spec("demo");
    alone.policy.workers_min = 2;
    let mut world = World::with_run(alone);
    world.join(1);
    for _ in 0..20_000 {
        let reply = world.claim(1);
        assert!(!world.answers.contains_key(&reply), "held, not refused");
        world.wait(Millis::from_secs(5));
    }
    world.join(2);
    try_lease(&mut world).expect("there is work");
    assert_eq!(
        world.count(|event| matches!(event, LedgerEvent::RequestDenied { .. })),
        0
    );
}
