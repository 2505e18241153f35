use schemas::blob::GetRequest;
use schemas::control::{
    OperatorObjects, Query, RunNew, RunNewReply, ShutdownReply, View, ViewRequest,
};
use schemas::event::{Event, LedgerEvent};
use schemas::limits::{EVENT_BYTES_MAX, NAMED_CHUNKS_MAX, RUN_ID_BYTES_MAX};
use schemas::public::CommandVerb;
use schemas::{Bytes, Code, Message, Millis, ObjectRef, Refusal, RunId, V};

use crate::fixture::*;
use crate::{Answer, ControlRequest, Coordinator, Effect, Input, Peer, ReplyId, WorkerRequest};

fn new_run(world: &mut World, spec: schemas::run::RunSpec) -> ReplyId {
    world.control(ControlRequest::RunNew(Box::new(RunNew { v: V, spec })))
}

fn view(world: &mut World, query: Query) -> View {
    let reply = world.control(ControlRequest::View(ViewRequest::of(query)));
    match &world.answers[&reply] {
        Ok(Answer::View(found)) => found.view.clone(),
        other => panic!("no view: {other:?}"),
    }
}

#[test]
fn a_run_is_created_once() {
    let mut world = World::new();
    let first = new_run(&mut world, spec("demo"));
    let beside = new_run(&mut world, spec("demo"));
    world.answer_pending();
    let again = new_run(&mut world, spec("demo"));
    let created = |reply| match &world.answers[&reply] {
        Ok(Answer::RunNew(RunNewReply { created, .. })) => *created,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        [created(first), created(beside), created(again)],
        [true, false, false]
    );
    assert_eq!(
        world.count(|event| matches!(event, LedgerEvent::RunCreated { .. })),
        1
    );
    let mut other = spec("demo");
    other.seed = 8;
    let other = new_run(&mut world, other);
    assert_eq!(world.refusal(other), Code::RunExists);
    let mut bad = spec("bad");
    bad.schedule.units = 0;
    let bad = new_run(&mut world, bad);
    assert_eq!(world.refusal(bad), Code::SpecInvalid);
}

#[test]
fn a_run_whose_objects_are_not_there_is_refused() {
    let mut world = World::new();
    let reply = new_run(&mut world, spec("demo"));
    let verdict = Err(Refusal::new(Code::ObjectMissing, "test"));
    world.input(Input::RunChecked { reply, verdict });
    assert_eq!(world.refusal(reply), Code::ObjectMissing);
    assert_eq!(world.core.state().runs().count(), 0);
}

#[test]
fn the_largest_settings_fit_into_an_event() {
    let mut world = World::new();
    let mut large = spec(&"r".repeat(RUN_ID_BYTES_MAX));
    large.schedule.rounds = 1_000_000;
    large.schedule.inner_steps = schemas::Steps(1_000_000);
    large.schedule.snapshot_every = 1_000_000;
    (large.seed, large.data.bytes) = (u64::MAX, Bytes(u64::MAX));
    let chunk = ObjectRef {
        digest: object("chunk").digest,
        bytes: Bytes(u64::MAX),
    };
    large.data_provenance = Some(chunk);
    large.model.initial = vec![chunk; NAMED_CHUNKS_MAX].into();
    new_run(&mut world, large);
    world.answer_pending();
    let longest = world.journal.iter().map(|body| body.encode().len()).max();
    // The names and numbers that are not set here are bounded, and fit into the room that is left.
    let room = 512;
    assert!(
        longest.is_some_and(|bytes| bytes > EVENT_BYTES_MAX / 2 && bytes + room <= EVENT_BYTES_MAX),
        "{longest:?}"
    );
}

#[test]
fn two_runs_do_not_touch_each_other() {
    let mut world = World::with_run(spec("demo"));
    new_run(&mut world, spec("other"));
    world.answer_pending();
    world.join(1);
    let held = world.lease(1);
    world.submit(1, held);
    world.answer_pending();
    let other: RunId = "other".parse().unwrap();
    assert_eq!(
        world.core.state().run(&other).unwrap().tokens.issued.get(),
        0
    );
    let View::Runs(runs) = view(&mut world, Query::Runs) else {
        panic!("asked for runs")
    };
    assert_eq!(
        runs.iter()
            .map(|run| (run.run.as_str(), run.units_done))
            .collect::<Vec<_>>(),
        [("demo", 1), ("other", 0)]
    );
}

#[test]
fn a_shutdown_waits_for_holders_and_then_ends_in_order() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    world.join(2);
    let held = world.lease(1);
    let other = world.lease(2);
    world.submit(2, other);
    world.answer_pending();
    let waiting = world.claim(2);
    let reply = world.shut_down(Millis::from_secs(60));
    assert!(matches!(
        world.answers[&reply],
        Ok(Answer::Shutdown(ShutdownReply {
            leases: 1,
            workers: 2,
            ..
        }))
    ));
    assert_eq!(world.refusal(waiting), Code::Draining);
    let claim = world.claim(2);
    assert_eq!(world.refusal(claim), Code::Draining);
    let stopped = |world: &World| {
        world
            .seen
            .iter()
            .any(|effect| matches!(effect, Effect::Stop { .. }))
    };
    assert!(!stopped(&world));
    world.submit(1, held);
    world.answer_pending();
    assert!(stopped(&world));
    assert_eq!(
        world.kinds(world.journal.len() - 1),
        ["coordinator-stopped"]
    );
    assert_eq!(
        world.run().rounds_closed().get(),
        1,
        "the merge in the making was waited for"
    );
    assert_eq!(world.core.next_deadline(), None);
    let late = world.join(3);
    assert_eq!(world.refusal(late), Code::Draining);
    world.restart();
    world.answer_pending();
    let next = world.lease(1);
    assert_eq!(
        next.unit.round.get(),
        1,
        "the next process goes on where this one stopped"
    );
}

#[test]
fn a_shutdown_does_not_wait_for_ever() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    world.lease(1);
    world.shut_down(Millis::from_secs(10));
    world.wait(Millis::from_secs(10));
    assert!(
        world
            .seen
            .iter()
            .any(|effect| matches!(effect, Effect::Stop { .. }))
    );
}

/// A member that asks, of a run and under an account that it names.
fn member(number: u32, run: &str, tenant: u32) -> Peer {
    Peer {
        account: account(tenant),
        run: run.parse().unwrap(),
        worker: worker(number),
    }
}

#[test]
fn a_shutdown_commands_each_member_that_is_present_once_and_nobody_else() {
    let mut world = World::with_run(spec("demo"));
    new_run(&mut world, spec("other"));
    world.answer_pending();
    let members = [
        member(1, "demo", 1),
        member(2, "demo", 1),
        member(3, "demo", 1),
        member(4, "other", 1),
    ];
    for (number, peer) in (1..).zip(&members) {
        world.ask(peer.clone(), WorkerRequest::Join(join_request(number)));
        world.answer_pending();
    }
    // One worker has left, and one finishes what it holds.
    world.ask(
        members[2].clone(),
        WorkerRequest::Leave(leave_request(3, "test")),
    );
    world.lease(1);
    let present = [&members[0], &members[1], &members[3]];
    let told = |world: &World, wanted: CommandVerb| -> Vec<Peer> {
        let told = world.seen.iter().filter_map(|effect| match effect {
            Effect::Command {
                account,
                run,
                worker,
                verb,
                ..
            } if *verb == wanted => Some(Peer {
                account: account.clone(),
                run: run.clone(),
                worker: worker.clone(),
            }),
            _ => None,
        });
        told.collect()
    };
    world.shut_down(Millis::from_secs(60));
    assert!(
        told(&world, CommandVerb::Drain).iter().eq(present),
        "{:?}",
        told(&world, CommandVerb::Drain)
    );
    assert_eq!(told(&world, CommandVerb::Stop), []);
    world.ask(
        members[1].clone(),
        WorkerRequest::Leave(leave_request(2, "drained")),
    );
    world.wait(Millis::from_secs(60));
    assert!(
        world
            .seen
            .iter()
            .any(|effect| matches!(effect, Effect::Stop { .. }))
    );
    assert!(
        told(&world, CommandVerb::Stop)
            .iter()
            .eq([&members[0], &members[3]]),
        "{:?}",
        told(&world, CommandVerb::Stop)
    );
    assert_eq!(
        told(&world, CommandVerb::Drain).len(),
        present.len(),
        "told once"
    );
}

#[test]
fn an_idle_coordinator_stops_at_once() {
    let mut world = World::new();
    world.shut_down(Millis::from_secs(60));
    assert_eq!(world.kinds(1), ["control-received", "coordinator-stopped"]);
}

#[test]
fn operators_upload_commit_and_read() {
    let mut world = World::new();
    let objects = OperatorObjects {
        v: V,
        objects: vec![object("shard")],
    };
    world.control(ControlRequest::BlobPut(objects.clone()));
    world.control(ControlRequest::BlobCommit(objects));
    assert!(matches!(world.pending[..], [Effect::CheckUploads { .. }]));
    world.answer_pending();
    world.control(ControlRequest::BlobGet(GetRequest {
        v: V,
        objects: vec![object("any").digest],
    }));
    let kinds: Vec<&str> = world
        .seen
        .iter()
        .map(|effect| match effect {
            Effect::GrantPut { .. } => "put",
            Effect::GrantGet { .. } => "get",
            _ => "other",
        })
        .collect();
    assert_eq!(kinds, ["put", "get"]);
    assert_eq!(
        world.count(|event| matches!(event, LedgerEvent::ControlReceived { .. })),
        1
    );
    let none = world.control(ControlRequest::BlobPut(OperatorObjects {
        v: V,
        objects: Vec::new(),
    }));
    assert_eq!(world.refusal(none), Code::MessageInvalid);
}

#[test]
fn views_show_what_is_there() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let held = world.lease(1);
    let View::Coordinator(own) = view(&mut world, Query::Coordinator) else {
        panic!("asked for the coordinator")
    };
    assert_eq!(
        (own.release, own.posture, own.now),
        (settings().release, settings().posture, world.now)
    );
    let View::Workers(workers) = view(&mut world, Query::Workers(run_id())) else {
        panic!("asked for workers")
    };
    assert_eq!((workers[0].member, workers[0].lease), (true, Some(held)));
    let View::Leases(leases) = view(&mut world, Query::Leases(run_id())) else {
        panic!("asked for leases")
    };
    assert_eq!(
        (leases[0].lease, leases[0].expires_at),
        (held, START.after(LEASE))
    );
    let View::Run(detail) = view(&mut world, Query::Run(run_id())) else {
        panic!("asked for a run")
    };
    assert_eq!(detail.spec, spec("demo"));
    world.submit(1, held);
    world.answer_pending();
    let View::Rounds(rounds) = view(&mut world, Query::Rounds(run_id())) else {
        panic!("asked for rounds")
    };
    assert_eq!(rounds[0].done, [held.unit]);
    let View::Snapshots(snapshots) = view(&mut world, Query::Snapshots(run_id())) else {
        panic!("asked for them")
    };
    assert!(snapshots.is_empty());
    let unknown = world.control(ControlRequest::View(ViewRequest::of(Query::Run(
        "x".parse().unwrap(),
    ))));
    assert_eq!(world.refusal(unknown), Code::RunUnknown);
}

/// The list is cut at its end when it is too long for a message.
#[test]
fn members_are_shown_before_workers_that_left() {
    let mut world = World::with_run(spec("demo"));
    for number in 1..=3 {
        world.join(number);
    }
    for number in 1..=2 {
        world.ask(
            peer(number),
            WorkerRequest::Leave(leave_request(number, "")),
        );
    }
    let View::Workers(workers) = view(&mut world, Query::Workers(run_id())) else {
        panic!("asked for workers")
    };
    let shown: Vec<bool> = workers.iter().map(|view| view.member).collect();
    assert_eq!(shown, [true, false, false]);
}

#[test]
fn the_status_is_published_at_most_twice_a_second_and_at_least_every_five() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    world.wait(Millis::from_secs(1));
    let count = |world: &World| {
        world
            .seen
            .iter()
            .filter(|effect| matches!(effect, Effect::Publish(_)))
            .count()
    };
    let before = count(&world);
    for _ in 0..100 {
        world.lease(1);
        world.ask(
            peer(1),
            crate::WorkerRequest::Join({
                let mut request = join_request(1);
                request.device = format!("{}", world.now);
                request
            }),
        );
        world.wait(Millis(10));
    }
    assert!(
        (1..=3).contains(&(count(&world) - before)),
        "{} in a second",
        count(&world) - before
    );
    let before = count(&world);
    world.wait(Millis::from_secs(20));
    assert!(
        (4..=6).contains(&(count(&world) - before)),
        "{} in twenty quiet seconds",
        count(&world) - before
    );
}

#[test]
fn the_state_can_be_written_as_json_and_a_foreign_ledger_is_refused() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let held = world.lease(1);
    world.submit(1, held);
    world.answer_pending();
    let text = serde_json::to_string(world.core.state()).unwrap();
    assert!(text.contains("\"abandoned\":0"));
    // Without its first half the ledger does not fit together.
    let half = &world.journal[2..];
    assert!(Coordinator::replay(settings(), half).is_err());
}

/// The cause that an event names: a worker or an operator. None if the coordinator, which signs it,
/// acted by itself.
fn cause(event: &LedgerEvent) -> Option<String> {
    match event {
        LedgerEvent::RunCreated { operator, .. }
        | LedgerEvent::ControlReceived { operator, .. }
        | LedgerEvent::HoldPlaced { operator, .. }
        | LedgerEvent::TenantSet { operator, .. }
        | LedgerEvent::TenantEnded { operator, .. }
        | LedgerEvent::CredentialRevoked { operator, .. }
        | LedgerEvent::HoldLifted { operator, .. }
        | LedgerEvent::ObjectsGivenUp { operator, .. }
        | LedgerEvent::SnapshotRestored { operator, .. }
        | LedgerEvent::LeasesEnded { operator, .. }
        | LedgerEvent::WorkerQuarantined { operator, .. }
        | LedgerEvent::WorkerReadmitted { operator, .. }
        | LedgerEvent::SnapshotPromoted { operator, .. } => Some(operator.to_string()),
        LedgerEvent::WorkerJoined { worker, .. }
        | LedgerEvent::WorkerLeft { worker, .. }
        | LedgerEvent::LeaseGranted { worker, .. }
        | LedgerEvent::LeaseEnded { worker, .. }
        | LedgerEvent::ContributionAccepted { worker, .. }
        | LedgerEvent::ContributionRejected { worker, .. }
        | LedgerEvent::EvaluationAccepted { worker, .. }
        | LedgerEvent::RequestDenied { worker, .. } => Some(worker.to_string()),
        LedgerEvent::CoordinatorStarted { .. }
        | LedgerEvent::CoordinatorStopped { .. }
        | LedgerEvent::EmitterSucceeded { .. }
        | LedgerEvent::CredentialReissued { .. }
        | LedgerEvent::RunCompleted
        | LedgerEvent::RoundOpened { .. }
        | LedgerEvent::RoundCompared { .. }
        | LedgerEvent::RoundSealed { .. }
        | LedgerEvent::RoundClosed { .. }
        | LedgerEvent::PrivacySpent { .. }
        | LedgerEvent::CohortSealed { .. }
        | LedgerEvent::RoundUnmasked { .. }
        | LedgerEvent::CohortDissolved { .. }
        | LedgerEvent::SnapshotSaved { .. }
        | LedgerEvent::CheckpointTaken
        | LedgerEvent::CheckpointSaved { .. } => None,
    }
}

#[test]
fn tl_15_every_change_names_who_caused_it() {
    let operator = public_key(2).to_string();
    let mut world = World::with_run(spec("demo"));
    let mut from = 0;
    let mut caused_by = |world: &World, who: &str, kinds: &[&str]| {
        let named = world.journal[from..]
            .iter()
            .filter_map(|body| match &body.event {
                Event::Ledger(event) => cause(event).map(|cause| (event.kind(), cause)),
                Event::Worker(_) | Event::Security(_) => None,
            });
        let expected: Vec<_> = kinds.iter().map(|kind| (*kind, who.to_owned())).collect();
        assert_eq!(named.collect::<Vec<_>>(), expected);
        from = world.journal.len();
    };
    caused_by(&world, &operator, &["run-created"]);
    for number in [1, 2] {
        world.join(number);
        caused_by(&world, worker(number).as_str(), &["worker-joined"]);
    }
    let held = world.lease(1);
    caused_by(&world, worker(1).as_str(), &["lease-granted"]);
    world.submit(1, held);
    world.answer_pending();
    caused_by(&world, worker(1).as_str(), &["contribution-accepted"]);
    let held = world.lease(2);
    let mut bad = submission(&spec("demo"), 2, held, 0).statement;
    bad.spec = object("other settings").digest;
    world.ask(
        peer(2),
        crate::WorkerRequest::Submit(crate::fixture::stated(bad)),
    );
    caused_by(
        &world,
        worker(2).as_str(),
        &["lease-granted", "contribution-rejected"],
    );
    world.claim(3);
    caused_by(&world, worker(3).as_str(), &["request-denied"]);
    world.lease(2);
    let leave = leave_request(2, "");
    world.ask(peer(2), crate::WorkerRequest::Leave(leave));
    caused_by(
        &world,
        worker(2).as_str(),
        &["lease-granted", "worker-left", "lease-ended"],
    );
    world.shut_down(Millis(0));
    caused_by(&world, &operator, &["control-received"]);
}
