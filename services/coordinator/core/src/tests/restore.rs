//! Restore: an operator leads a run back to a full snapshot.

use schemas::event::LedgerEvent;
use schemas::foundry::{self, Order};
use schemas::hold::Hold;
use schemas::lease::{LeaseRef, RenewRequest, Work};
use schemas::quarantine::QuarantineRequest;
use schemas::restore::{RESTORES_MAX, RestoreReply, RestoreRequest};
use schemas::run::RunSpec;
use schemas::view::RunPhase;
use schemas::{Bytes, Code, Digest, Millis, Refusal, Round, Steps, Tokens, V};

use crate::fixture::*;
use crate::input::ReplyId;
use crate::{Answer, ControlRequest, Effect, Input, Uploads, WorkerRequest};

fn of(round: u64) -> Digest {
    object(&format!("snapshot {round}")).digest
}

fn request(snapshot: Digest) -> RestoreRequest {
    RestoreRequest {
        v: V,
        snapshot,
        run: None,
        force: false,
        reason: "odd loss".parse().expect("a reason"),
    }
}

fn ask(world: &mut World, request: RestoreRequest) -> ReplyId {
    world.control(ControlRequest::SnapshotRestore(request))
}

fn replied(world: &World, asked: ReplyId) -> RestoreReply {
    match &world.answers[&asked] {
        Ok(Answer::Restore(reply)) => reply.clone(),
        other => panic!("{other:?}"),
    }
}

pub(crate) fn restore(world: &mut World, round: u64) -> RestoreReply {
    let asked = ask(world, request(of(round)));
    world.answer_pending();
    replied(world, asked)
}

fn unfreeze(world: &mut World) {
    world.unfreeze();
    world.answer_pending();
}

fn settings_of(rounds: u64, units: u32) -> RunSpec {
    let mut spec = spec("demo");
    spec.schedule.rounds = rounds;
    spec.schedule.units = units;
    spec.schedule.snapshot_every = 1;
    spec.schedule.evaluation_every = 0;
    spec
}

/// One unit of worker `number`, from its claim to its result.
fn work(world: &mut World, number: u32) -> LeaseRef {
    let held = world.lease(number);
    world.submit(number, held);
    world.answer_pending();
    held
}

/// A run of six rounds of two units, of which `closed` are closed and saved.
fn trained(closed: u64) -> World {
    let mut world = World::with_run(settings_of(6, 2));
    for number in [1, 2] {
        world.join(number);
    }
    for _ in 0..closed {
        work(&mut world, 1);
        work(&mut world, 2);
    }
    assert_eq!(world.run().rounds_closed(), Round(closed));
    world
}

#[test]
fn tl_32_an_active_run_goes_back_in_one_event_and_trains_on_from_there() {
    let mut world = trained(4);
    work(&mut world, 1);
    let held = world.lease(2);
    let (before, issued) = (world.journal.len(), world.run().tokens.issued);
    let asked = ask(&mut world, request(of(2)));
    assert!(!world.answers.contains_key(&asked), "it is read back first");
    assert_eq!(
        world.kinds(before),
        [""; 0],
        "and nothing is written before"
    );
    world.answer_pending();
    assert_eq!(
        world.kinds(before),
        ["hold-placed", "snapshot-restored", "round-opened"]
    );
    let reply = replied(&world, asked);
    assert!(reply.changed && reply.frozen && reply.since == world.now);
    assert_eq!(
        (reply.snapshot, reply.from, reply.version),
        (Round(2), Round(4), Round(5))
    );
    assert_eq!((reply.undone, reply.leases, reply.contributions), (2, 1, 1));
    assert_eq!(reply.uploads, Some(0));
    let purge = |effect: &Effect| {
        matches!(
            effect,
            Effect::Purge {
                uploads: Uploads::Before(Round(5)),
                ..
            }
        )
    };
    assert!(world.seen.iter().any(purge), "what came before is deleted");
    // The numbers of the history stay, and what was undone is marked.
    let rounds = world.run().round_views();
    let undone: Vec<bool> = rounds.iter().map(|round| round.undone).collect();
    assert_eq!(undone, [false, false, true, true, true, false]);
    let snapshots = world.run().snapshot_views();
    let undone: Vec<(Round, bool)> = snapshots
        .iter()
        .map(|one| (one.round, one.undone))
        .collect();
    let expected = [(1, false), (2, false), (3, true), (4, true), (5, false)];
    assert_eq!(
        undone,
        expected.map(|(round, undone)| (Round(round), undone))
    );
    // Leases of before are fenced, and their tokens are accounted for.
    assert_eq!(world.run().tokens.issued, issued);
    assert_eq!(world.run().tokens.abandoned, Tokens(64));
    let renewal = WorkerRequest::Renew(RenewRequest {
        v: V,
        lease: held,
        steps_done: Steps(1),
        bytes_moved: Bytes(0),
    });
    let renewed = world.ask(peer(2), renewal);
    assert_eq!(world.refusal(renewed), Code::LeaseLost);
    let late = world.submit(2, held);
    assert_eq!(world.refusal(late), Code::LeaseLost);
    // The next units start from the restored weights, at the step of the snapshot.
    let claim = world.claim(1);
    let manifest = world.manifests[&claim].clone();
    assert_eq!(manifest.lease, lease(train(5, 0), 1));
    let restored = snapshot_weights(&world.run().spec, Round(2));
    assert_eq!(
        (manifest.base.round, &manifest.base.chunks),
        (Round(5), &restored.chunks)
    );
    let steps = world.run().spec.schedule.inner_steps.get();
    assert!(
        matches!(manifest.work, Work::Train { steps_before, .. } if steps_before.get() == 2 * steps)
    );
    // The schedule is worked off from there: four rounds are left.
    world.submit(1, manifest.lease);
    world.answer_pending();
    work(&mut world, 2);
    assert_eq!(world.run().rounds_closed(), Round(5), "it is frozen");
    unfreeze(&mut world);
    for _ in 0..3 {
        assert!(!world.run().is_complete());
        work(&mut world, 1);
        work(&mut world, 2);
    }
    assert!(world.run().is_complete());
    assert_eq!(world.run().rounds_closed(), Round(9));
    assert_eq!(world.run().progress(Round(9)), Round(6));
}

/// The foundry gets the snapshot under its new version, also after the process died, and saves the
/// next one behind it.
#[test]
fn tl_32_a_coordinator_that_dies_after_the_event_goes_on_from_the_restored_weights() {
    let mut world = trained(3);
    let asked = ask(&mut world, request(of(1)));
    let check = world.take_pending(|effect| matches!(effect, Effect::CheckSnapshot { .. }));
    let Effect::CheckSnapshot {
        round, manifest, ..
    } = &check
    else {
        unreachable!("it was picked as one")
    };
    assert_eq!((*round, manifest.digest), (Round(1), of(1)));
    world.answer_one(check);
    assert!(replied(&world, asked).changed);
    let restores = |world: &mut World| {
        let order = world.take_pending(|effect| matches!(effect, order!(Restore)));
        let Effect::Foundry {
            order:
                Order::Restore {
                    snapshot,
                    version,
                    merges,
                    ..
                },
            ..
        } = order.clone()
        else {
            unreachable!("it was picked as one")
        };
        assert_eq!(snapshot.map(|manifest| manifest.digest), Some(of(1)));
        assert_eq!((version, merges.len()), (Round(4), 0));
        world.answer_one(order);
    };
    world.restart();
    restores(&mut world);
    world.answer_pending();
    assert!(world.run().is_held(Hold::Merges), "it stays frozen");
    unfreeze(&mut world);
    for number in [1, 2] {
        world.join(number);
        let held = world.lease(number);
        world.submit(number, held);
        let saves = |effect: &Effect| matches!(effect, order!(Save));
        world.answer_pending_but(saves);
    }
    let save = world.take_pending(|effect| matches!(effect, order!(Save)));
    let Effect::Foundry {
        order: Order::Save {
            round,
            parent,
            merges,
        },
        ..
    } = save
    else {
        unreachable!("it was picked as one")
    };
    assert_eq!((round, parent, merges.len()), (Round(5), Some(of(1)), 1));
    assert_eq!(merges[0].round, Round(4));
}

#[test]
fn tl_32_a_repeated_order_finds_the_restored_weights_and_writes_nothing() {
    let mut world = trained(3);
    let first = ask(&mut world, request(of(2)));
    let second = ask(&mut world, request(of(2)));
    let checks = world
        .pending
        .iter()
        .filter(|effect| matches!(effect, Effect::CheckSnapshot { .. }));
    assert_eq!(checks.count(), 1, "both wait for one check");
    let other = ask(&mut world, request(of(1)));
    assert_eq!(world.refusal(other), Code::NoAnswer, "another has to wait");
    world.answer_pending();
    assert_eq!(replied(&world, first), replied(&world, second));
    let restored = replied(&world, first);
    // Contributions to the frozen round change nothing.
    work(&mut world, 1);
    let before = world.journal.len();
    let again = restore(&mut world, 2);
    assert_eq!(world.kinds(before), [""; 0]);
    assert!(!again.changed && again.frozen);
    assert_eq!(
        (again.since, again.version, again.from),
        (restored.since, Round(4), Round(3))
    );
    assert_eq!((again.undone, again.snapshot), (1, Round(2)));
    let purges = world
        .seen
        .iter()
        .filter(|effect| matches!(effect, Effect::Purge { .. }));
    assert_eq!(purges.count(), 3, "late uploads go each time");
    // Once the run has gone on, the order means what it says.
    work(&mut world, 2);
    unfreeze(&mut world);
    assert_eq!(world.run().rounds_closed(), Round(5));
    let once_more = restore(&mut world, 2);
    assert!(once_more.changed);
    assert_eq!((once_more.undone, once_more.version), (1, Round(6)));
    assert_eq!(world.run().progress(Round(6)), Round(2));
    // What was undone can be taken up again.
    let forward = restore(&mut world, 3);
    assert_eq!((forward.undone, forward.version), (0, Round(7)));
    assert_eq!(world.run().progress(Round(7)), Round(3));
}

#[test]
fn tl_32_what_is_no_snapshot_of_the_run_is_refused_before_anything_is_written() {
    let mut world = trained(2);
    let mut other = settings_of(6, 2);
    other.run = "other".parse().expect("a name");
    world.control(ControlRequest::RunNew(Box::new(schemas::control::RunNew {
        v: V,
        spec: other,
    })));
    world.answer_pending();
    let contribution = upload("demo 1 train-0").digest;
    let published = merged(&world.run().spec, Round(0)).broadcast.digest();
    let before = world.journal.len();
    for (digest, run, code) in [
        (Digest::of(b"unknown"), None, Code::SnapshotUnknown),
        (contribution, None, Code::SnapshotUnknown),
        (published, None, Code::SnapshotUnknown),
        (of(1), Some("other"), Code::SnapshotUnknown),
        (of(1), Some("nobody"), Code::RunUnknown),
    ] {
        let run = run.map(|run| run.parse().expect("a name"));
        let asked = ask(
            &mut world,
            RestoreRequest {
                run,
                ..request(digest)
            },
        );
        assert_eq!(world.refusal(asked), code, "{digest}");
    }
    let asked = ask(
        &mut world,
        RestoreRequest {
            run: Some("other".parse().expect("a name")),
            ..request(of(1))
        },
    );
    let Err(refusal) = &world.answers[&asked] else {
        panic!("of another run")
    };
    assert!(
        refusal.detail.contains("of run demo, not of run other"),
        "{refusal}"
    );
    // The store does not have it as it was saved.
    for code in [
        Code::SnapshotGone,
        Code::SnapshotUnsound,
        Code::StoreUnreachable,
    ] {
        let asked = ask(&mut world, request(of(1)));
        let check = world.take_pending(|effect| matches!(effect, Effect::CheckSnapshot { .. }));
        drop(check);
        let verdict = Err(Refusal::new(code, "test"));
        world.input(Input::SnapshotChecked {
            run: run_id(),
            verdict,
        });
        assert_eq!(world.refusal(asked), code);
    }
    // Nor does it have weights of another form.
    let asked = ask(&mut world, request(of(1)));
    world.take_pending(|effect| matches!(effect, Effect::CheckSnapshot { .. }));
    let mut weights = snapshot_weights(&world.run().spec, Round(1));
    weights.codec = kit::FP32;
    world.input(Input::SnapshotChecked {
        run: run_id(),
        verdict: Ok(weights.clone()),
    });
    assert_eq!(world.refusal(asked), Code::SnapshotUnsound);
    // A verdict that nobody asked for.
    world.input(Input::SnapshotChecked {
        run: run_id(),
        verdict: Ok(weights),
    });
    assert_eq!(world.kinds(before), [""; 0]);
    assert!(!world.run().is_held(Hold::Merges));
}

#[test]
fn tl_32_a_snapshot_with_a_contribution_of_a_worker_in_quarantine_needs_force() {
    let mut world = World::with_run(settings_of(6, 1));
    for number in [1, 2] {
        world.join(number);
    }
    for number in [1, 2, 1] {
        work(&mut world, number);
    }
    world.control(ControlRequest::WorkerQuarantine(QuarantineRequest {
        v: V,
        run: run_id(),
        worker: worker(2),
        quarantined: true,
        reason: "odd norms".parse().expect("a reason"),
    }));
    let before = world.journal.len();
    let asked = ask(&mut world, request(of(3)));
    assert_eq!(world.refusal(asked), Code::SnapshotDescends);
    let Err(refusal) = &world.answers[&asked] else {
        unreachable!("it is refused")
    };
    assert!(refusal.detail.contains(worker(2).as_str()), "{refusal}");
    assert!(
        refusal.detail.contains(&of(1).to_string()),
        "it names a clean one: {refusal}"
    );
    assert_eq!(world.kinds(before), [""; 0]);
    let forced = ask(
        &mut world,
        RestoreRequest {
            force: true,
            ..request(of(2))
        },
    );
    world.answer_pending();
    assert!(replied(&world, forced).changed);
    let clean = restore(&mut world, 1);
    assert_eq!((clean.undone, clean.version), (1, Round(5)));
    // The present weights do not descend from it any more, and undone snapshots still do.
    let merged = |version| world.run().merged_into(&worker(2), Round(version));
    assert_eq!(merged(5), None);
    assert_eq!(merged(4).map(|merged| merged.first), Some(Round(1)));
    let again = ask(&mut world, request(of(3)));
    assert_eq!(world.refusal(again), Code::SnapshotDescends);
}

#[test]
fn tl_32_what_the_foundry_still_does_for_the_old_weights_counts_no_more() {
    let mut world = trained(2);
    // A merge is under way, a save too, and a result is being checked.
    work(&mut world, 1);
    let held = world.lease(2);
    world.submit(2, held);
    world.answer_pending_but(|effect| matches!(effect, order!(Merge)));
    let merge = world.take_pending(|effect| matches!(effect, order!(Merge)));
    let asked = ask(&mut world, request(of(1)));
    world.answer_pending();
    assert!(replied(&world, asked).changed);
    let before = world.journal.len();
    world.answer_one(merge);
    world.foundry(foundry::Answer::Saved {
        round: Round(3),
        outcome: Ok(saved(Round(3))),
    });
    assert_eq!(world.kinds(before), [""; 0]);
    assert_eq!(
        (world.run().rounds_closed(), world.run().snapshots.len()),
        (Round(3), 3)
    );
    // A result whose check is under way is told that its lease is lost.
    let held = world.lease(1);
    let submitted = world.submit(1, held);
    world.answer_pending_but(|effect| matches!(effect, order!(Screen)));
    let asked = ask(&mut world, request(of(2)));
    world.answer_pending_but(|effect| matches!(effect, order!(Screen)));
    assert!(replied(&world, asked).changed);
    assert_eq!(world.refusal(submitted), Code::LeaseLost);
    let screen = world.take_pending(|effect| matches!(effect, order!(Screen)));
    world.answer_one(screen);
    assert_eq!(world.run().tokens_in_flight(), Tokens(0));
}

/// A restore of the weights that runs when the order comes ends first, and means nothing.
#[test]
fn tl_32_weights_that_are_being_loaded_are_loaded_anew() {
    let mut world = trained(2);
    world.restart();
    let old = world.take_pending(|effect| matches!(effect, order!(Restore)));
    let asked = ask(&mut world, request(of(1)));
    world.answer_pending();
    assert!(replied(&world, asked).changed);
    // Its failure does not halt the run either.
    drop(old);
    let outcome = Err(Refusal::new(Code::ReplayDiverged, "test"));
    world.foundry(foundry::Answer::Restored { outcome });
    assert_ne!(world.view().phase, RunPhase::Halted);
    let new = world.take_pending(|effect| matches!(effect, order!(Restore)));
    let Effect::Foundry {
        order: Order::Restore { version, .. },
        ..
    } = &new
    else {
        unreachable!("it was picked as one")
    };
    assert_eq!(*version, Round(3));
    world.answer_one(new);
    world.answer_pending();
    world.join(1);
    assert_eq!(world.lease(1).unit, train(3, 0));
}

#[test]
fn tl_32_a_run_that_is_halted_goes_on_from_the_snapshot() {
    let mut world = trained(2);
    world.restart();
    world.take_pending(|effect| matches!(effect, order!(Restore)));
    let outcome = Err(Refusal::new(Code::ReplayDiverged, "test"));
    world.foundry(foundry::Answer::Restored { outcome });
    assert_eq!(world.view().phase, RunPhase::Halted);
    restore(&mut world, 1);
    assert_ne!(world.view().phase, RunPhase::Halted);
    world.join(1);
    assert_eq!(world.lease(1).unit, train(3, 0));
}

/// A run with only its last evaluation to come takes a number for the restore too.
#[test]
fn tl_32_a_run_that_is_trained_to_its_end_goes_back_as_well() {
    let mut settings = settings_of(2, 1);
    settings.schedule.evaluation_every = 1;
    let mut world = World::with_run(settings);
    world.join(1);
    while world.run().rounds_closed() < Round(2) {
        work(&mut world, 1);
    }
    assert!(!world.run().is_complete() && world.run().open.is_empty());
    let reply = restore(&mut world, 1);
    assert_eq!(
        (reply.from, reply.version, reply.undone),
        (Round(2), Round(3), 1)
    );
    assert!(
        world.run().is_undone(Round(2)),
        "no round was open, and a number went"
    );
    unfreeze(&mut world);
    let mut guard = 0..20;
    while !world.run().is_complete() {
        guard.next().expect("it ends");
        work(&mut world, 1);
    }
    assert_eq!(world.run().rounds_closed(), Round(4));
    // To the last snapshot: nothing is left to train, and its evaluation is made again.
    let mut settings = settings_of(1, 1);
    settings.schedule.evaluation_every = 1;
    let mut world = World::with_run(settings);
    world.join(1);
    while world.run().rounds_closed() < Round(1) {
        work(&mut world, 1);
    }
    let reply = restore(&mut world, 1);
    assert_eq!((reply.version, reply.undone), (Round(2), 0));
    unfreeze(&mut world);
    assert_eq!(work(&mut world, 1), lease(evaluate(2), 1));
    assert!(world.run().is_complete());
    let over = ask(&mut world, request(of(1)));
    assert_eq!(world.refusal(over), Code::RunClosed);
}

#[test]
fn tl_32_nobody_waits_in_vain_when_the_coordinator_ends() {
    let mut world = trained(2);
    let asked = ask(&mut world, request(of(1)));
    world.shut_down(Millis(0));
    assert_eq!(world.refusal(asked), Code::Draining);
    let mut world = trained(1);
    work(&mut world, 1);
    world.lease(2);
    world.shut_down(Millis(10_000));
    let asked = ask(&mut world, request(of(1)));
    assert_eq!(world.refusal(asked), Code::Draining);
}

#[test]
fn tl_32_restores_are_bounded() {
    let mut world = trained(1);
    for _ in 0..RESTORES_MAX {
        restore(&mut world, 1);
        unfreeze(&mut world);
        work(&mut world, 1);
        work(&mut world, 2);
        world.wait(Millis(600_000));
        for number in [1, 2] {
            world.join(number);
        }
    }
    let asked = ask(&mut world, request(of(1)));
    assert_eq!(world.refusal(asked), Code::RestoresFull);
    let count = world.count(|event| matches!(event, LedgerEvent::SnapshotRestored { .. }));
    assert_eq!(count, RESTORES_MAX);
}
