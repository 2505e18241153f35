use schemas::blob::{GetRequest, PutRequest};
use schemas::contribution::StageRequest;
use schemas::event::{Departure, LedgerEvent};
use schemas::lease::{ClaimRequest, ReleaseRequest, RenewRequest};
use schemas::member::{Layer, OpenLayer, Session};
use schemas::public::CommandVerb;
use schemas::run::TrainerKind;
use schemas::telemetry::Heartbeat;
use schemas::view::RunPhase;
use schemas::{Bytes, Code, Millis, Steps, Tokens, V};

use super::heartbeat::heartbeat;
use super::quarantine::shut;
use crate::fixture::*;
use crate::{Answer, Effect, Input, Peer, WorkerRequest};

#[test]
fn fg_15_fg_25_a_run_waits_for_its_least_number_of_workers_and_says_so() {
    let mut spec = spec("demo");
    spec.policy.workers_min = 2;
    let mut world = World::with_run(spec);
    world.join(1);
    let claim = world.claim(1);
    world.wait(Millis::from_secs(4));
    assert_eq!(world.run().phase(), RunPhase::Waiting);
    assert!(!world.manifests.contains_key(&claim));
    assert_eq!(
        world.view().trouble.expect("workers are missing").code,
        Code::TooFewWorkers
    );
    world.join(2);
    assert_eq!(world.run().phase(), RunPhase::Training);
    assert!(
        world.manifests.contains_key(&claim),
        "the claim that waited is served"
    );
    assert_eq!(world.view().trouble, None);
}

#[test]
fn fg_02_a_stranger_is_refused_everywhere_and_recorded() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let held = world.lease(1);
    let claim = world.claim(2);
    let submit = world.submit(2, held);
    assert_eq!(world.refusal(claim), Code::NotJoined);
    assert_eq!(world.refusal(submit), Code::NotJoined);
    let mut other = peer(1);
    other.account = account(9);
    let leave = world.ask(other, WorkerRequest::Leave(leave_request(1, "")));
    assert_eq!(world.refusal(leave), Code::IdentityMismatch);
    assert_eq!(
        world.count(|event| matches!(event, LedgerEvent::RequestDenied { .. })),
        3
    );
}

#[test]
fn joins_that_do_not_fit_are_refused() {
    let mut world = World::with_run(spec("demo"));
    let mut no_trainer = join_request(1);
    no_trainer.trainers = vec![TrainerKind::Torch];
    let mut open = join_request(1);
    open.posture.open = vec![OpenLayer {
        layer: Layer::Bus,
        reason: "laboratory".to_owned(),
    }];
    let mut long = join_request(1);
    long.device = "x".repeat(129);
    let [mut cleared, mut forged] = [join_request(1), join_request(1)];
    cleared.device = "cpu\u{1b}[2J".to_owned();
    forged.release = "0.1.0\nUFORGED  yes  training".to_owned();
    for (request, code) in [
        (no_trainer, Code::TrainerMissing),
        (open, Code::LayerOpen),
        (long, Code::MessageInvalid),
        (cleared, Code::MessageInvalid),
        (forged, Code::MessageInvalid),
    ] {
        let reply = world.ask(peer(1), WorkerRequest::Join(request));
        assert_eq!(world.refusal(reply), code);
    }
    let mut elsewhere = peer(1);
    elsewhere.run = "other".parse().unwrap();
    let reply = world.ask(elsewhere, WorkerRequest::Join(join_request(1)));
    assert_eq!(world.refusal(reply), Code::RunUnknown);
}

#[test]
fn a_second_join_is_answered_and_writes_nothing_unless_something_changed() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let before = world.journal.len();
    let reply = world.join(1);
    assert!(matches!(world.answers[&reply], Ok(Answer::Join(_))));
    assert_eq!(world.journal.len(), before);
    let mut moved = join_request(1);
    moved.device = "cuda:0".to_owned();
    world.ask(peer(1), WorkerRequest::Join(moved.clone()));
    assert_eq!(world.kinds(before), ["worker-joined"]);
    // One more trainer than before, and one less.
    moved.trainers.push(TrainerKind::Torch);
    world.ask(peer(1), WorkerRequest::Join(moved.clone()));
    moved.trainers.pop();
    world.ask(peer(1), WorkerRequest::Join(moved));
    assert_eq!(world.kinds(before), ["worker-joined"; 3]);
}

#[test]
fn a_silent_worker_is_no_member_and_its_unit_is_granted_to_another() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let held = world.lease(1);
    // Renewals without end would keep the lease; here heartbeats are the only sign of life.
    world.wait(Millis::from_secs(20));
    world.input(Input::Heartbeat {
        peer: peer(1),
        heartbeat: heartbeat(),
    });
    world.wait(SILENCE - Millis(1));
    assert!(world.run().member(&worker(1)).is_some());
    world.wait(Millis(1));
    assert!(world.run().member(&worker(1)).is_none());
    world.join(2);
    let next = world.lease(2);
    assert_eq!(
        (next.unit, next.epoch.get()),
        (held.unit, held.epoch.get() + 1)
    );
}

#[test]
fn fg_04_who_leaves_loses_its_lease_at_once() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    world.join(2);
    let held = world.lease(1);
    let other = world.lease(2);
    let waiting = {
        world.join(3);
        world.claim(3)
    };
    let before = world.journal.len();
    world.ask(peer(1), WorkerRequest::Leave(leave_request(1, "power")));
    assert_eq!(
        world.kinds(before),
        ["worker-left", "lease-ended", "lease-granted"]
    );
    assert_eq!(world.manifests[&waiting].lease, lease(held.unit, 2));
    let late = world.submit(1, held);
    assert_eq!(world.refusal(late), Code::NotJoined);
    assert_ne!(other.unit, held.unit);
}

#[test]
fn fg_21_who_is_no_member_any_more_while_it_waits_is_told_at_once() {
    let mut world = World::with_run(spec("demo"));
    for number in 1..=3 {
        world.join(number);
    }
    let held = [world.lease(1), world.lease(2)];
    assert_ne!(held[0].unit, held[1].unit, "nothing is left to claim");
    let waiting = world.claim(3);
    assert!(!world.answers.contains_key(&waiting));
    world.ask(
        peer(3),
        WorkerRequest::Leave(leave_request(3, "by another of its requests")),
    );
    assert_eq!(world.refusal(waiting), Code::NotJoined);
}

#[test]
fn too_many_refused_results_end_a_membership_for_good() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    for _ in 0..3 {
        let held = world.lease(1);
        let mut bad = submission(&world.run().spec.clone(), 1, held, 0).statement;
        bad.spec = object("other settings").digest;
        let reply = world.ask(peer(1), WorkerRequest::Submit(stated(bad)));
        assert_eq!(world.refusal(reply), Code::StatementInvalid);
    }
    assert_eq!(
        world.count(|event| matches!(
            event,
            LedgerEvent::WorkerLeft {
                cause: Departure::Removed,
                ..
            }
        )),
        1
    );
    let reply = world.ask(peer(1), WorkerRequest::Join(join_request(1)));
    assert_eq!(
        world.refusal(reply),
        Code::WorkerRemoved,
        "it is told that it need not ask again"
    );
    assert_eq!(world.run().tokens.rejected, Tokens(3 * 32));
}

/// A stranger, and a peer with a member's name but another account, make every kind of request.
#[test]
fn ls_01_a_refused_request_changes_nothing() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let held = world.lease(1);
    let elsewhere = Peer {
        account: account(9),
        ..peer(1)
    };
    let (before, pending) = (world.run().clone(), world.pending.len());
    let (objects, reason) = (vec![upload("a")], String::new());
    for (asker, code) in [
        (peer(2), Code::NotJoined),
        (elsewhere, Code::IdentityMismatch),
    ] {
        for request in [
            WorkerRequest::Claim(claim_request(1, Millis(0))),
            WorkerRequest::Renew(RenewRequest {
                v: V,
                lease: held,
                steps_done: Steps(1),
                bytes_moved: Bytes(0),
            }),
            WorkerRequest::Release(ReleaseRequest {
                v: V,
                lease: held,
                reason: reason.clone(),
            }),
            WorkerRequest::Get(GetRequest {
                v: V,
                objects: vec![object("config").digest],
            }),
            WorkerRequest::Put(PutRequest {
                v: V,
                lease: held,
                objects: objects.clone(),
            }),
            WorkerRequest::Stage(StageRequest {
                v: V,
                lease: held,
                index: 0,
                object: objects[0],
            }),
            WorkerRequest::Submit(submission(&spec("demo"), 1, held, 0)),
            WorkerRequest::Leave(leave_request(1, &reason)),
        ] {
            let verb = format!("{request:?}");
            let reply = world.ask(asker.clone(), request);
            assert_eq!(world.refusal(reply), code, "{verb}");
        }
    }
    assert!(
        *world.run() == before && world.pending.len() == pending,
        "a refusal changed the run"
    );
    let granted = |effect: &Effect| {
        matches!(
            effect,
            Effect::GrantGet { .. } | Effect::GrantPut { .. } | order!(Stage)
        )
    };
    assert!(!world.seen.iter().any(granted));
}

/// Worker 1's second process, on another machine.
fn second_process() -> schemas::member::JoinRequest {
    let mut request = join_request(1);
    (request.session, request.device) = (Session(77), "cuda:0".to_owned());
    request
}

/// The processes to which commands were sent, each with its command.
fn commanded(world: &World) -> Vec<(CommandVerb, Session)> {
    let commands = world.seen.iter().filter_map(|effect| match effect {
        Effect::Command { session, verb, .. } => Some((*verb, *session)),
        _ => None,
    });
    commands.collect()
}

/// A broker that has seen what was signed for one process can do nothing with it to the next one.
#[test]
fn tl_14_what_is_signed_is_for_the_process_that_joined_last() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let reply = world.claim(1);
    assert_eq!(world.manifests[&reply].session, session(1));
    world.ask(peer(1), WorkerRequest::Join(second_process()));
    let claim = ClaimRequest {
        session: Session(77),
        ..claim_request(1, Millis::from_secs(1))
    };
    let reply = world.ask(peer(1), WorkerRequest::Claim(claim));
    assert_eq!(world.manifests[&reply].session, Session(77));
    world.shut_down(Millis::from_secs(60));
    let drain = (CommandVerb::Drain, Session(77));
    assert_eq!(commanded(&world), [drain]);
    let beat = |world: &mut World, process: Session| {
        let heartbeat = Heartbeat {
            session: process,
            ..heartbeat()
        };
        world.input(Input::Heartbeat {
            peer: peer(1),
            heartbeat,
        });
    };
    beat(&mut world, session(1));
    assert_eq!(commanded(&world), [drain], "it was replaced");
    beat(&mut world, Session(77));
    assert_eq!(commanded(&world), [drain, drain]);
    world.wait(Millis::from_secs(60));
    let stop = (CommandVerb::Stop, Session(77));
    assert_eq!(commanded(&world), [drain, drain, stop]);

    // A worker in quarantine may start another process, which never becomes a member.
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    shut(&mut world, 1);
    world.wait(settings().heartbeat);
    beat(&mut world, Session(78));
    let away = |session| (CommandVerb::Quarantine, session);
    assert_eq!(commanded(&world), [away(session(1)), away(Session(78))]);
}

#[test]
fn the_newest_process_of_a_worker_is_the_worker_and_the_older_one_is_told() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let held = world.lease(1);
    let before = world.journal.len();
    world.ask(peer(1), WorkerRequest::Join(second_process()));
    // The record shows which process was replaced by which, and that the lease went back.
    assert_eq!(
        world.kinds(before),
        ["worker-left", "lease-ended", "worker-joined"]
    );
    let replaced = |event: &LedgerEvent| match event {
        LedgerEvent::WorkerLeft {
            cause: Departure::Replaced,
            detail,
            ..
        } => detail.contains("cuda:0"),
        _ => false,
    };
    assert_eq!(world.count(replaced), 1);
    // The older process is fenced off from its lease, gets no work, and cannot end the membership
    // of the newer one.
    let late = world.submit(1, held);
    assert_eq!(world.refusal(late), Code::Replaced);
    let renewal = world.ask(
        peer(1),
        WorkerRequest::Renew(RenewRequest {
            v: V,
            lease: held,
            steps_done: Steps(1),
            bytes_moved: Bytes(0),
        }),
    );
    assert_eq!(world.refusal(renewal), Code::Replaced);
    let claim = world.claim(1);
    assert_eq!(world.refusal(claim), Code::Replaced);
    let leave = world.ask(peer(1), WorkerRequest::Leave(leave_request(1, "")));
    assert_eq!(world.refusal(leave), Code::Replaced);
    assert!(world.run().member(&worker(1)).is_some());
    // The newer one works.
    let newer = schemas::lease::ClaimRequest {
        session: Session(77),
        ..claim_request(1, Millis(0))
    };
    let claim = world.ask(peer(1), WorkerRequest::Claim(newer));
    assert_ne!(world.manifests[&claim].lease, held);
}

#[test]
fn who_waits_for_work_while_it_is_replaced_is_told_at_once() {
    let mut world = World::with_run(spec("demo"));
    for number in 1..=3 {
        world.join(number);
    }
    let held = [world.lease(2), world.lease(3)];
    assert_ne!(held[0].unit, held[1].unit, "nothing is left to claim");
    let waiting = world.claim(1);
    world.ask(peer(1), WorkerRequest::Join(second_process()));
    assert_eq!(world.refusal(waiting), Code::Replaced);
}

#[test]
fn a_replacement_survives_a_restart_and_a_result_in_its_check_still_counts() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let held = world.lease(1);
    let result = world.submit(1, held);
    world.ask(peer(1), WorkerRequest::Join(second_process()));
    world.answer_pending();
    assert!(
        matches!(world.answers[&result], Ok(Answer::Submit(_))),
        "{:?}",
        world.answers[&result]
    );
    world.restart();
    world.answer_pending();
    let claim = world.claim(1);
    assert_eq!(world.refusal(claim), Code::Replaced);
}

#[test]
fn an_audit_key_is_one_workers_and_no_coordinators() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let mut other = spec("other");
    other.seed = 9;
    world.control(crate::ControlRequest::RunNew(Box::new(
        schemas::control::RunNew { v: V, spec: other },
    )));
    world.answer_pending();
    let elsewhere = Peer {
        run: "other".parse().unwrap(),
        ..peer(2)
    };
    let own = peer(2).worker.as_str().parse().unwrap();
    for (asker, key) in [
        (peer(2), join_request(1).audit_key),
        (elsewhere, join_request(1).audit_key),
        (peer(2), settings().audit_keys[0].clone()),
        (peer(2), own),
    ] {
        let request = schemas::member::JoinRequest {
            audit_key: key,
            ..join_request(2)
        };
        let reply = world.ask(asker, WorkerRequest::Join(request));
        assert_eq!(world.refusal(reply), Code::AuditKeyRefused);
    }
    let reply = world.join(2);
    assert!(matches!(world.answers[&reply], Ok(Answer::Join(_))));
}

/// The search for the owner of a key visits every member of every run, so it is made only if the
/// run would accept the worker.
#[test]
fn what_a_run_says_of_a_join_comes_before_the_look_at_all_members() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let taken = schemas::member::JoinRequest {
        audit_key: join_request(1).audit_key,
        ..join_request(2)
    };
    let nowhere = Peer {
        run: "nowhere".parse().unwrap(),
        ..peer(2)
    };
    let other = schemas::member::JoinRequest {
        trainers: vec![],
        ..taken.clone()
    };
    for (asker, request, code) in [
        (nowhere, taken.clone(), Code::RunUnknown),
        (peer(2), other, Code::TrainerMissing),
        (peer(2), taken, Code::AuditKeyRefused),
    ] {
        let reply = world.ask(asker, WorkerRequest::Join(request));
        assert_eq!(world.refusal(reply), code);
    }
}

#[test]
fn a_join_without_proof_is_refused_and_recorded() {
    let mut world = World::with_run(spec("demo"));
    let refusal = schemas::Refusal::new(Code::AuditKeyRefused, "no proof");
    let reply = crate::ReplyId(1_000_000);
    world.input(Input::Refused {
        peer: peer(1),
        verb: schemas::subject::Verb::Join,
        refusal,
        reply,
    });
    assert_eq!(world.refusal(reply), Code::AuditKeyRefused);
    let denied = |event: &LedgerEvent| matches!(event, LedgerEvent::RequestDenied { verb, .. } if verb == "join");
    assert_eq!(world.count(denied), 1);
    assert!(world.run().member(&worker(1)).is_none());
}
