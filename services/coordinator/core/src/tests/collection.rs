//! Collection: an operator has the objects of old rounds deleted, while the run goes on.

use ledger::{Named, Needed};
use schemas::collection::{CollectReply, CollectRequest};
use schemas::control::{OperatorObjects, RunNew, Shutdown};
use schemas::event::LedgerEvent;
use schemas::foundry::Order;
use schemas::hold::{Hold, HoldRequest};
use schemas::promotion::PromoteRequest;
use schemas::restore::RestoreRequest;
use schemas::{ChainSequence, Code, Digest, Millis, Refusal, Round, V};

use crate::fixture::*;
use crate::input::ReplyId;
use crate::{Answer, Collect, ControlRequest, Effect, Input};

/// A run of nine rounds of one unit, of which `closed` are closed and saved.
fn trained(closed: u64) -> World {
    let mut spec = spec("demo");
    spec.schedule.rounds = 9;
    spec.schedule.units = 1;
    spec.schedule.snapshot_every = 1;
    spec.schedule.evaluation_every = 0;
    let mut world = World::with_run(spec);
    world.join(1);
    for _ in 0..closed {
        round(&mut world);
    }
    assert_eq!(world.run().rounds_closed(), Round(closed));
    world
}

fn round(world: &mut World) {
    let held = world.lease(1);
    world.submit(1, held);
    world.answer_pending();
}

fn request(keep: u32, delete: bool) -> CollectRequest {
    CollectRequest {
        v: V,
        run: run_id(),
        keep,
        delete: delete.then(|| "the disk is full".parse().expect("a reason")),
        store_is_ours: delete,
    }
}

fn ask(world: &mut World, keep: u32, delete: bool) -> ReplyId {
    world.control(ControlRequest::RunGc(request(keep, delete)))
}

fn replied(world: &World, asked: ReplyId) -> CollectReply {
    match &world.answers[&asked] {
        Ok(Answer::Collect(reply)) => (**reply).clone(),
        other => panic!("{other:?}"),
    }
}

fn collect(world: &mut World, keep: u32, delete: bool) -> CollectReply {
    let asked = ask(world, keep, delete);
    world.answer_pending();
    replied(world, asked)
}

fn written(world: &World) -> usize {
    world.count(|event| matches!(event, LedgerEvent::ObjectsGivenUp { .. }))
}

fn looks(effect: &Effect) -> bool {
    matches!(effect, Effect::Collect(Collect::Look { .. }))
}

fn deletes(effect: &Effect) -> bool {
    matches!(effect, Effect::Collect(Collect::Delete { .. }))
}

fn ends(world: &World) -> usize {
    let end = |effect: &&Effect| matches!(effect, Effect::Collect(Collect::End));
    world.seen.iter().filter(end).count()
}

fn snapshot(round: u64) -> Digest {
    saved(Round(round)).manifest.digest
}

#[test]
fn what_would_go_is_told_and_nothing_is_written() {
    let mut world = trained(4);
    let before = world.journal.len();
    let told = collect(&mut world, 2, false);
    assert_eq!((told.event, told.deleted), (None, None));
    assert_eq!((told.through, told.snapshots_given_up), (Round(3), 2));
    assert!(told.contributions.objects > 0 && told.weights.objects > 0);
    assert_eq!(told.snapshots.objects, 2);
    assert_eq!(told.contributions.rounds, Some((Round(0), Round(2))));
    assert_eq!(world.journal.len(), before);
    assert!(world.deleted.is_empty() && ends(&world) == 0);
}

/// An order that comes from another program than `diloctl` is held to the same word.
#[test]
fn nothing_is_deleted_unless_the_order_says_that_the_store_is_ours() {
    let mut world = trained(4);
    let order = CollectRequest {
        store_is_ours: false,
        ..request(2, true)
    };
    let asked = world.control(ControlRequest::RunGc(order));
    assert_eq!(world.refusal(asked), Code::StoreNotOurs);
    assert!(!world.seen.iter().any(looks), "the store is not looked at");
    assert_eq!(ends(&world), 0);
    // To be told needs no such word.
    assert_eq!(collect(&mut world, 2, false).deleted, None);
}

#[test]
fn what_an_operator_has_committed_is_kept_for_a_while() {
    let mut world = trained(4);
    let going = contribution_of_round(&world, 0);
    let commit = OperatorObjects {
        v: V,
        objects: vec![going],
    };
    world.control(ControlRequest::BlobCommit(commit));
    world.answer_pending();
    let committed = |world: &mut World| {
        ask(world, 2, false);
        let Effect::Collect(Collect::Look { needed, .. }) = world.take_pending(looks) else {
            panic!("it looks");
        };
        world.input(Input::Looked {
            outcome: Ok(ledger::Plan::default()),
        });
        needed
    };
    let kept = [Needed::by_all(Named::Plain(going))];
    assert_eq!(committed(&mut world), kept);
    world.wait(Millis::from_secs(25 * 3600));
    assert_eq!(committed(&mut world), []);
}

fn contribution_of_round(world: &World, round: u64) -> schemas::ObjectRef {
    let named = world.journal.iter().find_map(|body| match &body.event {
        schemas::event::Event::Ledger(LedgerEvent::ContributionAccepted {
            lease,
            contribution,
            ..
        }) if lease.unit.round == Round(round) => Some(contribution.chunks.objects()[0]),
        _ => None,
    });
    named.expect("it was accepted")
}

#[test]
fn the_ledger_names_what_is_given_up_before_the_store_loses_it() {
    let mut world = trained(4);
    let asked = ask(&mut world, 2, true);
    let look = world.take_pending(looks);
    assert_eq!(written(&world), 0);
    world.answer_one(look);
    assert_eq!(written(&world), 1, "first the event");
    assert!(!world.answers.contains_key(&asked) && world.deleted.is_empty());
    world.answer_pending();
    let reply = replied(&world, asked);
    let event = world
        .journal
        .iter()
        .position(|body| body.event.kind() == "objects-given-up");
    let event = event.expect("it was written") as u64;
    assert_eq!(reply.event, Some(ChainSequence(event)));
    assert_eq!(reply.deleted, Some(world.deleted.len() as u64));
    assert_eq!(reply.total().0, world.deleted.len() as u64);
    assert_eq!(ends(&world), 1);
    let manifest = |round| world.deleted.contains(&snapshot(round));
    assert!(
        ![1, 2, 3, 4].map(manifest).contains(&true),
        "lineage needs these"
    );
    // The run goes on, and once more there is nothing to delete.
    let again = collect(&mut world, 2, true);
    assert_eq!((again.event, again.deleted), (None, Some(0)));
    assert_eq!(written(&world), 1);
    round(&mut world);
    world.restart();
    world.answer_pending();
    assert_eq!(world.run().given_up_before(), Round(3));
}

#[test]
fn a_process_that_dies_after_the_event_leaves_objects_that_the_same_order_deletes() {
    let mut world = trained(4);
    ask(&mut world, 2, true);
    let look = world.take_pending(looks);
    world.answer_one(look);
    assert!(world.pending.iter().any(deletes));
    world.restart();
    world.answer_pending();
    assert_eq!((written(&world), world.deleted.len()), (1, 0));
    let told = collect(&mut world, 2, false);
    assert!(told.total().0 > 0 && told.snapshots_given_up == 0);
    let reply = collect(&mut world, 2, true);
    assert_eq!(reply.deleted, Some(told.total().0));
    assert_eq!(
        reply.event,
        world.run().given_up.first().map(|one| one.sequence)
    );
    assert_eq!(written(&world), 1, "one event is enough");
}

#[test]
fn what_is_being_written_is_waited_for() {
    for kind in ["screen", "merge", "save"] {
        let mut world = trained(3);
        let order = |effect: &Effect| {
            let Effect::Foundry { order, .. } = effect else {
                return false;
            };
            order.kind() == kind
        };
        let held = world.lease(1);
        world.submit(1, held);
        world.answer_pending_but(order);
        let busy = world.take_pending(order);
        ask(&mut world, 1, true);
        assert!(!world.pending.iter().any(looks), "{kind} is under way");
        world.answer_one(busy);
        assert!(world.pending.iter().any(looks), "{kind} has ended");
        let keeps = |effect: &Effect| matches!(effect, Effect::Collect(Collect::KeepWritten));
        assert!(world.seen.iter().any(keeps));
    }
}

#[test]
fn what_begins_later_is_not_waited_for_and_nothing_waits_to_be_told() {
    let mut world = trained(3);
    ask(&mut world, 1, true);
    let look = world.take_pending(looks);
    let held = world.lease(1);
    world.submit(1, held);
    let screen = |effect: &Effect| {
        matches!(
            effect,
            Effect::Foundry {
                order: Order::Screen { .. },
                ..
            }
        )
    };
    assert!(world.pending.iter().any(screen), "the run goes on");
    world.answer_one(look);
    assert_eq!(written(&world), 1);
    world.answer_pending();
    // Who only asks need not wait for what is being written.
    let held = world.lease(1);
    world.submit(1, held);
    assert!(world.pending.iter().any(screen));
    ask(&mut world, 1, false);
    assert!(world.pending.iter().any(looks));
}

#[test]
fn weights_of_a_merge_that_no_event_names_yet_are_needed() {
    let mut world = trained(3);
    let merge = |effect: &Effect| {
        matches!(
            effect,
            Effect::Foundry {
                order: Order::Merge { .. },
                ..
            }
        )
    };
    let held = world.lease(1);
    world.submit(1, held);
    world.answer_pending_but(merge);
    let merging = world.take_pending(merge);
    world.control(ControlRequest::RunHold(HoldRequest {
        v: V,
        run: run_id(),
        hold: Hold::Merges,
        held: true,
        reason: "odd loss".parse().expect("a reason"),
    }));
    world.answer_one(merging);
    ask(&mut world, 1, false);
    let look = world.take_pending(looks);
    let Effect::Collect(Collect::Look { needed, .. }) = look else {
        unreachable!("it was picked");
    };
    let expected = merged(&world.run().spec, Round(3)).broadcast.chunks;
    assert_eq!(needed, [Needed::by_all(Named::Chunks(expected))]);
}

#[test]
fn a_frozen_run_keeps_everything_and_still_tells() {
    let mut world = trained(3);
    let freeze = |held| {
        ControlRequest::RunHold(HoldRequest {
            v: V,
            run: run_id(),
            hold: Hold::Merges,
            held,
            reason: "odd loss".parse().expect("a reason"),
        })
    };
    world.control(freeze(true));
    let asked = ask(&mut world, 1, true);
    assert_eq!(world.refusal(asked), Code::RunFrozen);
    assert_eq!(ends(&world), 0, "it has not begun");
    assert!(collect(&mut world, 1, false).total().0 > 0);
    world.control(freeze(false));
    // It is frozen while the store is being looked at.
    let asked = ask(&mut world, 1, true);
    world.control(freeze(true));
    world.answer_pending();
    assert_eq!(world.refusal(asked), Code::RunFrozen);
    assert_eq!(
        (written(&world), world.deleted.len(), ends(&world)),
        (0, 0, 1)
    );
}

#[test]
fn orders_that_need_objects_wait_until_a_collection_is_over() {
    let mut world = trained(3);
    let new = |name: &str| {
        let spec = spec(name);
        ControlRequest::RunNew(Box::new(RunNew { v: V, spec }))
    };
    let commit = || {
        let objects = vec![object("an upload")];
        ControlRequest::BlobCommit(OperatorObjects { v: V, objects })
    };
    let restore = |round: u64| {
        ControlRequest::SnapshotRestore(RestoreRequest {
            v: V,
            snapshot: snapshot(round),
            run: None,
            force: false,
            reason: "odd loss".parse().expect("a reason"),
        })
    };
    // They come first.
    for order in [new("one"), commit(), restore(3)] {
        world.control(order);
        let asked = ask(&mut world, 1, true);
        assert_eq!(world.refusal(asked), Code::NoAnswer);
        world.answer_pending();
    }
    world.unfreeze();
    world.answer_pending();
    // The collection comes first.
    ask(&mut world, 1, true);
    for order in [new("other"), commit(), restore(2)] {
        let asked = world.control(order);
        assert_eq!(world.refusal(asked), Code::NoAnswer);
    }
    world.answer_pending();
    let asked = world.control(new("other"));
    world.answer_pending();
    assert!(world.answers[&asked].is_ok());
}

#[test]
fn a_repeated_order_hears_the_same_and_another_one_waits() {
    let mut world = trained(3);
    let first = ask(&mut world, 1, true);
    let again = ask(&mut world, 1, true);
    let other = ask(&mut world, 2, true);
    assert_eq!(world.refusal(other), Code::NoAnswer);
    world.answer_pending();
    assert_eq!(replied(&world, first), replied(&world, again));
    assert_eq!(written(&world), 1);
}

#[test]
fn what_cannot_be_told_or_deleted_is_said() {
    let mut world = trained(3);
    let failed = || Refusal::new(Code::StoreUnreachable, "in a test");
    let asked = ask(&mut world, 1, true);
    world.take_pending(looks);
    world.input(Input::Looked {
        outcome: Err(failed()),
    });
    assert_eq!(world.refusal(asked), Code::StoreUnreachable);
    assert_eq!((written(&world), ends(&world)), (0, 1));
    let asked = ask(&mut world, 1, true);
    let look = world.take_pending(looks);
    world.answer_one(look);
    world.take_pending(deletes);
    world.input(Input::Collected {
        outcome: Err(failed()),
    });
    assert_eq!(world.refusal(asked), Code::StoreUnreachable);
    assert_eq!((written(&world), ends(&world)), (1, 2));
    // Outcomes that nobody asked for change nothing.
    let before = world.journal.len();
    world.input(Input::Looked {
        outcome: Err(failed()),
    });
    world.input(Input::Collected { outcome: Ok(1) });
    assert_eq!((world.journal.len(), ends(&world)), (before, 2));
}

#[test]
fn a_snapshot_that_was_given_up_is_neither_restored_nor_promoted() {
    let mut world = trained(4);
    let reply = collect(&mut world, 1, true);
    let event = format!("event {}", reply.event.expect("it was written"));
    let reason = || "odd loss".parse().expect("a reason");
    let restore = ControlRequest::SnapshotRestore(RestoreRequest {
        v: V,
        snapshot: snapshot(2),
        run: None,
        force: true,
        reason: reason(),
    });
    let promote = ControlRequest::SnapshotPromote(PromoteRequest {
        v: V,
        run: Some(run_id()),
        snapshot: snapshot(2),
        pointer: "release".parse().expect("a name"),
        accept: Vec::new(),
        check_only: false,
        reason: reason(),
    });
    for order in [restore, promote] {
        let asked = world.control(order);
        match &world.answers[&asked] {
            Err(refusal) if refusal.code == Code::ObjectsGivenUp => {
                assert!(refusal.detail.contains(&event), "{refusal}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_pointer_that_moves_while_the_store_is_looked_at_keeps_its_snapshot() {
    let mut world = trained(4);
    let asked = ask(&mut world, 1, true);
    let look = world.take_pending(looks);
    world.control(ControlRequest::SnapshotPromote(PromoteRequest {
        v: V,
        run: Some(run_id()),
        snapshot: snapshot(2),
        pointer: "release".parse().expect("a name"),
        accept: Vec::new(),
        check_only: false,
        reason: "it reads well".parse().expect("a reason"),
    }));
    world.answer_one(look);
    world.answer_pending();
    assert_eq!(world.refusal(asked), Code::NoAnswer);
    assert_eq!(
        (written(&world), world.deleted.len(), ends(&world)),
        (0, 0, 1)
    );
    let reply = collect(&mut world, 1, true);
    assert_eq!(reply.snapshots_given_up, 2);
}

#[test]
fn a_coordinator_that_ends_answers_and_deletes_what_it_has_named() {
    let mut world = trained(3);
    let asked = ask(&mut world, 1, true);
    let look = world.take_pending(looks);
    world.answer_one(look);
    let drain = Millis::from_secs(60);
    world.control(ControlRequest::Shutdown(Shutdown { v: V, drain }));
    let stops = |world: &World| {
        let stop = |effect: &Effect| matches!(effect, Effect::Stop { .. });
        world.seen.iter().any(stop)
    };
    assert!(!stops(&world), "it deletes first");
    let late = ask(&mut world, 1, true);
    assert_eq!(world.refusal(late), Code::Draining);
    world.answer_pending();
    assert!(replied(&world, asked).deleted.is_some() && stops(&world));
    // When its time is over it ends anyway, and says so.
    let mut world = trained(3);
    let asked = ask(&mut world, 1, true);
    world.control(ControlRequest::Shutdown(Shutdown { v: V, drain }));
    world.wait(drain);
    assert_eq!(world.refusal(asked), Code::Draining);
    assert!(stops(&world));
}
