use schemas::contribution::Outcome;
use schemas::event::LedgerEvent;
use schemas::foundry::{self, Order};
use schemas::lease::LeaseRef;
use schemas::run::{Comparison, RunSpec};
use schemas::snapshot::MergeInput;
use schemas::{Code, Millis, Refusal, Round, Tokens, Weight};

use crate::fixture::*;
use crate::{Effect, ReplyId, Submission};

/// Settings that compare. Its 4 steps at a rate of 1 reach 67.6 with 13 parameters.
fn compared(units: u32) -> RunSpec {
    let mut spec = spec("demo");
    (spec.schedule.units, spec.schedule.rounds) = (units, 4);
    spec.inner.learning_rate = 1.0;
    spec.policy.norm_max = 0.0;
    spec.policy.comparison = Comparison::of_norms(4.0);
    spec
}

/// A world with workers 1 to `workers`.
fn world(spec: RunSpec, workers: u32) -> World {
    let mut world = World::with_run(spec);
    for number in 1..=workers {
        world.join(number);
    }
    world
}

/// A unit from its claim to its result.
fn work(world: &mut World, number: u32, norm: f64) -> ReplyId {
    let held = world.lease(number);
    let result = submission(&world.run().spec, number, held, 0);
    world.hand_in(number, result, norm)
}

/// The result of worker 1 under `original`, as worker `number` hands it in under `held`.
fn copy(world: &World, original: LeaseRef, number: u32, held: LeaseRef) -> Submission {
    let spec = &world.run().spec;
    let outcome = submission(spec, 1, original, 0).statement.outcome;
    assert!(matches!(outcome, Outcome::Contribution(_)));
    stated(kit::statement(spec, worker(number), held, outcome))
}

/// The weights of the merge that was ordered.
fn weights(world: &World) -> Vec<u64> {
    let merge = world.pending.iter().find_map(|effect| match effect {
        Effect::Foundry {
            order: Order::Merge { inputs, .. },
            ..
        } => Some(inputs.iter().map(|input| input.weight.get()).collect()),
        _ => None,
    });
    merge.expect("the round is merged")
}

#[test]
fn an_outlier_is_left_out_of_each_merge_and_nobody_is_removed() {
    let mut world = world(compared(3), 3);
    for round in 0..3 {
        work(&mut world, 1, 1.0);
        work(&mut world, 3, 50.0);
        assert_eq!(world.run().tokens.rejected, Tokens(32 * round));
        work(&mut world, 2, 1.5);
        let weights = weights(&world);
        assert_eq!(weights.iter().filter(|weight| **weight == 32).count(), 2);
        assert_eq!(weights.iter().filter(|weight| **weight == 0).count(), 1);
        assert_eq!(world.run().tokens.rejected, Tokens(32 * (round + 1)));
        world.answer_pending();
    }
    assert_eq!(world.run().members[&worker(3)].rejected, 0);
    let closed = |event: &LedgerEvent| {
        matches!(
            event,
            LedgerEvent::RoundClosed {
                tokens: Tokens(64),
                ..
            }
        )
    };
    assert_eq!(world.count(closed), 3, "what is left out is not counted");
}

/// Of two, the larger one is left out, and nobody is removed for it.
#[test]
fn of_two_the_outlier_is_left_out_in_the_first_round_too() {
    let mut world = world(compared(2), 2);
    for round in 0..4 {
        work(&mut world, 1, 60.0);
        work(&mut world, 2, 1.0);
        let sealed = weights(&world);
        let inputs = world.run().next_merge(sync(round).fragment);
        let (_, inputs) = inputs.expect("it is sealed");
        for (input, weight) in inputs.iter().zip(sealed) {
            let expected = if input.worker == worker(1) { 0 } else { 32 };
            assert_eq!((input.weight, weight), (Weight(expected), expected));
        }
        world.answer_pending();
    }
    assert!(world.run().is_complete());
    assert!(world.run().members[&worker(1)].rejected == 0);
}

#[test]
fn a_coordinator_that_begins_anew_leaves_out_the_same() {
    let mut world = world(compared(3), 3);
    work(&mut world, 1, 1.0);
    work(&mut world, 2, 1.0);
    work(&mut world, 3, 9.0);
    let before = weights(&world);
    world.restart();
    world.answer_pending_but(|effect| matches!(effect, order!(Merge)));
    assert_eq!(weights(&world), before);
}

#[test]
fn a_norm_beyond_the_reach_of_the_inner_steps_is_refused_in_the_first_round() {
    let mut world = world(compared(2), 2);
    let far = work(&mut world, 1, 68.0);
    assert_eq!(world.refusal(far), Code::NormOutlier);
    assert_eq!(world.run().members[&worker(1)].rejected, 1);
    let near = work(&mut world, 2, 67.0);
    assert!(world.answers[&near].is_ok());
    // Settings that compare nothing know no reach.
    let mut spec = compared(2);
    spec.policy.comparison = Comparison::None;
    let mut world = self::world(spec, 1);
    let far = work(&mut world, 1, 1e9);
    assert!(world.answers[&far].is_ok());
}

#[test]
fn a_contribution_that_is_copied_from_the_round_before_is_refused() {
    let mut world = world(compared(2), 2);
    let (first, second) = (world.lease(1), world.lease(2));
    let result = submission(&world.run().spec, 1, first, 0);
    world.hand_in(1, result, 1.0);
    // Within a round nobody can tell the copy from the original.
    let same = copy(&world, first, 2, second);
    let same = world.hand_in(2, same, 1.0);
    assert!(world.answers[&same].is_ok());
    world.answer_pending();
    // Of the round before, by its own maker too.
    for number in [1, 2] {
        let held = world.lease(number);
        let again = copy(&world, first, number, held);
        let again = world.hand_in(number, again, 1.0);
        assert_eq!(world.refusal(again), Code::ContributionCopied);
    }
    // Zeros are equal without being copied.
    let held = world.lease(2);
    let zeros = copy(&world, first, 2, held);
    let zeros = world.hand_in(2, zeros, 0.0);
    assert!(world.answers[&zeros].is_ok());
    let rejected = |event: &LedgerEvent| matches!(event, LedgerEvent::ContributionRejected { .. });
    assert_eq!(world.count(rejected), 2);
}

/// Settings that compare directions too.
fn with_directions(units: u32) -> RunSpec {
    let mut spec = compared(units);
    spec.policy.comparison = Comparison::Others {
        norm_ratio_max: 4.0,
        cosine_min: Some(-0.1),
        loss_ratio_max: None,
    };
    spec
}

/// The contributions that the foundry was asked to compare.
fn asked(world: &World) -> Vec<MergeInput> {
    let orders = world.pending.iter().filter_map(|effect| match effect {
        Effect::Foundry {
            order: Order::Compare { inputs, .. },
            ..
        } => Some(inputs.clone()),
        _ => None,
    });
    let orders: Vec<_> = orders.collect();
    assert!(orders.len() <= 1, "one comparison at a time");
    orders.concat()
}

/// The answer of the foundry to the comparison that was asked for.
fn answer(world: &mut World, against: &[(u32, f32)]) {
    let inputs = asked(world);
    world
        .pending
        .retain(|effect| !matches!(effect, order!(Compare)));
    let against: Vec<_> = against
        .iter()
        .map(|(n, cosine)| (worker(*n), *cosine))
        .collect();
    world.foundry(foundry::Answer::Compared {
        round: inputs[0].lease.unit.round,
        outcome: Ok(crate::fixture::compared(&inputs, &against)),
    });
}

fn seals(world: &World) -> usize {
    world.count(|event| matches!(event, LedgerEvent::RoundSealed { .. }))
}

#[test]
fn directions_are_compared_before_the_seal_which_leaves_out_who_points_against_the_others() {
    let mut world = world(with_directions(3), 3);
    for round in 0..3 {
        work(&mut world, 1, 1.0);
        work(&mut world, 3, 1.0);
        assert!(asked(&world).is_empty(), "not all are in");
        work(&mut world, 2, 1.5);
        assert_eq!((asked(&world).len(), seals(&world)), (3, round));
        answer(&mut world, &[(3, -0.5)]);
        assert_eq!(seals(&world), round + 1);
        let weights = weights(&world);
        assert_eq!(weights.iter().filter(|weight| **weight == 0).count(), 1);
        assert_eq!(world.run().tokens.rejected, Tokens(32 * (round as u64 + 1)));
        world.answer_pending();
    }
    let view = world.view();
    assert!(view.left_out.iter().all(|one| one.worker == worker(3)));
    assert!(
        view.left_out
            .iter()
            .all(|one| one.code == Code::DirectionOutlier)
    );
    assert_eq!(view.left_out.len(), 3);
    assert_eq!(
        world.run().members[&worker(3)].rejected,
        0,
        "nobody is removed"
    );
}

#[test]
fn a_comparison_that_fails_or_is_lost_is_made_again() {
    let mut world = world(with_directions(3), 3);
    for number in 1..=3 {
        work(&mut world, number, 1.0);
    }
    let inputs = asked(&world);
    world
        .pending
        .retain(|effect| !matches!(effect, order!(Compare)));
    world.foundry(foundry::Answer::Compared {
        round: Round(0),
        outcome: Err(Refusal::new(Code::StoreUnreachable, "test")),
    });
    assert!(asked(&world).is_empty() && seals(&world) == 0);
    let trouble = world.view().trouble.expect("it is shown");
    assert_eq!(trouble.code, Code::StoreUnreachable);
    world.wait(Millis::from_secs(1));
    assert_eq!(asked(&world), inputs);
    // So is one whose process ended, as soon as another leads.
    world.restart();
    assert_eq!(asked(&world), inputs);
    world.answer_pending_but(|effect| matches!(effect, order!(Merge)));
    assert_eq!((seals(&world), weights(&world).len()), (1, 3));
}

/// The failures of a comparison and of a merge are counted apart: neither clears the other's pause
/// or hides its trouble.
#[test]
fn a_comparison_that_succeeds_clears_no_trouble_but_its_own() {
    let mut world = world(with_directions(3), 3);
    let answer_restore = |world: &mut World| {
        world
            .pending
            .retain(|effect| !matches!(effect, order!(Restore)));
        world.foundry(foundry::Answer::Restored {
            outcome: Err(Refusal::new(Code::StoreUnreachable, "test")),
        });
    };
    for number in 1..=3 {
        work(&mut world, number, 1.0);
    }
    world.restart();
    assert_eq!(asked(&world).len(), 3);
    answer_restore(&mut world);
    assert_eq!(asked(&world).len(), 3, "it goes on beside the restore");
    answer(&mut world, &[]);
    assert_eq!(seals(&world), 1);
    let trouble = world.view().trouble.expect("the restore has failed");
    assert_eq!(trouble.code, Code::StoreUnreachable);
    let restores = |world: &World| {
        let pending = world.pending.iter();
        pending
            .filter(|effect| matches!(effect, order!(Restore)))
            .count()
    };
    assert_eq!(restores(&world), 0, "its pause is not over");
    world.wait(Millis::from_secs(1));
    assert_eq!(restores(&world), 1);
}

#[test]
fn a_drain_waits_for_a_comparison_as_for_the_merge_after_it() {
    let mut world = world(with_directions(3), 3);
    let leases = [1, 2, 3].map(|number| world.lease(number));
    world.shut_down(Millis::from_secs(600));
    let stopped = |world: &World| {
        world.count(|event| matches!(event, LedgerEvent::CoordinatorStopped { .. }))
    };
    for (number, lease) in (1..).zip(leases) {
        let result = submission(&world.run().spec, number, lease, 0);
        world.hand_in(number, result, 1.0);
    }
    assert_eq!((asked(&world).len(), stopped(&world)), (3, 0));
    answer(&mut world, &[]);
    assert_eq!((seals(&world), stopped(&world)), (1, 0));
    world.answer_pending();
    assert_eq!(
        (stopped(&world), world.run().rounds_closed()),
        (1, Round(1))
    );
}

#[test]
fn an_answer_that_was_not_asked_for_or_is_of_others_changes_nothing() {
    let mut world = world(with_directions(3), 3);
    let cosines = |world: &World| crate::fixture::compared(&asked(world), &[]);
    let told = |world: &mut World, round, cosines| {
        world.foundry(foundry::Answer::Compared {
            round: Round(round),
            outcome: Ok(cosines),
        });
    };
    let is_compared = |event: &LedgerEvent| matches!(event, LedgerEvent::RoundCompared { .. });
    for number in 1..=3 {
        work(&mut world, number, 1.0);
    }
    let good = cosines(&world);
    told(&mut world, 1, good.clone());
    assert_eq!(world.count(is_compared), 0);
    let (mut short, mut wild) = (good.clone(), good.clone());
    short.pop();
    wild[0].cosine = f32::NAN;
    // One of fewer may be of the set before a withdrawal; one without cosines would come again.
    for (wrong, at_once) in [(short, true), (wild, false), (Vec::new(), false)] {
        world
            .pending
            .retain(|effect| !matches!(effect, order!(Compare)));
        told(&mut world, 0, wrong);
        assert_eq!(world.count(is_compared), 0);
        assert_eq!(!asked(&world).is_empty(), at_once);
        let trouble = world.view().trouble.map(|refusal| refusal.code);
        assert_eq!(trouble, (!at_once).then_some(Code::Internal));
        world.wait(Millis::from_secs(5));
        assert_eq!(asked(&world).len(), 3, "it is asked again");
    }
    told(&mut world, 0, good.clone());
    assert_eq!((world.count(is_compared), seals(&world)), (1, 1));
    told(&mut world, 0, good);
    assert_eq!(world.count(is_compared), 1);
}

#[test]
fn two_contributions_and_outliers_by_norm_are_not_compared() {
    let mut world = world(with_directions(2), 2);
    work(&mut world, 1, 1.0);
    work(&mut world, 2, 1.0);
    assert_eq!((asked(&world).len(), seals(&world)), (0, 1));
    let mut world = self::world(with_directions(4), 4);
    for (number, norm) in [(1, 1.0), (2, 50.0), (3, 1.0), (4, 1.0)] {
        work(&mut world, number, norm);
    }
    let inputs = asked(&world);
    assert!(inputs.iter().all(|input| input.worker != worker(2)));
    assert_eq!(inputs.len(), 3);
}
