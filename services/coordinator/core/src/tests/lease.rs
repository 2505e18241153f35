use schemas::event::{LeaseEnd, LedgerEvent};
use schemas::lease::{ClaimOutcome, ClaimReply, ReleaseRequest, RenewRequest, Work};
use schemas::telemetry::Heartbeat;
use schemas::{Bytes, Code, Millis, Steps, V};

use super::heartbeat::heartbeat;
use crate::fixture::*;
use crate::{Answer, DeliveryId, Effect, Input, ReplyId, WorkerRequest};

fn renew(world: &mut World, number: u32, held: schemas::lease::LeaseRef) -> ReplyId {
    renew_with(world, number, held, Steps(1), Bytes(0))
}

pub(super) fn renew_with(
    world: &mut World,
    number: u32,
    lease: schemas::lease::LeaseRef,
    steps_done: Steps,
    bytes_moved: Bytes,
) -> ReplyId {
    world.ask(
        peer(number),
        WorkerRequest::Renew(RenewRequest {
            v: V,
            lease,
            steps_done,
            bytes_moved,
        }),
    )
}

fn is_nothing(world: &World, reply: ReplyId) -> bool {
    let nothing = ClaimReply::of(ClaimOutcome::Nothing);
    matches!(world.answers.get(&reply), Some(Ok(Answer::Claim(found))) if *found == nothing)
}

#[test]
fn tl_10_tl_14_a_manifest_says_all_about_the_work() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let reply = world.claim(1);
    let manifest = &world.manifests[&reply];
    let spec = spec("demo");
    assert_eq!((&manifest.aud, manifest.session), (&worker(1), session(1)));
    assert_eq!(
        (manifest.run.as_str(), manifest.spec),
        ("demo", spec.to_object().1)
    );
    assert_eq!(manifest.lease, lease(train(0, 0), 1));
    assert_eq!(manifest.jti, "demo/0/train-0/1");
    assert_eq!(manifest.base.chunks, spec.model.initial);
    let seconds = START.get() / 1000;
    assert_eq!(
        (manifest.nbf, manifest.iat, manifest.exp),
        (seconds - 5, seconds, seconds + 30)
    );
    assert_eq!(manifest.expires_at, START.after(LEASE));
    assert!(
        matches!(&manifest.work, Work::Train { shards, steps: Steps(4), steps_before: Steps(0), .. } if shards.len() == 2)
    );
}

#[test]
fn a_lost_answer_is_given_again_under_the_same_epoch() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let first = world.lease(1);
    let before = world.journal.len();
    assert_eq!(world.lease(1), first);
    assert_eq!(world.journal.len(), before);
}

#[test]
fn fg_06_tl_01_tl_14_an_expired_unit_is_granted_again_under_the_next_epoch_and_the_late_holder_is_fenced_off()
 {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    world.join(2);
    let lost = world.lease(1);
    world.lease(2);
    world.wait(LEASE - Millis(1));
    assert_eq!(world.run().leases().count(), 2);
    world.wait(Millis(1));
    assert_eq!(
        world.count(|event| matches!(
            event,
            LedgerEvent::LeaseEnded {
                cause: LeaseEnd::Expired,
                ..
            }
        )),
        2
    );
    let next = world.lease(2);
    assert_eq!(
        next,
        lease(lost.unit, 2),
        "the other worker takes over what this one lost"
    );
    let late = world.submit(1, lost);
    let renewed = renew(&mut world, 1, lost);
    assert_eq!(world.refusal(late), Code::LeaseLost);
    assert_eq!(world.refusal(renewed), Code::LeaseLost);
    let forged = renew(&mut world, 1, next);
    assert_eq!(world.refusal(forged), Code::LeaseUnknown);
    assert_eq!(world.run().tokens.abandoned.get(), 64);
}

#[test]
fn renewals_keep_a_lease() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let held = world.lease(1);
    for _ in 0..20 {
        world.wait(Millis::from_secs(10));
        let reply = renew(&mut world, 1, held);
        assert!(matches!(world.answers[&reply], Ok(Answer::Renew(_))));
    }
    assert_eq!(
        world.run().holder(&held.unit),
        Some((&worker(1), held.epoch))
    );
}

/// The members beside worker 1 show that they are there.
pub(super) fn hear_others(world: &mut World) {
    for number in 2..=3 {
        let member = world.run().member(&worker(number));
        if member.is_some_and(|member| member.present) {
            let heartbeat = Heartbeat {
                session: session(number),
                ..heartbeat()
            };
            world.input(Input::Heartbeat {
                peer: peer(number),
                heartbeat,
            });
        }
    }
}

/// Renews every ten seconds for `seconds`; `moved` gives the bytes after a number of renewals.
/// Stops at the first refusal.
pub(super) fn keep(
    world: &mut World,
    held: schemas::lease::LeaseRef,
    seconds: u64,
    moved: impl Fn(u64) -> u64,
) -> Result<(), Code> {
    for count in 0..seconds / 10 {
        world.wait(Millis::from_secs(10));
        hear_others(world);
        let reply = renew_with(world, 1, held, Steps(4), Bytes(moved(count)));
        match &world.answers[&reply] {
            Ok(_) => {}
            Err(refusal) => return Err(refusal.code),
        }
    }
    Ok(())
}

#[test]
fn a_lease_that_is_renewed_without_progress_ends_and_its_unit_goes_to_another() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let held = world.lease(1);
    // All steps are done, and no byte of the upload moves.
    assert_eq!(
        keep(&mut world, held, 590, |_| 7),
        Ok(()),
        "ten minutes are not over"
    );
    world.join(2);
    assert_ne!(world.lease(2).unit, held.unit, "until then it is held");
    let waiting = world.claim(3);
    assert_eq!(world.refusal(waiting), Code::NotJoined);
    world.join(3);
    assert_eq!(
        keep(&mut world, held, 60, |_| 7),
        Err(Code::LeaseStalled),
        "the worker is told why"
    );
    let stalled = |event: &LedgerEvent| matches!(event, LedgerEvent::LeaseEnded { lease, cause: LeaseEnd::Stalled, .. } if *lease == held);
    assert_eq!(world.count(stalled), 1);
    assert_eq!(world.lease(3), lease(held.unit, 2));
}

#[test]
fn a_slow_line_that_moves_keeps_its_lease() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let held = world.lease(1);
    // A hundred bytes move every minute for two hours.
    assert_eq!(
        keep(&mut world, held, 7200, |count| 100 * (count / 6)),
        Ok(())
    );
    assert_eq!(
        world.run().holder(&held.unit),
        Some((&worker(1), held.epoch))
    );
}

/// Nobody can check a worker's report of its progress, so the report may only go forward, and a
/// lease ends after a day.
#[test]
fn a_lease_whose_holder_only_says_that_it_moves_ends() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let held = world.lease(1);
    assert_eq!(
        keep(&mut world, held, 900, |count| count % 2),
        Err(Code::LeaseStalled),
        "up and down is no way forward"
    );
    let held = world.lease(1);
    assert_eq!(keep(&mut world, held, 23 * 3600, |count| count), Ok(()));
    assert_eq!(
        keep(&mut world, held, 2 * 3600, |count| 100_000 + count),
        Err(Code::LeaseStalled),
        "more than a day"
    );
}

#[test]
fn a_renewal_that_the_process_was_too_busy_to_read_still_counts() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let held = world.lease(1);
    world.now = world.now.after(LEASE).after(Millis(500));
    let reply = renew(&mut world, 1, held);
    assert!(matches!(world.answers[&reply], Ok(Answer::Renew(_))));
    assert_eq!(world.run().leases().count(), 1);
}

#[test]
fn everything_that_waited_while_the_process_was_busy_counts_before_a_deadline_does() {
    let mut world = World::with_run(spec("demo"));
    let holders = [1, 2];
    let leases = holders.map(|number| {
        world.join(number);
        world.lease(number)
    });
    // Later than the ends of the leases, and than the silence after which a worker is dropped.
    world.now = world.now.after(Millis::from_secs(120));
    for (number, lease) in holders.into_iter().zip(leases) {
        let reply = ReplyId(9000 + u64::from(number));
        let request = WorkerRequest::Renew(RenewRequest {
            v: V,
            lease,
            steps_done: Steps(1),
            bytes_moved: Bytes(0),
        });
        world.input_alone(Input::Request {
            peer: peer(number),
            recorded: None,
            request,
            reply,
        });
        assert!(
            matches!(world.answers[&reply], Ok(Answer::Renew(_))),
            "worker {number}"
        );
    }
    world.input_alone(Input::Tick);
    assert_eq!(
        (world.run().leases().count(), world.run().present()),
        (2, 2)
    );
}

#[test]
fn a_unit_goes_to_another_worker_than_the_one_that_gave_it_back() {
    let mut world = World::with_run(spec("demo"));
    for number in 1..=3 {
        world.join(number);
    }
    let given_back = world.lease(1);
    world.lease(2);
    let waiting = [world.claim(3)];
    world.ask(
        peer(1),
        WorkerRequest::Release(ReleaseRequest {
            v: V,
            lease: given_back,
            reason: "sick".to_owned(),
        }),
    );
    assert_eq!(
        world.manifests[&waiting[0]].lease,
        lease(given_back.unit, 2)
    );
    // If nobody else waits, the worker gets the unit again.
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    world.join(2);
    let given_back = world.lease(1);
    world.lease(2);
    world.ask(
        peer(1),
        WorkerRequest::Release(ReleaseRequest {
            v: V,
            lease: given_back,
            reason: String::new(),
        }),
    );
    assert_eq!(world.lease(1), lease(given_back.unit, 2));
}

#[test]
fn claims_wait_for_work_and_no_longer() {
    let mut world = World::with_run(spec("demo"));
    for number in 1..=3 {
        world.join(number);
    }
    world.lease(1);
    world.lease(2);
    let older = world.claim(3);
    let newer = world.claim(3);
    assert!(is_nothing(&world, older) && !world.answers.contains_key(&newer));
    // However long the worker would wait, its claim is answered after five seconds, since a claim
    // that was lost with its coordinator must be repeated soon.
    world.wait(Millis(4_999));
    assert!(!world.answers.contains_key(&newer));
    world.wait(Millis(1));
    assert!(is_nothing(&world, newer));
    let no_wait = world.ask(peer(3), WorkerRequest::Claim(claim_request(3, Millis(0))));
    assert!(is_nothing(&world, no_wait));
}

#[test]
fn first_come_first_served() {
    let mut spec = spec("demo");
    spec.policy.workers_min = 3;
    let mut world = World::with_run(spec);
    world.join(1);
    world.join(2);
    let claims = [world.claim(2), world.claim(1)];
    world.join(3);
    assert_eq!(world.manifests[&claims[0]].lease.unit, train(0, 0));
    assert_eq!(world.manifests[&claims[1]].lease.unit, train(0, 1));
}

#[test]
fn the_offer_of_a_unit_is_held_until_it_is_complete_and_then_settled() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let held = world.lease(1);
    let delivery = DeliveryId(77);
    world.input(Input::Offered {
        run: run_id(),
        unit: held.unit,
        delivery,
    });
    for _ in 0..4 {
        world.wait(Millis::from_secs(20));
        renew(&mut world, 1, held);
    }
    let held_times = |effect: &&Effect| {
        matches!(
            effect,
            Effect::Hold {
                delivery: DeliveryId(77)
            }
        )
    };
    assert_eq!(world.seen.iter().filter(held_times).count(), 4);
    world.submit(1, held);
    world.answer_pending();
    let settled = |effect: &Effect| {
        matches!(
            effect,
            Effect::Settle {
                delivery: DeliveryId(77)
            }
        )
    };
    assert!(world.seen.iter().any(settled));
    let from = world.seen.len();
    world.input(Input::Offered {
        run: run_id(),
        unit: held.unit,
        delivery,
    });
    world.input(Input::Offered {
        run: "other".parse().unwrap(),
        unit: held.unit,
        delivery,
    });
    assert_eq!(
        world.seen[from..]
            .iter()
            .filter(|effect| settled(effect))
            .count(),
        2
    );
}

#[test]
fn a_grant_waits_for_no_delivery() {
    let mut world = World::with_run(spec("demo"));
    world.ask(peer(1), WorkerRequest::Join(join_request(1)));
    let offers = |world: &World| {
        let pending = world.pending.iter();
        pending
            .filter(|effect| matches!(effect, Effect::Offer { .. }))
            .count()
    };
    assert_eq!(offers(&world), 2);
    let claim = world.claim(1);
    assert!(world.manifests.contains_key(&claim));
    assert_eq!(offers(&world), 2);
}

#[test]
fn a_restart_keeps_leases_for_one_lease_time_and_repeats_the_offers() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let held = world.lease(1);
    world.wait(LEASE - Millis(1));
    world.restart();
    let offers = world
        .pending
        .iter()
        .filter(|effect| matches!(effect, Effect::Offer { .. }))
        .count();
    assert_eq!(offers, 2);
    // The claim of a worker that lost its answer waits until the data are known again.
    let claim = world.claim(1);
    assert!(!world.manifests.contains_key(&claim));
    world.answer_pending();
    assert_eq!(world.manifests[&claim].lease, held);
    world.wait(LEASE - Millis(1));
    assert_eq!(world.run().leases().count(), 1);
    world.wait(Millis(1));
    assert_eq!(world.run().leases().count(), 0);
}

#[test]
fn nobody_has_done_more_steps_than_its_unit_has() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let held = world.lease(1);
    for (steps, fits) in [(0, true), (4, true), (5, false), (u64::MAX, false)] {
        let request = RenewRequest {
            v: V,
            lease: held,
            steps_done: Steps(steps),
            bytes_moved: Bytes(0),
        };
        let reply = world.ask(peer(1), WorkerRequest::Renew(request));
        if fits {
            assert!(
                matches!(world.answers[&reply], Ok(Answer::Renew(_))),
                "{steps}"
            );
        } else {
            assert_eq!(world.refusal(reply), Code::NumberImpossible, "{steps}");
        }
    }
}

/// A lease ends after ten minutes without a step, but not with four steps of nine minutes each.
#[test]
fn a_slow_trainer_that_moves_no_byte_keeps_its_lease_by_its_steps() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let held = world.lease(1);
    for step in 1..=4 {
        for _ in 0..27 {
            world.wait(Millis::from_secs(20));
            let reply = renew_with(&mut world, 1, held, Steps(step), Bytes(0));
            assert!(world.answers[&reply].is_ok(), "step {step}");
        }
    }
}

#[test]
fn a_lease_that_nobody_renewed_has_expired_also_where_it_stood_still() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let held = world.lease(1);
    // Its only progress is told after ten seconds.
    assert_eq!(keep(&mut world, held, 580, |_| 0), Ok(()));
    assert_eq!(world.run().leases().count(), 1);
    // What the last renewal gave and the patience end in the same moment.
    world.wait(LEASE);
    let ended = |event: &LedgerEvent| matches!(event, LedgerEvent::LeaseEnded { lease, cause: LeaseEnd::Expired, .. } if *lease == held);
    assert_eq!(world.count(ended), 1);
}

#[test]
fn a_worker_whose_lease_stood_still_is_told_for_how_long() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let held = world.lease(1);
    let refused = keep(&mut world, held, 900, |_| 0);
    assert_eq!(refused, Err(Code::LeaseStalled));
    let told = world
        .answers
        .values()
        .filter_map(|answer| answer.as_ref().err());
    let told: Vec<&str> = told.map(|refusal| &*refusal.detail).collect();
    assert!(told[0].ends_with(" for 600 s"), "{told:?}");
}

/// After so many rounds the results of the unit are forgotten, but the lease was granted once.
#[test]
fn a_lease_of_long_ago_is_over_and_not_unknown() {
    let mut many = spec("demo");
    (many.schedule.rounds, many.schedule.units) = (30, 1);
    let mut world = World::with_run(many);
    world.join(1);
    world.join(2);
    let lost = world.lease(1);
    world.wait(LEASE);
    while world.run().accepted.contains_key(&lost.unit) || world.run().rounds_closed().get() < 2 {
        let held = world.lease(2);
        world.submit(2, held);
        world.answer_pending();
    }
    let late = renew(&mut world, 1, lost);
    assert_eq!(world.refusal(late), Code::LeaseLost);
    let never = renew(&mut world, 1, lease(train(29, 0), 1));
    assert_eq!(world.refusal(never), Code::LeaseUnknown);
}
