use schemas::blob::{GetRequest, PutRequest};
use schemas::contribution::StageRequest;
use schemas::event::{Event, LedgerEvent};
use schemas::foundry::{self, Order};
use schemas::lease::{LeaseRef, ReleaseRequest, RenewRequest};
use schemas::member::{Layer, LeaveRequest, OpenLayer};
use schemas::run::TrainerKind;
use schemas::{Bytes, Code, Epoch, Millis, Refusal, Steps, V, WorkerId};

use crate::fixture::*;
use crate::{Effect, Input, Peer, ReplyId, WorkerRequest};

/// A denial as the ledger tells it.
#[derive(Debug, PartialEq)]
struct Recorded {
    worker: WorkerId,
    code: Code,
    /// None for a result, whose denial names no request.
    verb: Option<String>,
    suppressed: u64,
}

fn told(world: &World, from: usize) -> Vec<Recorded> {
    let event = |event: &LedgerEvent| match event.clone() {
        LedgerEvent::RequestDenied {
            worker,
            verb,
            code,
            suppressed,
            ..
        } => Some(Recorded {
            worker,
            code,
            verb: Some(verb),
            suppressed,
        }),
        LedgerEvent::ContributionRejected { worker, code, .. } => Some(Recorded {
            worker,
            code,
            verb: None,
            suppressed: 0,
        }),
        _ => None,
    };
    let ledger = |body: &schemas::event::EventBody| match &body.event {
        Event::Ledger(found) => event(found),
        Event::Worker(_) | Event::Security(_) => None,
    };
    world.journal[from..].iter().filter_map(ledger).collect()
}

/// One request for each verb that can be denied; `held` is a lease of worker 1.
fn requests(held: LeaseRef) -> Vec<(&'static str, WorkerRequest)> {
    let (objects, reason) = (vec![upload("a")], String::new());
    vec![
        (
            "lease.claim",
            WorkerRequest::Claim(claim_request(1, Millis(0))),
        ),
        (
            "lease.renew",
            WorkerRequest::Renew(RenewRequest {
                v: V,
                lease: held,
                steps_done: Steps(1),
                bytes_moved: Bytes(0),
            }),
        ),
        (
            "lease.release",
            WorkerRequest::Release(ReleaseRequest {
                v: V,
                lease: held,
                reason: reason.clone(),
            }),
        ),
        (
            "blob.get",
            WorkerRequest::Get(GetRequest {
                v: V,
                objects: vec![object("config").digest],
            }),
        ),
        (
            "blob.put",
            WorkerRequest::Put(PutRequest {
                v: V,
                lease: held,
                objects: objects.clone(),
            }),
        ),
        (
            "contribution.stage",
            WorkerRequest::Stage(StageRequest {
                v: V,
                lease: held,
                index: 0,
                object: objects[0],
            }),
        ),
        (
            "contribution.submit",
            WorkerRequest::Submit(submission(&spec("demo"), 1, held, 0)),
        ),
        (
            "leave",
            WorkerRequest::Leave(LeaveRequest {
                v: V,
                session: session(1),
                reason,
            }),
        ),
    ]
}

/// Requests that are denied to worker 1, a member that holds `held`, each with its code.
fn of_a_member(held: LeaseRef) -> Vec<(&'static str, WorkerRequest, Code)> {
    let mut no_trainer = join_request(1);
    no_trainer.trainers = vec![TrainerKind::Torch];
    let mut open = join_request(1);
    open.posture.open = vec![OpenLayer {
        layer: Layer::Bulk,
        reason: "laboratory".to_owned(),
    }];
    let other = LeaseRef {
        epoch: Epoch(held.epoch.get() + 1),
        ..held
    };
    let short = schemas::ObjectRef {
        bytes: Bytes(1),
        ..upload("b")
    };
    vec![
        (
            "join",
            WorkerRequest::Join(no_trainer),
            Code::TrainerMissing,
        ),
        ("join", WorkerRequest::Join(open), Code::LayerOpen),
        (
            "lease.renew",
            WorkerRequest::Renew(RenewRequest {
                v: V,
                lease: other,
                steps_done: Steps(1),
                bytes_moved: Bytes(0),
            }),
            Code::LeaseUnknown,
        ),
        (
            "blob.put",
            WorkerRequest::Put(PutRequest {
                v: V,
                lease: held,
                objects: vec![short],
            }),
            Code::SizeMismatch,
        ),
        (
            "blob.get",
            WorkerRequest::Get(GetRequest {
                v: V,
                objects: vec![object("foreign").digest],
            }),
            Code::ObjectForbidden,
        ),
        (
            "contribution.stage",
            WorkerRequest::Stage(StageRequest {
                v: V,
                lease: held,
                index: 99,
                object: upload("a"),
            }),
            Code::LayoutMismatch,
        ),
    ]
}

/// Asserts that worker `number` was denied with `code`, and that the ledger has exactly this
/// denial, once.
fn once(world: &World, from: usize, number: u32, verb: Option<&str>, code: Code) {
    let expected = Recorded {
        worker: worker(number),
        code,
        verb: verb.map(str::to_owned),
        suppressed: 0,
    };
    assert_eq!(told(world, from), [expected], "{code} at {verb:?}");
}

/// The answer to a worker and the event for an auditor carry the same code, and each answer has its
/// event.
#[test]
fn tl_29_each_denial_of_a_worker_is_one_event_with_its_code() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let held = world.lease(1);
    let (stranger, elsewhere) = (
        peer(2),
        Peer {
            account: account(9),
            ..peer(1)
        },
    );
    let mut cases = Vec::new();
    for (asker, code) in [
        (stranger, Code::NotJoined),
        (elsewhere, Code::IdentityMismatch),
    ] {
        cases.extend(
            requests(held)
                .into_iter()
                .map(|(verb, request)| (asker.clone(), verb, request, code)),
        );
    }
    cases.extend(
        of_a_member(held)
            .into_iter()
            .map(|(verb, request, code)| (peer(1), verb, request, code)),
    );
    let renew = WorkerRequest::Renew(RenewRequest {
        v: V,
        lease: held,
        steps_done: Steps(1),
        bytes_moved: Bytes(0),
    });
    for (asker, verb, request, code) in cases {
        // The lease is renewed, so that it does not end; the denials are fewer than may be recorded
        // at once.
        world.wait(Millis(200));
        world.ask(peer(1), renew.clone());
        let from = world.journal.len();
        let number = if asker.worker == worker(2) { 2 } else { 1 };
        let reply = world.ask(asker, request);
        assert_eq!(world.refusal(reply), code, "{verb}");
        once(&world, from, number, Some(verb), code);
    }
    // The shell refused this message before the core saw it, and has answered already.
    let refusal = Refusal::new(Code::MessageInvalid, "no message");
    let from = world.journal.len();
    world.input(Input::Denied {
        peer: peer(1),
        verb: "lease.claim".to_owned(),
        refusal,
    });
    once(&world, from, 1, Some("lease.claim"), Code::MessageInvalid);
}

/// A refused result is one event, whether the fault is seen at once or by the check; the event
/// names the lease.
#[test]
fn tl_29_a_refused_result_is_one_event_however_it_is_refused() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let held = world.lease(1);
    let mut bad = submission(&spec("demo"), 1, held, 0).statement;
    bad.spec = object("other settings").digest;
    let from = world.journal.len();
    let at_once = world.ask(peer(1), WorkerRequest::Submit(stated(bad)));
    assert_eq!(world.refusal(at_once), Code::StatementInvalid);
    once(&world, from, 1, None, Code::StatementInvalid);
    let held = world.lease(1);
    let asked: Vec<ReplyId> = (0..3).map(|_| world.submit(1, held)).collect();
    let Effect::Foundry {
        order: Order::Screen { screening, .. },
        ..
    } = world.take_pending(|effect| matches!(effect, order!(Screen)))
    else {
        unreachable!("it was picked as one")
    };
    let from = world.journal.len();
    world.foundry(foundry::Answer::Screened {
        screening,
        verdict: Err(Refusal::new(Code::NotFinite, "test")),
    });
    assert!(
        asked
            .into_iter()
            .all(|reply| world.refusal(reply) == Code::NotFinite)
    );
    once(&world, from, 1, None, Code::NotFinite);
}

#[test]
fn tl_29_a_denial_that_came_late_is_an_event_too() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    world.restart();
    let get = GetRequest {
        v: V,
        objects: vec![object("foreign").digest],
    };
    let reply = world.ask(peer(1), WorkerRequest::Get(get));
    assert!(
        !world.answers.contains_key(&reply),
        "the object may be one of the data"
    );
    let from = world.journal.len();
    world.answer_pending();
    assert_eq!(world.refusal(reply), Code::ObjectForbidden);
    once(&world, from, 1, Some("blob.get"), Code::ObjectForbidden);
}

/// There is no work at present, or the request was done before: neither blames the sender.
#[test]
fn a_refusal_that_is_no_fault_of_the_asker_is_not_recorded() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let held = world.lease(1);
    world.submit(1, held);
    let from = world.journal.len();
    let release = WorkerRequest::Release(ReleaseRequest {
        v: V,
        lease: held,
        reason: String::new(),
    });
    let reply = world.ask(peer(1), release);
    assert_eq!(world.refusal(reply), Code::AlreadyCounted);
    assert_eq!(told(&world, from), []);
    world.shut_down(Millis::from_secs(20));
    let reply = world.claim(1);
    assert_eq!(world.refusal(reply), Code::Draining);
    assert_eq!(told(&world, from), []);
}

/// Denials cannot fill the ledger: those that are left out are counted in the next one that is
/// recorded.
#[test]
fn tl_29_a_flood_of_denials_is_counted_to_the_last() {
    const FLOOD: u64 = 500;
    let mut world = World::with_run(spec("demo"));
    let from = world.journal.len();
    for _ in 0..FLOOD {
        world.claim(2);
    }
    assert!(told(&world, from).len() < 20);
    world.wait(Millis::from_secs(960));
    world.claim(2);
    let told = told(&world, from);
    let all: u64 = told.iter().map(|told| 1 + told.suppressed).sum();
    assert_eq!(all, FLOOD + 1);
    assert!(
        told.iter()
            .all(|told| (&told.worker, told.code) == (&worker(2), Code::NotJoined))
    );
}
