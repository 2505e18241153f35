//! Holds: what an operator keeps a run from doing.

use schemas::Code;
use schemas::event::LedgerEvent;
use schemas::hold::{Hold, HoldReply, HoldRequest};
use schemas::view::RunPhase;
use schemas::{Round, RunId, V};

use crate::fixture::*;
use crate::input::{ControlRequest, ReplyId};
use crate::{Answer, Effect, Input};

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
