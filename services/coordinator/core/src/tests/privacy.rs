//! Private runs: what is granted and accepted, and the end of the budget.

use schemas::contribution::{Contribution, Fate, Outcome};
use schemas::control::RunNew;
use schemas::event::LedgerEvent;
use schemas::lease::{ClaimOutcome, LeaseRef};
use schemas::run::{Comparison, RunSpec};
use schemas::telemetry::Heartbeat;
use schemas::view::{PrivacyView, RunPhase};
use schemas::{Code, Millis, V};

use crate::effect::Answer;
use crate::fixture::*;
use crate::tests::heartbeat::heartbeat;
use crate::{ControlRequest, Input, ReplyId, WorkerRequest};

/// Settings whose budget lasts for exactly so many disclosures: four rounds of two units.
fn private(disclosures: u64) -> RunSpec {
    let mut spec = spec("demo");
    spec.schedule.rounds = 4;
    spec.policy.norm_max = 0.0;
    let mut privacy = kit::privacy();
    privacy.epsilon = ::privacy::epsilon(&privacy, disclosures);
    spec.privacy = Some(privacy);
    spec
}

fn world(disclosures: u64, workers: u32) -> World {
    let mut spec = private(disclosures);
    spec.policy.workers_min = workers;
    let mut world = World::with_run(spec);
    for number in 1..=workers {
        world.join(number);
    }
    world
}

/// A round in which workers 1 and 2 take a unit each.
fn round(world: &mut World) {
    for number in 1..=2 {
        let held = world.lease(number);
        world.submit(number, held);
    }
    world.answer_pending();
}

fn spent(world: &World) -> PrivacyView {
    world.run().privacy_view().expect("it is private")
}

/// Hands in what worker 1 states about its unit, changed, and returns the code of the refusal.
fn stated_as(change: impl Fn(&mut Contribution)) -> Code {
    let mut world = world(3, 2);
    let held = world.lease(1);
    let mut statement = submission(&world.run().spec, 1, held, 0).statement;
    let Outcome::Contribution(contribution) = &mut statement.outcome else {
        unreachable!("the unit is a training unit")
    };
    change(contribution);
    let reply = world.ask(peer(1), WorkerRequest::Submit(stated(statement)));
    world.refusal(reply)
}

/// Hands a result in whose check finds this norm.
fn with_norm(world: &mut World, number: u32, held: LeaseRef, norm: f64) -> ReplyId {
    let result = submission(&world.run().spec, number, held, 0);
    world.hand_in(number, result, norm)
}

/// The code with which a new run is refused.
fn refused(world: &mut World, spec: RunSpec) -> Code {
    let reply = world.control(ControlRequest::RunNew(Box::new(RunNew { v: V, spec })));
    world.refusal(reply)
}

#[test]
fn tl_16_a_round_that_would_pass_the_budget_is_not_opened_and_the_run_ends() {
    let mut world = world(2, 2);
    round(&mut world);
    assert_eq!((spent(&world).disclosures, spent(&world).over), (1, false));
    world.restart();
    world.answer_pending();
    let claim = {
        let held = world.lease(1);
        world.submit(1, held);
        let claim = world.claim(1);
        let held = world.lease(2);
        world.submit(2, held);
        claim
    };
    world.answer_pending();
    let view = world.view();
    let privacy = view.privacy.expect("it is private");
    assert_eq!((view.phase, view.round.get()), (RunPhase::Complete, 2));
    assert_eq!(
        (privacy.disclosures, privacy.disclosures_max, privacy.over),
        (2, 2, true)
    );
    assert_eq!(privacy.epsilon_spent, privacy.epsilon);
    assert_eq!(view.train_loss, None);
    let rounds = world.count(|event| matches!(event, LedgerEvent::RoundOpened { .. }));
    assert_eq!(rounds, 2);
    assert!(matches!(
        &world.answers[&claim],
        Ok(Answer::Claim(claim)) if claim.outcome == ClaimOutcome::Complete
    ));
    let snapshot = world
        .run()
        .last_snapshot()
        .expect("the last weights are saved");
    assert_eq!(snapshot.round.get(), 2);
}

#[test]
fn tl_16_a_unit_that_is_issued_again_is_spent_again() {
    let mut world = world(2, 2);
    let first = world.lease(1);
    world.wait(LEASE);
    assert_eq!(spent(&world).disclosures, 1);
    let again = world.lease(2);
    assert_eq!((again.unit, again.epoch.get()), (first.unit, 2));
    assert_eq!(spent(&world).disclosures, 2);
    world.submit(2, again);
    let other = world.lease(1);
    world.submit(1, other);
    world.answer_pending();
    // The round has cost two, and the budget is spent after it.
    let view = world.view();
    assert_eq!((view.phase, view.round.get()), (RunPhase::Complete, 1));
    assert!(view.privacy.is_some_and(|privacy| privacy.over));
}

#[test]
fn tl_16_a_unit_is_not_granted_beyond_the_budget_and_its_round_is_dropped() {
    let mut world = world(1, 2);
    let lost = world.lease(1);
    let kept = world.lease(2);
    world.submit(2, kept);
    world.answer_pending();
    assert!(
        !spent(&world).over,
        "the unit of worker 1 may still come in"
    );
    world.wait(LEASE);
    let view = world.view();
    assert_eq!((view.phase, view.round.get()), (RunPhase::Complete, 0));
    assert_eq!(spent(&world).disclosures, 1);
    let granted = world.count(
        |event| matches!(event, LedgerEvent::LeaseGranted { lease, .. } if lease.unit == lost.unit),
    );
    assert_eq!(granted, 1);
    let tokens: Vec<u64> = view.tokens.iter().map(|(_, tokens)| tokens.get()).collect();
    let fates: Vec<Fate> = view.tokens.iter().map(|(fate, _)| *fate).collect();
    assert_eq!(fates[..2], [Fate::Merged, Fate::Late]);
    assert_eq!(tokens, [0, 32, 0, 32], "late and abandoned");
    assert_eq!(world.run().accepted[&kept.unit].fate, Fate::Late);
}

#[test]
fn tl_16_one_worker_that_has_spent_its_part_waits_for_another_one_and_not_for_ever() {
    // One disclosure a worker and round, and a worker for two units.
    for joins in [true, false] {
        let mut world = world(1, 1);
        let held = world.lease(1);
        world.submit(1, held);
        world.answer_pending();
        let claim = world.claim(1);
        world.wait(Millis::from_secs(15));
        let granted = world.manifests.get(&claim);
        assert!(granted.is_none(), "{granted:?}");
        if joins {
            world.join(2);
            let held = world.lease(2);
            world.submit(2, held);
            world.answer_pending();
            assert_eq!(world.view().round.get(), 1);
        } else {
            for _ in 0..6 {
                world.wait(Millis::from_secs(15));
                if !world.run().is_complete() {
                    world.claim(1);
                }
            }
            assert_eq!(world.view().round.get(), 0);
        }
        assert_eq!(world.view().phase, RunPhase::Complete, "{joins}");
        assert!(spent(&world).over);
    }
}

#[test]
fn tl_16_two_units_of_one_worker_cost_two() {
    let mut world = world(5, 1);
    for _ in 0..2 {
        let held = world.lease(1);
        world.submit(1, held);
        world.answer_pending();
    }
    assert_eq!(
        (world.view().round.get(), spent(&world).disclosures),
        (1, 2)
    );
}

#[test]
fn tl_16_a_contribution_that_does_not_state_its_privacy_is_refused() {
    assert_eq!(stated_as(|result| result.privacy = None), Code::NotPrivate);
    let weaker = |result: &mut Contribution| {
        let applied = result.privacy.as_mut().expect("it is private");
        applied.noise_multiplier /= 2.0;
    };
    assert_eq!(stated_as(weaker), Code::NotPrivate);
    // No noise covers a loss.
    assert_eq!(stated_as(|result| result.loss = 2.5), Code::NotPrivate);
    // Another run has nothing to state.
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let held = world.lease(1);
    let mut statement = submission(&private(1), 1, held, 0).statement;
    statement.spec = world.run().spec_digest;
    let reply = world.ask(peer(1), WorkerRequest::Submit(stated(statement)));
    assert_eq!(world.refusal(reply), Code::NotPrivate);
}

#[test]
fn tl_16_a_contribution_whose_norm_clipping_and_noise_do_not_give_is_refused() {
    let mut world = world(3, 2);
    let (least, most) = world.run().spec.privacy.expect("private").norms(13);
    assert_eq!(least, 0.0, "the noise of 13 parameters may be small");
    let held = world.lease(1);
    let reply = with_norm(&mut world, 1, held, most * 1.001);
    assert_eq!(world.refusal(reply), Code::NotPrivate);
    let held = world.lease(2);
    let reply = with_norm(&mut world, 2, held, most);
    assert!(world.answers[&reply].is_ok());
}

#[test]
fn tl_16_a_contribution_of_many_parameters_without_noise_is_refused_and_an_evaluation_is_not() {
    let mut spec = private(3);
    spec.model.initial = vec![sized("initial", 4 << 20)].into();
    spec.schedule.evaluation_every = 1;
    let mut world = World::with_run(spec);
    for number in 1..=3 {
        world.join(number);
    }
    let held = world.lease(1);
    let reply = with_norm(&mut world, 1, held, 1.0);
    assert_eq!(world.refusal(reply), Code::NotPrivate);
    // Noise of 4 for each of a million parameters.
    let held = world.lease(2);
    let reply = with_norm(&mut world, 2, held, 4096.0);
    assert!(world.answers[&reply].is_ok());
    world.lease(1);
    let held = world.lease(3);
    assert_eq!(held.unit, evaluate(0));
    let reply = with_norm(&mut world, 3, held, 0.0);
    assert!(world.answers[&reply].is_ok(), "{:?}", world.answers[&reply]);
}

#[test]
fn tl_16_a_heartbeat_of_a_private_run_tells_no_loss() {
    for (loss, refused) in [(Some(2.5), true), (None, false)] {
        let mut world = world(3, 2);
        let heartbeat = Heartbeat {
            loss,
            ..heartbeat()
        };
        let before = world.count(|event| matches!(event, LedgerEvent::RequestDenied { .. }));
        let peer = peer(1);
        world.input(Input::Heartbeat { peer, heartbeat });
        let after = world.count(|event| matches!(event, LedgerEvent::RequestDenied { .. }));
        assert_eq!(after - before, usize::from(refused), "{loss:?}");
    }
}

#[test]
fn tl_16_a_run_whose_budget_does_not_last_for_one_contribution_is_not_created() {
    let mut world = World::new();
    world.start();
    for (change, expected) in [(0.99, Code::PrivacyUnfit), (0.0, Code::SpecInvalid)] {
        let mut spec = private(1);
        spec.privacy.as_mut().expect("private").epsilon *= change;
        assert_eq!(refused(&mut world, spec), expected);
    }
    let mut spec = private(1);
    spec.error_feedback = true;
    assert_eq!(refused(&mut world, spec), Code::PrivacyUnfit);
    let mut spec = private(1);
    spec.policy.norm_max = 10.0;
    assert_eq!(refused(&mut world, spec), Code::PrivacyUnfit);
    // Noise hides directions, and nobody states a loss.
    for (cosine_min, loss_ratio_max) in [(Some(-0.5), None), (None, Some(10.0))] {
        let mut spec = private(1);
        spec.policy.comparison = Comparison::Others {
            norm_ratio_max: 4.0,
            cosine_min,
            loss_ratio_max,
        };
        assert_eq!(refused(&mut world, spec), Code::PrivacyUnfit);
    }
}
