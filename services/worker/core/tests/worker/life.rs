//! A worker's life, step by step.

use crate::scene::{
    AHEAD, LEASE, Scene, claims, dropped, fate, join_reply, joins, lease, manifest, refused,
    submits, trained,
};
use schemas::contribution::{Evaluation, Fate, Outcome, Statement};
use schemas::event::WorkerEvent;
use schemas::lease::{ClaimOutcome, ClaimReply, Done, UnitKind};

use schemas::{Code, Message as _, Millis, ObjectRef, Refusal, Steps, Tokens, UnixMillis, V};
use worker_core::{Answer, Effect, Exit, Input, NotVerified, Request};

#[test]
fn a_unit_goes_from_claim_to_an_accepted_result_to_the_next_claim() {
    let mut scene = Scene::joined();
    assert!(scene.has(claims) && scene.has(|effect| matches!(effect, Effect::Heartbeat(_))));
    let held = lease(0, UnitKind::Train, 1);
    let work = scene.grant(held);
    assert!(scene.has(
        |effect| matches!(effect, Effect::Emit(WorkerEvent::Started { lease }) if *lease == held)
    ));
    assert!(scene.has(|effect| matches!(effect, Effect::Fetch { .. })));
    scene.give(Input::Fetched {
        work,
        outcome: Ok(()),
    });
    assert!(scene.has(|effect| matches!(effect, Effect::Train { .. })));
    scene.give(Input::Trained {
        work,
        outcome: Ok(trained()),
    });
    assert!(scene.has(|effect| matches!(effect, Effect::Upload { .. })));
    let chunks = vec![ObjectRef::of(b"chunk")];
    scene.give(Input::Uploaded {
        work,
        outcome: Ok(chunks.clone()),
    });
    let (_, Request::Submit(bytes)) = scene.request() else {
        panic!("a result is submitted")
    };
    let statement = Statement::decode(bytes).expect("what was encoded");
    let Outcome::Contribution(contribution) = statement.outcome else {
        panic!("of a training unit")
    };
    assert_eq!(
        (statement.lease, contribution.chunks, contribution.tokens),
        (held, chunks, Tokens(64))
    );
    scene.answer(fate(Fate::Merged));
    assert!(scene.has(|effect| matches!(effect, Effect::Emit(WorkerEvent::Submitted { .. }))));
    assert!(scene.has(claims) && scene.has(|effect| matches!(effect, Effect::TrustInner)));
}

#[test]
fn an_evaluation_needs_no_upload_and_touches_no_inner_state() {
    let (mut scene, work) = Scene::holding(lease(0, UnitKind::Evaluate, 1));
    scene.give(Input::Fetched {
        work,
        outcome: Ok(()),
    });
    assert!(scene.has(|effect| matches!(effect, Effect::Evaluate { .. })));
    let evaluation = Evaluation {
        loss_sum: 12.0,
        tokens: Tokens(4),
    };
    scene.give(Input::Evaluated {
        work,
        outcome: Ok(evaluation),
    });
    assert!(scene.has(submits));
    scene.answer(fate(Fate::Merged));
    let keeps = |effect: &Effect| matches!(effect, Effect::SaveInner | Effect::TrustInner);
    assert!(scene.has(claims) && !scene.has(keeps));
}

/// LS-03, LS-04: nothing is taken for done before its reply says so.
#[test]
fn ls_03_ls_04_success_is_told_only_after_the_reply() {
    let scene = Scene::new();
    assert!(!scene.has(|effect| matches!(effect, Effect::Emit(WorkerEvent::Joined { .. }))));
    let (mut scene, ..) = Scene::submitting();
    assert!(!scene.has(|effect| matches!(effect, Effect::Emit(_))));
    for fate in [
        fate(Fate::Late),
        fate(Fate::Rejected),
        refused(Code::AlreadyCounted),
        refused(Code::NotFinite),
    ] {
        let (mut scene, ..) = Scene::submitting();
        scene.answer(fate);
        assert!(!scene.has(|effect| matches!(effect, Effect::Emit(WorkerEvent::Submitted { .. }))));
        assert!(scene.has(|effect| matches!(effect, Effect::Emit(WorkerEvent::Dropped { .. }))));
    }
    scene.answer(fate(Fate::Merged));
    assert!(scene.has(|effect| matches!(effect, Effect::Emit(WorkerEvent::Submitted { .. }))));
}

#[test]
fn a_result_that_is_refused_casts_doubt_on_the_inner_state_and_one_that_came_late_does_not() {
    let doubts = |scene: &Scene| scene.has(|effect| matches!(effect, Effect::DoubtInner(_)));
    for (answer, expected) in [
        (refused(Code::NotFinite), true),
        (refused(Code::NormOutlier), true),
        (fate(Fate::Late), false),
        (refused(Code::AlreadyCounted), false),
        (fate(Fate::Merged), false),
    ] {
        let (mut scene, ..) = Scene::submitting();
        scene.answer(answer.clone());
        assert_eq!(doubts(&scene), expected, "{answer:?}");
        // One order for the state: a save beside a doubt would write what the doubt drops.
        let orders = scene.effects.iter().filter(|effect| {
            matches!(
                effect,
                Effect::SaveInner | Effect::TrustInner | Effect::DoubtInner(_)
            )
        });
        assert_eq!(orders.count(), 1, "{answer:?}: {:?}", scene.effects);
    }
}

/// FG-20: time-outs are retried, the same request again.
#[test]
fn fg_20_unanswered_requests_are_repeated_with_growing_pauses() {
    let (mut scene, ..) = Scene::submitting();
    let (_, first) = scene.request();
    let first = first.clone();
    let mut pauses = Vec::new();
    for _ in 0..4 {
        scene.answer(refused(Code::NoAnswer));
        pauses.push(pause(&scene));
        scene.until(submits);
        assert_eq!(scene.request().1, &first);
    }
    assert!(
        pauses.windows(2).all(|pair| pair[0] < pair[1] * 2) && pauses[3] > pauses[0],
        "{pauses:?}"
    );
}

/// FG-19: whoever loses the coordinator and finds it again within its lease goes on where it was,
/// and hands everything in.
#[test]
fn fg_19_an_absence_within_the_lease_costs_no_local_step() {
    /// What would throw steps away, or begin the unit anew.
    fn disturbs(effect: &Effect) -> bool {
        match effect {
            Effect::Send { request, .. } => {
                !matches!(request, Request::Renew(_) | Request::Submit(_))
            }
            Effect::Emit(event) => matches!(
                event,
                WorkerEvent::Dropped { .. } | WorkerEvent::Stopped { .. }
            ),
            Effect::Upload { .. }
            | Effect::Heartbeat(_)
            | Effect::Waiting { .. }
            | Effect::SaveInner
            | Effect::TrustInner
            | Effect::DoubtInner(_) => false,
            _ => true,
        }
    }
    fn renews(effect: &Effect) -> bool {
        matches!(
            effect,
            Effect::Send {
                request: Request::Renew(_),
                ..
            }
        )
    }
    for away in [Code::NoAnswer, Code::BusUnreachable, Code::Draining] {
        let (mut scene, work, held) = Scene::training();
        let ends_at = scene.now.after(LEASE);
        let mut missed = 0;
        // Steps go on all the time; the last renewal before the end of the lease is the one that
        // arrives.
        loop {
            scene.give(Input::Progress {
                work,
                steps_done: Steps(1 + missed.min(2)),
            });
            assert!(scene.effects.is_empty());
            scene.until(renews);
            assert!(!scene.has(disturbs), "{away}: {:?}", scene.effects);
            if scene.now.until(ends_at) <= Millis::from_secs(1) {
                break;
            }
            scene.answer(refused(away));
            assert!(!scene.has(disturbs), "{away}: {:?}", scene.effects);
            missed += 1;
        }
        assert!(missed > 5, "it was away for long: {missed}");
        let Request::Renew(renewal) = scene.request().1 else {
            panic!("it renews")
        };
        assert_eq!(
            (renewal.lease, renewal.steps_done),
            (held, Steps(3)),
            "{away}"
        );
        let renewed = scene.renewed();
        scene.answer(Ok(renewed));
        assert!(!scene.has(disturbs), "{away}: {:?}", scene.effects);
        scene.now = scene.now.after(Millis::from_secs(2));
        scene.give(Input::Trained {
            work,
            outcome: Ok(trained()),
        });
        assert!(
            scene.now > ends_at
                && scene.has(|effect| matches!(effect, Effect::Upload { .. }))
                && !scene.has(disturbs)
        );
        scene.give(Input::Uploaded {
            work,
            outcome: Ok(vec![ObjectRef::of(b"chunk")]),
        });
        // Away again, with the result in hand.
        let (_, Request::Submit(stated)) = scene.request() else {
            panic!("a result is submitted")
        };
        let stated = stated.clone();
        for _ in 0..5 {
            scene.answer(refused(away));
            scene.until(submits);
            assert!(!scene.has(disturbs), "{away}: {:?}", scene.effects);
            assert_eq!(scene.request().1, &Request::Submit(stated.clone()));
        }
        let statement = Statement::decode(&stated).expect("what was encoded");
        let Outcome::Contribution(contribution) = statement.outcome else {
            panic!("of a training unit")
        };
        assert_eq!(
            (statement.lease, contribution.steps),
            (held, trained().steps),
            "{away}"
        );
        scene.answer(fate(Fate::Merged));
        assert!(
            scene.has(|effect| matches!(effect, Effect::Emit(WorkerEvent::Submitted { lease, .. }) if *lease == held))
        );
    }
}

/// LS-10: whoever was taken off the list joins again.
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

fn pause(scene: &Scene) -> u64 {
    let pause = scene.effects.iter().find_map(|effect| match effect {
        Effect::Waiting { pause, .. } => Some(pause.get()),
        _ => None,
    });
    pause.expect("waiting is shown")
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
            outcome: Ok(()),
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

/// LS-10: and whoever is thrown out each time it joins asks less and less often.
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
    scene.answer(Ok(Answer::Claim(ClaimReply { v: V, outcome })));
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
            // The first renewal was never answered at all, not even by a time-out: the lease ends
            // all the same.
            assert!(scene.now <= granted.after(LEASE));
        }
    }
    assert_eq!(granted.until(scene.now), LEASE);
    assert!(
        scene.has(|effect| matches!(effect, Effect::Stop { work: stopped } if *stopped == work))
    );
    assert!(scene.has(|effect| matches!(effect, Effect::SaveInner)) && scene.has(claims));
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
        assert!(scene.has(|effect| matches!(effect, Effect::SaveInner)) && scene.has(claims));
        assert!(!scene.has(|effect| matches!(
            effect,
            Effect::Send {
                request: Request::Release(_),
                ..
            }
        )));
    }
}

/// Ten units, then the worker ends; but a store without room fails everybody's, and somebody makes
/// room some day.
#[test]
fn a_machine_that_fails_every_unit_ends_and_a_full_store_is_waited_for() {
    for (code, ends) in [
        (Code::TrainingFailed, true),
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

/// Swallows the answers to a request, one after another; the milliseconds from the first to each of
/// its repeats.
fn swallow(scene: &mut Scene, wanted: fn(&Effect) -> bool) -> Vec<u64> {
    let asked_at = scene.now;
    let (_, first) = scene.request();
    let first = first.clone();
    let repeat = |scene: &mut Scene| {
        let waited = scene.effects.iter().find_map(|effect| match effect {
            Effect::Send { patience, .. } => Some(*patience),
            _ => None,
        });
        scene.now = scene.now.after(waited.expect("a request was sent"));
        scene.answer(refused(Code::NoAnswer));
        scene.until(wanted);
        assert_eq!(
            scene.request().1,
            &first,
            "the same question, so that it is the same to who answers"
        );
        asked_at.until(scene.now).get()
    };
    (0..6).map(|_| repeat(scene)).collect()
}

/// What a coordinator that died was asked is not waited for much longer than an answer takes, and
/// less and less often.
#[test]
fn a_lost_answer_costs_seconds() {
    let joins = swallow(&mut Scene::new(), joins);
    assert!(joins[0] <= 2_200 && joins[1] <= 6_600, "{joins:?}");
    assert!(
        joins.windows(2).all(|pair| pair[1] - pair[0] <= 17_000),
        "{joins:?}"
    );
    assert!(
        joins[5] - joins[4] >= 16_000,
        "who cannot answer in time is not asked for ever: {joins:?}"
    );
    let (mut submitting, ..) = Scene::submitting();
    let patience = |scene: &Scene| {
        let of_submit = |effect: &Effect| match effect {
            Effect::Send {
                request: Request::Submit(_),
                patience,
                ..
            } => Some(patience.get()),
            _ => None,
        };
        scene.effects.iter().find_map(of_submit)
    };
    assert_eq!(patience(&submitting), Some(2_000));
    submitting.now = submitting.now.after(Millis(2_000));
    submitting.answer(refused(Code::NoAnswer));
    submitting.until(submits);
    assert_eq!(patience(&submitting), Some(4_000));
}

/// Refusals come at once, and so does the broker's word that nobody listens. After many of them the
/// first question that reaches a coordinator, and whose answer is lost, still costs seconds.
#[test]
fn refusals_that_come_at_once_leave_the_next_wait_short() {
    let mut scene = Scene::new();
    for code in [Code::NoAnswer, Code::AskedTooMuch, Code::Draining].repeat(4) {
        scene.answer(refused(code));
        scene.until(joins);
    }
    let repeats = swallow(&mut scene, joins);
    assert!(
        (2_000..=3_000).contains(&repeats[0]),
        "two seconds, and a pause: {repeats:?}"
    );
    let patience = scene.effects.iter().find_map(|effect| match effect {
        Effect::Send {
            request: Request::Join(_),
            patience,
            ..
        } => Some(patience.get()),
        _ => None,
    });
    assert_eq!(
        patience,
        Some(16_000),
        "six answers that did not come made it the longest"
    );
}

/// The lease that a claim was granted runs on when the answer is lost: however short it is, the
/// claim is said again while enough of it is left for the answer to arrive.
#[test]
fn a_lost_grant_is_asked_for_again_while_its_lease_runs() {
    for seconds in [5, 6, 8, 20, 60, 86_400] {
        let lease = Millis::from_secs(seconds);
        let mut scene = Scene::joined_under(lease);
        let Request::Claim(claim) = scene.request().1 else {
            panic!("it claims")
        };
        assert!(
            claim.wait <= Millis::from_secs(5) && claim.wait >= Millis::from_secs(1),
            "{seconds} s"
        );
        let repeats = swallow(&mut scene, claims);
        // Granted at once, at worst.
        assert!(
            repeats[0] <= lease.get() * 6 / 10 && repeats[0] <= 7_500,
            "lease of {seconds} s: {repeats:?}"
        );
    }
}

/// The broker says at once that nobody answers; however long that lasted, a coordinator that is
/// back is found soon.
#[test]
fn a_coordinator_that_is_back_is_found_within_a_second() {
    type Sought = fn(&Effect) -> bool;
    for (mut scene, wanted) in [
        (Scene::new(), joins as Sought),
        (Scene::joined(), claims),
        (Scene::submitting().0, submits),
    ] {
        let mut pauses = std::collections::BTreeSet::new();
        for _ in 0..30 {
            let asked_at = scene.now;
            scene.answer(refused(Code::NoAnswer));
            while !scene.has(wanted) {
                // A held lease is renewed meanwhile; nobody answers that either.
                scene.wait();
                if scene.has(|effect| matches!(effect, Effect::Emit(WorkerEvent::Dropped { .. }))) {
                    break;
                }
            }
            assert!(
                asked_at.until(scene.now) <= Millis::from_secs(1),
                "{}",
                asked_at.until(scene.now)
            );
            pauses.insert(asked_at.until(scene.now));
            if !scene.has(wanted) {
                break;
            }
        }
        assert!(
            pauses.len() > 5,
            "all workers would come back at the same moment: {pauses:?}"
        );
    }
}

/// TL-09: a manifest that does not verify starts nothing.
#[test]
fn tl_09_tl_11_a_refused_manifest_starts_nothing_and_is_told() {
    for given in [None, Some(lease(0, UnitKind::Train, 1))] {
        let mut scene = Scene::joined();
        let outcome = ClaimOutcome::Lease("document".to_owned());
        scene.answer(Ok(Answer::Claim(ClaimReply { v: V, outcome })));
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
    scene.answer(Ok(Answer::Claim(ClaimReply { v: V, outcome })));
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
        scene.answer(Ok(Answer::Claim(ClaimReply {
            v: V,
            outcome: ClaimOutcome::Nothing,
        })));
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
    assert!(told(&scene));
    for _ in 0..100 {
        scene.give(forged());
        assert!(!told(&scene));
    }
    scene.now = scene.now.after(Millis(10_000));
    scene.give(forged());
    let shown = scene.effects.iter().find_map(|effect| match effect {
        Effect::Emit(WorkerEvent::Refused { detail, .. }) => Some(detail.clone()),
        _ => None,
    });
    assert!(shown.is_some_and(|detail| detail.starts_with("100 more")));
}

/// A slow join makes the clock's offset useless; the first renewal, at once, mends it.
#[test]
fn a_lease_survives_a_join_that_took_long() {
    let mut scene = Scene::new();
    scene.now = scene.now.after(LEASE);
    let reply = join_reply(scene.now);
    scene.answer(Ok(Answer::Join(Box::new(reply))));
    let outcome = ClaimOutcome::Lease("document".to_owned());
    scene.answer(Ok(Answer::Claim(ClaimReply { v: V, outcome })));
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

/// The coordinator's claim is answered with a lease that is of another time.
fn untimely(scene: &mut Scene) {
    let outcome = ClaimOutcome::Lease("document".to_owned());
    scene.answer(Ok(Answer::Claim(ClaimReply { v: V, outcome })));
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
    // More often than a worker may fail units.
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
    // One that was started again, and has the right time now: an hour more.
    let Answer::Renew(mut reply) = scene.renewed() else {
        unreachable!()
    };
    reply.expires_at = UnixMillis(reply.expires_at.get() + 3_600_000);
    scene.answer(Ok(Answer::Renew(reply)));
    let ahead = AHEAD as i64 + 3_600_000;
    assert!(scene.has(|effect| matches!(effect, Effect::Clock { ahead_ms } if *ahead_ms == ahead)));
}
