//! The lease: renewed, lost, given back.

use schemas::lease::{Done, UnitKind};
use schemas::{Code, Millis, Refusal, Steps, V};
use worker_core::{Answer, Effect, Input, Request};

use crate::scene::{LEASE, Scene, claims, dropped, ends, lease, refused, trained};

#[test]
fn a_lease_is_renewed_after_a_third_of_it() {
    let (mut scene, ..) = Scene::training();
    let granted = scene.now;
    scene.until(|effect| {
        matches!(
            effect,
            Effect::Send {
                request: Request::Renew(_),
                ..
            }
        )
    });
    assert_eq!(granted.until(scene.now), Millis(LEASE.get() / 3));
    let renewed = scene.renewed();
    scene.answer(Ok(renewed));
    let renewed_at = scene.now;
    scene.until(|effect| {
        matches!(
            effect,
            Effect::Send {
                request: Request::Renew(_),
                ..
            }
        )
    });
    assert_eq!(renewed_at.until(scene.now), Millis(LEASE.get() / 3));
}

#[test]
fn a_lease_that_nobody_renews_ends_here_before_it_ends_there() {
    let (mut scene, work, _) = Scene::training();
    let granted = scene.now;
    scene.until(|effect| {
        matches!(
            effect,
            Effect::Send {
                request: Request::Renew(_),
                ..
            }
        )
    });
    let mut renewals = 1;
    scene.effects.clear();
    while !scene.has(dropped(Code::LeaseLost)) {
        scene.wait();
        if scene.has(|effect| {
            matches!(
                effect,
                Effect::Send {
                    request: Request::Renew(_),
                    ..
                }
            )
        }) {
            renewals += 1;
            scene.answer(refused(Code::NoAnswer));
        } else if renewals == 1 {
            // The first renewal had no answer, not even a time-out; the lease ends nevertheless.
            assert!(scene.now <= granted.after(LEASE));
        }
    }
    assert_eq!(granted.until(scene.now), LEASE);
    assert!(
        scene.has(|effect| matches!(effect, Effect::Stop { work: stopped } if *stopped == work))
    );
    assert!(ends(&scene).len() == 1 && scene.has(claims));
    scene.give(Input::Trained {
        work,
        outcome: Ok(trained()),
    });
    assert!(
        scene.effects.is_empty(),
        "what a lost lease gives is of no use"
    );
}

#[test]
fn ls_04_losing_the_lease_stops_the_work_and_keeps_the_inner_state() {
    for code in [Code::LeaseLost, Code::LeaseUnknown] {
        let (mut scene, work, _) = Scene::training();
        scene.give(Input::Progress {
            work,
            steps_done: Steps(2),
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
        scene.answer(refused(code));
        assert!(
            scene.has(|effect| matches!(effect, Effect::Stop { .. })) && scene.has(dropped(code))
        );
        assert!(ends(&scene).len() == 1 && scene.has(claims));
        assert!(!scene.has(|effect| matches!(
            effect,
            Effect::Send {
                request: Request::Release(_),
                ..
            }
        )));
    }
}

/// A worker ends after ten failed units of its own. A full store fails every worker's units, and
/// somebody will make room some day.
#[test]
fn a_machine_that_fails_every_unit_ends_and_a_full_store_is_waited_for() {
    for (code, ends) in [
        (Code::TrainingFailed, true),
        (Code::UrlInvalid, true),
        (Code::UrlRefused, false),
        (Code::StoreFull, false),
        (Code::StoreUnreachable, false),
    ] {
        let mut scene = Scene::joined();
        let mut ended = false;
        for round in 0..40 {
            let work = scene.grant(lease(round, UnitKind::Train, 1));
            scene.give(Input::Fetched {
                work,
                outcome: Err(Refusal::new(code, "no")),
            });
            scene.answer(Ok(Answer::Done(Done { v: V })));
            if scene.has(|effect| {
                matches!(
                    effect,
                    Effect::Send {
                        request: Request::Leave(_),
                        ..
                    }
                )
            }) {
                ended = true;
                break;
            }
            scene.until(claims);
        }
        assert_eq!(ended, ends, "{code}");
    }
}

/// Nothing more is asked, given back or told in the name of a worker that another process is now.
#[test]
fn a_unit_that_fails_here_is_given_back() {
    let (mut scene, work, held) = Scene::training();
    scene.give(Input::Trained {
        work,
        outcome: Err(Refusal::new(Code::TrainingFailed, "loss is NaN")),
    });
    assert!(scene.has(dropped(Code::TrainingFailed)));
    assert!(matches!(scene.request().1, Request::Release(release) if release.lease == held));
    scene.answer(Ok(Answer::Done(Done::default())));
    assert!(!scene.has(claims), "a pause first");
    scene.until(claims);
    let (mut scene, work, _) = Scene::training();
    let mean = worker_core::Trained {
        loss: f64::NAN,
        ..trained()
    };
    scene.give(Input::Trained {
        work,
        outcome: Ok(mean),
    });
    assert!(scene.has(dropped(Code::TrainingFailed)));
}
