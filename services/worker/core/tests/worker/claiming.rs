//! Claims, and the checks that must pass before any work begins.

use schemas::event::WorkerEvent;
use schemas::lease::{ClaimOutcome, ClaimReply, Done, UnitKind};
use schemas::{Code, Millis, Refusal};
use worker_core::{Answer, Effect, Input, NotVerified, Request};

use crate::scene::{Scene, claims, lease, manifest};

/// TL-09: a manifest that does not verify starts nothing.
#[test]
fn tl_09_tl_11_a_refused_manifest_starts_nothing_and_is_told() {
    for given in [None, Some(lease(0, UnitKind::Train, 1))] {
        let mut scene = Scene::joined();
        let outcome = ClaimOutcome::Lease("document".to_owned());
        scene.answer(Ok(Answer::Claim(ClaimReply::of(outcome))));
        let Some(Effect::Verify { work, .. }) = scene.effects.last() else {
            panic!("verified first")
        };
        let (work, refusal) = (
            *work,
            Refusal::new(Code::ManifestInvalid, "the audience is another"),
        );
        scene.give(Input::Verified {
            work,
            outcome: Err(NotVerified {
                refusal,
                lease: given,
            }),
        });
        assert!(scene.has(|effect| {
            matches!(
                effect,
                Effect::Emit(WorkerEvent::Refused {
                    code: Code::ManifestInvalid,
                    ..
                })
            )
        }));
        assert!(!scene.has(|effect| matches!(effect, Effect::Fetch { .. })));
        let releases = scene.has(|effect| {
            matches!(
                effect,
                Effect::Send {
                    request: Request::Release(_),
                    ..
                }
            )
        });
        assert_eq!(releases, given.is_some());
        if releases {
            scene.answer(Ok(Answer::Done(Done::default())));
        }
        scene.until(claims);
    }
}

#[test]
fn tl_11_nothing_is_fetched_before_the_manifest_verifies_nor_trained_before_the_objects_do() {
    let fetches = |effect: &Effect| matches!(effect, Effect::Fetch { .. });
    let trains = |effect: &Effect| matches!(effect, Effect::Train { .. });
    let mut scene = Scene::joined();
    let outcome = ClaimOutcome::Lease("document".to_owned());
    scene.answer(Ok(Answer::Claim(ClaimReply::of(outcome))));
    let Some(Effect::Verify { work, .. }) = scene.effects.last() else {
        panic!("verified first")
    };
    let work = *work;
    assert!(!scene.has(fetches) && !scene.has(trains));
    let manifest = Box::new(manifest(lease(0, UnitKind::Train, 1), scene.now));
    scene.give(Input::Verified {
        work,
        outcome: Ok(manifest),
    });
    assert!(scene.has(fetches) && !scene.has(trains));
    let mismatch = Refusal::new(Code::ObjectMismatch, "other bytes");
    scene.give(Input::Fetched {
        work,
        outcome: Err(mismatch),
    });
    assert!(!scene.has(trains) && matches!(scene.request().1, Request::Release(_)));
}

#[test]
fn nothing_to_do_is_not_asked_in_a_tight_loop() {
    let mut scene = Scene::joined();
    for _ in 0..5 {
        let before = scene.now;
        scene.answer(Ok(Answer::Claim(ClaimReply::of(ClaimOutcome::Nothing))));
        scene.until(claims);
        assert!(before.until(scene.now) >= Millis(100));
    }
}

#[test]
fn refused_commands_are_told_at_a_bounded_rate() {
    let mut scene = Scene::joined();
    let told = |scene: &Scene| {
        scene.has(|effect| matches!(effect, Effect::Emit(WorkerEvent::Refused { .. })))
    };
    let forged = || Input::CommandRefused(Refusal::new(Code::SignatureInvalid, "unsigned"));
    scene.give(forged());
    let said = |scene: &Scene| {
        scene.effects.iter().find_map(|effect| match effect {
            Effect::Emit(WorkerEvent::Refused { detail, .. }) => Some(detail.clone()),
            _ => None,
        })
    };
    assert_eq!(said(&scene).as_deref(), Some("unsigned"));
    for _ in 0..100 {
        scene.give(forged());
        assert!(!told(&scene));
    }
    scene.now = scene.now.after(Millis(10_000));
    scene.give(forged());
    assert!(said(&scene).is_some_and(|detail| detail.starts_with("100 more")));
}
