//! Guards that no other test covers: limits on numbers, and actions that must not happen while
//! something else is under way.

use ledger::State;
use schemas::contribution::{Evaluation, Outcome, StageRequest};
use schemas::control::{OperatorObjects, RunNew};
use schemas::event::{Departure, LedgerEvent};
use schemas::foundry::{self, Order};
use schemas::lease::{ReleaseRequest, UnitKind, Weights};
use schemas::limits::{LEASE_MAX, RUNS_MAX, WORKERS_MAX};
use schemas::member::{JoinRequest, Layer, OpenLayer, Posture};
use schemas::run::TrainerKind;
use schemas::{Code, Millis, Refusal, Round, Tokens, UnixMillis, V};

use crate::fixture::*;
use crate::{
    Answer, ControlRequest, Coordinator, Effect, Input, Merged, Peer, ReplyId, WorkerRequest,
};

fn join_with(world: &mut World, asker: Peer, request: JoinRequest) -> ReplyId {
    world.ask(asker, WorkerRequest::Join(request))
}

#[test]
fn a_result_in_its_check_is_neither_given_back_nor_read_ahead() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let held = world.lease(1);
    world.submit(1, held);
    let release = WorkerRequest::Release(ReleaseRequest {
        v: V,
        lease: held,
        reason: String::new(),
    });
    let reply = world.ask(peer(1), release);
    assert_eq!(world.refusal(reply), Code::AlreadyCounted);
    assert_eq!(world.run().leases().count(), 1);
    let stage = StageRequest {
        v: V,
        lease: held,
        index: 0,
        object: object("a"),
    };
    world.ask(peer(1), WorkerRequest::Stage(stage));
    assert!(
        !world
            .seen
            .iter()
            .any(|effect| matches!(effect, order!(Stage)))
    );
}

#[test]
fn chunks_are_not_read_ahead_without_end() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let held = world.lease(1);
    for number in 0..4200 {
        let stage = StageRequest {
            v: V,
            lease: held,
            index: number % 2,
            object: object("a"),
        };
        world.ask(peer(1), WorkerRequest::Stage(stage));
    }
    assert_eq!(
        world
            .seen
            .iter()
            .filter(|effect| matches!(effect, order!(Stage)))
            .count(),
        4096
    );
}

/// After a restart nothing is granted until data and weights are both here.
#[test]
fn nothing_is_granted_before_there_is_work_to_describe() {
    for data_first in [true, false] {
        let mut world = World::with_run(spec("demo"));
        world.join(1);
        world.restart();
        let restore = world.take_pending(|effect| matches!(effect, order!(Restore)));
        world.answer_pending();
        let Effect::Foundry {
            order: Order::Restore { spec, .. },
            ..
        } = restore
        else {
            unreachable!("it was picked")
        };
        let loaded = Input::Foundry {
            run: spec.run.clone(),
            answer: foundry::Answer::DataLoaded {
                data: Box::new(data(5, 20)),
            },
        };
        let restored = Input::Foundry {
            run: spec.run.clone(),
            answer: foundry::Answer::Restored { outcome: Ok(()) },
        };
        let (first, second) = if data_first {
            (loaded, restored)
        } else {
            (restored, loaded)
        };
        let claim = world.claim(1);
        world.input(first);
        world.answer_pending();
        assert_eq!(world.run().leases().count(), 0, "data first: {data_first}");
        world.input(second);
        world.answer_pending();
        assert!(
            world.manifests.contains_key(&claim),
            "data first: {data_first}"
        );
    }
}

/// The held-out part is shorter than a sequence, so an evaluation would cover no tokens.
#[test]
fn an_evaluation_of_no_tokens_does_not_count() {
    let mut evaluating = spec("demo");
    evaluating.schedule.evaluation_every = 1;
    evaluating.schedule.units = 1;
    let mut world = World::with_run(evaluating.clone());
    world.restart();
    let restore = world.take_pending(|effect| matches!(effect, order!(Restore)));
    let Effect::Foundry {
        order: Order::Restore { spec, .. },
        ..
    } = restore
    else {
        unreachable!("it was picked")
    };
    let mut short = data(5, 20);
    short.held_out[0].tokens = Tokens(3);
    world.input(Input::Foundry {
        run: spec.run.clone(),
        answer: foundry::Answer::DataLoaded {
            data: Box::new(short),
        },
    });
    world.input(Input::Foundry {
        run: spec.run,
        answer: foundry::Answer::Restored { outcome: Ok(()) },
    });
    world.join(1);
    world.join(2);
    let leases = [world.lease(1), world.lease(2)];
    let number = leases
        .iter()
        .position(|held| held.unit.kind == UnitKind::Evaluate)
        .expect("one evaluates");
    let mut statement = submission(&evaluating, number as u32 + 1, leases[number], 0).statement;
    statement.outcome = Outcome::Evaluation(Evaluation {
        loss_sum: 0.0,
        tokens: Tokens(0),
    });
    let reply = world.ask(
        peer(number as u32 + 1),
        WorkerRequest::Submit(stated(statement)),
    );
    assert_eq!(world.refusal(reply), Code::TokensMismatch);
}

#[test]
fn nothing_begins_while_the_coordinator_drains() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    world.lease(1);
    world.shut_down(Millis::from_secs(20));
    let objects = || OperatorObjects {
        v: V,
        objects: vec![object("a")],
    };
    let join = join_with(&mut world, peer(2), join_request(2));
    let put = world.control(ControlRequest::BlobPut(objects()));
    let commit = world.control(ControlRequest::BlobCommit(objects()));
    let new = world.control(ControlRequest::RunNew(Box::new(RunNew {
        v: V,
        spec: spec("other"),
    })));
    for reply in [join, put, commit, new] {
        assert_eq!(world.refusal(reply), Code::Draining);
    }
}

/// A lease whose result is being checked does not end, and this check never ends.
#[test]
fn a_drain_lasts_no_longer_than_the_longest_lease() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let held = world.lease(1);
    world.submit(1, held);
    world.shut_down(Millis(u64::MAX));
    let stopped = |world: &World| {
        world
            .seen
            .iter()
            .any(|effect| matches!(effect, Effect::Stop { .. }))
    };
    world.now = UnixMillis(world.now.get() + LEASE_MAX.get() - 1);
    world.input_alone(Input::Tick);
    assert!(!stopped(&world));
    world.now = world.now.next();
    world.input_alone(Input::Tick);
    assert!(stopped(&world));
}

#[test]
fn joins_are_of_a_bounded_form() {
    let mut world = World::with_run(spec("demo"));
    let layer = |reason: String| OpenLayer {
        layer: Layer::Bus,
        reason,
    };
    let mut many_layers = join_request(1);
    many_layers.posture.open = vec![layer(String::new()); 5];
    let mut long_reason = join_request(1);
    long_reason.posture.open = vec![layer("x".repeat(1025))];
    let mut many_trainers = join_request(1);
    many_trainers.trainers = vec![TrainerKind::Reference; 7];
    for request in [many_layers, long_reason, many_trainers] {
        let reply = join_with(&mut world, peer(1), request);
        assert_eq!(world.refusal(reply), Code::MessageInvalid);
    }
    // The longest join that is accepted. It is refused for its open layers, and accepted without
    // them.
    let longest = |layers: usize| JoinRequest {
        device: "d".repeat(128),
        release: "r".repeat(128),
        trainers: vec![TrainerKind::Reference; 6],
        posture: Posture {
            open: vec![layer("x".repeat(1024)); layers],
        },
        ..join_request(1)
    };
    let open = join_with(&mut world, peer(1), longest(4));
    assert_eq!(world.refusal(open), Code::LayerOpen);
    let taken = join_with(&mut world, peer(1), longest(0));
    assert!(matches!(world.answers[&taken], Ok(Answer::Join(_))));
}

#[test]
fn la_10_a_worker_opens_the_layers_that_its_coordinator_opens_and_no_other() {
    let open = |layer: Layer| Posture {
        open: vec![OpenLayer {
            layer,
            reason: "laboratory".to_owned(),
        }],
    };
    let world = World::with_run(spec("demo"));
    let allowing = crate::Settings {
        posture: open(Layer::Bus),
        ..settings()
    };
    for (layer, refused) in [(Layer::Bus, None), (Layer::Bulk, Some(Code::LayerOpen))] {
        let request = WorkerRequest::Join(JoinRequest {
            posture: open(layer),
            ..join_request(1)
        });
        let input = Input::Request {
            peer: peer(1),
            recorded: None,
            request,
            reply: ReplyId(1),
        };
        let state = world.core.state().clone();
        let refusal = asked_with(allowing.clone(), state, input);
        assert_eq!(refusal.map(|refusal| refusal.code), refused);
    }
}

#[test]
fn a_member_keeps_its_account_and_its_audit_key() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let elsewhere = Peer {
        account: account(9),
        ..peer(1)
    };
    let other_key = JoinRequest {
        audit_key: public_key(4000),
        ..join_request(1)
    };
    for (asker, request) in [(elsewhere, join_request(1)), (peer(1), other_key.clone())] {
        let reply = join_with(&mut world, asker, request);
        assert_eq!(world.refusal(reply), Code::IdentityMismatch);
    }
    // The same holds when it left and comes again.
    world.ask(peer(1), WorkerRequest::Leave(leave_request(1, "")));
    let reply = join_with(&mut world, peer(1), other_key);
    assert_eq!(world.refusal(reply), Code::IdentityMismatch);
}

#[test]
fn who_waits_for_our_answer_is_not_silent() {
    let mut hasty = spec("demo");
    hasty.policy.silence_max = Millis::from_secs(5);
    let mut world = World::with_run(hasty);
    for number in 1..=3 {
        world.join(number);
    }
    let leases = [world.lease(1), world.lease(2)];
    let waiting = world.claim(3);
    world.wait(Millis::from_secs(4));
    for (number, held) in (1..).zip(leases) {
        let renewal = schemas::lease::RenewRequest {
            v: V,
            lease: held,
            steps_done: schemas::Steps(1),
            bytes_moved: schemas::Bytes(0),
        };
        world.ask(peer(number), WorkerRequest::Renew(renewal));
    }
    // The end of the claim's wait and the end of the silence are due at the same moment.
    world.wait(Millis::from_secs(1));
    assert!(
        matches!(world.answers[&waiting], Ok(Answer::Claim(_))),
        "{:?}",
        world.answers[&waiting]
    );
    assert!(world.run().member(&worker(3)).is_some());
}

/// Asks a coordinator over `state`, and returns the code of its refusal; none if it does not
/// refuse.
fn asked(state: State, input: Input) -> Option<Code> {
    asked_with(settings(), state, input).map(|refusal| refusal.code)
}

fn asked_with(settings: crate::Settings, state: State, input: Input) -> Option<Refusal> {
    let mut core = Coordinator::new(settings, state);
    let mut effects = Vec::new();
    core.start(START, &mut effects);
    effects.clear();
    core.handle(START, input, &mut effects);
    effects.into_iter().find_map(|effect| match effect {
        Effect::Reply { answer, .. } => answer.err(),
        _ => None,
    })
}

#[test]
fn a_run_has_so_many_workers_and_no_more() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    world.join(2);
    world.ask(peer(2), WorkerRequest::Leave(leave_request(2, "")));
    let join = |number: u32| {
        let request = WorkerRequest::Join(join_request(number));
        Input::Request {
            peer: peer(number),
            recorded: None,
            request,
            reply: ReplyId(1),
        }
    };
    let filled = |present: usize, gone: usize| {
        let mut state = world.core.state().clone();
        let mut note = |event| {
            state
                .apply(START, Some(&run_id()), &event)
                .expect("who joins may leave")
        };
        for other in (0..present - 1 + gone - 1).map(|number| 100_000 + number as u32) {
            note(joined(other));
            if other >= 100_000 + (present - 1) as u32 {
                note(LedgerEvent::WorkerLeft {
                    worker: worker(other),
                    cause: Departure::Left,
                    detail: String::new(),
                });
            }
        }
        state
    };
    assert_eq!(asked(filled(WORKERS_MAX - 1, 1), join(3)), None);
    assert_eq!(asked(filled(WORKERS_MAX - 1, 1), join(2)), None);
    let full = |refusal: Refusal| {
        refusal.code == Code::NotJoined && refusal.detail.starts_with("the run has its most")
    };
    for newcomer in [2, 3] {
        let refusal = asked_with(settings(), filled(WORKERS_MAX, 1), join(newcomer));
        assert!(refusal.is_some_and(full), "a place may become free");
    }
    // Members stay, and workers that left may come back; only newcomers find the roster full.
    assert_eq!(asked(filled(WORKERS_MAX, 1), join(1)), None);
    assert_eq!(asked(filled(1, 4 * WORKERS_MAX - 2), join(3)), None);
    let refusal = asked_with(settings(), filled(1, 4 * WORKERS_MAX - 1), join(3));
    let used_up = |refusal: Refusal| {
        refusal.code == Code::NotJoined && refusal.detail.starts_with("the run has had its most")
    };
    assert!(refusal.is_some_and(used_up), "no place becomes free");
    assert_eq!(asked(filled(1, 4 * WORKERS_MAX - 1), join(2)), None);
}

#[test]
fn a_coordinator_has_so_many_runs_and_looks_at_so_many_new_ones_at_a_time() {
    let mut world = World::new();
    let new = |name: &str| {
        ControlRequest::RunNew(Box::new(RunNew {
            v: V,
            spec: spec(name),
        }))
    };
    for number in 0..16 {
        let reply = world.control_as(number / 4, new(&format!("run-{number}")));
        assert!(!world.answers.contains_key(&reply), "it is being looked at");
    }
    let reply = world.control_as(9, new("one-more"));
    assert_eq!(world.refusal(reply), Code::NoAnswer);

    let world = World::with_run(spec("demo"));
    let full = |runs: usize| {
        let mut state = world.core.state().clone();
        for number in 1..runs {
            let spec = Box::new(spec(&format!("old-{number}")));
            let (name, operator) = (spec.run.clone(), public_key(2));
            let created = LedgerEvent::RunCreated { spec, operator };
            state
                .apply(START, Some(&name), &created)
                .expect("each has its own name");
        }
        state
    };
    let ask = || Input::Control {
        operator: public_key(2),
        request: new("another"),
        reply: ReplyId(1),
    };
    assert_eq!(asked(full(RUNS_MAX - 1), ask()), None);
    assert_eq!(asked(full(RUNS_MAX), ask()), Some(Code::SpecInvalid));
}

/// The coordinator checks the weights that the foundry hands back: weights that the next round
/// could not start from close nothing.
#[test]
fn weights_that_do_not_fit_close_no_round() {
    type Change = fn(&mut Weights);
    let changes: [Change; 3] = [
        |weights| weights.round = Round(5),
        |weights| weights.chunks = Vec::new().into(),
        |weights| weights.codec.kind = schemas::run::CodecKind::Fp32,
    ];
    for change in changes {
        let mut world = World::with_run(spec("demo"));
        world.join(1);
        fill_round(&mut world);
        world.take_pending(|effect| matches!(effect, order!(Merge)));
        let mut weights = merged(&spec("demo"), Round(0)).broadcast;
        change(&mut weights);
        let outcome = Ok(Merged {
            broadcast: weights,
            norm: 1.0,
        });
        world.foundry(foundry::Answer::Merged {
            sync: sync(0),
            outcome,
        });
        assert_eq!(
            world.count(|event| matches!(event, LedgerEvent::RoundClosed { .. })),
            0
        );
        assert_eq!(
            world.view().trouble.map(|found| found.code),
            Some(Code::Internal)
        );
    }
}

/// An answer for the save of another round is no snapshot of the run, and the save that was asked
/// for is still due.
#[test]
fn a_save_of_another_round_is_skipped() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let saves = |world: &mut World, round: u64| {
        let before = world.journal.len();
        world.foundry(foundry::Answer::Saved {
            round: Round(round),
            outcome: Ok(saved(Round(round))),
        });
        world.kinds(before).contains(&"snapshot-saved")
    };
    fill_round(&mut world);
    let merge = world.take_pending(|effect| matches!(effect, order!(Merge)));
    world.answer_one(merge);
    world.take_pending(|effect| matches!(effect, order!(Save)));
    assert!(!saves(&mut world, 9));
    assert!(saves(&mut world, 1));
    assert!(!saves(&mut world, 1), "it was answered");
    while let Some(at) = world
        .pending
        .iter()
        .position(|effect| matches!(effect, Effect::Offer { .. }))
    {
        let offer = world.pending.remove(at);
        world.answer_one(offer);
    }
    fill_round(&mut world);
    let merge = world.take_pending(|effect| matches!(effect, order!(Merge)));
    world.answer_one(merge);
    world.take_pending(|effect| matches!(effect, order!(Save)));
    assert!(!saves(&mut world, 1));
    assert!(!saves(&mut world, 0));
    assert!(saves(&mut world, 2));
}

/// Only the foundry of a run ends a check of the run.
#[test]
fn a_verdict_on_a_check_of_another_run_is_skipped() {
    let mut world = World::with_run(spec("demo"));
    let mut other = spec("other");
    other.seed = 9;
    let new = schemas::control::RunNew { v: V, spec: other };
    world.control(crate::ControlRequest::RunNew(Box::new(new)));
    world.answer_pending();
    world.join(1);
    let held = world.lease(1);
    let reply = world.submit(1, held);
    let screen = world.take_pending(|effect| matches!(effect, order!(Screen)));
    let Effect::Foundry {
        order: Order::Screen { screening, .. },
        ..
    } = &screen
    else {
        unreachable!("it was picked")
    };
    world.input(Input::Foundry {
        run: "other".parse().unwrap(),
        answer: foundry::Answer::Screened {
            screening: *screening,
            verdict: Ok(screened(1.0)),
        },
    });
    assert!(!world.answers.contains_key(&reply));
    world.answer_one(screen);
    assert!(matches!(world.answers[&reply], Ok(Answer::Submit(_))));
}

/// Worker 1 does both units of the round.
fn fill_round(world: &mut World) {
    for _ in 0..2 {
        let held = world.lease(1);
        world.submit(1, held);
        let screened = world.take_pending(|effect| matches!(effect, order!(Screen)));
        world.answer_one(screened);
    }
}
