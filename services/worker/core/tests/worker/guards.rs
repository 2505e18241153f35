//! Tests of inputs that come at the wrong time, belong to an earlier question, or hold impossible
//! numbers.

use schemas::contribution::{Evaluation, Fate};
use schemas::event::WorkerEvent;
use schemas::lease::{ClaimOutcome, ClaimReply, Done, UnitKind};
use schemas::limits::LOSS_MAX;
use schemas::public::CommandVerb;
use schemas::{Code, Millis, ObjectRef, Refusal, Steps, Tokens};
use worker_core::{Answer, Effect, Exit, Input, NotVerified, Request, RequestId, Trained, WorkId};

use crate::scene::{
    Scene, claims, dropped, exits, fate, join_reply, joins, lease, manifest, refused, submits,
    trained,
};

/// A number that no request has.
const NEVER_ASKED: RequestId = RequestId(u64::MAX);
const NO_WORK: WorkId = WorkId(u64::MAX);

fn failed(code: Code) -> impl Fn(&Effect) -> bool {
    move |effect| matches!(effect, Effect::Exit(Exit::Failed(refusal)) if refusal.code == code)
}

fn leaves(effect: &Effect) -> bool {
    matches!(
        effect,
        Effect::Send {
            request: Request::Leave(_),
            ..
        }
    )
}

#[test]
fn an_answer_to_another_question_changes_nothing() {
    let mut scene = Scene::new();
    let reply = Box::new(join_reply(scene.now));
    scene.give(Input::Replied {
        id: NEVER_ASKED,
        outcome: Ok(Answer::Join(reply)),
    });
    assert!(scene.effects.is_empty(), "{:?}", scene.effects);
    let (mut scene, ..) = Scene::submitting();
    scene.give(Input::Replied {
        id: NEVER_ASKED,
        outcome: fate(Fate::Merged),
    });
    assert!(scene.effects.is_empty(), "{:?}", scene.effects);
    let (mut scene, ..) = Scene::training();
    scene.until(|effect| {
        matches!(
            effect,
            Effect::Send {
                request: Request::Renew(_),
                ..
            }
        )
    });
    scene.give(Input::Replied {
        id: NEVER_ASKED,
        outcome: refused(Code::LeaseLost),
    });
    assert!(
        scene.effects.is_empty(),
        "the lease is as good as before: {:?}",
        scene.effects
    );
}

#[test]
fn what_is_said_of_other_work_or_of_another_step_changes_nothing() {
    let refusal = || Refusal::new(Code::TrainingFailed, "played by the test");
    let (mut scene, work, held) = Scene::training();
    let chunk = || vec![ObjectRef::of(b"chunk")];
    for stale in [
        Input::Verified {
            work: NO_WORK,
            outcome: Ok(Box::new(manifest(held, scene.now))),
        },
        Input::Verified {
            work,
            outcome: Err(NotVerified {
                refusal: refusal(),
                lease: Some(held),
            }),
        },
        Input::Fetched {
            work: NO_WORK,
            outcome: Err(refusal()),
        },
        Input::Fetched {
            work,
            outcome: Ok(None),
        },
        Input::Trained {
            work: NO_WORK,
            outcome: Ok(trained()),
        },
        Input::Trained {
            work: NO_WORK,
            outcome: Err(refusal()),
        },
        Input::Evaluated {
            work: NO_WORK,
            outcome: Ok(Evaluation {
                loss_sum: 1.0,
                tokens: Tokens(1),
            }),
        },
        Input::Uploaded {
            work,
            outcome: Ok(chunk().into()),
        },
        Input::Uploaded {
            work: NO_WORK,
            outcome: Err(refusal()),
        },
        Input::Progress {
            work: NO_WORK,
            steps_done: Steps(3),
        },
    ] {
        scene.give(stale.clone());
        assert!(scene.effects.is_empty(), "{stale:?}: {:?}", scene.effects);
    }
    scene.until(|effect| {
        matches!(
            effect,
            Effect::Send {
                request: Request::Renew(_),
                ..
            }
        )
    });
    assert!(matches!(scene.request().1, Request::Renew(renewal) if renewal.steps_done == Steps(0)));
    // The check of an earlier document ends while that of a later one goes on.
    let mut scene = Scene::joined();
    let old = scene.grant(held);
    scene.give(Input::Fetched {
        work: old,
        outcome: Err(refusal()),
    });
    scene.answer(Ok(Answer::Done(Done::default())));
    scene.until(claims);
    let outcome = ClaimOutcome::Lease("document".to_owned());
    scene.answer(Ok(Answer::Claim(ClaimReply::of(outcome))));
    scene.give(Input::Verified {
        work: old,
        outcome: Ok(Box::new(manifest(held, scene.now))),
    });
    assert!(scene.effects.is_empty(), "{:?}", scene.effects);
}

/// Answers to a join that are valid in themselves, but belong to another run or time.
#[test]
fn settings_of_another_run_or_changed_ones_end_the_worker() {
    let mut scene = Scene::new();
    let mut reply = join_reply(scene.now);
    reply.spec.run = "another".parse().expect("a name");
    reply.spec_digest = reply.spec.to_object().1;
    scene.answer(Ok(Answer::Join(Box::new(reply))));
    assert!(scene.has(failed(Code::SpecInvalid)), "{:?}", scene.effects);

    let mut scene = Scene::joined();
    scene.answer(refused(Code::NotJoined));
    scene.until(joins);
    let mut reply = join_reply(scene.now);
    reply.spec.seed += 1;
    reply.spec_digest = reply.spec.to_object().1;
    scene.answer(Ok(Answer::Join(Box::new(reply))));
    assert!(!scene.has(claims), "{:?}", scene.effects);
    scene.until(leaves);
    scene.answer(Ok(Answer::Done(Done::default())));
    assert!(scene.has(failed(Code::SpecInvalid)), "{:?}", scene.effects);
}

#[test]
fn losses_that_cannot_be_are_failures_of_the_unit_and_not_handed_in() {
    for loss in [f64::NAN, f64::INFINITY, -0.5, LOSS_MAX * 1.01] {
        let (mut scene, work, _) = Scene::training();
        scene.give(Input::Trained {
            work,
            outcome: Ok(Trained { loss, ..trained() }),
        });
        assert!(
            scene.has(dropped(Code::TrainingFailed)),
            "{loss}: {:?}",
            scene.effects
        );
        let (mut scene, work) = Scene::holding(lease(0, UnitKind::Evaluate, 1));
        scene.give(Input::Fetched {
            work,
            outcome: Ok(None),
        });
        let evaluation = Evaluation {
            loss_sum: loss * 10.0,
            tokens: Tokens(10),
        };
        scene.give(Input::Evaluated {
            work,
            outcome: Ok(evaluation),
        });
        assert!(
            scene.has(dropped(Code::TrainingFailed)) && !scene.has(submits),
            "{loss}: {:?}",
            scene.effects
        );
    }
    let (mut scene, work) = Scene::holding(lease(0, UnitKind::Evaluate, 1));
    scene.give(Input::Fetched {
        work,
        outcome: Ok(None),
    });
    let evaluation = Evaluation {
        loss_sum: LOSS_MAX * 10.0,
        tokens: Tokens(10),
    };
    scene.give(Input::Evaluated {
        work,
        outcome: Ok(evaluation),
    });
    assert!(
        scene.has(submits),
        "the largest that may be: {:?}",
        scene.effects
    );
}

/// Plays one unit again and again until the worker leaves. Returns the number of units.
fn until_it_leaves(mut unit: impl FnMut(&mut Scene, u64)) -> u64 {
    let mut scene = Scene::joined();
    for number in 1..100 {
        unit(&mut scene, number);
        if scene.has(leaves) {
            scene.answer(Ok(Answer::Done(Done::default())));
            assert!(
                scene.has(|effect| matches!(effect, Effect::Exit(Exit::Failed(_)))),
                "{:?}",
                scene.effects
            );
            return number;
        }
        scene.until(claims);
    }
    panic!("it never ends");
}

/// A unit whose result the coordinator refuses.
fn refuse_result(scene: &mut Scene, epoch: u64) {
    let work = scene.grant(lease(0, UnitKind::Train, epoch));
    scene.give(Input::Fetched {
        work,
        outcome: Ok(None),
    });
    scene.give(Input::Trained {
        work,
        outcome: Ok(trained()),
    });
    scene.give(Input::Uploaded {
        work,
        outcome: Ok(vec![ObjectRef::of(b"chunk")].into()),
    });
    scene.answer(refused(Code::NormOutlier));
    assert!(scene.has(dropped(Code::NormOutlier)));
}

/// Grants a lease with a bad signature.
fn refuse_lease(scene: &mut Scene, _: u64) {
    let outcome = ClaimOutcome::Lease("document".to_owned());
    scene.answer(Ok(Answer::Claim(ClaimReply::of(outcome))));
    let verify = scene.effects.iter().find_map(|effect| match effect {
        Effect::Verify { work, .. } => Some(*work),
        _ => None,
    });
    let refusal = Refusal::new(Code::SignatureInvalid, "played by the test");
    let work = verify.expect("a lease is verified first");
    scene.give(Input::Verified {
        work,
        outcome: Err(NotVerified {
            refusal,
            lease: None,
        }),
    });
}

/// A unit whose objects do not arrive.
fn fail_to_fetch(scene: &mut Scene, epoch: u64, code: Code) {
    let work = scene.grant(lease(0, UnitKind::Train, epoch));
    scene.give(Input::Fetched {
        work,
        outcome: Err(Refusal::new(code, "played by the test")),
    });
    scene.answer(Ok(Answer::Done(Done::default())));
}

#[test]
fn a_worker_whose_results_or_leases_are_all_refused_ends() {
    assert_eq!(
        (
            until_it_leaves(refuse_result),
            until_it_leaves(refuse_lease)
        ),
        (10, 10)
    );
}

/// A store that was full for half an hour does not count towards the failures of this machine.
#[test]
fn failures_that_lie_elsewhere_are_not_counted_against_the_machine() {
    type Unit = fn(&mut Scene, u64);
    let out_of_memory: Unit = |scene, epoch| fail_to_fetch(scene, epoch, Code::CacheFailed);
    for (what, own) in [
        ("units", out_of_memory),
        ("results", refuse_result),
        ("leases", refuse_lease),
    ] {
        let after_a_full_store = until_it_leaves(|scene, epoch| match epoch {
            ..=12 => fail_to_fetch(scene, epoch, Code::StoreFull),
            _ => own(scene, epoch),
        });
        assert_eq!(after_a_full_store, 12 + 10, "{what}");
        let in_turn = until_it_leaves(|scene, epoch| match epoch % 2 {
            1 => fail_to_fetch(scene, epoch, Code::StoreUnreachable),
            _ => own(scene, epoch),
        });
        assert_eq!(in_turn, 20, "{what}");
    }
}

#[test]
fn a_parting_word_is_said_a_few_times_and_then_the_worker_goes_on() {
    let parted = |scene: &mut Scene, wanted: &dyn Fn(&Request) -> bool| {
        let mut said = 0;
        while said < 100 && scene.sent().any(|(_, request)| wanted(request)) {
            said += 1;
            scene.answer(refused(Code::NoAnswer));
            if scene.has(exits) || scene.sent().any(|(_, request)| !wanted(request)) {
                break;
            }
            if scene.sent().next().is_none() {
                scene.until(|effect| exits(effect) || matches!(effect, Effect::Send { .. }));
            }
        }
        said
    };
    // A lease that cannot be given back ends by itself.
    let (mut scene, work, _) = Scene::training();
    let refusal = Refusal::new(Code::CacheFailed, "played by the test");
    scene.give(Input::Trained {
        work,
        outcome: Err(refusal),
    });
    assert_eq!(
        parted(&mut scene, &|request| matches!(
            request,
            Request::Release(_)
        )),
        3
    );
    scene.until(claims);
    // The same holds for a membership.
    let mut scene = Scene::joined();
    scene.give(Input::Command(CommandVerb::Drain));
    assert_eq!(
        parted(&mut scene, &|request| matches!(request, Request::Leave(_))),
        3
    );
    assert!(
        scene.has(|effect| matches!(effect, Effect::Exit(Exit::Drained))),
        "{:?}",
        scene.effects
    );
}

#[test]
fn a_renewal_is_not_asked_for_twice_while_its_answer_is_waited_for() {
    let renews = |effect: &Effect| {
        matches!(
            effect,
            Effect::Send {
                request: Request::Renew(_),
                ..
            }
        )
    };
    let (mut scene, ..) = Scene::training();
    scene.until(renews);
    for _ in 0..5 {
        scene.now = scene.now.after(Millis(100));
        scene.give(Input::Tick);
        assert!(!scene.has(renews), "{:?}", scene.effects);
    }
}

/// The result may count already.
#[test]
fn a_result_that_is_on_its_way_is_waited_for_by_who_is_told_to_stop() {
    let (mut scene, ..) = Scene::submitting();
    let asked = scene.request().0;
    scene.give(Input::Command(CommandVerb::Stop));
    assert!(scene.effects.is_empty(), "{:?}", scene.effects);
    scene.give(Input::Replied {
        id: asked,
        outcome: fate(Fate::Merged),
    });
    assert!(scene.has(|effect| matches!(effect, Effect::Emit(WorkerEvent::Submitted { .. }))));
    assert!(
        scene.has(leaves) && !scene.has(claims),
        "{:?}",
        scene.effects
    );
}

/// A repeated order gains no time, and leads to no second goodbye.
#[test]
fn a_repeated_order_to_end_changes_nothing() {
    let (mut scene, ..) = Scene::training();
    let started = scene.now;
    scene.give(Input::Command(CommandVerb::Stop));
    scene.now = scene.now.after(Millis(4_000));
    scene.give(Input::Command(CommandVerb::Stop));
    scene.give(Input::Command(CommandVerb::Drain));
    assert!(!scene.has(|effect| matches!(effect, Effect::Emit(WorkerEvent::Stopped { .. }))));
    scene.until(exits);
    assert!(
        started.until(scene.now) <= Millis(5_000),
        "{}",
        started.until(scene.now)
    );
    let (mut scene, ..) = Scene::training();
    scene.give(Input::Command(CommandVerb::Drain));
    scene.give(Input::Command(CommandVerb::Drain));
    assert!(scene.effects.is_empty(), "the unit goes on");
}
