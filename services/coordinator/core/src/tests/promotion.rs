//! Promotion: an operator moves a pointer to a full snapshot.

use schemas::control::{Query, View, ViewRequest};
use schemas::event::LedgerEvent;
use schemas::hold::{Hold, HoldRequest};
use schemas::promotion::{POINTERS_MAX, PromoteReply, PromoteRequest};
use schemas::quarantine::QuarantineRequest;
use schemas::view::SnapshotView;
use schemas::{Code, Digest, Round, RunId, V};

use crate::Answer;
use crate::fixture::*;
use crate::input::{ControlRequest, ReplyId};

fn request(pointer: &str, run: &RunId, snapshot: Digest) -> ControlRequest {
    ControlRequest::SnapshotPromote(PromoteRequest {
        v: V,
        run: run.clone(),
        snapshot,
        pointer: pointer.parse().expect("a name"),
        reason: "it reads well".parse().expect("a reason"),
    })
}

fn promote(world: &mut World, pointer: &str, version: u64) -> ReplyId {
    let snapshot = saved(Round(version)).manifest.digest;
    world.control(request(pointer, &run_id(), snapshot))
}

fn replied(world: &World, asked: ReplyId) -> PromoteReply {
    match &world.answers[&asked] {
        Ok(Answer::Promote(reply)) => (**reply).clone(),
        other => panic!("{other:?}"),
    }
}

fn written(world: &World) -> usize {
    world.count(|event| matches!(event, LedgerEvent::SnapshotPromoted { .. }))
}

fn snapshots(world: &mut World) -> Vec<SnapshotView> {
    let asked = world.control(ControlRequest::View(ViewRequest {
        v: V,
        query: Query::Snapshots(run_id()),
    }));
    match &world.answers[&asked] {
        Ok(Answer::View(reply)) => match &reply.view {
            View::Snapshots(rows) => rows.clone(),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

fn round(world: &mut World) {
    for _ in 0..world.run().spec.schedule.units {
        let held = world.lease(1);
        world.submit(1, held);
        world.answer_pending();
    }
}

/// A run that goes on, with full snapshots of versions 1 and 2.
fn with_snapshots() -> World {
    let mut spec = spec("demo");
    (spec.schedule.rounds, spec.schedule.snapshot_every) = (5, 1);
    let mut world = World::with_run(spec);
    world.join(1);
    round(&mut world);
    round(&mut world);
    assert_eq!(world.run().snapshots.len(), 2);
    world
}

#[test]
fn tl_19_a_pointer_moves_also_back_and_outlives_the_process() {
    let mut world = with_snapshots();
    let first = promote(&mut world, "release", 1);
    let first = replied(&world, first);
    assert_eq!(
        (first.changed, first.round, first.before),
        (true, Round(1), None)
    );
    let second = promote(&mut world, "release", 2);
    let second = replied(&world, second);
    assert_eq!((second.round, second.before), (Round(2), Some(Round(1))));
    assert_eq!(second.manifest, saved(Round(2)).manifest);
    world.restart();
    let again = promote(&mut world, "release", 2);
    assert!(!replied(&world, again).changed);
    assert_eq!(written(&world), 2, "what moves nothing is not written");
    let back = promote(&mut world, "release", 1);
    assert_eq!(replied(&world, back).before, Some(Round(2)));
    assert_eq!(written(&world), 3);
    let rows = snapshots(&mut world);
    let pointers: Vec<usize> = rows.iter().map(|row| row.pointers.len()).collect();
    assert_eq!(pointers, [1, 0]);
    let statements = rows.iter().map(|row| row.statement);
    let expected = [1, 2].map(|version| Some(saved(Round(version)).statement));
    assert!(statements.eq(expected));
}

#[test]
fn tl_19_a_frozen_run_promotes_nothing_and_says_what_is_so_already() {
    let mut world = with_snapshots();
    promote(&mut world, "release", 1);
    world.control(ControlRequest::RunHold(HoldRequest {
        v: V,
        run: run_id(),
        hold: Hold::Merges,
        held: true,
        reason: "odd norms".parse().expect("a reason"),
    }));
    for _ in 0..2 {
        let asked = promote(&mut world, "release", 2);
        assert_eq!(world.refusal(asked), Code::RunFrozen);
        let asked = promote(&mut world, "release", 1);
        assert!(!replied(&world, asked).changed);
        world.restart();
    }
    assert_eq!(written(&world), 1);
}

#[test]
fn tl_19_what_is_no_saved_snapshot_is_not_promoted() {
    let mut world = with_snapshots();
    let asked = promote(&mut world, "release", 3);
    assert_eq!(world.refusal(asked), Code::SnapshotMissing);
    let statement = saved(Round(1)).statement.digest;
    let asked = world.control(request("release", &run_id(), statement));
    assert_eq!(world.refusal(asked), Code::SnapshotMissing);
    let other = "other".parse().expect("a name");
    let asked = world.control(request("release", &other, statement));
    assert_eq!(world.refusal(asked), Code::RunUnknown);
    for number in 0..POINTERS_MAX {
        let asked = promote(&mut world, &format!("p{number}"), 1);
        assert!(replied(&world, asked).changed);
    }
    let asked = promote(&mut world, "one-more", 1);
    assert_eq!(world.refusal(asked), Code::PointersFull);
    assert_eq!(written(&world), POINTERS_MAX);
}

/// Runs that are over are what people release.
#[test]
fn tl_19_a_run_that_is_over_still_promotes() {
    let mut short = spec("demo");
    (short.schedule.rounds, short.schedule.units) = (1, 1);
    let mut world = World::with_run(short);
    world.join(1);
    round(&mut world);
    assert!(world.run().is_complete());
    let asked = promote(&mut world, "release", 1);
    assert!(replied(&world, asked).changed);
    assert_eq!(written(&world), 1);
}

#[test]
fn tl_19_tl_31_no_snapshot_with_a_contribution_of_a_worker_in_quarantine_is_promoted() {
    let mut world = with_snapshots();
    let asked = promote(&mut world, "before", 1);
    assert!(replied(&world, asked).changed);
    world.control(ControlRequest::WorkerQuarantine(QuarantineRequest {
        v: V,
        run: run_id(),
        worker: worker(1),
        quarantined: true,
        reason: "odd norms".parse().expect("a reason"),
    }));
    let asked = promote(&mut world, "release", 2);
    assert_eq!(world.refusal(asked), Code::SnapshotDescends);
    // A repeated order changes nothing, and its answer may have been lost.
    let asked = promote(&mut world, "before", 1);
    assert!(!replied(&world, asked).changed);
    assert_eq!(written(&world), 1);
}
