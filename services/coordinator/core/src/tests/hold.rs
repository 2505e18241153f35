//! Holds: what an operator keeps a run from doing.

use ledger::UrlHolders;
use schemas::Code;
use schemas::blob::{GetRequest, PutRequest};
use schemas::event::LedgerEvent;
use schemas::hold::{AtStore, Hold, HoldReply, HoldRequest};
use schemas::lease::{ReleaseRequest, RenewRequest};
use schemas::view::RunPhase;
use schemas::{Bytes, Millis, Round, RunId, Steps, V};

use crate::fixture::*;
use crate::input::{ControlRequest, ReplyId};
use crate::{Answer, Effect, Input, WorkerRequest};

fn request(hold: Hold, run: &RunId, held: bool) -> ControlRequest {
    ControlRequest::RunHold(HoldRequest {
        v: V,
        run: run.clone(),
        hold,
        held,
        reason: "odd norms".parse().expect("a reason"),
    })
}

fn freeze(world: &mut World) -> HoldReply {
    let asked = world.control(request(Hold::Merges, &run_id(), true));
    replied(world, asked)
}

fn unfreeze(world: &mut World) -> HoldReply {
    let asked = world.control(request(Hold::Merges, &run_id(), false));
    replied(world, asked)
}

fn replied(world: &World, asked: ReplyId) -> HoldReply {
    match &world.answers[&asked] {
        Ok(Answer::Hold(reply)) => reply.clone(),
        other => panic!("{other:?}"),
    }
}

fn sealed(world: &World) -> usize {
    world.count(|event| matches!(event, LedgerEvent::RoundSealed { .. }))
}

fn closed(world: &World) -> usize {
    world.count(|event| matches!(event, LedgerEvent::RoundClosed { .. }))
}

/// True while the foundry has an order that concerns the weights.
fn ordered(world: &World) -> bool {
    let mut all = world.pending.iter();
    all.any(|effect| matches!(effect, order!(Merge) | order!(Save)))
}

/// Hands in one unit of worker 1.
fn work(world: &mut World) {
    let held = world.lease(1);
    world.submit(1, held);
    world.answer_pending();
}

#[test]
fn a_frozen_run_keeps_its_weights_also_after_a_restart() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    work(&mut world);
    let reply = freeze(&mut world);
    assert!(reply.changed);
    assert_eq!(
        (reply.weights, reply.contributions, reply.leases),
        (Round(0), 1, 0)
    );
    let held = world.lease(1);
    world.submit(1, held);
    world.answer_pending_but(|effect| matches!(effect, order!(Merge)));
    assert_eq!((sealed(&world), ordered(&world)), (0, false));
    let holds = world.view().holds;
    let told = holds.iter().map(|held| (held.hold, held.reason.as_str()));
    assert_eq!(told.collect::<Vec<_>>(), [(Hold::Merges, "odd norms")]);
    world.restart();
    world.answer_pending_but(|effect| matches!(effect, order!(Merge)));
    assert_eq!((sealed(&world), ordered(&world)), (0, false));
    let reply = unfreeze(&mut world);
    assert!(reply.changed);
    assert_eq!((reply.weights, reply.contributions), (Round(0), 2));
    world.answer_pending();
    assert_eq!((sealed(&world), closed(&world)), (1, 1));
    assert!(world.view().holds.is_empty());
    assert_eq!(world.run().rounds_closed(), Round(1));
}

/// A run whose first merge is under way when it is frozen, and then ends.
fn frozen_in_a_merge() -> World {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    work(&mut world);
    let held = world.lease(1);
    world.submit(1, held);
    world.answer_pending_but(|effect| matches!(effect, order!(Merge)));
    assert!(ordered(&world));
    freeze(&mut world);
    world.answer_pending();
    assert_eq!((sealed(&world), closed(&world)), (1, 0));
    world
}

#[test]
fn a_merge_that_ends_in_a_frozen_run_counts_when_the_hold_is_lifted() {
    let mut world = frozen_in_a_merge();
    // The foundry holds the weights of the next round, so it may not be asked to save.
    world.input(Input::Tick);
    assert!(!ordered(&world));
    let saves = |effect: &Effect| matches!(effect, order!(Save));
    unfreeze(&mut world);
    assert_eq!(closed(&world), 1);
    assert!(world.pending.iter().any(saves));
}

#[test]
fn a_merge_that_is_lost_in_a_frozen_run_is_made_again() {
    let mut world = frozen_in_a_merge();
    world.restart();
    world.answer_pending();
    assert_eq!(closed(&world), 0);
    assert!(!ordered(&world));
    unfreeze(&mut world);
    assert!(ordered(&world), "the merge is made again");
    world.answer_pending();
    assert_eq!((sealed(&world), closed(&world)), (1, 1));
}

#[test]
fn a_frozen_run_does_not_complete() {
    let mut spec = spec("demo");
    (spec.schedule.rounds, spec.schedule.units) = (1, 1);
    let mut world = World::with_run(spec);
    world.join(1);
    let held = world.lease(1);
    world.submit(1, held);
    world.answer_pending_but(|effect| matches!(effect, order!(Save)));
    assert_eq!(closed(&world), 1);
    freeze(&mut world);
    world.answer_pending();
    while !world.run().units.is_empty() {
        work(&mut world);
    }
    assert_eq!(world.run().phase(), RunPhase::Finishing);
    unfreeze(&mut world);
    assert_eq!(world.run().phase(), RunPhase::Complete);
    // An order to a run that is over, or to none, is refused.
    let asked = world.control(request(Hold::Merges, &run_id(), true));
    assert_eq!(world.refusal(asked), Code::RunClosed);
    let asked = world.control(request(
        Hold::Merges,
        &"other".parse().expect("a name"),
        true,
    ));
    assert_eq!(world.refusal(asked), Code::RunUnknown);
}

#[test]
fn an_order_that_changes_nothing_is_answered_and_not_written() {
    let mut world = World::with_run(spec("demo"));
    let before = world.journal.len();
    assert!(!unfreeze(&mut world).changed);
    assert!(freeze(&mut world).changed);
    assert!(!freeze(&mut world).changed);
    assert!(unfreeze(&mut world).changed);
    assert!(!unfreeze(&mut world).changed);
    assert_eq!(world.kinds(before), ["hold-placed", "hold-lifted"]);
}

fn stop(world: &mut World, held: bool) -> HoldReply {
    let asked = world.control(request(Hold::Urls, &run_id(), held));
    replied(world, asked)
}

/// The runs that the store was told to refuse, by each order.
fn told(world: &World) -> Vec<Vec<String>> {
    let name = |(one, _): (&UrlHolders, _)| one.run.to_string();
    let told = world.seen.iter().filter_map(|effect| match effect {
        Effect::StopUrls { stop, .. } => Some(stop.holders.iter().map(name).collect()),
        _ => None,
    });
    told.collect()
}

fn leases(world: &World) -> usize {
    world.count(|event| matches!(event, LedgerEvent::LeaseGranted { .. }))
}

#[test]
fn tl_20_a_run_whose_urls_are_stopped_gets_none_and_no_leases_also_after_a_restart() {
    let mut world = World::with_run(spec("demo"));
    (1..=3).for_each(|number| _ = world.join(number));
    let (held, other) = (world.lease(1), world.lease(2));
    // It waits for work when the order comes, and then there is some.
    world.claim(3);
    let granted = leases(&world);
    let reply = stop(&mut world, true);
    let release = ReleaseRequest {
        v: V,
        lease: other,
        reason: "no urls".to_owned(),
    };
    world.ask(peer(2), WorkerRequest::Release(release));
    assert_eq!(leases(&world), granted, "nobody gets it");
    assert!(reply.changed && reply.store == Some(AtStore::Stopped));
    assert_eq!(told(&world), [["demo"]]);
    for round in 0..2 {
        let objects = vec![object("config").digest];
        let get = world.ask(peer(1), WorkerRequest::Get(GetRequest { v: V, objects }));
        assert_eq!(world.refusal(get), Code::UrlsStopped, "{round}");
        let put = PutRequest {
            v: V,
            lease: held,
            objects: vec![object("upload")],
        };
        let put = world.ask(peer(1), WorkerRequest::Put(put));
        assert_eq!(world.refusal(put), Code::UrlsStopped, "{round}");
        for worker in [1, 3] {
            let claim = world.claim(worker);
            assert_eq!(world.refusal(claim), Code::UrlsStopped, "{round} {worker}");
        }
        let denied = world.count(|event| matches!(event, LedgerEvent::RequestDenied { .. }));
        assert_eq!(denied, 0, "the workers are not at fault");
        world.restart();
        world.answer_pending();
    }
    let stopped = world.core.state().stopped_urls();
    assert_eq!(stopped, [(UrlHolders::of_run(run_id()), None)].into());
    // What was uploaded counts.
    world.submit(1, held);
    world.answer_pending();
    assert_eq!(leases(&world), granted);
    // An order that changes nothing tells the store again.
    let again = stop(&mut world, true);
    assert!(!again.changed && again.store == Some(AtStore::Stopped));
    let lifted = stop(&mut world, false);
    assert!(lifted.changed && lifted.store == Some(AtStore::Taken));
    assert_eq!(told(&world), [vec!["demo"], vec!["demo"], vec![]]);
    assert!(world.core.state().stopped_urls().is_empty());
    let _granted = world.lease(3);
    assert_eq!(leases(&world), granted + 1);
}

/// A hold on URLs keeps no run from completing.
#[test]
fn tl_20_the_urls_of_a_complete_run_are_stopped_and_allowed_too() {
    let mut spec = spec("demo");
    (spec.schedule.rounds, spec.schedule.units) = (1, 1);
    let mut world = World::with_run(spec);
    world.join(1);
    let held = world.lease(1);
    assert!(stop(&mut world, true).changed);
    world.submit(1, held);
    world.answer_pending();
    assert!(world.run().is_complete() && world.run().is_held(Hold::Urls));
    let lifted = stop(&mut world, false);
    assert!(lifted.changed && lifted.store == Some(AtStore::Taken));
    assert!(!stop(&mut world, false).changed);
    assert!(world.core.state().stopped_urls().is_empty());
    let before = world.journal.len();
    assert!(stop(&mut world, true).changed);
    assert!(!stop(&mut world, true).changed);
    assert_eq!(world.kinds(before), ["hold-placed"]);
    world.restart();
    let stopped = world.core.state().stopped_urls().into_keys();
    assert!(stopped.eq([UrlHolders::of_run(run_id())]));
    // There is nothing else to hold.
    let asked = world.control(request(Hold::Merges, &run_id(), true));
    assert_eq!(world.refusal(asked), Code::RunClosed);
}

/// The list that the question waits for is read after the order.
#[test]
fn tl_20_a_read_that_waits_gets_no_urls_that_were_stopped_meanwhile() {
    let mut world = World::with_run(listed_spec("demo"));
    world.join(1);
    let chunks = weights_chunks(0);
    let objects = chunks.iter().map(|object| object.digest).collect();
    let get = WorkerRequest::Get(GetRequest { v: V, objects });
    let held = world.ask(peer(1), get);
    assert!(!world.answers.contains_key(&held), "it waits");
    stop(&mut world, true);
    world.answer_pending();
    assert_eq!(world.refusal(held), Code::UrlsStopped);
    let granted = |effect: &Effect| matches!(effect, Effect::GrantGet { .. });
    assert!(!world.seen.iter().any(granted));
}

/// Nobody can move a byte without URLs.
#[test]
fn tl_20_no_lease_stands_still_while_urls_are_stopped() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let held = world.lease(1);
    let renews = |world: &mut World| {
        for _ in 0..65 {
            world.wait(Millis::from_secs(10));
            let renew = RenewRequest {
                v: V,
                lease: held,
                steps_done: Steps(0),
                bytes_moved: Bytes(0),
            };
            world.ask(peer(1), WorkerRequest::Renew(renew));
        }
        world.count(|event| matches!(event, LedgerEvent::LeaseEnded { .. }))
    };
    stop(&mut world, true);
    assert_eq!(renews(&mut world), 0);
    assert_eq!(renews(&mut world), 0);
    stop(&mut world, false);
    world.wait(Millis::from_secs(10));
    assert_eq!(world.run().leases().count(), 1, "it goes on from here");
    assert_eq!(renews(&mut world), 1, "and stands still as ever");
}

/// The URLs of a worker are for its run, those of an operator for none.
#[test]
fn tl_20_a_url_is_for_the_run_of_its_worker() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let objects = vec![object("config").digest];
    let question = GetRequest { v: V, objects };
    let worker = world.ask(peer(1), WorkerRequest::Get(question.clone()));
    let operator = world.control(ControlRequest::BlobGet(question));
    let of = |asked: ReplyId| {
        let found = world.seen.iter().find_map(|effect| match effect {
            Effect::GrantGet { reply, run, .. } if *reply == asked => Some(run.clone()),
            _ => None,
        });
        found.expect("it is granted")
    };
    assert_eq!(of(worker), Some(run_id()));
    assert_eq!(of(operator), None);
}
