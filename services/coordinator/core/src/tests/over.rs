//! Requests to a run that is over.

use schemas::event::LedgerEvent;
use schemas::keys::KeysRequest;
use schemas::{Code, Round, V};

use crate::fixture::*;
use crate::{ControlRequest, Effect, ReplyId, WorkerRequest};

/// A run of one round whose only worker is still a member.
fn over() -> World {
    let mut short = spec("demo");
    (short.schedule.rounds, short.schedule.units) = (1, 1);
    let mut world = World::with_run(short);
    world.join(1);
    let held = world.lease(1);
    world.submit(1, held);
    world.answer_pending();
    assert!(world.run().is_complete());
    assert_eq!(world.run().rounds_closed(), Round(1));
    world
}

fn leave_as(world: &mut World, number: u32, process: u32) -> ReplyId {
    let request = schemas::member::LeaveRequest {
        session: session(process),
        ..leave_request(number, "done")
    };
    world.ask(peer(number), WorkerRequest::Leave(request))
}

#[test]
fn members_say_goodbye_once_and_nobody_else_does() {
    let mut world = over();
    let left = |world: &World| world.count(|event| matches!(event, LedgerEvent::WorkerLeft { .. }));
    let stranger = leave_as(&mut world, 2, 2);
    assert_eq!(world.refusal(stranger), Code::NotJoined);
    let older = leave_as(&mut world, 1, 9);
    assert_eq!(world.refusal(older), Code::Replaced);
    assert_eq!(left(&world), 0);
    for _ in 0..2 {
        let reply = leave_as(&mut world, 1, 1);
        assert!(world.answers[&reply].is_ok());
        assert_eq!(left(&world), 1);
    }
}

#[test]
fn a_join_is_told_that_the_run_is_over_whatever_it_asks() {
    let mut world = over();
    let fit = join_request(2);
    let mut unfit = join_request(2);
    unfit.trainers.clear();
    let mut taken = join_request(2);
    taken.audit_key = join_request(1).audit_key;
    for request in [fit, unfit, taken] {
        let reply = world.ask(peer(2), WorkerRequest::Join(request));
        assert_eq!(world.refusal(reply), Code::RunClosed);
    }
}

#[test]
fn tl_13_whoever_may_speak_gets_the_public_keys_also_of_a_run_that_is_over() {
    let mut world = over();
    let asked = |world: &mut World, reply: ReplyId| {
        let shown = world.seen.pop();
        assert!(matches!(shown, Some(Effect::ShowKeys { reply: of }) if of == reply));
    };
    let events = world.journal.len();
    // A member, somebody who never joined, and an operator.
    for number in [1, 2] {
        let request = WorkerRequest::Keys(KeysRequest { v: V });
        let reply = world.ask(peer(number), request);
        asked(&mut world, reply);
    }
    let reply = world.control(ControlRequest::Keys(KeysRequest { v: V }));
    asked(&mut world, reply);
    assert_eq!(world.journal.len(), events, "a question is no event");
    let request = WorkerRequest::Keys(KeysRequest { v: V });
    let mut world = World::new();
    let reply = world.ask(peer(1), request);
    assert_eq!(world.refusal(reply), Code::RunUnknown);
}
