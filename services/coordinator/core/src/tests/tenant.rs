//! Tenants: the walls between their runs, their quotas, and their ends.

use std::collections::BTreeSet;

use ledger::{StoppedHolders, UrlHolders};
use schemas::blob::{GetRequest, PutRequest};
use schemas::contribution::{Outcome, StageRequest};
use schemas::control::{Query, RunNew, View, ViewRequest};
use schemas::event::{Departure, LedgerEvent};
use schemas::hold::{AtStore, Hold, HoldRequest};
use schemas::keys::KeysRequest;
use schemas::lease::{LeaseRef, ReleaseRequest, RenewRequest};
use schemas::limits::{FURTHER_TENANTS_MAX, URLS_OUT_MAX};
use schemas::masking::{MaskRequest, MaskStep};
use schemas::subject::Verb;
use schemas::tenant::{Quota, TenantEndReply, TenantEndRequest, TenantRequest, TenantView};
use schemas::view::{RunPhase, RunView};
use schemas::{Bytes, Code, Digest, Millis, RunId, Steps, TenantName, V};

use super::heartbeat::heartbeat;
use crate::fixture::*;
use crate::{Answer, ControlRequest, Input, Peer, ReplyId, WorkerRequest};

/// The tenants' accounts; that of the domain's own is account 1.
pub(super) const ACME: u32 = 2;
pub(super) const OTHER: u32 = 3;

pub(super) fn tenant(name: &str) -> TenantName {
    name.parse().unwrap()
}

pub(super) fn set(world: &mut World, name: &str, of: u32, quota: Quota) -> ReplyId {
    world.control(ControlRequest::TenantSet(TenantRequest {
        v: V,
        tenant: tenant(name),
        account: account(of),
        quota,
    }))
}

pub(super) fn end(world: &mut World, name: &str, now: bool) -> ReplyId {
    world.control(ControlRequest::TenantEnd(TenantEndRequest {
        v: V,
        tenant: tenant(name),
        now,
        reason: "the party left".parse().unwrap(),
    }))
}

pub(super) fn new_run(world: &mut World, name: &str) -> ReplyId {
    let spec = spec(name);
    let reply = world.control(ControlRequest::RunNew(Box::new(RunNew { v: V, spec })));
    world.answer_pending();
    reply
}

/// A world with tenants `acme` and `other`, and a run `demo` of each, and one of the domain's own.
pub(super) fn three() -> World {
    let mut world = World::with_run(spec("demo"));
    set(&mut world, "acme", ACME, Quota::default());
    set(&mut world, "other", OTHER, Quota::default());
    for name in ["acme_demo", "other_demo"] {
        let reply = new_run(&mut world, name);
        assert!(world.answers[&reply].is_ok(), "{:?}", world.answers[&reply]);
    }
    world
}

pub(super) fn of(run: &str, account_number: u32, number: u32) -> Peer {
    Peer {
        account: account(account_number),
        run: run.parse().unwrap(),
        worker: worker(number),
    }
}

pub(super) fn join(world: &mut World, peer: &Peer, number: u32) -> ReplyId {
    let reply = world.ask(peer.clone(), WorkerRequest::Join(join_request(number)));
    world.answer_pending();
    reply
}

pub(super) fn leased(world: &mut World, peer: &Peer, number: u32) -> LeaseRef {
    let claim = claim_request(number, Millis::from_secs(20));
    let reply = world.ask(peer.clone(), WorkerRequest::Claim(claim));
    world.manifests[&reply].lease
}

/// A run of one unit, which a worker has trained that is still a member.
pub(super) fn complete(world: &mut World, name: &str, account: u32, number: u32) -> Peer {
    let mut spec = spec(name);
    (spec.schedule.rounds, spec.schedule.units) = (1, 1);
    world.control(ControlRequest::RunNew(Box::new(RunNew {
        v: V,
        spec: spec.clone(),
    })));
    world.answer_pending();
    let member = of(name, account, number);
    join(world, &member, number);
    let held = leased(world, &member, number);
    let result = submission(&spec, number, held, 0);
    world.ask(member.clone(), WorkerRequest::Submit(result));
    world.answer_pending();
    let run = world.core.state().run(&member.run).unwrap();
    assert!(run.is_complete() && run.present() == 1);
    member
}

pub(super) fn put(world: &mut World, peer: &Peer, lease: LeaseRef, names: &[&str]) -> ReplyId {
    let objects = names.iter().map(|name| upload(name)).collect();
    let request = PutRequest {
        v: V,
        lease,
        objects,
    };
    world.ask(peer.clone(), WorkerRequest::Put(request))
}

pub(super) fn granted(world: &World, wanted: ReplyId) -> bool {
    world
        .seen
        .iter()
        .any(|effect| matches!(effect, crate::Effect::GrantPut { reply, .. } if *reply == wanted))
}

pub(super) fn views(world: &mut World) -> Vec<TenantView> {
    let query = Query::Tenants;
    let reply = world.control(ControlRequest::View(ViewRequest::of(query)));
    match &world.answers[&reply] {
        Ok(Answer::View(found)) => match &found.view {
            View::Tenants(list) => list.clone(),
            other => panic!("another view: {other:?}"),
        },
        other => panic!("no view: {other:?}"),
    }
}

fn run_view(world: &mut World, run: &RunId) -> RunView {
    let query = Query::Run(run.clone());
    let reply = world.control(ControlRequest::View(ViewRequest::of(query)));
    match &world.answers[&reply] {
        Ok(Answer::View(found)) => match &found.view {
            View::Run(detail) => detail.view.clone(),
            other => panic!("another view: {other:?}"),
        },
        other => panic!("no view: {other:?}"),
    }
}

fn ended(world: &World, reply: ReplyId) -> TenantEndReply {
    match &world.answers[&reply] {
        Ok(Answer::TenantEnd(reply)) => reply.clone(),
        other => panic!("no end: {other:?}"),
    }
}

pub(super) fn denials(world: &World) -> usize {
    world.count(|event| matches!(event, LedgerEvent::RequestDenied { .. }))
}

/// One question for each verb, by a member of the run if it is one.
fn questions(number: u32, lease: LeaseRef, spec: &schemas::run::RunSpec) -> Vec<WorkerRequest> {
    let (objects, reason) = (vec![object("config").digest], String::new());
    let question = |verb: &Verb| match verb {
        Verb::Join => WorkerRequest::Join(join_request(number)),
        Verb::Leave => WorkerRequest::Leave(leave_request(number, "")),
        Verb::Claim => WorkerRequest::Claim(claim_request(number, Millis(0))),
        Verb::Renew => WorkerRequest::Renew(RenewRequest {
            v: V,
            lease,
            steps_done: Steps(1),
            bytes_moved: Bytes(0),
        }),
        Verb::Release => WorkerRequest::Release(ReleaseRequest {
            v: V,
            lease,
            reason: reason.clone(),
        }),
        Verb::Get => WorkerRequest::Get(GetRequest {
            v: V,
            objects: objects.clone(),
        }),
        Verb::Put => WorkerRequest::Put(PutRequest {
            v: V,
            lease,
            objects: vec![upload("a")],
        }),
        Verb::Stage => WorkerRequest::Stage(StageRequest {
            v: V,
            lease,
            index: 0,
            object: upload("a"),
        }),
        Verb::Mask => WorkerRequest::Mask(MaskRequest {
            v: V,
            lease,
            step: MaskStep::Share {
                cohort: Digest::of(b"any"),
                sealed: Vec::new(),
            },
        }),
        Verb::Keys => WorkerRequest::Keys(KeysRequest { v: V }),
        Verb::Submit => WorkerRequest::Submit(submission(spec, number, lease, 0)),
    };
    Verb::ALL.iter().map(question).collect()
}

#[test]
fn tl_03_runs_of_one_name_in_two_tenants_go_on_side_by_side() {
    let mut world = three();
    let peers = [
        of("demo", 1, 1),
        of("acme_demo", ACME, 2),
        of("other_demo", OTHER, 3),
    ];
    for (peer, number) in peers.iter().zip(1..) {
        let reply = join(&mut world, peer, number);
        assert!(world.answers[&reply].is_ok());
        let held = leased(&mut world, peer, number);
        let run = world.core.state().run(&peer.run).unwrap();
        let result = submission(&run.spec, number, held, 0);
        world.ask(peer.clone(), WorkerRequest::Submit(result));
        world.answer_pending();
    }
    for peer in &peers {
        let run = world.core.state().run(&peer.run).unwrap();
        assert_eq!(run.members.len(), 1, "{}", peer.run);
        assert!(run.members.contains_key(&peer.worker));
        assert_eq!(run.members[&peer.worker].accepted, 1);
    }
    world.restart();
    assert_eq!(views(&mut world).len(), 2);
}

#[test]
fn tl_25_a_worker_of_another_tenant_is_refused_everywhere_changes_nothing_and_is_recorded() {
    let mut world = three();
    let member = of("acme_demo", ACME, 2);
    join(&mut world, &member, 2);
    let held = leased(&mut world, &member, 2);
    let run: RunId = "acme_demo".parse().unwrap();
    let before = world.core.state().run(&run).unwrap().clone();
    // Another tenant, and the domain's own; as a stranger and in the member's name.
    for account_number in [OTHER, 1] {
        for number in [7, 2] {
            for question in questions(number, held, &before.spec) {
                let verb = question.verb();
                let recorded = denials(&world);
                let peer = of("acme_demo", account_number, number);
                let reply = world.ask(peer, question);
                assert_eq!(world.refusal(reply), Code::IdentityMismatch, "{verb}");
                assert_eq!(denials(&world), recorded + 1, "{verb}");
            }
        }
    }
    let recorded = denials(&world);
    world.input(Input::Heartbeat {
        peer: of("acme_demo", OTHER, 2),
        heartbeat: heartbeat(),
    });
    assert_eq!(denials(&world), recorded + 1);
    assert_eq!(
        *world.core.state().run(&run).unwrap(),
        before,
        "nothing changed"
    );
    // And the other way round: a tenant's worker in a run of the domain's own.
    let reply = join(&mut world, &of("demo", ACME, 2), 2);
    assert_eq!(world.refusal(reply), Code::IdentityMismatch);
    let reply = join(&mut world, &of("nothing_demo", ACME, 2), 2);
    assert_eq!(world.refusal(reply), Code::RunUnknown);
}

#[test]
fn a_tenants_run_needs_the_tenant_and_its_quota_of_runs_lasts() {
    let mut world = World::new();
    let unknown = new_run(&mut world, "acme_demo");
    assert_eq!(world.refusal(unknown), Code::TenantUnknown);
    let one = Quota {
        runs: Some(1),
        ..Quota::default()
    };
    set(&mut world, "acme", ACME, one);
    set(&mut world, "other", OTHER, Quota::default());
    let first = new_run(&mut world, "acme_demo");
    assert!(world.answers[&first].is_ok());
    let again = new_run(&mut world, "acme_demo");
    assert!(world.answers[&again].is_ok(), "it exists already");
    let second = new_run(&mut world, "acme_more");
    assert_eq!(world.refusal(second), Code::TenantFull);
    for name in ["other_demo", "other_more", "demo"] {
        let reply = new_run(&mut world, name);
        assert!(
            world.answers[&reply].is_ok(),
            "{name}: others are not affected"
        );
    }
    set(&mut world, "acme", ACME, Quota::default());
    let second = new_run(&mut world, "acme_more");
    assert!(world.answers[&second].is_ok());
}

/// Two requests may be checked at the same time; the second is counted when its check has ended.
#[test]
fn the_quota_of_runs_counts_what_was_created_while_a_run_was_checked() {
    let mut world = World::new();
    let one = Quota {
        runs: Some(1),
        ..Quota::default()
    };
    set(&mut world, "acme", ACME, one);
    let ask = |world: &mut World, name: &str| {
        let spec = spec(name);
        world.control(ControlRequest::RunNew(Box::new(RunNew { v: V, spec })))
    };
    let (first, second) = (ask(&mut world, "acme_a"), ask(&mut world, "acme_b"));
    world.answer_pending();
    assert!(world.answers[&first].is_ok());
    assert_eq!(world.refusal(second), Code::TenantFull);
}

#[test]
fn a_tenant_keeps_its_account_and_no_two_have_one() {
    let mut world = three();
    let none = Quota::default();
    for (name, of) in [("acme", 9), ("third", ACME), ("third", 1)] {
        let reply = set(&mut world, name, of, none);
        assert_eq!(world.refusal(reply), Code::TenantExists, "{name} {of}");
    }
    let events = world.count(|event| matches!(event, LedgerEvent::TenantSet { .. }));
    let reply = set(&mut world, "acme", ACME, none);
    assert!(matches!(&world.answers[&reply], Ok(Answer::Tenant(reply)) if !reply.changed));
    let after = world.count(|event| matches!(event, LedgerEvent::TenantSet { .. }));
    assert_eq!(
        events, after,
        "a request that changes nothing is not written"
    );
    for number in 2..FURTHER_TENANTS_MAX as u32 {
        let reply = set(&mut world, &format!("t{number}"), 100 + number, none);
        assert!(world.answers[&reply].is_ok());
    }
    let reply = set(&mut world, "over", 999, none);
    assert_eq!(
        world.refusal(reply),
        Code::TenantExists,
        "the trust bundle has no room for more"
    );
}

#[test]
fn tl_31_an_ended_tenants_runs_stay_frozen_and_no_other_is_touched() {
    let mut world = three();
    let (ours, theirs) = (of("acme_demo", ACME, 2), of("other_demo", OTHER, 3));
    join(&mut world, &ours, 2);
    join(&mut world, &theirs, 3);
    leased(&mut world, &ours, 2);
    let their_lease = leased(&mut world, &theirs, 3);
    let refused = end(&mut world, "acme", false);
    assert_eq!(world.refusal(refused), Code::TenantBusy);
    let unknown = end(&mut world, "nobody", true);
    assert_eq!(world.refusal(unknown), Code::TenantUnknown);
    let others = world.core.state().run(&theirs.run).unwrap().clone();
    let reply = end(&mut world, "acme", true);
    let expected = TenantEndReply {
        v: V,
        changed: true,
        runs: 1,
        workers: 1,
        leases: 1,
        store: Some(AtStore::Stopped),
    };
    assert_eq!(ended(&world, reply), expected);
    assert_eq!(
        world.count(|event| matches!(
            event,
            LedgerEvent::WorkerLeft {
                cause: Departure::TenantEnded,
                ..
            }
        )),
        1
    );
    let again = end(&mut world, "acme", false);
    let repeated = ended(&world, again);
    assert!(!repeated.changed && repeated.workers == 0);
    // The store refuses the URLs of its runs from now on, and a repeated order tells it again.
    let stops = world.seen.iter().filter_map(|effect| match effect {
        crate::Effect::StopUrls { stop, .. } => Some(stop.holders.clone()),
        _ => None,
    });
    let only: StoppedHolders = [(UrlHolders::of_run(ours.run.clone()), None)].into();
    assert_eq!(stops.collect::<Vec<_>>(), [only.clone(), only]);
    for round in 0..2 {
        let join = join(&mut world, &ours, 2);
        assert_eq!(world.refusal(join), Code::TenantEnded, "{round}");
        let hold = HoldRequest {
            v: V,
            run: ours.run.clone(),
            hold: Hold::Merges,
            held: false,
            reason: "let it go on".parse().unwrap(),
        };
        let lift = world.control(ControlRequest::RunHold(hold));
        assert_eq!(world.refusal(lift), Code::TenantEnded);
        let new = new_run(&mut world, "acme_more");
        assert_eq!(world.refusal(new), Code::TenantEnded);
        // It waits for nobody, so nobody is asked to start workers.
        for (run, halted) in [(&ours.run, Some(Code::TenantEnded)), (&theirs.run, None)] {
            let view = run_view(&mut world, run);
            let code = view.halted.map(|why| why.code);
            assert_eq!(code, halted, "{run}");
            assert_eq!(view.phase == RunPhase::Halted, halted.is_some());
            assert!(halted.is_none() || view.trouble.is_none(), "{run}");
        }
        let set = set(&mut world, "acme", ACME, Quota::default());
        assert_eq!(world.refusal(set), Code::TenantEnded);
        if round == 0 {
            let now = world.core.state().run(&theirs.run).unwrap();
            assert_eq!(*now, others, "the other tenant's run is as it was");
            world.restart();
            world.answer_pending();
        }
    }
    let run = world.core.state().run(&theirs.run).unwrap();
    let result = submission(&run.spec, 3, their_lease, 0);
    world.ask(theirs.clone(), WorkerRequest::Submit(result));
    world.answer_pending();
    let run = world.core.state().run(&theirs.run).unwrap();
    assert_eq!(run.members[&theirs.worker].accepted, 1, "its lease went on");
}

#[test]
fn tl_25_the_digest_of_another_tenants_contribution_gives_no_right_to_read_it() {
    let mut world = three();
    let (ours, theirs) = (of("acme_demo", ACME, 2), of("other_demo", OTHER, 3));
    join(&mut world, &ours, 2);
    join(&mut world, &theirs, 3);
    let held = leased(&mut world, &ours, 2);
    let run = world.core.state().run(&ours.run).unwrap();
    let result = submission(&run.spec, 2, held, 0);
    let Outcome::Contribution(contribution) = &result.statement.outcome else {
        panic!("a training unit was held")
    };
    let digest = contribution.chunks.objects()[0].digest;
    world.ask(ours.clone(), WorkerRequest::Submit(result));
    world.answer_pending();
    let accepted = world.core.state().run(&ours.run).unwrap();
    assert_eq!(accepted.members[&ours.worker].accepted, 1);
    let get = |objects| WorkerRequest::Get(GetRequest { v: V, objects });
    let refused = world.ask(theirs.clone(), get(vec![digest]));
    assert_eq!(world.refusal(refused), Code::ObjectForbidden);
    let own = world.ask(theirs, get(vec![object("config").digest]));
    assert!(
        !world.answers.contains_key(&own),
        "its own run's objects are granted"
    );
}

/// The unit of the holder is open when the holder has departed, and the other still waits for one.
#[test]
fn tl_31_the_end_of_a_tenant_grants_nothing_to_those_who_wait() {
    let mut world = three();
    let peers = [2, 4, 5].map(|number| of("acme_demo", ACME, number));
    for (peer, number) in peers.iter().zip([2, 4, 5]) {
        join(&mut world, peer, number);
    }
    leased(&mut world, &peers[0], 2);
    leased(&mut world, &peers[1], 4);
    let claim = claim_request(5, Millis::from_secs(20));
    let waiting = world.ask(peers[2].clone(), WorkerRequest::Claim(claim));
    assert!(!world.answers.contains_key(&waiting), "no unit is open");
    let grants =
        |world: &World| world.count(|event| matches!(event, LedgerEvent::LeaseGranted { .. }));
    let before = grants(&world);
    let reply = end(&mut world, "acme", true);
    let ended = ended(&world, reply);
    assert_eq!((ended.workers, ended.leases), (3, 2));
    assert_eq!(grants(&world), before);
    assert_eq!(world.refusal(waiting), Code::TenantEnded);
}

#[test]
fn tl_31_an_ended_tenant_is_refused_in_complete_runs_too() {
    let mut world = World::new();
    set(&mut world, "acme", ACME, Quota::default());
    let member = complete(&mut world, "acme_demo", ACME, 2);
    let claim = |world: &mut World| {
        let claim = WorkerRequest::Claim(claim_request(2, Millis(0)));
        world.ask(member.clone(), claim)
    };
    let reply = claim(&mut world);
    assert!(
        world.answers[&reply].is_ok(),
        "it is told that the run is over"
    );
    let reply = end(&mut world, "acme", false);
    assert!(ended(&world, reply).changed);
    let reply = claim(&mut world);
    assert_eq!(world.refusal(reply), Code::TenantEnded);
    // The URLs that it got last are stopped, and no operator allows them.
    let stops = world.seen.iter().filter_map(|effect| match effect {
        crate::Effect::StopUrls { stop, .. } => {
            let holders = stop.holders.keys().cloned().collect();
            Some((holders, stop.concerned.clone()))
        }
        _ => None,
    });
    let only: BTreeSet<UrlHolders> = [UrlHolders::of_run(member.run.clone())].into();
    assert_eq!(stops.collect::<Vec<_>>(), [(only.clone(), only)]);
    let hold = HoldRequest {
        v: V,
        run: member.run.clone(),
        hold: Hold::Urls,
        held: false,
        reason: "let it go on".parse().unwrap(),
    };
    let lift = world.control(ControlRequest::RunHold(hold));
    assert_eq!(world.refusal(lift), Code::TenantEnded);
    // Until they have ended.
    world.wait(URLS_OUT_MAX);
    let reply = end(&mut world, "acme", false);
    assert_eq!(ended(&world, reply).store, Some(AtStore::NoUrls));
}
