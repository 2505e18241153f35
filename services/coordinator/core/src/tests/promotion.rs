//! Promotion: an operator moves a pointer to a full snapshot.

use schemas::control::{Query, View, ViewRequest};
use schemas::event::LedgerEvent;
use schemas::hold::{Hold, HoldRequest};
use schemas::promotion::{ACCEPTED_MAX, POINTERS_MAX, PromoteReply, PromoteRequest};
use schemas::quarantine::QuarantineRequest;
use schemas::view::SnapshotView;
use schemas::{Code, Digest, Round, RunId, V, WorkerId};

use crate::Answer;
use crate::fixture::*;
use crate::input::{ControlRequest, ReplyId};

fn request(pointer: &str, run: &RunId, snapshot: Digest) -> ControlRequest {
    ControlRequest::SnapshotPromote(PromoteRequest {
        v: V,
        run: Some(run.clone()),
        snapshot,
        pointer: pointer.parse().expect("a name"),
        accept: Vec::new(),
        check_only: false,
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
    let asked = world.control(ControlRequest::View(ViewRequest::of(Query::Snapshots(
        run_id(),
    ))));
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

fn quarantine(world: &mut World, number: u32) {
    world.control(ControlRequest::WorkerQuarantine(QuarantineRequest {
        v: V,
        run: run_id(),
        worker: worker(number),
        quarantined: true,
        reason: "odd norms".parse().expect("a reason"),
    }));
}

/// Moves `release` to a version, or asks if that may be done, and accepts these workers.
fn accepting(world: &mut World, version: u64, accept: &[WorkerId], check_only: bool) -> ReplyId {
    world.control(ControlRequest::SnapshotPromote(PromoteRequest {
        v: V,
        run: None,
        snapshot: saved(Round(version)).manifest.digest,
        pointer: "release".parse().expect("a name"),
        accept: accept.to_vec(),
        check_only,
        reason: "only its first round".parse().expect("a reason"),
    }))
}

#[test]
fn tl_19_tl_31_an_operator_accepts_a_worker_in_quarantine_by_its_key_and_the_ledger_says_so() {
    let mut world = with_snapshots();
    quarantine(&mut world, 1);
    for accept in [&[][..], &[worker(2)]] {
        let asked = accepting(&mut world, 2, accept, false);
        assert_eq!(world.refusal(asked), Code::SnapshotDescends);
    }
    let asked = accepting(&mut world, 2, &[worker(2), worker(1)], false);
    let reply = replied(&world, asked);
    assert_eq!(
        (reply.changed, &reply.accepted[..]),
        (true, &[worker(1)][..])
    );
    let named = |event: &LedgerEvent| matches!(event, LedgerEvent::SnapshotPromoted { accepted, .. } if *accepted == [worker(1)]);
    assert_eq!(world.count(named), 1);
    world.restart();
    // The same order again moves nothing, and accepts nothing anew.
    let asked = accepting(&mut world, 2, &[worker(1)], false);
    let reply = replied(&world, asked);
    assert_eq!((reply.changed, &reply.accepted[..]), (false, &[][..]));
    let rows = snapshots(&mut world);
    let shut = rows
        .iter()
        .map(|row| row.quarantined.map_or(0, |count| count.get()));
    assert_eq!(shut.collect::<Vec<_>>(), [1, 1]);
}

#[test]
fn tl_19_a_question_about_a_promotion_moves_nothing_and_hears_what_the_order_would() {
    let mut world = with_snapshots();
    let asked = accepting(&mut world, 2, &[], true);
    let reply = replied(&world, asked);
    assert_eq!((reply.changed, reply.before), (true, None));
    quarantine(&mut world, 1);
    let asked = accepting(&mut world, 2, &[], true);
    assert_eq!(world.refusal(asked), Code::SnapshotDescends);
    let asked = accepting(&mut world, 2, &[worker(1)], true);
    assert_eq!(replied(&world, asked).accepted, [worker(1)]);
    let asked = accepting(&mut world, 3, &[], true);
    assert_eq!(world.refusal(asked), Code::SnapshotMissing);
    assert_eq!(written(&world), 0);
    let many = vec![worker(1); ACCEPTED_MAX + 1];
    let asked = accepting(&mut world, 2, &many, false);
    assert_eq!(world.refusal(asked), Code::AcceptedTooMany);
    let asked = accepting(&mut world, 2, &many[1..], false);
    assert!(replied(&world, asked).changed);
}

/// One more worker in quarantine than the event can name: no order promotes it, and the refusal
/// does not ask for one.
#[test]
fn tl_19_a_snapshot_of_more_workers_in_quarantine_than_a_promotion_accepts_says_so() {
    let most = ACCEPTED_MAX as u32;
    let mut spec = spec("demo");
    (spec.schedule.rounds, spec.schedule.snapshot_every) = (5, 1);
    spec.schedule.units = most + 1;
    let mut world = World::with_run(spec);
    world.join(0);
    for _ in 0..=most {
        let held = world.lease(0);
        world.submit(0, held);
        world.answer_pending();
    }
    for number in 1..=most + 1 {
        world.join(number);
        let held = world.lease(number);
        world.submit(number, held);
        world.answer_pending();
    }
    for number in 1..=most {
        quarantine(&mut world, number);
    }
    let all: Vec<WorkerId> = (1..=most).map(worker).collect();
    let asked = accepting(&mut world, 2, &all, true);
    assert_eq!(replied(&world, asked).accepted.len(), ACCEPTED_MAX);
    quarantine(&mut world, most + 1);
    let asked = accepting(&mut world, 2, &all, true);
    assert_eq!(world.refusal(asked), Code::AcceptedTooMany);
    let text = match &world.answers[&asked] {
        Err(refusal) => refusal.detail.clone(),
        other => panic!("{other:?}"),
    };
    let clean = saved(Round(1)).manifest.digest;
    for part in [
        "of 33 workers in quarantine".to_owned(),
        format!("is of round 1, {clean}"),
    ] {
        assert!(text.contains(&part), "{text}");
    }
}

#[test]
fn tl_19_a_refused_promotion_names_the_newest_snapshot_that_can_be_promoted() {
    let mut world = with_snapshots();
    // The second round is of another worker.
    world.join(2);
    for _ in 0..world.run().spec.schedule.units {
        let held = world.lease(2);
        world.submit(2, held);
        world.answer_pending();
    }
    quarantine(&mut world, 2);
    let told = |world: &World, asked| match &world.answers[&asked] {
        Err(refusal) => refusal.detail.clone(),
        other => panic!("{other:?}"),
    };
    let asked = accepting(&mut world, 3, &[], true);
    let text = told(&world, asked);
    let (shut, clean) = (worker(2), saved(Round(2)).manifest.digest);
    for part in [shut.to_string(), format!("is of round 2, {clean}")] {
        assert!(text.contains(&part), "{text}");
    }
    quarantine(&mut world, 1);
    let asked = accepting(&mut world, 3, &[worker(2)], true);
    let text = told(&world, asked);
    assert!(text.contains("no full snapshot is without"), "{text}");
    assert!(
        text.contains(worker(1).as_str()) && !text.contains(worker(2).as_str()),
        "{text}"
    );
}

#[test]
fn tl_19_tl_31_no_snapshot_with_a_contribution_of_a_worker_in_quarantine_is_promoted() {
    let mut world = with_snapshots();
    let asked = promote(&mut world, "before", 1);
    assert!(replied(&world, asked).changed);
    quarantine(&mut world, 1);
    let asked = promote(&mut world, "release", 2);
    assert_eq!(world.refusal(asked), Code::SnapshotDescends);
    // A repeated order changes nothing, and its answer may have been lost.
    let asked = promote(&mut world, "before", 1);
    assert!(!replied(&world, asked).changed);
    assert_eq!(written(&world), 1);
}
