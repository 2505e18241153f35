//! Tests of the bound on events that operators cause in the ledger.

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
    world.control(ControlRequest::BlobCommit(OperatorObjects {
        v: V,
        objects,
    }))
}

/// Brings the store's answer: these objects are not among the verified ones yet.
fn checked(world: &mut World, reply: ReplyId, missing: Result<&[&str], Code>) {
    let objects = missing.map(|names| names.iter().map(|name| object(name)).collect());
    let verdict = objects.map_err(|code| Refusal::new(code, "test"));
    world.input(Input::UploadsChecked { reply, verdict });
}

fn promoted(world: &mut World, reply: ReplyId, outcome: Result<(), Code>) {
    let outcome = outcome.map_err(|code| Refusal::new(code, "test"));
    world.input(Input::Promoted { reply, outcome });
}

/// An order for one new object, from beginning to end.
fn carry_out(world: &mut World, reply: ReplyId) {
    checked(world, reply, Ok(&["a"]));
    promoted(world, reply, Ok(()));
}

fn written(world: &World, order: &str) -> usize {
    world.count(|event| matches!(event, LedgerEvent::ControlReceived { verb, .. } if verb == order))
}

fn told(world: &World) -> usize {
    let drains = |effect: &&Effect| {
        matches!(
            effect,
            Effect::Command {
                verb: CommandVerb::Drain,
                ..
            }
        )
    };
    world.seen.iter().filter(drains).count()
}

/// An order is written before anything is promoted. An order that cannot be carried out, or that
/// finds everything done, is not written.
#[test]
fn uploads_are_promoted_once_the_ledger_holds_the_order_and_only_what_is_new() {
    let mut world = World::new();
    let promotions = |world: &World| {
        let of_one = |effect: &Effect| match effect {
            Effect::Promote { objects, .. } => Some(objects.clone()),
            _ => None,
        };
        world
            .seen
            .iter()
            .chain(&world.pending)
            .filter_map(of_one)
            .collect::<Vec<_>>()
    };
    let reply = commit(&mut world, &["a", "b"]);
    checked(&mut world, reply, Err(Code::ObjectMissing));
    assert_eq!(
        (world.refusal(reply), written(&world, "blob.commit")),
        (Code::ObjectMissing, 0)
    );
    assert!(promotions(&world).is_empty());

    let reply = commit(&mut world, &["a", "b"]);
    checked(&mut world, reply, Ok(&["b"]));
    assert_eq!(
        (written(&world, "blob.commit"), promotions(&world)),
        (1, vec![vec![object("b")]])
    );
    assert!(
        !world.answers.contains_key(&reply),
        "it is answered when it is done"
    );
    promoted(&mut world, reply, Err(Code::StoreUnreachable));
    assert_eq!(
        (world.refusal(reply), written(&world, "blob.commit")),
        (Code::StoreUnreachable, 1)
    );

    // A repeated order finds the objects that are there.
    for (missing, orders) in [(&["b"][..], 2), (&[], 2), (&[], 2)] {
        let reply = commit(&mut world, &["a", "b"]);
        checked(&mut world, reply, Ok(missing));
        promoted(&mut world, reply, Ok(()));
        assert!(matches!(
            world.answers[&reply],
            Ok(Answer::Done(Done { .. }))
        ));
        assert_eq!(written(&world, "blob.commit"), orders);
    }
}

#[test]
fn an_operator_that_orders_without_end_is_stopped_and_the_others_are_not() {
    let mut world = World::new();
    for _ in 0..ORDERS_MAX {
        let reply = commit(&mut world, &["a"]);
        carry_out(&mut world, reply);
    }
    world.pending.clear();
    let refused = commit(&mut world, &["a"]);
    assert_eq!(world.refusal(refused), Code::AskedTooMuch);
    let new = world.control(ControlRequest::RunNew(Box::new(RunNew {
        v: V,
        spec: spec("demo"),
    })));
    assert_eq!(world.refusal(new), Code::AskedTooMuch);
    let objects = OperatorObjects {
        v: V,
        objects: vec![object("a")],
    };
    let reply = world.control_as(3, ControlRequest::BlobCommit(objects));
    carry_out(&mut world, reply);
    assert!(world.answers[&reply].is_ok());
    world.wait(Millis::from_secs(2));
    let again: Vec<_> = (0..3).map(|_| commit(&mut world, &["a"])).collect();
    for reply in &again[..2] {
        carry_out(&mut world, *reply);
    }
    let late = commit(&mut world, &["a"]);
    assert_eq!(
        world.refusal(late),
        Code::AskedTooMuch,
        "one is forgotten every second"
    );
    // Whatever the operator did before, it can end the coordinator.
    let shutdown = world.shut_down(Millis(0));
    assert!(matches!(world.answers[&shutdown], Ok(Answer::Shutdown(_))));
}

#[test]
fn operators_that_ordered_nothing_lately_are_not_kept() {
    let mut world = World::new();
    let order = |world: &mut World, number: u32| {
        let objects = OperatorObjects {
            v: V,
            objects: vec![object("a")],
        };
        let reply = world.control_as(number, ControlRequest::BlobCommit(objects));
        carry_out(world, reply);
    };
    for number in 1..=3 {
        order(&mut world, number);
    }
    assert_eq!(world.core.orders.len(), 3);
    world.wait(Millis::from_secs(10));
    order(&mut world, 4);
    assert_eq!(
        world.core.orders.len(),
        1,
        "the others have nothing to forget"
    );
}

#[test]
fn no_operator_keeps_the_others_from_having_their_uploads_and_runs_checked() {
    let mut world = World::new();
    let commits: Vec<_> = (0..20).map(|_| commit(&mut world, &["a"])).collect();
    assert_eq!(world.refusal(commits[16]), Code::AskedTooMuch);
    assert!(!world.answers.contains_key(&commits[15]));
    let new = |world: &mut World, name: String| {
        world.control(ControlRequest::RunNew(Box::new(RunNew {
            v: V,
            spec: spec(&name),
        })))
    };
    let runs: Vec<_> = (0..6)
        .map(|at| new(&mut world, format!("run{at}")))
        .collect();
    assert_eq!(world.refusal(runs[4]), Code::AskedTooMuch);
    assert!(!world.answers.contains_key(&runs[3]));
}

#[test]
fn a_shutdown_that_is_said_again_is_answered_and_neither_written_nor_passed_on() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    world.lease(1);
    for (drain, wait) in [(60, 0), (60, 1), (60, 1), (90, 1), (60, 1)] {
        let reply = world.shut_down(Millis::from_secs(drain));
        assert!(matches!(world.answers[&reply], Ok(Answer::Shutdown(_))));
        assert_eq!((written(&world, "shutdown"), told(&world)), (1, 1));
        world.wait(Millis(wait));
    }
    // An order for an earlier end is a new order; the workers know already that they are to finish.
    world.shut_down(Millis::from_secs(5));
    assert_eq!((written(&world, "shutdown"), told(&world)), (2, 1));
    world.wait(Millis::from_secs(5));
    assert!(
        world
            .seen
            .iter()
            .any(|effect| matches!(effect, Effect::Stop { .. }))
    );
}

/// A coordinator that drains carries out earlier orders; operators that still wait at the end are
/// told.
#[test]
fn who_waits_for_uploads_when_the_coordinator_stops_is_told() {
    let mut world = World::new();
    let stops = |world: &World| {
        world
            .seen
            .iter()
            .any(|effect| matches!(effect, Effect::Stop { .. }))
    };
    let (in_time, late) = (commit(&mut world, &["a"]), commit(&mut world, &["b"]));
    world.shut_down(Millis::from_secs(5));
    carry_out(&mut world, in_time);
    assert!(world.answers[&in_time].is_ok() && !stops(&world));
    world.wait(Millis::from_secs(5));
    assert_eq!(world.refusal(late), Code::Draining);
    assert!(stops(&world));
    let before = written(&world, "blob.commit");
    checked(&mut world, late, Ok(&["b"]));
    assert_eq!(
        written(&world, "blob.commit"),
        before,
        "nothing after the end"
    );
}

/// The first events of two processes with the same keys, begun in the same millisecond, differ, so
/// that the ledger takes only one of them.
#[test]
fn two_coordinators_that_start_in_the_same_moment_begin_with_different_events() {
    let first = |session| {
        let settings = crate::Settings {
            session: schemas::member::Session(session),
            ..settings()
        };
        let mut core = crate::Coordinator::new(settings, ledger::State::default());
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
