//! What operators may have written to the ledger.

use schemas::control::{OperatorObjects, RunNew};
use schemas::event::LedgerEvent;
use schemas::lease::Done;
use schemas::public::CommandVerb;
use schemas::{Code, Millis, Refusal, V};

use crate::fixture::*;
use crate::order::ORDERS_MAX;
use crate::{Answer, ControlRequest, Effect, Input, ReplyId};

fn commit(world: &mut World, names: &[&str]) -> ReplyId {
    let objects = names.iter().map(|name| object(name)).collect();
    world.control(ControlRequest::BlobCommit(OperatorObjects { v: V, objects }))
}

fn committed(world: &mut World, reply: ReplyId, promoted: usize, outcome: Result<(), Code>) {
    let outcome = outcome.map_err(|code| Refusal::new(code, "test"));
    world.input(Input::Committed { reply, promoted, outcome });
}

fn written(world: &World, order: &str) -> usize {
    world.count(|event| matches!(event, LedgerEvent::ControlReceived { verb, .. } if verb == order))
}

fn told(world: &World) -> usize {
    let drains = |effect: &&Effect| matches!(effect, Effect::Command { verb: CommandVerb::Drain, .. });
    world.seen.iter().filter(drains).count()
}

/// An order that can fail is written when it was carried out, and one that finds everything done is not.
#[test]
fn only_uploads_that_were_promoted_are_written() {
    let mut world = World::new();
    let reply = commit(&mut world, &["a", "b"]);
    assert_eq!(written(&world, "blob.commit"), 0, "nothing is done yet");
    assert!(!world.answers.contains_key(&reply));
    committed(&mut world, reply, 0, Err(Code::ObjectMissing));
    assert_eq!((world.refusal(reply), written(&world, "blob.commit")), (Code::ObjectMissing, 0));
    let reply = commit(&mut world, &["a", "b"]);
    committed(&mut world, reply, 1, Err(Code::StoreUnreachable));
    assert_eq!(world.refusal(reply), Code::StoreUnreachable);
    assert_eq!(written(&world, "blob.commit"), 1, "one of them lies in the store for good");
    for promoted in [1, 0, 0] {
        let reply = commit(&mut world, &["a", "b"]);
        committed(&mut world, reply, promoted, Ok(()));
        assert!(matches!(world.answers[&reply], Ok(Answer::Done(Done { .. }))));
        // Said twice by the shell, it counts once.
        committed(&mut world, reply, promoted, Ok(()));
    }
    assert_eq!(written(&world, "blob.commit"), 2, "what is there already is no change");
}

#[test]
fn an_operator_that_orders_without_end_is_stopped_and_the_others_are_not() {
    let mut world = World::new();
    world.long = true;
    for _ in 0..ORDERS_MAX {
        let reply = commit(&mut world, &["a"]);
        committed(&mut world, reply, 1, Ok(()));
    }
    world.pending.clear();
    let refused = commit(&mut world, &["a"]);
    assert_eq!(world.refusal(refused), Code::AskedTooMuch);
    let new = world.control(ControlRequest::RunNew(Box::new(RunNew { v: V, spec: spec("demo") })));
    assert_eq!(world.refusal(new), Code::AskedTooMuch);
    let objects = OperatorObjects { v: V, objects: vec![object("a")] };
    let reply = world.control_as(3, ControlRequest::BlobCommit(objects));
    committed(&mut world, reply, 1, Ok(()));
    assert!(world.answers[&reply].is_ok());
    world.wait(Millis::from_secs(2));
    let again: Vec<_> = (0..3).map(|_| commit(&mut world, &["a"])).collect();
    for reply in &again[..2] {
        committed(&mut world, *reply, 1, Ok(()));
    }
    let late = commit(&mut world, &["a"]);
    assert_eq!(world.refusal(late), Code::AskedTooMuch, "one is forgotten every second");
    // Whatever it did before, it can end the coordinator.
    let shutdown = world.shut_down(Millis(0));
    assert!(matches!(world.answers[&shutdown], Ok(Answer::Shutdown(_))));
}

#[test]
fn no_operator_keeps_the_others_from_having_their_uploads_and_runs_checked() {
    let mut world = World::new();
    let commits: Vec<_> = (0..20).map(|_| commit(&mut world, &["a"])).collect();
    assert_eq!(world.refusal(commits[16]), Code::AskedTooMuch);
    assert!(!world.answers.contains_key(&commits[15]));
    let new = |world: &mut World, name: String| {
        world.control(ControlRequest::RunNew(Box::new(RunNew { v: V, spec: spec(&name) })))
    };
    let runs: Vec<_> = (0..6).map(|at| new(&mut world, format!("run{at}"))).collect();
    assert_eq!(world.refusal(runs[4]), Code::AskedTooMuch);
    assert!(!world.answers.contains_key(&runs[3]));
}

#[test]
fn a_shutdown_that_is_said_again_is_answered_and_neither_written_nor_passed_on() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    world.lease(1);
    for drain in [60, 60, 90, 60] {
        let reply = world.shut_down(Millis::from_secs(drain));
        assert!(matches!(world.answers[&reply], Ok(Answer::Shutdown(_))));
        assert_eq!((written(&world, "shutdown"), told(&world)), (1, 1));
        world.wait(Millis(1));
    }
    // One that ends it sooner is an order of its own; the workers know that they are to finish.
    world.shut_down(Millis::from_secs(5));
    assert_eq!((written(&world, "shutdown"), told(&world)), (2, 1));
    world.wait(Millis::from_secs(5));
    assert!(world.seen.iter().any(|effect| matches!(effect, Effect::Stop { .. })));
}

/// Nobody who waits for the check of its uploads waits for ever.
#[test]
fn who_waits_for_uploads_when_the_coordinator_stops_is_told() {
    let mut world = World::new();
    let reply = commit(&mut world, &["a"]);
    world.shut_down(Millis(0));
    assert_eq!(world.refusal(reply), Code::Draining);
    committed(&mut world, reply, 1, Ok(()));
}

/// Two processes with the same keys that begin in the same millisecond: their first events differ, so that the ledger takes
/// only one of them.
#[test]
fn two_coordinators_that_start_in_the_same_moment_begin_with_different_events() {
    let first = |session| {
        let settings = crate::Settings { session: schemas::member::Session(session), ..settings() };
        let mut core = crate::Coordinator::new(settings, crate::State::default());
        let mut effects = Vec::new();
        core.start(START, &mut effects);
        match effects.swap_remove(0) {
            Effect::Append { time, event, .. } => (time, *event),
            other => panic!("it begins with an event: {other:?}"),
        }
    };
    assert_eq!(first(1), first(1));
    assert_ne!(first(1), first(2));
    assert_eq!(first(1).0, first(2).0);
}
