//! Answers that do not come, and a coordinator that is away.

use schemas::contribution::{Fate, Outcome, Statement};
use schemas::event::WorkerEvent;
use schemas::{Code, Message as _, Millis, ObjectRef, Steps};
use worker_core::{Effect, Input, Request};

use crate::scene::{LEASE, Scene, claims, fate, joins, pause, refused, renews, submits, trained};

/// FG-20: a request that timed out is repeated unchanged.
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

/// FG-19: a worker that loses the coordinator and finds it again within its lease continues its
/// work, and hands everything in.
#[test]
fn fg_19_an_absence_within_the_lease_costs_no_local_step() {
    /// True for an effect that would throw steps away, or begin the unit anew.
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
            | Effect::KeepInner { .. } => false,
            _ => true,
        }
    }
    for away in [Code::NoAnswer, Code::BusUnreachable, Code::Draining] {
        let (mut scene, work, held) = Scene::training();
        let ends_at = scene.now.after(LEASE);
        let mut missed = 0;
        // Steps go on meanwhile; the last renewal before the end of the lease is the one that
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
            outcome: Ok(vec![ObjectRef::of(b"chunk")].into()),
        });
        // The coordinator is away again when the result is ready.
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
        let statement = Statement::decode(&stated.statement).expect("what was encoded");
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

/// Swallows the answers to a request, one after another. Returns the milliseconds from the first
/// send to each repeat.
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

/// A worker waits for the answer of a dead coordinator not much longer than an answer takes, and
/// repeats the question less and less often.
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

/// Refusals come at once, and so does the broker's report that nobody listens. After many of these,
/// the first question that reaches a coordinator and whose answer is lost still costs only seconds.
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

/// A lease runs on when the answer that grants it is lost. However short the lease is, the worker
/// repeats the claim while enough time is left for the answer to arrive.
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
        // At worst the lease was granted at once.
        assert!(
            repeats[0] <= lease.get() * 6 / 10 && repeats[0] <= 7_500,
            "lease of {seconds} s: {repeats:?}"
        );
    }
}

/// The broker reports at once that nobody answers. However long the absence was, a coordinator that
/// is back is found soon.
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
                // Meanwhile the worker tries to renew its lease; nobody answers that either.
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
