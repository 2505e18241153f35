//! Tests of the ways in which a worker ends.

use crate::scene::{Scene, claims, ends, exits, fate, joins, keeps, lease, refused, trained};
use schemas::contribution::Fate;
use schemas::event::WorkerEvent;
use schemas::lease::{ClaimOutcome, ClaimReply, Done, UnitKind};
use schemas::public::CommandVerb;
use schemas::{Code, Millis, ObjectRef, Refusal};
use worker_core::{Answer, Effect, Exit, Input, Request, ResultEnd};

#[test]
fn ls_11_refusals_that_only_a_person_can_mend_end_the_process_with_their_code() {
    for code in [
        Code::IdentityMismatch,
        Code::CredentialExpired,
        Code::BusDenied,
    ] {
        let mut scene = Scene::new();
        scene.answer(refused(code));
        assert!(scene.has(
            |effect| matches!(effect, Effect::Exit(Exit::Failed(refusal)) if refusal.code == code)
        ));
        let (mut scene, ..) = Scene::submitting();
        scene.answer(refused(code));
        scene.until(|effect| {
            matches!(
                effect,
                Effect::Send {
                    request: Request::Release(_),
                    ..
                }
            )
        });
    }
}

#[test]
fn tl_31_who_is_out_ends_at_once_and_without_a_word() {
    let told = |code: Code| move |scene: &mut Scene| scene.answer(refused(code));
    end_at_once(Code::Replaced, told(Code::Replaced));
    end_at_once(Code::WorkerQuarantined, told(Code::WorkerQuarantined));
    end_at_once(Code::WorkerQuarantined, |scene: &mut Scene| {
        scene.give(Input::Command(CommandVerb::Quarantine));
    });
}

/// A worker that is told so ends with the code, in every stage.
fn end_at_once(code: Code, told: impl Fn(&mut Scene)) {
    let renewing = {
        let (mut scene, _, _) = Scene::training();
        scene.until(|effect| {
            matches!(
                effect,
                Effect::Send {
                    request: Request::Renew(_),
                    ..
                }
            )
        });
        scene
    };
    for (what, mut scene) in [
        ("joining", Scene::new()),
        ("claiming", Scene::joined()),
        ("renewing", renewing),
        ("submitting", Scene::submitting().0),
    ] {
        told(&mut scene);
        let exit = |effect: &Effect| matches!(effect, Effect::Exit(Exit::Failed(found)) if found.code == code);
        assert!(scene.has(exit), "{what}: {:?}", scene.effects);
        let word = |effect: &Effect| {
            matches!(
                effect,
                Effect::Send { .. } | Effect::Emit(_) | Effect::Heartbeat(_)
            )
        };
        assert!(!scene.has(word), "{what}: {:?}", scene.effects);
        let trained = matches!(what, "renewing" | "submitting");
        assert_eq!(
            scene.has(|effect| matches!(effect, Effect::Stop { .. })),
            trained,
            "{what}"
        );
        assert_eq!(
            ends(&scene).len(),
            usize::from(trained),
            "{what}: moments are kept"
        );
    }
}

/// The process has lost a part of itself: it tries no further unit, and gives the lease back at
/// once.
#[test]
fn a_broken_process_ends_with_the_code_from_wherever_it_stands() {
    let code = Code::TrainingThreadLost;
    let broken = || Input::Broken(Refusal::new(code, "played by the test"));
    let fails =
        |effect: &Effect| matches!(effect, Effect::Exit(Exit::Failed(why)) if why.code == code);
    for (what, mut scene, holds) in [
        ("joining", Scene::new(), false),
        ("claiming", Scene::joined(), false),
        ("training", Scene::training().0, true),
        ("submitting", Scene::submitting().0, true),
    ] {
        scene.give(broken());
        let released = scene
            .sent()
            .any(|(_, request)| matches!(request, Request::Release(_)));
        assert_eq!(released, holds, "{what}");
        scene.until(fails);
    }
    // The same holds when it was about to end well.
    let mut scene = Scene::joined();
    scene.give(Input::Command(CommandVerb::Drain));
    scene.give(broken());
    scene.until(exits);
    assert!(scene.has(fails), "{:?}", scene.effects);
}

/// The broker serves it no more, so nothing that it says arrives: it does not wait for answers.
#[test]
fn tl_07_a_worker_whose_credentials_are_void_ends_at_once_and_without_a_word() {
    for code in [
        Code::CredentialRevoked,
        Code::CredentialReplaced,
        Code::BusRefused,
    ] {
        for (what, mut scene) in [
            ("joining", Scene::new()),
            ("claiming", Scene::joined()),
            ("training", Scene::training().0),
            ("submitting", Scene::submitting().0),
        ] {
            scene.effects.clear();
            scene.give(Input::Broken(Refusal::new(code, "played by the test")));
            let exit = |effect: &Effect| matches!(effect, Effect::Exit(Exit::Failed(found)) if found.code == code);
            assert!(scene.has(exit), "{what}: {:?}", scene.effects);
            let word = |effect: &Effect| {
                matches!(
                    effect,
                    Effect::Send { .. } | Effect::Emit(_) | Effect::Heartbeat(_)
                )
            };
            assert!(!scene.has(word), "{what}: {:?}", scene.effects);
        }
    }
}

/// A lost command is sent again; it may arrive twice, or after one that demands more.
#[test]
fn a_drain_that_is_said_again_changes_nothing() {
    let (mut scene, work, _) = Scene::training();
    for _ in 0..3 {
        scene.give(Input::Command(CommandVerb::Drain));
        assert!(scene.effects.is_empty(), "the unit goes on");
    }
    scene.give(Input::Command(CommandVerb::Stop));
    assert!(scene.has(|effect| matches!(effect, Effect::Stop { work: of } if *of == work)));
    scene.give(Input::Command(CommandVerb::Drain));
    assert!(scene.effects.is_empty());
    scene.until(exits);
    assert!(scene.has(|effect| matches!(effect, Effect::Exit(Exit::Stopped))));
}

#[test]
fn a_machine_that_fails_every_unit_ends() {
    // An object that is not granted is a failure of the unit: otherwise the same lease would come
    // again and again.
    for code in [Code::CacheFailed, Code::ObjectForbidden] {
        let mut scene = Scene::joined();
        for epoch in 1.. {
            assert!(epoch < 100, "{code}: it never ends");
            let work = scene.grant(lease(0, UnitKind::Train, epoch));
            scene.give(Input::Fetched {
                work,
                outcome: Err(Refusal::new(code, "played by the test")),
            });
            assert!(matches!(scene.request().1, Request::Release(_)), "{code}");
            scene.answer(Ok(Answer::Done(Done::default())));
            if scene.has(|effect| {
                matches!(
                    effect,
                    Effect::Send {
                        request: Request::Leave(_),
                        ..
                    }
                )
            }) {
                scene.answer(Ok(Answer::Done(Done::default())));
                assert!(scene.has(|effect| matches!(effect, Effect::Exit(Exit::Failed(_)))));
                break;
            }
            assert!(!scene.has(claims), "{code}: a pause first");
            scene.until(claims);
        }
    }
}

#[test]
fn drain_finishes_the_unit_and_leaves() {
    let (mut scene, work, _) = Scene::training();
    scene.give(Input::Command(CommandVerb::Drain));
    assert!(scene.effects.is_empty(), "the unit goes on");
    scene.give(Input::Trained {
        work,
        outcome: Ok(trained()),
    });
    scene.give(Input::Uploaded {
        work,
        outcome: Ok(vec![ObjectRef::of(b"chunk")].into()),
    });
    scene.answer(fate(Fate::Merged));
    assert!(scene.has(|effect| matches!(effect, Effect::Emit(WorkerEvent::Submitted { .. }))));
    assert!(scene.has(keeps(&ResultEnd::Counted)) && !scene.has(claims));
    assert!(matches!(scene.request().1, Request::Leave(_)));
    scene.answer(Ok(Answer::Done(Done::default())));
    assert!(scene.has(|effect| matches!(effect, Effect::Exit(Exit::Drained))));
    let mut scene = Scene::joined();
    scene.give(Input::Command(CommandVerb::Drain));
    assert!(
        matches!(scene.request().1, Request::Leave(_)),
        "nothing to finish"
    );
}

#[test]
fn stop_gives_the_lease_back_saves_and_leaves() {
    let (mut scene, work, held) = Scene::training();
    scene.give(Input::Command(CommandVerb::Stop));
    assert!(
        scene.has(|effect| matches!(effect, Effect::Stop { work: stopped } if *stopped == work))
    );
    assert!(matches!(ends(&scene)[..], [ResultEnd::Refused(_)]));
    assert!(matches!(scene.request().1, Request::Release(release) if release.lease == held));
    scene.answer(Ok(Answer::Done(Done::default())));
    assert!(scene.has(|effect| matches!(effect, Effect::Emit(WorkerEvent::Stopped { .. }))));
    assert!(matches!(scene.request().1, Request::Leave(_)));
    scene.answer(Ok(Answer::Done(Done::default())));
    assert!(scene.has(|effect| matches!(effect, Effect::Exit(Exit::Stopped))));
    scene.give(Input::Tick);
    assert!(scene.effects.is_empty() && scene.worker.next_deadline().is_none());
}

#[test]
fn stop_ends_in_time_when_nobody_answers() {
    for mut scene in [
        Scene::new(),
        Scene::joined(),
        Scene::training().0,
        Scene::submitting().0,
    ] {
        let started = scene.now;
        scene.give(Input::Command(CommandVerb::Stop));
        scene.until(exits);
        assert!(
            started.until(scene.now) <= Millis(5_000),
            "{}",
            started.until(scene.now)
        );
    }
}

#[test]
fn a_complete_run_ends_the_worker() {
    let mut scene = Scene::joined();
    scene.answer(Ok(Answer::Claim(ClaimReply::of(ClaimOutcome::Complete))));
    scene.answer(Ok(Answer::Done(Done::default())));
    assert!(scene.has(|effect| matches!(effect, Effect::Exit(Exit::Complete))));
}

#[test]
fn who_was_removed_from_the_run_ends_with_the_code() {
    let mut scene = Scene::joined();
    scene.answer(refused(Code::NotJoined));
    scene.until(joins);
    scene.answer(refused(Code::WorkerRemoved));
    if scene.has(|effect| {
        matches!(
            effect,
            Effect::Send {
                request: Request::Leave(_),
                ..
            }
        )
    }) {
        scene.answer(refused(Code::NotJoined));
    }
    let ends = |effect: &Effect| matches!(effect, Effect::Exit(Exit::Failed(why)) if why.code == Code::WorkerRemoved);
    assert!(scene.has(ends), "{:?}", scene.effects);
    // The same holds at its first join: a worker that is started again by hand is still removed.
    let mut scene = Scene::new();
    scene.answer(refused(Code::WorkerRemoved));
    assert!(scene.has(ends), "{:?}", scene.effects);
}
