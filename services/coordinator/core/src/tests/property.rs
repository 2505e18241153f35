//! Random inputs in any order: nothing breaks. `fixture::World` checks the invariants after every
//! input; the ledger as a whole is checked here at the end.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use schemas::event::{Event, LedgerEvent};
use schemas::foundry::{self, Order};
use schemas::lease::{LeaseRef, ReleaseRequest, RenewRequest, UnitId, UnitKind};
use schemas::quarantine::QuarantineRequest;
use schemas::restore::RestoreRequest;
use schemas::run::Comparison;
use schemas::{Bytes, Code, Millis, Refusal, Steps, V};

use super::revocation;
use crate::fixture::*;
use crate::{ControlRequest, DeliveryId, Effect, Input, WorkerRequest};

/// One possible event. Its numbers choose among the candidates.
#[derive(Clone, Debug)]
enum Step {
    Join(u32),
    Leave(u32),
    Claim(u32),
    Renew(u32, usize),
    Release(u32, usize),
    Submit(u32, usize, u32),
    Offer(u32),
    Answer(usize),
    Fail(usize),
    Drop(usize),
    Wait(u64),
    Quarantine(u32, bool),
    Revoke(u32, bool),
    Restore(usize),
    Unfreeze,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let who = 1..4_u32;
    prop_oneof![
        2 => who.clone().prop_map(Step::Join),
        1 => who.clone().prop_map(Step::Leave),
        8 => who.clone().prop_map(Step::Claim),
        2 => (who.clone(), 0..6_usize).prop_map(|(who, lease)| Step::Renew(who, lease)),
        1 => (who.clone(), 0..6_usize).prop_map(|(who, lease)| Step::Release(who, lease)),
        8 => (who, 0..6_usize, 0..3_u32).prop_map(|(who, lease, salt)| Step::Submit(who, lease, salt)),
        2 => (0..6_u32).prop_map(Step::Offer),
        12 => (0..4_usize).prop_map(Step::Answer),
        1 => (0..4_usize).prop_map(Step::Fail),
        1 => (0..4_usize).prop_map(Step::Drop),
        3 => (0..50_000_u64).prop_map(Step::Wait),
        1 => (1..4_u32, any::<bool>()).prop_map(|(who, shut)| Step::Quarantine(who, shut)),
        // Key 2 is the operator's, who goes on giving orders.
        1 => (0..2_u32, any::<bool>()).prop_map(|(who, void)| Step::Revoke(1 + 2 * who, void)),
        1 => (0..4_usize).prop_map(Step::Restore),
        2 => Just(Step::Unfreeze),
        1 => Just(Step::Restart),
    ]
}

/// A lease that was granted, counted back from the newest; or one that never was.
fn some_lease(world: &World, back: usize) -> LeaseRef {
    let granted = world
        .journal
        .iter()
        .rev()
        .filter_map(|body| match &body.event {
            Event::Ledger(LedgerEvent::LeaseGranted { lease, .. }) => Some(*lease),
            _ => None,
        });
    granted
        .into_iter()
        .nth(back)
        .unwrap_or(lease(train(0, 0), 9))
}

fn take(world: &mut World, at: usize) -> Option<Effect> {
    let len = world.pending.len();
    (len > 0).then(|| world.pending.remove(at % len))
}

fn fail(world: &mut World, effect: Effect) {
    let refusal = Refusal::new(Code::NotFinite, "test");
    match effect {
        Effect::Foundry { run, order } => {
            let answer = match order {
                Order::Screen { screening, .. } => foundry::Answer::Screened {
                    screening,
                    verdict: Err(refusal),
                },
                Order::Merge { sync, .. } => foundry::Answer::Merged {
                    sync,
                    outcome: Err(refusal),
                },
                Order::Compare { round, .. } => foundry::Answer::Compared {
                    round,
                    outcome: Err(refusal),
                },
                Order::Save { round, .. } => foundry::Answer::Saved {
                    round,
                    outcome: Err(refusal),
                },
                Order::Restore { .. } => foundry::Answer::Restored {
                    outcome: Err(refusal),
                },
                order => return world.pending.push(Effect::Foundry { run, order }),
            };
            world.input(Input::Foundry { run, answer });
        }
        other => world.pending.push(other),
    }
}

fn play(world: &mut World, step: Step) {
    let ask = |world: &mut World, who: u32, request: WorkerRequest| {
        world.ask(peer(who), request);
    };
    match step {
        Step::Join(who) => ask(world, who, WorkerRequest::Join(join_request(who))),
        Step::Leave(who) => ask(world, who, WorkerRequest::Leave(leave_request(who, ""))),
        Step::Claim(who) => ask(
            world,
            who,
            WorkerRequest::Claim(claim_request(who, Millis(9000))),
        ),
        Step::Renew(who, back) => {
            let lease = some_lease(world, back);
            ask(
                world,
                who,
                WorkerRequest::Renew(RenewRequest {
                    v: V,
                    lease,
                    steps_done: Steps(0),
                    bytes_moved: Bytes(0),
                }),
            );
        }
        Step::Release(who, back) => {
            let lease = some_lease(world, back);
            ask(
                world,
                who,
                WorkerRequest::Release(ReleaseRequest {
                    v: V,
                    lease,
                    reason: String::new(),
                }),
            );
        }
        Step::Submit(who, back, salt) => {
            let result = submission(
                &world.run().spec.clone(),
                who,
                some_lease(world, back),
                salt,
            );
            ask(world, who, WorkerRequest::Submit(result));
        }
        Step::Offer(index) => {
            let unit = train(u64::from(index) / 2, index % 2);
            world.input(Input::Offered {
                run: run_id(),
                unit,
                delivery: DeliveryId(index.into()),
            });
        }
        Step::Answer(at) => {
            if let Some(effect) = take(world, at) {
                world.answer_one(effect);
            }
        }
        Step::Fail(at) => {
            if let Some(effect) = take(world, at) {
                fail(world, effect);
            }
        }
        // Drops only what may get lost outside: the shell answers everything else.
        Step::Drop(at) => match take(world, at) {
            Some(Effect::Offer { .. }) | None => {}
            Some(effect) => world.pending.push(effect),
        },
        Step::Quarantine(who, quarantined) => {
            let reason = "odd norms".parse().expect("a reason");
            world.control(ControlRequest::WorkerQuarantine(QuarantineRequest {
                v: V,
                run: run_id(),
                worker: worker(who),
                quarantined,
                reason,
            }));
        }
        Step::Revoke(who, true) => {
            revocation::revoke(world, &[who]);
        }
        Step::Revoke(who, false) => revocation::reissue(world, who),
        Step::Restore(back) => {
            let snapshots = world.run().snapshots.iter().rev();
            if let Some(snapshot) = snapshots.map(|one| one.manifest.digest).nth(back) {
                world.control(ControlRequest::SnapshotRestore(RestoreRequest {
                    v: V,
                    snapshot,
                    run: None,
                    force: true,
                    reason: "odd loss".parse().expect("a reason"),
                }));
            }
        }
        Step::Unfreeze => {
            world.unfreeze();
        }
        Step::Wait(span) => world.wait(Millis(span)),
        Step::Restart => world.restart(),
    }
}

/// Checks the ledger with a few lines of its own, without the fold.
fn check_ledger(world: &World) {
    let (mut held, mut epochs) = (BTreeMap::new(), BTreeMap::<UnitId, u64>::new());
    let (mut counted, mut closed) = (BTreeMap::new(), BTreeSet::new());
    let (mut sealed, mut out) = (BTreeSet::new(), BTreeSet::new());
    let mut void = BTreeSet::new();
    for body in &world.journal {
        let Event::Ledger(event) = &body.event else {
            panic!("a ledger holds nothing else")
        };
        match event {
            LedgerEvent::WorkerJoined { worker, .. } => {
                assert!(!out.contains(worker), "{worker} is in quarantine");
                assert!(!void.contains(worker.as_str()), "{worker} is revoked");
            }
            LedgerEvent::CredentialRevoked { key, .. } => drop(void.insert(key.to_string())),
            LedgerEvent::CredentialReissued { key, .. } => {
                assert!(void.remove(key.as_str()), "{key} was not revoked");
            }
            LedgerEvent::WorkerQuarantined {
                worker,
                lease,
                withdrawn,
                ..
            } => {
                assert!(out.insert(worker.clone()), "{worker} twice");
                let last = lease.and_then(|lease| held.remove(&lease.unit));
                assert_eq!(last.as_ref(), lease.map(|_| worker));
                assert!(held.values().all(|holder| holder != worker));
                let before = counted.len();
                counted.retain(|unit: &UnitId, by| {
                    let open = unit.kind == UnitKind::Train && !sealed.contains(&unit.round);
                    !open || by != worker
                });
                assert_eq!(before - counted.len(), *withdrawn as usize, "{worker}");
            }
            LedgerEvent::SnapshotRestored {
                weights, leases, ..
            } => {
                assert_eq!(held.len(), *leases as usize, "every lease ends");
                held.clear();
                counted.retain(|unit: &UnitId, _| {
                    unit.kind == UnitKind::Evaluate || closed.contains(&unit.round)
                });
                let newest = closed.last().copied();
                assert!(newest.is_none_or(|newest| newest < weights.round));
            }
            LedgerEvent::WorkerReadmitted { worker, .. } => {
                assert!(out.remove(worker), "{worker} was not shut out");
            }
            LedgerEvent::RoundSealed { round, .. } => drop(sealed.insert(*round)),
            LedgerEvent::LeaseGranted { lease, worker } => {
                assert!(!out.contains(worker), "{worker} is in quarantine");
                assert!(!void.contains(worker.as_str()), "{worker} is revoked");
                assert!(
                    held.insert(lease.unit, worker.clone()).is_none(),
                    "{lease} has two holders"
                );
                let last = epochs.insert(lease.unit, lease.epoch.get()).unwrap_or(0);
                assert!(lease.epoch.get() > last, "{lease} follows epoch {last}");
                assert!(!counted.contains_key(&lease.unit), "{lease} was complete");
            }
            LedgerEvent::LeaseEnded { lease, worker, .. }
            | LedgerEvent::ContributionRejected { lease, worker, .. } => {
                assert_eq!(held.remove(&lease.unit).as_ref(), Some(worker), "{lease}");
            }
            LedgerEvent::ContributionAccepted { lease, worker, .. }
            | LedgerEvent::EvaluationAccepted { lease, worker, .. } => {
                assert_eq!(held.remove(&lease.unit).as_ref(), Some(worker), "{lease}");
                assert_eq!(epochs.get(&lease.unit), Some(&lease.epoch.get()));
                let earlier = counted.insert(lease.unit, worker.clone());
                assert!(earlier.is_none(), "{lease} counts twice");
            }
            LedgerEvent::RoundClosed { round, .. } => {
                assert!(closed.insert(*round), "round {round} closed twice")
            }
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn whatever_comes_nothing_breaks(steps in proptest::collection::vec(step(), 1..120)) {
        let mut spec = spec("demo");
        spec.schedule.evaluation_every = 1;
        spec.policy.strikes_max = 6;
        let mut world = World::with_run(spec);
        for step in steps {
            play(&mut world, step);
        }
        check_ledger(&world);
    }

    #[test]
    fn whatever_comes_nothing_breaks_while_directions_are_compared(
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        let mut spec = spec("demo");
        (spec.schedule.units, spec.inner.learning_rate) = (3, 1.0);
        spec.policy.comparison = Comparison::Others {
            norm_ratio_max: 4.0,
            cosine_min: Some(0.0),
            loss_ratio_max: None,
        };
        let mut world = World::with_run(spec);
        for step in steps {
            play(&mut world, step);
        }
        check_ledger(&world);
    }

    #[test]
    fn a_run_ends_once_everybody_behaves(steps in proptest::collection::vec(step(), 1..80)) {
        let mut spec = spec("demo");
        spec.policy.strikes_max = 1_000_000;
        let mut world = World::with_run(spec);
        for step in steps {
            play(&mut world, step);
        }
        world.restart();
        world.answer_pending();
        play(&mut world, Step::Unfreeze);
        play(&mut world, Step::Quarantine(1, false));
        play(&mut world, Step::Revoke(1, false));
        world.join(1);
        for _ in 0..200 {
            if world.run().is_complete() {
                break;
            }
            world.answer_pending();
            let claim = world.claim(1);
            world.answer_pending();
            match world.manifests.get(&claim).map(|manifest| manifest.lease) {
                Some(held) => {
                    world.submit(1, held);
                }
                None => world.wait(Millis(10_000)),
            }
        }
        prop_assert!(world.run().is_complete(), "{:?}", world.kinds(0));
        check_ledger(&world);
    }
}

#[test]
fn the_ledger_names_the_statement_that_was_sent() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let held = world.lease(1);
    world.submit(1, held);
    let Effect::Foundry {
        order:
            Order::Screen {
                screening,
                statement,
                ..
            },
        ..
    } = world.take_pending(|e| matches!(e, order!(Screen)))
    else {
        panic!("a result is screened");
    };
    world.foundry(foundry::Answer::Screened {
        screening,
        verdict: Ok(screened(1.0)),
    });
    let right = schemas::Digest::of(&statement);
    assert_eq!(
        world
            .count(|event| matches!(event, LedgerEvent::ContributionAccepted { statement, .. } if *statement == right)),
        1
    );
}
