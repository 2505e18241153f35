//! Joining, joining again, and the clock that a join gives.

use schemas::lease::{ClaimOutcome, ClaimReply, Done, UnitKind};
use schemas::{Code, Refusal, UnixMillis, V};
use worker_core::{Answer, Effect, Exit, Input, NotVerified, Request};

use crate::scene::{
    AHEAD, LEASE, Scene, claims, join_reply, joins, lease, manifest, pause, refused,
};

/// LS-10: a worker that the coordinator no longer knows joins again.
#[test]
fn ls_10_not_joined_leads_to_another_join() {
    let mut scene = Scene::joined();
    scene.answer(refused(Code::NotJoined));
    assert!(!scene.has(joins), "not in a tight loop");
    scene.until(joins);
    let reply = join_reply(scene.now);
    scene.answer(Ok(Answer::Join(Box::new(reply))));
    assert!(scene.has(claims));
    let (mut scene, work, _) = Scene::training();
    scene.until(|effect| {
        matches!(
            effect,
            Effect::Send {
                request: Request::Renew(_),
                ..
            }
        )
    });
    scene.answer(refused(Code::NotJoined));
    assert!(
        scene.has(|effect| matches!(effect, Effect::Stop { work: stopped } if *stopped == work))
    );
    scene.until(joins);
}

fn join_again(scene: &mut Scene) {
    scene.until(joins);
    let reply = join_reply(scene.now);
    scene.answer(Ok(Answer::Join(Box::new(reply))));
}

/// LS-10: a lost membership is no failed unit, however often it happens.
#[test]
fn ls_10_joining_again_is_not_counted_as_failing() {
    let mut scene = Scene::joined();
    for _ in 0..20 {
        let work = scene.grant(lease(0, UnitKind::Train, 1));
        scene.give(Input::Fetched {
            work,
            outcome: Ok(None),
        });
        scene.until(|effect| {
            matches!(
                effect,
                Effect::Send {
                    request: Request::Renew(_),
                    ..
                }
            )
        });
        scene.answer(refused(Code::NotJoined));
        assert!(
            pause(&scene) <= 500,
            "the membership was of use, so the pause is a short one"
        );
        join_again(&mut scene);
    }
    let work = scene.grant(lease(0, UnitKind::Train, 1));
    scene.give(Input::Fetched {
        work,
        outcome: Err(Refusal::new(Code::StoreUnreachable, "away")),
    });
    assert!(scene.has(|effect| matches!(
        effect,
        Effect::Send {
            request: Request::Release(_),
            ..
        }
    )));
    scene.answer(Ok(Answer::Done(Done { v: V })));
    scene.until(claims);
}

/// LS-10: a worker that is evicted each time it joins asks less and less often.
#[test]
fn ls_10_memberships_of_no_use_are_begun_less_and_less_often() {
    let mut scene = Scene::joined();
    let mut pauses = Vec::new();
    for _ in 0..10 {
        scene.answer(refused(Code::NotJoined));
        pauses.push(pause(&scene));
        join_again(&mut scene);
    }
    assert!(pauses[0] <= 500 && pauses[9] >= 30_000, "{pauses:?}");
    let outcome = ClaimOutcome::Nothing;
    scene.answer(Ok(Answer::Claim(ClaimReply::of(outcome))));
    scene.until(claims);
    scene.answer(refused(Code::NotJoined));
    assert!(pause(&scene) <= 500, "it was a member");
}

#[test]
fn ls_04_ls_11_a_run_that_is_not_ready_is_waited_for() {
    for code in [
        Code::RunUnknown,
        Code::Draining,
        Code::NoAnswer,
        Code::MessageInvalid,
    ] {
        let mut scene = Scene::new();
        scene.answer(refused(code));
        assert!(scene.has(
            |effect| matches!(effect, Effect::Waiting { refusal, .. } if refusal.code == code)
        ));
        scene.until(joins);
    }
    for code in [Code::TooFewWorkers, Code::Draining] {
        let mut scene = Scene::joined();
        scene.answer(refused(code));
        assert!(scene.has(|effect| matches!(effect, Effect::Waiting { .. })));
        scene.until(claims);
    }
}

/// The record may be copied to the coordinator's machine after the worker has started.
#[test]
fn ls_04_a_worker_whose_record_is_missing_asks_less_and_less_often_and_joins_when_it_is_there() {
    for code in [Code::RecordMissing, Code::RegistrationInvalid] {
        let mut scene = Scene::new();
        let mut pauses = Vec::new();
        for _ in 0..10 {
            scene.answer(refused(code));
            assert!(!scene.has(joins), "not in a tight loop");
            pauses.push(pause(&scene));
            scene.until(joins);
        }
        assert!(pauses[0] <= 500 && pauses[9] >= 5_000, "{pauses:?}");
        let reply = join_reply(scene.now);
        scene.answer(Ok(Answer::Join(Box::new(reply))));
        assert!(scene.has(claims));
    }
    // What nobody mends by copying a record ends the worker.
    let mut scene = Scene::new();
    scene.answer(refused(Code::HolderMismatch));
    scene.until(|effect| matches!(effect, Effect::Exit(Exit::Failed(_))));
}

/// FG-13: other settings are refused, never silently used.
#[test]
fn fg_13_settings_must_be_what_their_digest_says() {
    let join = |change: &dyn Fn(&mut schemas::member::JoinReply)| {
        let mut scene = Scene::new();
        let mut reply = join_reply(scene.now);
        change(&mut reply);
        scene.answer(Ok(Answer::Join(Box::new(reply))));
        scene.effects
    };
    let fails = |effects: &[Effect], wanted: Code| {
        effects.iter().any(|effect| matches!(effect, Effect::Exit(Exit::Failed(refusal)) if refusal.code == wanted))
    };
    assert!(fails(
        &join(&|reply| reply.spec.seed += 1),
        Code::SpecInvalid
    ));
    assert!(fails(
        &join(&|reply| reply.spec.run = "other".parse().expect("a name")),
        Code::SpecInvalid
    ));
    assert!(fails(
        &join(&|reply| reply.spec.schedule.units = 0),
        Code::SpecInvalid
    ));
    let torch = join(&|reply| {
        reply.spec.model.trainer = schemas::run::TrainerKind::Torch;
        reply.spec_digest = reply.spec.to_object().1;
    });
    assert!(fails(&torch, Code::TrainerMissing));
}

/// After a slow join the measured offset is useless; the first renewal, at once, mends it.
#[test]
fn a_lease_survives_a_join_that_took_long() {
    let mut scene = Scene::new();
    scene.now = scene.now.after(LEASE);
    let reply = join_reply(scene.now);
    scene.answer(Ok(Answer::Join(Box::new(reply))));
    let outcome = ClaimOutcome::Lease("document".to_owned());
    scene.answer(Ok(Answer::Claim(ClaimReply::of(outcome))));
    let Some(Effect::Verify { work, .. }) = scene.effects.last() else {
        panic!("verified first")
    };
    let manifest = Box::new(manifest(lease(0, UnitKind::Train, 1), scene.now));
    scene.give(Input::Verified {
        work: *work,
        outcome: Ok(manifest),
    });
    assert!(scene.has(|effect| matches!(effect, Effect::Fetch { .. })));
    assert!(matches!(scene.request().1, Request::Renew(_)));
}

/// The coordinator answers a claim with a lease that is valid at another time.
fn untimely(scene: &mut Scene) {
    let outcome = ClaimOutcome::Lease("document".to_owned());
    scene.answer(Ok(Answer::Claim(ClaimReply::of(outcome))));
    let Some(Effect::Verify { work, .. }) = scene.effects.last() else {
        panic!("verified first")
    };
    let (work, refusal) = (*work, Refusal::new(Code::ClockOff, "90 s in the past"));
    scene.give(Input::Verified {
        work,
        outcome: Err(NotVerified {
            refusal,
            lease: Some(lease(0, UnitKind::Train, 1)),
        }),
    });
}

#[test]
fn a_lease_of_another_time_goes_back_at_once_and_the_time_is_asked_for_again() {
    let mut scene = Scene::joined();
    // This happens more often than units may fail.
    for _ in 0..30 {
        untimely(&mut scene);
        assert!(
            matches!(scene.request().1, Request::Release(release) if release.reason.starts_with("DL0408"))
        );
        scene.answer(Ok(Answer::Done(Done::default())));
        scene.until(joins);
        let reply = join_reply(scene.now);
        scene.answer(Ok(Answer::Join(Box::new(reply))));
        assert!(scene.has(
            |effect| matches!(effect, Effect::Clock { ahead_ms } if *ahead_ms == AHEAD as i64)
        ));
        assert!(scene.has(claims), "it works on");
    }
}

#[test]
fn a_renewal_tells_the_time_of_another_coordinator() {
    let (mut scene, ..) = Scene::training();
    let renews = |effect: &Effect| {
        matches!(
            effect,
            Effect::Send {
                request: Request::Renew(_),
                ..
            }
        )
    };
    scene.until(renews);
    let renewed = scene.renewed();
    scene.answer(Ok(renewed));
    assert!(
        !scene.has(|effect| matches!(effect, Effect::Clock { .. })),
        "nothing new"
    );
    scene.until(renews);
    // The coordinator was started again, and its clock is right now: an hour later.
    let Answer::Renew(mut reply) = scene.renewed() else {
        unreachable!()
    };
    reply.expires_at = UnixMillis(reply.expires_at.get() + 3_600_000);
    scene.answer(Ok(Answer::Renew(reply)));
    let ahead = AHEAD as i64 + 3_600_000;
    assert!(scene.has(|effect| matches!(effect, Effect::Clock { ahead_ms } if *ahead_ms == ahead)));
}
