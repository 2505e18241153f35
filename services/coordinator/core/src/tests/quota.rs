//! Quotas of tenants: what counts, when a worker is told, and that no other tenant notices.

use schemas::lease::{LeaseRef, ReleaseRequest, UnitKind};
use schemas::tenant::{Quota, Used};
use schemas::{Bytes, Code, Epoch, Millis, UnitIndex, V};

use super::tenant::*;
use crate::fixture::*;
use crate::{Peer, ReplyId, WorkerRequest};

fn workers(most: u32) -> Quota {
    Quota {
        workers: Some(most),
        ..Quota::default()
    }
}

fn objects(most: u64) -> Quota {
    Quota {
        objects: Some(most),
        ..Quota::default()
    }
}

fn bytes(most: u64) -> Quota {
    Quota {
        bytes: Some(Bytes(most)),
        ..Quota::default()
    }
}

/// Objects of one contribution, and the length of the longest.
fn contribution() -> (u64, u64) {
    let spec = spec("demo");
    (spec.uploads() as u64, spec.upload_bytes_max().get())
}

fn claim(world: &mut World, peer: &Peer, number: u32) -> ReplyId {
    let claim = claim_request(number, Millis::from_secs(20));
    world.ask(peer.clone(), WorkerRequest::Claim(claim))
}

fn submit(world: &mut World, peer: &Peer, number: u32, held: LeaseRef) {
    let run = world.core.state().run(&peer.run).unwrap();
    let result = submission(&run.spec, number, held, 0);
    world.ask(peer.clone(), WorkerRequest::Submit(result));
    world.answer_pending();
}

fn used(world: &mut World) -> Used {
    views(world)[0].used
}

#[test]
fn a_tenant_at_its_quota_of_workers_hurts_no_other() {
    let mut world = three();
    set(&mut world, "acme", ACME, workers(1));
    new_run(&mut world, "acme_more");
    let first = of("acme_demo", ACME, 2);
    let reply = join(&mut world, &first, 2);
    assert!(world.answers[&reply].is_ok());
    let again = join(&mut world, &first, 2);
    assert!(world.answers[&again].is_ok(), "a member may join again");
    let recorded = denials(&world);
    for run in ["acme_demo", "acme_more"] {
        let reply = join(&mut world, &of(run, ACME, 4), 4);
        assert_eq!(world.refusal(reply), Code::TenantFull, "{run}");
    }
    assert_eq!(
        denials(&world),
        recorded,
        "a worker that waits does no wrong"
    );
    for (run, account_number, number) in [("other_demo", OTHER, 5), ("demo", 1, 6)] {
        let reply = join(&mut world, &of(run, account_number, number), number);
        assert!(world.answers[&reply].is_ok(), "{run}");
    }
    let leave = WorkerRequest::Leave(leave_request(2, ""));
    world.ask(first, leave);
    let reply = join(&mut world, &of("acme_more", ACME, 4), 4);
    assert!(world.answers[&reply].is_ok(), "the place is free again");
}

/// A worker that died after the end of its run stays its member for good.
#[test]
fn members_of_complete_runs_take_nobodys_place_and_are_told_that_the_run_is_over() {
    let mut world = World::new();
    set(&mut world, "acme", ACME, workers(1));
    complete(&mut world, "acme_demo", ACME, 2);
    assert_eq!(used(&mut world).workers, 0);
    new_run(&mut world, "acme_more");
    let reply = join(&mut world, &of("acme_more", ACME, 4), 4);
    assert!(world.answers[&reply].is_ok());
    let reply = join(&mut world, &of("acme_demo", ACME, 5), 5);
    assert_eq!(
        world.refusal(reply),
        Code::RunClosed,
        "no quota is in the way"
    );
}

#[test]
fn a_put_without_a_lease_is_refused_as_such_under_a_quota_too() {
    let mut world = three();
    set(&mut world, "acme", ACME, objects(100));
    let (ours, another) = (of("acme_demo", ACME, 2), of("acme_demo", ACME, 4));
    join(&mut world, &ours, 2);
    join(&mut world, &another, 4);
    let foreign = leased(&mut world, &another, 4);
    let ended = leased(&mut world, &ours, 2);
    submit(&mut world, &ours, 2, ended);
    let mut invented = ended;
    invented.unit.index = UnitIndex(1000);
    let next = LeaseRef {
        epoch: Epoch(foreign.epoch.get() + 1),
        ..foreign
    };
    for (held, code) in [
        (foreign, Code::LeaseUnknown),
        (ended, Code::LeaseLost),
        (invented, Code::LeaseUnknown),
        (next, Code::LeaseUnknown),
    ] {
        let reply = put(&mut world, &ours, held, &["a"]);
        assert_eq!(world.refusal(reply), code, "{held}");
    }
    let stranger = of("acme_demo", ACME, 9);
    let reply = put(&mut world, &stranger, foreign, &["a"]);
    assert_eq!(world.refusal(reply), Code::NotJoined);
}

#[test]
fn uploads_count_against_objects_and_bytes_once_each_and_hurt_no_other() {
    let mut world = three();
    let (ours, theirs) = (of("acme_demo", ACME, 2), of("other_demo", OTHER, 3));
    join(&mut world, &ours, 2);
    join(&mut world, &theirs, 3);
    let held = leased(&mut world, &ours, 2);
    let (unit, longest) = contribution();
    assert_eq!(unit, 2);
    // A lease counts as a contribution, and under it each upload as the longest.
    let counted = |world: &mut World| {
        let used = used(world);
        assert_eq!(used.bytes, Bytes(longest * used.objects));
        used.objects
    };
    assert_eq!(counted(&mut world), unit);
    let run = world.core.state().run(&ours.run).unwrap();
    assert!(run.spec.is_upload_length(Bytes(longest)));
    assert!(!run.spec.is_upload_length(Bytes(longest + 1)));
    for quota in [objects(unit + 1), bytes((unit + 1) * longest)] {
        set(&mut world, "acme", ACME, quota);
        let reply = put(&mut world, &ours, held, &["a", "b", "c"]);
        assert!(granted(&world, reply), "{quota}");
        let recorded = denials(&world);
        let more = put(&mut world, &ours, held, &["c", "d"]);
        assert_eq!(world.refusal(more), Code::TenantFull, "{quota}");
        assert_eq!(denials(&world), recorded);
    }
    assert_eq!(counted(&mut world), unit + 1);
    set(&mut world, "acme", ACME, objects(1));
    let same = put(&mut world, &ours, held, &["a", "c"]);
    assert!(granted(&world, same), "what was granted stays so");
    let their_lease = leased(&mut world, &theirs, 3);
    let reply = put(&mut world, &theirs, their_lease, &["a", "b", "c"]);
    assert!(granted(&world, reply));
    // The next process knows of the lease, and not of uploads.
    world.restart();
    world.answer_pending();
    assert_eq!(counted(&mut world), unit);
    // What is accepted stays counted after the lease, also after a restart.
    submit(&mut world, &ours, 2, held);
    let accepted = world.core.state().run(&ours.run).unwrap();
    let (objects, bytes) = (accepted.objects, accepted.uploaded);
    assert_eq!(objects, unit);
    world.restart();
    let used = used(&mut world);
    assert_eq!((used.objects, used.bytes), (objects, bytes));
}

/// Nobody trains a unit whose contribution there is no room for.
#[test]
fn a_unit_is_granted_only_if_there_is_room_for_its_contribution() {
    let (unit, longest) = contribution();
    for (less, quota, more) in [
        (objects(unit - 1), objects(2 * unit - 1), objects(2 * unit)),
        (
            bytes(unit * longest - 1),
            bytes(2 * unit * longest - 1),
            bytes(2 * unit * longest),
        ),
    ] {
        let mut world = three();
        new_run(&mut world, "acme_more");
        let (first, second) = (of("acme_demo", ACME, 2), of("acme_more", ACME, 4));
        join(&mut world, &first, 2);
        join(&mut world, &second, 4);
        set(&mut world, "acme", ACME, less);
        let reply = claim(&mut world, &first, 2);
        assert_eq!(world.refusal(reply), Code::TenantFull);
        set(&mut world, "acme", ACME, quota);
        let held = leased(&mut world, &first, 2);
        let recorded = denials(&world);
        let reply = claim(&mut world, &second, 4);
        assert_eq!(world.refusal(reply), Code::TenantFull, "{quota}");
        assert_eq!(denials(&world), recorded);
        // Its holder gets it again, and may upload the whole contribution.
        assert_eq!(leased(&mut world, &first, 2), held);
        let reply = put(&mut world, &first, held, &["a", "b"]);
        assert!(granted(&world, reply));
        set(&mut world, "acme", ACME, more);
        leased(&mut world, &second, 4);
    }
}

/// The quota is looked at again when a unit becomes open for a claim that waits.
#[test]
fn a_claim_that_waits_gets_no_unit_that_there_is_no_room_for() {
    let mut world = three();
    let peers = [2, 4, 5].map(|number| (of("acme_demo", ACME, number), number));
    for (peer, number) in &peers {
        join(&mut world, peer, *number);
    }
    let held = leased(&mut world, &peers[0].0, 2);
    leased(&mut world, &peers[1].0, 4);
    let waiting = claim(&mut world, &peers[2].0, 5);
    let (unit, _) = contribution();
    set(&mut world, "acme", ACME, objects(2 * unit - 1));
    let release = WorkerRequest::Release(ReleaseRequest {
        v: V,
        lease: held,
        reason: String::new(),
    });
    world.ask(peers[0].0.clone(), release);
    assert!(!world.manifests.contains_key(&waiting));
    set(&mut world, "acme", ACME, objects(2 * unit));
    let again = claim(&mut world, &peers[2].0, 5);
    assert_eq!(world.manifests[&again].lease.unit, held.unit);
}

/// An evaluation uploads nothing.
#[test]
fn a_tenant_at_its_quota_of_objects_still_evaluates() {
    let mut world = World::new();
    let (unit, _) = contribution();
    set(&mut world, "acme", ACME, objects(unit));
    let mut spec = spec("acme_demo");
    (spec.schedule.units, spec.schedule.evaluation_every) = (1, 1);
    let new = schemas::control::RunNew { v: V, spec };
    world.control(crate::ControlRequest::RunNew(Box::new(new)));
    world.answer_pending();
    let member = of("acme_demo", ACME, 2);
    join(&mut world, &member, 2);
    for kind in [UnitKind::Train, UnitKind::Evaluate] {
        let held = leased(&mut world, &member, 2);
        assert_eq!(held.unit.kind, kind);
        assert_eq!(used(&mut world).objects, unit);
        submit(&mut world, &member, 2, held);
    }
    let reply = claim(&mut world, &member, 2);
    assert_eq!(world.refusal(reply), Code::TenantFull);
}
