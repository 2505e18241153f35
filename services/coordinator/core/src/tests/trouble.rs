use schemas::event::LedgerEvent;
use schemas::lease::{LeaseRef, ReleaseRequest};
use schemas::run::RunSpec;
use schemas::view::RunPhase;
use schemas::{Code, Millis, Refusal, V};

use crate::WorkerRequest;
use crate::fixture::*;

/// One unit a round, so that every worker meets the same one.
pub(super) fn one_unit() -> RunSpec {
    let mut spec = spec("demo");
    spec.schedule.units = 1;
    spec
}

pub(super) fn give_back(world: &mut World, number: u32, lease: LeaseRef, reason: &str) {
    world.ask(
        peer(number),
        WorkerRequest::Release(ReleaseRequest {
            v: V,
            lease,
            reason: reason.to_owned(),
        }),
    );
}

pub(super) fn failure() -> String {
    Refusal::new(Code::TrainingFailed, "the loss is NaN").to_string()
}

fn leave(world: &mut World, number: u32) {
    world.ask(
        peer(number),
        WorkerRequest::Leave(leave_request(number, "done")),
    );
}

#[test]
fn a_unit_that_fails_with_everybody_halts_the_run_with_their_reason() {
    let mut world = World::with_run(one_unit());
    world.join(1);
    world.join(2);
    for round in 0..2 {
        for number in [1, 2] {
            assert_eq!(world.view().phase, RunPhase::Training, "{round} {number}");
            let held = world.lease(number);
            give_back(&mut world, number, held, &failure());
        }
    }
    let view = world.view();
    let halted = view.halted.expect("nobody can do it");
    assert_eq!(
        (view.phase, halted.code),
        (RunPhase::Halted, Code::UnitFails)
    );
    for said in [
        "0/train-0",
        "4 times",
        "2 workers",
        worker(1).short(),
        "DL0803",
        "the loss is NaN",
    ] {
        assert!(halted.detail.contains(said), "{said}: {}", halted.detail);
    }
    let asks = world.claim(1);
    assert_eq!(world.refusal(asks), Code::UnitFails, "who asks is told");
    // An operator restarts the coordinator to say that the cause is mended.
    world.restart();
    world.answer_pending();
    let held = world.lease(1);
    world.submit(1, held);
    world.answer_pending();
    assert_eq!(world.view().round.get(), 1);
}

#[test]
fn a_unit_that_one_worker_has_not_failed_goes_on_and_ends_up_there() {
    let mut world = World::with_run(one_unit());
    for number in 1..=3 {
        world.join(number);
    }
    for _ in 0..6 {
        for number in [1, 2] {
            let held = world.lease(number);
            give_back(&mut world, number, held, &failure());
        }
    }
    let view = world.view();
    assert_eq!(
        view.phase,
        RunPhase::Training,
        "the third has not tried it: {:?}",
        view.halted
    );
    assert_eq!(
        view.trouble.map(|why| why.code),
        Some(Code::TrainingFailed),
        "but it is shown"
    );
    // A worker that has not failed the unit gets it, although another asked first.
    let held = world.lease(1);
    let (first, third) = (world.claim(2), world.claim(3));
    give_back(&mut world, 1, held, &failure());
    assert!(world.manifests.contains_key(&third) && !world.manifests.contains_key(&first));
    // The run halts when the last worker that has not failed the unit leaves.
    leave(&mut world, 3);
    assert_eq!(
        world.view().halted.map(|why| why.code),
        Some(Code::UnitFails)
    );
    // The run goes on when a worker comes that has not tried the unit.
    world.join(4);
    assert_eq!(world.view().halted, None);
    let held = world.lease(4);
    world.submit(4, held);
    world.answer_pending();
    assert_eq!(world.view().round.get(), 1);
}

/// A full store is no fault of a unit, and it passes. Until then the run makes no progress, and
/// says why.
#[test]
fn what_keeps_everybody_from_a_result_is_shown_and_halts_nothing() {
    let mut world = World::with_run(one_unit());
    world.join(1);
    world.join(2);
    let full = Refusal::new(Code::StoreFull, "the store has no room").to_string();
    for round in 0..8 {
        for number in [1, 2] {
            let held = world.lease(number);
            give_back(&mut world, number, held, &full);
            let view = world.view();
            assert_eq!(view.halted, None);
            match view.trouble {
                None => assert_eq!((round, number), (0, 1), "the other may get through"),
                Some(why) => {
                    let said =
                        why.detail.contains(worker(1).short()) && why.detail.contains("no room");
                    assert!(why.code == Code::StoreFull && said, "{}", why.detail);
                }
            }
        }
    }
    // A worker that has not tried it yet may succeed.
    world.join(3);
    assert_eq!(world.view().trouble, None);
    leave(&mut world, 3);
    assert!(world.view().trouble.is_some());
    let held = world.lease(1);
    world.submit(1, held);
    world.answer_pending();
    assert_eq!((world.view().trouble, world.view().round.get()), (None, 1));
}

/// A worker whose results have the wrong form is removed before it could halt the run.
#[test]
fn results_of_the_wrong_form_halt_nothing() {
    let mut spec = one_unit();
    spec.policy.strikes_max = 32;
    let mut world = World::with_run(spec);
    world.join(1);
    for _ in 0..20 {
        let held = world.lease(1);
        let mut bad = submission(&world.run().spec.clone(), 1, held, 0).statement;
        bad.spec = object("other settings").digest;
        world.ask(peer(1), WorkerRequest::Submit(stated(bad)));
        assert_eq!(world.view().halted, None);
    }
    let held = world.lease(1);
    world.submit(1, held);
    world.answer_pending();
    assert_eq!(world.view().round.get(), 1);
}

#[test]
fn what_says_nothing_about_the_unit_halts_nothing() {
    let mut world = World::with_run(one_unit());
    world.join(1);
    let away = Refusal::new(Code::StoreUnreachable, "127.0.0.1").to_string();
    for reason in ["stopped", "drained", &away].iter().cycle().take(30) {
        let held = world.lease(1);
        give_back(&mut world, 1, held, reason);
    }
    assert_eq!(world.view().phase, RunPhase::Training);
    // Failures of units that are done in the end do not add up.
    for _ in 0..2 {
        for _ in 0..3 {
            let held = world.lease(1);
            give_back(&mut world, 1, held, &failure());
        }
        let held = world.lease(1);
        world.submit(1, held);
        world.answer_pending();
    }
    assert_eq!(world.run().phase(), RunPhase::Complete);
}

#[test]
fn a_run_that_nobody_is_left_for_says_so_and_why() {
    let mut world = World::with_run(one_unit());
    assert_eq!(
        world.view().trouble.map(|why| why.code),
        Some(Code::TooFewWorkers),
        "nobody has come yet"
    );
    world.join(1);
    for _ in 0..3 {
        let held = world.lease(1);
        let mut bad = submission(&world.run().spec.clone(), 1, held, 0).statement;
        bad.spec = object("other settings").digest;
        world.ask(peer(1), WorkerRequest::Submit(stated(bad)));
    }
    let why = world.view().trouble.expect("its only worker was removed");
    assert_eq!(why.code, Code::NoWorkerLeft);
    let counts = "heard for 0 s: of 1 that joined, 0 left, 1 were removed, 0 are silent";
    for said in [counts, worker(1).short(), "DL0506"] {
        assert!(why.detail.contains(said), "{said}: {}", why.detail);
    }
    assert!(
        !why.detail.contains("quarantine"),
        "nobody is in it: {}",
        why.detail
    );
    world.join(2);
    let why = world.view().trouble.map(|why| why.code);
    assert_eq!(
        why, None,
        "another came, and results of the wrong form say nothing about the unit"
    );
}

#[test]
fn workers_that_died_are_missed_within_a_minute() {
    let mut world = World::with_run(one_unit());
    world.join(1);
    world.lease(1);
    world.join(2);
    leave(&mut world, 2);
    world.wait(Millis(29_999));
    assert_eq!(world.view().trouble, None);
    world.wait(Millis(1));
    let why = world
        .view()
        .trouble
        .expect("it said nothing for half a minute");
    assert_eq!(why.code, Code::NoWorkerLeft);
    let said = "heard for 30 s: of 2 that joined, 1 left, 0 were removed, 1 are silent";
    assert!(why.detail.contains(said), "{}", why.detail);
    assert!(
        world.run().member(&worker(1)).is_some(),
        "it does not count as lost before the run's own time"
    );
    // Long after the worker was dropped, the reason is still shown.
    world.wait(SILENCE);
    assert_eq!(
        world.count(|event| matches!(event, LedgerEvent::WorkerLeft { .. })),
        2
    );
    assert_eq!(
        world.view().trouble.map(|why| why.code),
        Some(Code::NoWorkerLeft)
    );
}

#[test]
fn one_failure_of_a_unit_is_nothing_to_look_at_and_two_are() {
    let mut world = World::with_run(one_unit());
    world.join(1);
    world.join(2);
    for shown in [None, Some(Code::TrainingFailed)] {
        let held = world.lease(1);
        give_back(&mut world, 1, held, &failure());
        assert_eq!(world.view().trouble.map(|why| why.code), shown);
    }
}

#[test]
fn of_many_workers_that_fail_a_unit_three_are_named_and_the_others_counted() {
    for (workers, end) in [(3, "NaN"), (4, "; and 1 more"), (6, "; and 3 more")] {
        let mut world = World::with_run(one_unit());
        for number in 1..=workers {
            world.join(number);
        }
        for number in (1..=workers).cycle().take(6) {
            if world.view().halted.is_none() {
                let held = world.lease(number);
                give_back(&mut world, number, held, &failure());
            }
        }
        let halted = world.view().halted.expect("nobody can do it");
        assert!(halted.detail.ends_with(end), "{workers}: {}", halted.detail);
    }
}

#[test]
fn a_run_needs_its_least_number_of_workers_to_begin_and_not_to_go_on() {
    let mut spec = spec("demo");
    spec.policy.workers_min = 2;
    let mut world = World::with_run(spec);
    // Both workers are here, but not the weights.
    world.restart();
    for number in 1..=2 {
        world.ask(peer(number), WorkerRequest::Join(join_request(number)));
    }
    assert!(world.run().rounds.is_empty());
    assert_eq!(world.view().trouble, None);
    world.answer_pending();
    leave(&mut world, 2);
    assert!(!world.run().rounds.is_empty());
    assert_eq!(world.view().trouble, None);
}
