//! Quarantine: an operator shuts a worker out of a run.

use ledger::State;
use schemas::blob::{GetRequest, PutRequest};
use schemas::contribution::StageRequest;
use schemas::control::{Query, View, ViewRequest};
use schemas::event::LedgerEvent;
use schemas::foundry::{self, Order};
use schemas::hold::{AtStore, Hold, HoldRequest};
use schemas::lease::{ReleaseRequest, RenewRequest, UnitKind};
use schemas::public::CommandVerb;
use schemas::quarantine::{QUARANTINED_MAX, QuarantineReply, QuarantineRequest};
use schemas::view::RunPhase;
use schemas::{Bytes, Code, Millis, Round, RunId, Steps, Tokens, V};

use super::heartbeat::heartbeat;
use crate::fixture::*;
use crate::input::{ControlRequest, ReplyId};
use crate::{Answer, Coordinator, Effect, Input, WorkerRequest};

fn request(number: u32, run: &RunId, quarantined: bool) -> ControlRequest {
    ControlRequest::WorkerQuarantine(QuarantineRequest {
        v: V,
        run: run.clone(),
        worker: worker(number),
        quarantined,
        reason: "odd norms".parse().expect("a reason"),
    })
}

fn replied(world: &World, asked: ReplyId) -> QuarantineReply {
    match &world.answers[&asked] {
        Ok(Answer::Quarantine(reply)) => (**reply).clone(),
        other => panic!("{other:?}"),
    }
}

pub(super) fn shut(world: &mut World, number: u32) -> QuarantineReply {
    let asked = world.control(request(number, &run_id(), true));
    replied(world, asked)
}

pub(super) fn readmit(world: &mut World, number: u32) -> QuarantineReply {
    let asked = world.control(request(number, &run_id(), false));
    replied(world, asked)
}

/// Hands in one unit of a worker.
fn work(world: &mut World, number: u32) -> schemas::lease::LeaseRef {
    let held = world.lease(number);
    world.submit(number, held);
    world.answer_pending();
    held
}

fn units(count: u32) -> schemas::run::RunSpec {
    let mut spec = spec("demo");
    spec.schedule.units = count;
    spec
}

fn purged(world: &World) -> usize {
    let purges = |effect: &&Effect| matches!(effect, Effect::Purge { .. });
    world.seen.iter().filter(purges).count()
}

/// The offers that were taken off the queue.
fn settled(world: &World) -> usize {
    let settles = |effect: &&Effect| matches!(effect, Effect::Settle { .. });
    world.seen.iter().filter(settles).count()
}

/// The workers that were told to stay away.
fn sent_away(world: &World) -> Vec<u32> {
    let mut told = Vec::new();
    for effect in &world.seen {
        if let Effect::Command {
            worker: to,
            verb: CommandVerb::Quarantine,
            account: of,
            ..
        } = effect
        {
            assert_eq!(*of, account(1));
            told.extend((1..9).find(|number| worker(*number) == *to));
        }
    }
    told
}

#[test]
fn tl_31_a_worker_is_shut_out_in_one_turn_and_others_get_its_units_at_once() {
    let mut world = World::with_run(units(3));
    for number in 1..=4 {
        world.join(number);
    }
    let counted = work(&mut world, 1);
    work(&mut world, 2);
    let held = world.lease(1);
    let waiting = [world.claim(3), world.claim(4)];
    let before = world.journal.len();
    let offers = settled(&world);
    let reply = shut(&mut world, 1);
    assert_eq!(
        world.kinds(before),
        ["worker-quarantined", "lease-granted", "lease-granted"]
    );
    assert_eq!(settled(&world), offers, "its units are still to be done");
    assert!(reply.changed && reply.joined && reply.since == Some(world.now));
    assert_eq!((reply.lease, reply.withdrawn), (Some(held), vec![counted]));
    assert_eq!(
        (reply.sealed.len(), reply.merged, reply.clean),
        (0, None, None)
    );
    let granted = waiting.map(|claim| world.manifests[&claim].lease);
    assert_eq!(granted, [lease(counted.unit, 2), lease(held.unit, 2)]);
    assert_eq!(sent_away(&world), [1]);
    assert_eq!(purged(&world), 1);
    let unstaged = |lease| {
        world.seen.iter().any(|effect| {
            matches!(effect, Effect::Foundry { order: Order::Unstage { lease: of }, .. } if *of == lease)
        })
    };
    assert!(unstaged(counted) && unstaged(held), "no byte of it stays");
    assert_eq!(world.run().tokens.rejected, Tokens(32));
    for (number, lease) in [(3, granted[0]), (4, granted[1])] {
        world.submit(number, lease);
        world.answer_pending();
    }
    assert_eq!(world.run().rounds_closed(), Round(1));
}

/// Every kind of request of a worker.
fn every_request(held: schemas::lease::LeaseRef) -> Vec<WorkerRequest> {
    vec![
        WorkerRequest::Join(join_request(1)),
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
            reason: String::new(),
        }),
        WorkerRequest::Get(GetRequest {
            v: V,
            objects: vec![object("config").digest],
        }),
        WorkerRequest::Put(PutRequest {
            v: V,
            lease: held,
            objects: vec![upload("a")],
        }),
        WorkerRequest::Stage(StageRequest {
            v: V,
            lease: held,
            index: 0,
            object: upload("a"),
        }),
        WorkerRequest::Submit(submission(&spec("demo"), 1, held, 0)),
        WorkerRequest::Leave(leave_request(1, "")),
    ]
}

#[test]
fn fg_04_tl_31_a_worker_in_quarantine_is_refused_everything_also_after_a_restart() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let held = world.lease(1);
    shut(&mut world, 1);
    for restarted in [false, true] {
        if restarted {
            world.restart();
            world.answer_pending();
        }
        let before = world.run().clone();
        for request in every_request(held) {
            let verb = format!("{request:?}");
            let reply = world.ask(peer(1), request);
            assert_eq!(world.refusal(reply), Code::WorkerQuarantined, "{verb}");
        }
        assert!(*world.run() == before, "a refusal changed the run");
    }
    let granted = |effect: &Effect| {
        matches!(
            effect,
            Effect::GrantGet { .. } | Effect::GrantPut { .. } | order!(Stage)
        )
    };
    assert!(!world.seen.iter().any(granted));
    // Another worker is not meant.
    world.join(2);
    world.lease(2);
    // A heartbeat is answered with the command, which may have been lost.
    let told = sent_away(&world).len();
    world.input(Input::Heartbeat {
        peer: peer(1),
        heartbeat: heartbeat(),
    });
    assert_eq!(sent_away(&world).len(), told + 1);
    let denied = world.count(|event| matches!(event, LedgerEvent::RequestDenied { code, .. } if *code == Code::WorkerQuarantined));
    assert!(denied > 0, "refusals are in the record");
}

/// A command is signed in the loop that decides for everybody.
#[test]
fn tl_31_a_worker_that_does_not_obey_gets_one_command_in_each_time_between_heartbeats() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    world.join(2);
    shut(&mut world, 1);
    shut(&mut world, 2);
    assert_eq!(sent_away(&world), [1, 2]);
    let beat = |world: &mut World, number: u32| {
        world.input(Input::Heartbeat {
            peer: peer(number),
            heartbeat: heartbeat(),
        });
    };
    let denied = |world: &World| {
        world.count(|event| matches!(event, LedgerEvent::RequestDenied { worker: of, verb, code, .. } if *of == worker(1) && verb == "heartbeat" && *code == Code::WorkerQuarantined))
    };
    let period = settings().heartbeat;
    // The order itself has told it at this moment.
    beat(&mut world, 1);
    assert_eq!((sent_away(&world).len(), denied(&world)), (2, 1));
    world.wait(Millis(period.get() - 1));
    beat(&mut world, 1);
    assert_eq!((sent_away(&world).len(), denied(&world)), (2, 2));
    world.wait(Millis(1));
    for more in [0, 1, 2] {
        beat(&mut world, 1);
        assert_eq!(sent_away(&world), [1, 2, 1]);
        assert_eq!(denied(&world), 2 + more);
    }
    // Each worker has its own.
    beat(&mut world, 2);
    assert_eq!(sent_away(&world), [1, 2, 1, 2]);
    // The next quarantine is another one.
    readmit(&mut world, 1);
    assert_eq!(world.core.sent_away.len(), 1);
    // However often it sends, little of that is in the record.
    for _ in 0..1000 {
        beat(&mut world, 2);
    }
    assert_eq!(sent_away(&world).len(), 4);
    assert!(world.count(|event| matches!(event, LedgerEvent::RequestDenied { .. })) < 40);
}

#[test]
fn who_is_absent_or_never_came_is_shut_out_as_well() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    world.ask(peer(1), WorkerRequest::Leave(leave_request(1, "")));
    for (number, joined) in [(1, true), (2, false)] {
        let reply = shut(&mut world, number);
        assert!(reply.changed && reply.joined == joined && reply.lease.is_none());
        let join = world.ask(peer(number), WorkerRequest::Join(join_request(number)));
        assert_eq!(world.refusal(join), Code::WorkerQuarantined);
    }
    // Operators see both.
    let asked = world.control(ControlRequest::View(ViewRequest::of(Query::Workers(
        run_id(),
    ))));
    let Ok(Answer::View(found)) = &world.answers[&asked] else {
        panic!("{:?}", world.answers[&asked])
    };
    let View::Workers(listed) = &found.view else {
        panic!("{found:?}")
    };
    let listed: Vec<_> = listed
        .iter()
        .map(|view| {
            (
                view.worker.clone(),
                view.member,
                view.quarantined,
                view.account.clone(),
            )
        })
        .collect();
    let expected = [
        (worker(1), false, true, Some(account(1))),
        (worker(2), false, true, None),
    ];
    assert_eq!(listed, expected);
    // A process of a worker that joined once may run; where a stranger is, nobody knows.
    assert_eq!(sent_away(&world), [1]);
}

#[test]
fn tl_31_an_order_that_changes_nothing_is_answered_and_not_written() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let before = world.journal.len();
    assert!(!readmit(&mut world, 1).changed);
    assert_eq!(world.journal.len(), before);
    assert!(shut(&mut world, 1).changed);
    let since = world.now;
    world.wait(Millis::from_secs(1));
    let again = shut(&mut world, 1);
    assert!(!again.changed && again.since == Some(since));
    assert_eq!(purged(&world), 2, "a transfer may have gone on since");
    let written = world.kinds(before);
    assert_eq!(written, ["worker-quarantined"]);
    let lifted = readmit(&mut world, 1);
    assert!(lifted.changed && lifted.since.is_none());
    assert_eq!(purged(&world), 2);
    assert!(!readmit(&mut world, 1).changed);
    world.join(1);
    world.lease(1);
    let other: RunId = "other".parse().expect("a name");
    let asked = world.control(request(1, &other, true));
    assert_eq!(world.refusal(asked), Code::RunUnknown);
}

#[test]
fn a_result_that_is_being_checked_counts_no_more() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let held = world.lease(1);
    let submitted = world.submit(1, held);
    let check = world.take_pending(|effect| matches!(effect, order!(Screen)));
    let reply = shut(&mut world, 1);
    assert_eq!((reply.lease, reply.withdrawn.len()), (Some(held), 0));
    assert_eq!(world.refusal(submitted), Code::WorkerQuarantined);
    // The check ends all the same, and its verdict changes nothing.
    let before = world.journal.len();
    world.answer_one(check);
    assert_eq!(world.journal.len(), before);
    world.join(2);
    assert_eq!(world.lease(2), lease(held.unit, 2));
}

#[test]
fn who_waits_is_told_at_once() {
    let mut world = World::with_run(spec("demo"));
    for number in 1..=3 {
        world.join(number);
    }
    world.lease(2);
    world.lease(3);
    let claim = world.claim(1);
    assert!(!world.answers.contains_key(&claim));
    shut(&mut world, 1);
    assert_eq!(world.refusal(claim), Code::WorkerQuarantined);
}

#[test]
fn the_only_worker_of_a_round_leaves_it_open_for_others() {
    let mut world = World::with_run(units(1));
    world.join(1);
    hold(&mut world, true);
    let counted = work(&mut world, 1);
    let reply = shut(&mut world, 1);
    assert_eq!(reply.withdrawn, [counted]);
    world.wait(Millis::from_secs(40));
    let trouble = world.view().trouble.expect("nobody is left");
    assert_eq!(trouble.code, Code::NoWorkerLeft);
    assert!(trouble.detail.contains("0 left"), "{trouble}");
    assert!(trouble.detail.contains("1 are in quarantine"), "{trouble}");
    hold(&mut world, false);
    let closed = |world: &World| world.run().rounds_closed().get();
    assert_eq!(closed(&world), 0, "nothing is left to merge");
    world.join(2);
    assert_eq!(work(&mut world, 2), lease(counted.unit, 2));
    assert_eq!(closed(&world), 1);
}

fn hold(world: &mut World, held: bool) {
    world.control(ControlRequest::RunHold(HoldRequest {
        v: V,
        run: run_id(),
        hold: Hold::Merges,
        held,
        reason: "odd norms".parse().expect("a reason"),
    }));
}

/// A sealed set is final: it is merged, though weights are handed out only once the round is
/// closed, and the reply says so.
#[test]
fn a_merge_under_way_ends_and_the_reply_names_it() {
    let mut world = World::with_run(units(1));
    world.join(1);
    let held = world.lease(1);
    world.submit(1, held);
    world.answer_pending_but(|effect| matches!(effect, order!(Merge)));
    let reply = shut(&mut world, 1);
    assert_eq!(reply.sealed, [Round(0)]);
    assert_eq!((reply.withdrawn.len(), reply.merged), (0, None));
    world.answer_pending();
    assert_eq!(world.run().rounds_closed(), Round(1));
    let again = shut(&mut world, 1);
    assert!(again.sealed.is_empty());
    let merged = again.merged.expect("it is merged now");
    assert_eq!((merged.first, merged.rounds), (Round(0), 1));
    assert_eq!(again.clean, None, "there is no snapshot before round 0");
}

#[test]
fn the_reply_names_the_last_snapshot_without_the_worker() {
    let mut world = World::with_run(units(1));
    world.join(2);
    work(&mut world, 2);
    world.ask(peer(2), WorkerRequest::Leave(leave_request(2, "")));
    world.join(1);
    work(&mut world, 1);
    let reply = shut(&mut world, 1);
    let merged = reply.merged.expect("its contribution is merged");
    assert_eq!(
        (merged.first, merged.last, merged.rounds),
        (Round(1), Round(1), 1)
    );
    let clean = reply.clean.expect("round 1 starts from a snapshot");
    assert_eq!(
        (clean.round, clean.manifest),
        (Round(1), object("snapshot 1"))
    );
}

#[test]
fn an_evaluation_goes_to_another_and_the_run_completes() {
    let mut spec = units(1);
    (spec.schedule.rounds, spec.schedule.evaluation_every) = (1, 1);
    let mut world = World::with_run(spec);
    world.join(1);
    let mut held = work(&mut world, 1);
    while held.unit.kind == UnitKind::Train {
        held = world.lease(1);
    }
    shut(&mut world, 1);
    world.join(2);
    while world.run().phase() != RunPhase::Complete {
        work(&mut world, 2);
    }
    // The record of a run that is over can be kept clean as well.
    let before = world.journal.len();
    assert!(shut(&mut world, 2).changed);
    assert_eq!(world.kinds(before), ["worker-quarantined"]);
    let claim = world.claim(2);
    assert_eq!(world.refusal(claim), Code::WorkerQuarantined);
    assert!(readmit(&mut world, 2).changed);
    let claim = world.claim(2);
    assert!(matches!(world.answers[&claim], Ok(Answer::Claim(_))));
}

#[test]
fn a_unit_that_failed_with_the_others_too_halts_the_run_when_its_last_hope_goes() {
    let mut world = World::with_run(units(1));
    world.join(1);
    world.join(2);
    for _ in 0..4 {
        let held = world.lease(1);
        let reason = schemas::Refusal::new(Code::TrainingFailed, "no").to_string();
        world.ask(
            peer(1),
            WorkerRequest::Release(ReleaseRequest {
                v: V,
                lease: held,
                reason,
            }),
        );
    }
    assert_eq!(world.view().halted, None, "worker 2 has not tried");
    shut(&mut world, 2);
    let halted = world.view().halted.expect("nobody else is there");
    assert_eq!(halted.code, Code::UnitFails);
}

/// The state is folded from events: as many orders one by one would take longer.
#[test]
fn a_run_that_has_no_room_for_another_says_so() {
    let mut state = State::default();
    let mut fold = |event: &LedgerEvent| {
        let applied = state.apply(START, Some(&run_id()), event);
        applied.expect("it follows");
    };
    fold(&LedgerEvent::RunCreated {
        spec: Box::new(spec("demo")),
        operator: public_key(2),
    });
    let most = u32::try_from(QUARANTINED_MAX).expect("it is small");
    for number in 0..most {
        fold(&LedgerEvent::WorkerQuarantined {
            worker: worker(number + 10),
            operator: public_key(2),
            reason: "odd norms".parse().expect("a reason"),
            lease: None,
            withdrawn: 0,
        });
    }
    let mut core = Coordinator::new(settings(), state);
    core.start(START, &mut Vec::new());
    let mut ask = |number: u32, quarantined: bool| {
        let mut effects = Vec::new();
        let input = Input::Control {
            operator: public_key(2),
            request: request(number, &run_id(), quarantined),
            reply: ReplyId(1),
        };
        core.handle(START, input, &mut effects);
        effects.into_iter().find_map(|effect| match effect {
            Effect::Reply { answer, .. } => Some(answer.map(|_| false)),
            Effect::Purge { told, .. } => match told.with(None, AtStore::Later) {
                Answer::Quarantine(told) => Some(Ok(told.changed)),
                other => panic!("{other:?}"),
            },
            _ => None,
        })
    };
    let full = ask(1, true).expect("it is answered");
    assert_eq!(
        full.map_err(|refusal| refusal.code),
        Err(Code::QuarantineFull)
    );
    let changed = |answer: Option<Result<bool, schemas::Refusal>>| answer.and_then(Result::ok);
    assert_eq!(
        changed(ask(10, true)),
        Some(false),
        "this one is in already"
    );
    ask(10, false);
    assert_eq!(changed(ask(1, true)), Some(true));
}

/// An answer for a check that a quarantine ended belongs to nobody, also if a foundry repeats it.
#[test]
fn a_foundry_that_answers_late_breaks_nothing() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let held = world.lease(1);
    world.submit(1, held);
    let Effect::Foundry {
        order: Order::Screen { screening, .. },
        ..
    } = world.take_pending(|effect| matches!(effect, order!(Screen)))
    else {
        panic!("a result is screened")
    };
    shut(&mut world, 1);
    for _ in 0..2 {
        world.foundry(foundry::Answer::Screened {
            screening,
            verdict: Ok(screened(1.0)),
        });
    }
    assert_eq!(world.run().tokens.merged, Tokens(0));
}

/// A worker that was removed before its quarantine counts once, and a stranger not at all.
#[test]
fn those_who_are_gone_are_counted_once() {
    let mut world = World::with_run(spec("demo"));
    for number in [1, 2] {
        world.join(number);
    }
    for _ in 0..3 {
        let held = world.lease(1);
        let mut bad = submission(&world.run().spec.clone(), 1, held, 0).statement;
        bad.spec = object("other settings").digest;
        world.ask(peer(1), WorkerRequest::Submit(stated(bad)));
    }
    for number in [1, 2, 7] {
        shut(&mut world, number);
    }
    world.wait(Millis::from_secs(40));
    let trouble = world.view().trouble.expect("nobody is left").detail;
    for said in [
        "of 2 that joined",
        "0 left",
        "1 were removed",
        "0 are silent",
        "1 are in",
    ] {
        assert!(trouble.contains(said), "{said}: {trouble}");
    }
}
