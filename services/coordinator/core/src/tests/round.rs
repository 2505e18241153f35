use schemas::contribution::Fate;
use schemas::event::LedgerEvent;
use schemas::foundry::{self, Order};
use schemas::lease::{ClaimOutcome, ClaimReply, UnitId};
use schemas::limits::SEALED_MAX;
use schemas::view::RunPhase;
use schemas::{Code, Millis, Refusal, Round, Tokens};

use crate::fixture::*;
use crate::{Answer, DeliveryId, Effect, Input, Merged};

/// Lets worker 1 do every unit that it gets, until the run is complete.
fn work_to_the_end(world: &mut World) {
    for _ in 0..100 {
        let claim = world.claim(1);
        if let Some(Ok(Answer::Claim(ClaimReply {
            outcome: ClaimOutcome::Complete,
            ..
        }))) = world.answers.get(&claim)
        {
            return;
        }
        let held = world
            .manifests
            .get(&claim)
            .expect("there is work until the end")
            .lease;
        world.submit(1, held);
        world.answer_pending();
    }
    panic!("the run does not end");
}

#[test]
fn a_run_goes_through_its_rounds_to_its_end() {
    let mut spec = spec("demo");
    spec.schedule.evaluation_every = 1;
    let mut world = World::with_run(spec);
    world.join(1);
    work_to_the_end(&mut world);
    let run = world.run();
    assert_eq!(run.phase(), RunPhase::Complete);
    assert_eq!(run.rounds_closed(), Round(2));
    assert_eq!(run.tokens.merged, Tokens(4 * 32));
    let closed = |event: &LedgerEvent| matches!(event, LedgerEvent::RoundClosed { tokens, .. } if *tokens == Tokens(2 * 32));
    assert_eq!(world.count(closed), 2);
    assert_eq!(
        world.count(|event| matches!(event, LedgerEvent::EvaluationAccepted { .. })),
        3
    );
    assert_eq!(world.kinds(world.journal.len() - 1), ["run-completed"]);
    assert!(
        world
            .seen
            .iter()
            .any(|effect| matches!(effect, order!(Forget)))
    );
    let view = run.view(&run_id());
    assert_eq!(view.held_out_loss, Some((Round(2), 2.0)));
    assert_eq!(view.train_loss, Some(2.5));
    assert_eq!(view.snapshot.map(|(round, _)| round), Some(Round(2)));
    assert!(view.tokens.contains(&(Fate::Merged, Tokens(128))));
    assert!(world.core.next_deadline().is_none_or(|at| at > world.now));
}

#[test]
fn no_unit_is_offered_beyond_the_last_round() {
    let mut last = spec("demo");
    (last.schedule.rounds, last.schedule.units) = (1, 1);
    let mut world = World::with_run(last);
    world.join(1);
    let held = world.lease(1);
    world.submit(1, held);
    let screen = world.take_pending(|effect| matches!(effect, order!(Screen)));
    world.answer_one(screen);
    assert!(
        world
            .pending
            .iter()
            .any(|effect| matches!(effect, order!(Merge)))
    );
    let beyond =
        |effect: &Effect| matches!(effect, Effect::Offer { unit, .. } if unit.round == Round(1));
    assert!(!world.pending.iter().any(beyond));
}

#[test]
fn inputs_are_merged_in_order_of_their_units() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    world.join(2);
    let (first, second) = (world.lease(1), world.lease(2));
    world.submit(2, second);
    world.answer_pending();
    world.submit(1, first);
    let screen = world.take_pending(|effect| matches!(effect, order!(Screen)));
    world.answer_one(screen);
    let Effect::Foundry {
        order:
            Order::Merge {
                inputs,
                base,
                sync: merging,
                unmasking: None,
            },
        ..
    } = world.take_pending(|effect| matches!(effect, order!(Merge)))
    else {
        panic!("a full round is merged");
    };
    assert_eq!((merging, base), (sync(0), Round(0)));
    assert_eq!(
        inputs.iter().map(|input| input.lease).collect::<Vec<_>>(),
        [first, second]
    );
    assert_eq!(world.run().phase(), RunPhase::Merging);
}

#[test]
fn the_next_round_starts_from_the_published_weights_and_serves_those_who_wait() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    world.join(2);
    let (first, second) = (world.lease(1), world.lease(2));
    world.submit(1, first);
    world.submit(2, second);
    let waiting = [world.claim(1), world.claim(2)];
    world.answer_pending();
    for claim in waiting {
        let manifest = &world.manifests[&claim];
        assert_eq!(manifest.base, merged(&spec("demo"), Round(0)).broadcast);
        assert_eq!(manifest.lease.unit.round, Round(1));
    }
}

/// A run whose first round has all its contributions.
fn about_to_merge() -> World {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    for _ in 0..2 {
        let held = world.lease(1);
        world.submit(1, held);
        let screen = world.take_pending(|effect| matches!(effect, order!(Screen)));
        world.answer_one(screen);
    }
    world
}

#[test]
fn what_is_merged_is_named_before_and_is_the_same_in_each_try() {
    let mut world = about_to_merge();
    let sealed = |world: &World| world.kinds(0).contains(&"round-sealed");
    assert!(sealed(&world));
    let merged = |world: &mut World| {
        let effect = world.take_pending(|effect| matches!(effect, order!(Merge)));
        let Effect::Foundry {
            order: Order::Merge { inputs, sync, .. },
            ..
        } = effect
        else {
            unreachable!("it was picked")
        };
        let next = world.run().next_merge(sync.fragment);
        assert_eq!(next, Some((sync, inputs.as_slice())));
        inputs
    };
    let first = merged(&mut world);
    world.restart();
    world.answer_pending_but(|effect| matches!(effect, order!(Merge)));
    assert_eq!(merged(&mut world), first);
    assert_eq!(
        world.count(|event| matches!(event, LedgerEvent::RoundSealed { .. })),
        1
    );
}

/// Under a rule that lets a round end without some of its units, the offers of these are settled.
#[test]
fn offers_of_units_that_are_gone_when_their_round_is_sealed_are_settled() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let held = world.lease(1);
    world.submit(1, held);
    let screen = world.take_pending(|effect| matches!(effect, order!(Screen)));
    world.answer_one(screen);
    let last = world.lease(1);
    world.seen.clear();
    let (gone, ahead) = (train(0, 9), train(1, 0));
    world.core.tell(&run_id(), |room, _| {
        for (unit, delivery) in [(gone, 900), (ahead, 901), (last.unit, 902)] {
            let delivery = Some(DeliveryId(delivery));
            let offered = room.live.offers.entry(unit).or_default();
            offered.delivery = delivery;
        }
    });
    world.submit(1, last);
    let screen = world.take_pending(|effect| matches!(effect, order!(Screen)));
    world.answer_one(screen);
    let settled = world.seen.iter().filter_map(|effect| match effect {
        Effect::Settle { delivery } => Some(delivery.0),
        _ => None,
    });
    assert_eq!(settled.collect::<Vec<_>>(), [902, 900]);
}

/// The offers of the next round are on the queue when the merge ends: between its end and the
/// grants there is nothing but the ledger.
#[test]
fn nothing_is_published_between_the_last_contribution_and_the_next_grants() {
    let mut world = about_to_merge();
    let offered = |world: &World| {
        let offer = |effect: &Effect| match effect {
            Effect::Offer { unit, .. } => Some(*unit),
            _ => None,
        };
        world.pending.iter().filter_map(offer).collect::<Vec<_>>()
    };
    assert_eq!(offered(&world), [train(1, 0), train(1, 1)]);
    let claim = world.claim(1);
    let merge = world.take_pending(|effect| matches!(effect, order!(Merge)));
    let before = (world.journal.len(), offered(&world));
    world.answer_one(merge);
    assert_eq!(
        world.kinds(before.0),
        ["round-closed", "round-opened", "lease-granted"]
    );
    assert_eq!(world.manifests[&claim].lease.unit, train(1, 0));
    assert_eq!(offered(&world), before.1, "none is offered twice");
}

/// The queue holds a unit once. An offer of the coordinator before, for a merge that it did not
/// finish, is kept: this one's own offer would be refused as a repeat, and the first would then be
/// taken off.
#[test]
fn an_offer_ahead_of_a_merge_outlives_a_restart() {
    let mut world = about_to_merge();
    world.restart();
    let from = world.seen.len();
    let known = |unit| Input::Offered {
        run: run_id(),
        unit,
        delivery: DeliveryId(70 + u64::from(unit.index.get())),
    };
    world.input(known(train(1, 0)));
    // No merge under way leads to a round further on.
    world.input(known(train(2, 1)));
    let settled: Vec<DeliveryId> = world.seen[from..]
        .iter()
        .filter_map(|effect| match effect {
            Effect::Settle { delivery } => Some(*delivery),
            _ => None,
        })
        .collect();
    assert_eq!(settled, [DeliveryId(71)]);
    world.answer_pending_but(|effect| {
        matches!(effect, order!(Merge)) || matches!(effect, Effect::Offer { .. })
    });
    let offers: Vec<UnitId> = world
        .pending
        .iter()
        .filter_map(|effect| match effect {
            Effect::Offer { unit, .. } => Some(*unit),
            _ => None,
        })
        .collect();
    assert_eq!(offers, [train(1, 1)], "the other is on the queue");
}

/// 513 units are sealed by two events. If a coordinator dies between them, the next one writes the
/// second.
#[test]
fn a_seal_that_is_longer_than_an_event_is_completed_by_the_next_coordinator() {
    let mut large = spec("demo");
    large.schedule.units = SEALED_MAX as u32 + 1;
    let mut world = World::with_run(large);
    world.join(1);
    for _ in 0..=SEALED_MAX {
        let held = world.lease(1);
        world.submit(1, held);
        world.answer_pending_but(|effect| matches!(effect, order!(Merge)));
    }
    let kinds = world.kinds(0);
    let seals = |kinds: &[&str]| kinds.iter().filter(|kind| **kind == "round-sealed").count();
    assert_eq!(seals(&kinds), 2);
    let first = kinds.iter().position(|kind| *kind == "round-sealed");
    world.journal.truncate(first.expect("it is sealed") + 1);
    world.restart();
    world.answer_pending_but(|effect| matches!(effect, order!(Merge)));
    assert_eq!(seals(&world.kinds(0)), 2);
    let merge = world.take_pending(|effect| matches!(effect, order!(Merge)));
    let Effect::Foundry {
        order: Order::Merge { inputs, .. },
        ..
    } = merge
    else {
        unreachable!("it was picked")
    };
    assert_eq!(inputs.len(), SEALED_MAX + 1);
}

fn merges(world: &World) -> bool {
    let mut pending = world.pending.iter();
    pending.any(|effect| matches!(effect, order!(Merge)))
}

#[test]
fn a_merge_that_fails_is_tried_again_and_is_seen() {
    let mut world = about_to_merge();
    for attempt in 0..3 {
        world.take_pending(|effect| matches!(effect, order!(Merge)));
        let outcome = match attempt {
            // Weights that the next round cannot start from are a failure too.
            0 => {
                let mut short = merged(&spec("demo"), Round(0));
                let one = short.broadcast.chunks.objects()[..1].to_vec();
                short.broadcast.chunks = one.into();
                Ok(short)
            }
            _ => Err(Refusal::new(Code::StoreUnreachable, "test")),
        };
        world.foundry(foundry::Answer::Merged {
            sync: sync(0),
            outcome,
        });
        assert_eq!(world.run().phase(), RunPhase::Merging);
        assert!(world.view().trouble.is_some());
        assert!(!merges(&world));
        world.wait(Millis::from_secs(1 << attempt));
    }
    world.answer_pending();
    assert_eq!(world.run().rounds_closed(), Round(1));
    assert_eq!(world.view().trouble, None);
}

#[test]
fn weights_that_are_no_numbers_any_more_halt_the_run() {
    let mut world = about_to_merge();
    world.take_pending(|effect| matches!(effect, order!(Merge)));
    let outcome = Err(Refusal::new(Code::NotFinite, "test"));
    world.foundry(foundry::Answer::Merged {
        sync: sync(0),
        outcome,
    });
    world.wait(Millis::from_secs(60));
    assert!(!merges(&world), "it is not tried again");
    let claim = world.claim(1);
    assert_eq!(world.refusal(claim), Code::NotFinite);
}

#[test]
fn a_round_closes_once() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    for _ in 0..2 {
        let held = world.lease(1);
        world.submit(1, held);
        world.answer_pending();
    }
    let before = world.journal.len();
    for round in [0, 1, 7] {
        let Merged { broadcast, norm } = merged(&spec("demo"), Round(round));
        world.foundry(foundry::Answer::Merged {
            sync: sync(round),
            outcome: Ok(Merged { broadcast, norm }),
        });
    }
    assert_eq!(
        world.journal.len(),
        before,
        "a merge that nobody asked for closes nothing"
    );
}

#[test]
fn fg_22_a_save_runs_beside_the_rounds_and_the_last_is_never_left_out() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    for _ in 0..2 {
        for _ in 0..2 {
            let held = world.lease(1);
            world.submit(1, held);
            let screen = world.take_pending(|effect| matches!(effect, order!(Screen)));
            world.answer_one(screen);
        }
        let merge = world.take_pending(|effect| matches!(effect, order!(Merge)));
        world.answer_one(merge);
        while let Some(at) = world
            .pending
            .iter()
            .position(|effect| matches!(effect, Effect::Offer { .. }))
        {
            let offer = world.pending.remove(at);
            world.answer_one(offer);
        }
    }
    // Both rounds closed while the first save was still under way.
    assert_eq!(world.run().phase(), RunPhase::Finishing);
    let saves = |world: &World| {
        world
            .pending
            .iter()
            .filter(|e| matches!(e, order!(Save)))
            .count()
    };
    assert_eq!(saves(&world), 1);
    world.take_pending(|effect| {
        matches!(
            effect,
            Effect::Foundry {
                order: Order::Save {
                    round: Round(1),
                    ..
                },
                ..
            }
        )
    });
    let outcome = Err(Refusal::new(Code::StoreFull, "test"));
    world.foundry(foundry::Answer::Saved {
        round: Round(1),
        outcome,
    });
    assert_eq!(saves(&world), 0);
    world.wait(Millis::from_secs(1));
    let save = world.take_pending(|effect| matches!(effect, order!(Save)));
    let Effect::Foundry {
        order: Order::Save {
            round,
            merges,
            parent,
        },
        ..
    } = &save
    else {
        panic!("it was picked as one")
    };
    assert_eq!((round, merges.len(), parent), (&Round(2), 2, &None));
    world.answer_one(save);
    assert_eq!(world.run().phase(), RunPhase::Complete);
}

#[test]
fn a_restart_in_the_middle_of_a_merge_merges_again() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    for _ in 0..2 {
        let held = world.lease(1);
        world.submit(1, held);
        let screen = world.take_pending(|effect| matches!(effect, order!(Screen)));
        world.answer_one(screen);
    }
    world.restart();
    assert!(
        !world
            .pending
            .iter()
            .any(|effect| matches!(effect, order!(Merge))),
        "not before the weights are there"
    );
    world.answer_pending();
    assert_eq!(world.run().rounds_closed(), Round(1));
    // The first save was lost with the process that made it, or is repeated: the weights are the
    // same.
    world.restart();
    let restore = world.take_pending(|effect| matches!(effect, order!(Restore)));
    let Effect::Foundry {
        order: Order::Restore {
            snapshot, merges, ..
        },
        ..
    } = &restore
    else {
        panic!("it was picked as one")
    };
    assert!(snapshot.is_some() && merges.is_empty());
    world.answer_one(restore);
}

#[test]
fn a_restore_that_diverges_stops_the_run_and_one_that_fails_is_repeated() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    world.restart();
    world.take_pending(|effect| matches!(effect, order!(Restore)));
    let outcome = Err(Refusal::new(Code::StoreUnreachable, "test"));
    world.foundry(foundry::Answer::Restored { outcome });
    assert!(
        !world
            .pending
            .iter()
            .any(|effect| matches!(effect, order!(Restore)))
    );
    world.wait(Millis::from_secs(1));
    world.take_pending(|effect| matches!(effect, order!(Restore)));
    let waiting = world.claim(1);
    world.seen.clear();
    let outcome = Err(Refusal::new(Code::ReplayDiverged, "test"));
    world.foundry(foundry::Answer::Restored { outcome });
    assert_eq!(world.refusal(waiting), Code::ReplayDiverged);
    let later = world.claim(1);
    assert_eq!(world.refusal(later), Code::ReplayDiverged);
    assert_eq!(
        world.count(|event| matches!(event, LedgerEvent::RequestDenied { .. })),
        0,
        "it asks for as long as that lasts"
    );
    // The view and the published status show the reason.
    let view = world.view();
    let why = view.halted.map(|refusal| refusal.code);
    assert_eq!(
        (view.phase, why),
        (RunPhase::Halted, Some(Code::ReplayDiverged))
    );
    world.wait(Millis::from_secs(1));
    let told = |effect: &Effect| matches!(effect, Effect::Publish(status) if status.view.phase == RunPhase::Halted);
    assert!(world.seen.iter().any(told));
    world.wait(Millis::from_secs(60));
    assert!(
        !world
            .pending
            .iter()
            .any(|effect| matches!(effect, order!(Restore)))
    );
}

#[test]
fn evaluations_gate_no_round_and_read_the_snapshot_they_are_of() {
    let mut spec = spec("demo");
    spec.schedule.units = 1;
    spec.schedule.evaluation_every = 1;
    let mut world = World::with_run(spec);
    world.join(1);
    world.join(2);
    let (training, evaluation) = (world.lease(1), world.lease(2));
    assert_eq!((training.unit, evaluation.unit), (train(0, 0), evaluate(0)));
    world.submit(1, training);
    world.answer_pending();
    assert_eq!(
        world.run().rounds_closed(),
        Round(1),
        "the round closed while the evaluation is held"
    );
    // The holder gets the same manifest again, still on the snapshot of round 0.
    let again = world.claim(2);
    assert_eq!(world.manifests[&again].base.round, Round(0));
    world.submit(2, evaluation);
    world.answer_pending();
    assert_eq!(world.run().round_views()[0].held_out_loss, Some(2.0));
    work_to_the_end(&mut world);
    assert!(
        world.run().weights.len() == 1,
        "copies that nobody reads are forgotten"
    );
}

#[test]
fn fg_24_the_weights_of_a_round_are_made_once_and_are_the_same_objects_for_everybody() {
    let mut world = World::with_run(spec("demo"));
    for number in [1, 2] {
        world.join(number);
    }
    for number in [1, 2] {
        let held = world.lease(number);
        world.submit(number, held);
        let screen = world.take_pending(|effect| matches!(effect, order!(Screen)));
        world.answer_one(screen);
    }
    assert_eq!(
        world
            .pending
            .iter()
            .filter(|effect| matches!(effect, order!(Merge)))
            .count(),
        1
    );
    world.answer_pending();
    let bases = [1, 2].map(|number| {
        let claim = world.claim(number);
        world.manifests[&claim].base.clone()
    });
    assert_eq!(bases[0].round, Round(1));
    assert_eq!(bases[0], bases[1]);
    assert_eq!(
        world.count(|event| matches!(event, LedgerEvent::RoundClosed { .. })),
        1
    );
}
