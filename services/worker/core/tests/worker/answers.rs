//! Tests of single answers of the coordinator and their consequences.

use std::collections::BTreeSet;

use schemas::contribution::Fate;
use schemas::event::WorkerEvent;
use schemas::lease::{RenewReply, UnitKind};
use schemas::{Code, Millis, Refusal, UnixMillis, V};
use worker_core::{Answer, Effect, Exit, Input, Request};

use crate::scene::{
    AHEAD, LEASE, Scene, claims, exits, fate, join_reply, joins, lease, pause, refused, renews,
    submits,
};

/// The longest wait for the answer to the renewal that was just sent.
fn renewal_patience(scene: &Scene) -> Option<Millis> {
    scene.effects.iter().find_map(|effect| match effect {
        Effect::Send {
            request: Request::Renew(_),
            patience,
            ..
        } => Some(*patience),
        _ => None,
    })
}

/// The coordinator's answer to a renewal, with the time that is left of the lease.
fn renewed(scene: &Scene, remaining: Millis, ahead: u64) -> Answer {
    let expires_at = UnixMillis(scene.now.get() + ahead + remaining.get());
    Answer::Renew(RenewReply {
        v: V,
        expires_at,
        remaining,
    })
}

#[test]
fn a_run_that_is_closed_ends_its_workers_well() {
    let renewing = {
        let mut scene = Scene::training().0;
        scene.until(renews);
        scene
    };
    for (what, mut scene) in [("claiming", Scene::joined()), ("training", renewing)] {
        scene.answer(refused(Code::RunClosed));
        let stops = scene.has(|effect| matches!(effect, Effect::Stop { .. }));
        assert_eq!(stops, what == "training");
        scene.until(exits);
        let well = |effect: &Effect| matches!(effect, Effect::Exit(Exit::Complete));
        assert!(scene.has(well), "{what}: {:?}", scene.effects);
    }
}

/// A bug of the coordinator is no fault of the worker or of its result.
#[test]
fn what_met_a_bug_of_the_coordinator_is_asked_again() {
    type Sought = fn(&Effect) -> bool;
    for (mut scene, wanted) in [
        (Scene::new(), joins as Sought),
        (Scene::joined(), claims),
        (Scene::submitting().0, submits),
    ] {
        let first = scene.request().1.clone();
        scene.answer(refused(Code::Internal));
        scene.until(wanted);
        assert_eq!(scene.request().1, &first);
    }
}

/// A coordinator that answers is present: its refusals lengthen the pauses more than an absence
/// does.
#[test]
fn refusals_of_a_coordinator_that_is_there_lengthen_the_pauses() {
    for (code, most) in [(Code::NoAnswer, 1_000), (Code::AskedTooMuch, 10_000)] {
        let mut scene = Scene::new();
        let mut longest = 0;
        for _ in 0..16 {
            scene.answer(refused(code));
            longest = longest.max(pause(&scene));
            scene.until(joins);
        }
        assert!((most / 2..=most).contains(&longest), "{code}: {longest} ms");
    }
}

#[test]
fn a_renewal_is_waited_for_a_sixth_of_the_lease_within_bounds() {
    let mut scene = Scene::training().0;
    scene.until(renews);
    assert_eq!(renewal_patience(&scene), Some(Millis(LEASE.get() / 6)));
    for (remaining, patience) in [(3_000, 1_000), (24_000, 4_000), (90_000, 10_000)] {
        let answer = renewed(&scene, Millis(remaining), AHEAD);
        scene.answer(Ok(answer));
        scene.until(renews);
        assert_eq!(renewal_patience(&scene), Some(Millis(patience)));
    }
}

/// Workers that lose their coordinator at the same moment come back at different ones.
#[test]
fn workers_of_different_seeds_renew_at_different_times() {
    let pauses = |seed: u64| {
        let mut scene = Scene::seeded(seed);
        scene.answer(Ok(Answer::Join(Box::new(join_reply(scene.now)))));
        let work = scene.grant(lease(0, UnitKind::Train, 1));
        let outcome = Ok(None);
        scene.give(Input::Fetched { work, outcome });
        let mut pauses = Vec::new();
        for _ in 0..6 {
            scene.until(renews);
            scene.answer(refused(Code::NoAnswer));
            pauses.push(pause(&scene));
        }
        pauses
    };
    let seeds = (0..8).chain((1..8).map(|high| high << 60));
    let different: BTreeSet<Vec<u64>> = seeds.map(pauses).collect();
    assert_eq!(different.len(), 15);
    assert_eq!(pauses(5), pauses(5));
}

/// The travel time of a message is no news of a clock.
#[test]
fn a_clock_is_measured_anew_when_it_moved_by_more_than_five_seconds() {
    let mut scene = Scene::training().0;
    for (ahead, news) in [
        (AHEAD + 5_000, false),
        (AHEAD - 5_000, false),
        (AHEAD + 5_001, true),
        (AHEAD + 10_001, false),
        (AHEAD, true),
    ] {
        scene.until(renews);
        let answer = renewed(&scene, LEASE, ahead);
        scene.answer(Ok(answer));
        let told = scene.effects.iter().find_map(|effect| match effect {
            Effect::Clock { ahead_ms } => Some(*ahead_ms),
            _ => None,
        });
        let expected = i64::try_from(ahead).expect("some seconds");
        assert_eq!(told, news.then_some(expected), "{ahead} ms");
    }
}

/// The worker shows the end of a unit at once, not at the next regular heartbeat.
#[test]
fn a_heartbeat_follows_the_end_of_a_unit_and_the_join() {
    let beats = |effect: &Effect| matches!(effect, Effect::Heartbeat(_));
    let scene = Scene::joined();
    assert!(scene.has(beats), "{:?}", scene.effects);
    let mut scene = Scene::submitting().0;
    assert!(!scene.has(beats));
    scene.answer(fate(Fate::Merged));
    assert!(scene.has(beats), "{:?}", scene.effects);
}

/// The answer to a result decides. A renewal that was refused meanwhile is over, and further
/// answers to it mean nothing.
#[test]
fn an_answer_to_a_refused_renewal_is_heard_once() {
    let mut scene = Scene::submitting().0;
    scene.until(renews);
    let id = scene.request().0;
    scene.answer(refused(Code::LeaseLost));
    for outcome in [refused(Code::Replaced), refused(Code::LeaseLost)] {
        scene.give(Input::Replied { id, outcome });
        assert!(scene.effects.is_empty(), "{:?}", scene.effects);
    }
}

/// The worker says goodbye once, whatever breaks meanwhile.
#[test]
fn a_process_that_breaks_while_it_leaves_says_no_second_goodbye() {
    let mut scene = Scene::joined();
    scene.answer(refused(Code::RunClosed));
    let stopped = |effect: &Effect| matches!(effect, Effect::Emit(WorkerEvent::Stopped { .. }));
    assert!(scene.has(stopped));
    let code = Code::TrainingThreadLost;
    let why = Refusal::new(code, "played by the test");
    scene.give(Input::Broken(why.clone()));
    assert!(scene.effects.is_empty(), "{:?}", scene.effects);
    scene.until(exits);
    let fails =
        |effect: &Effect| matches!(effect, Effect::Exit(Exit::Failed(found)) if *found == why);
    assert!(scene.has(fails) && !scene.has(stopped));
}

#[test]
fn an_exit_has_its_reason_in_words() {
    let refusal = Refusal::new(Code::TrainingThreadLost, "played by the test");
    for (exit, words) in [
        (Exit::Complete, "run complete"),
        (Exit::Drained, "drained"),
        (Exit::Stopped, "stopped"),
        (Exit::Failed(refusal.clone()), &*refusal.to_string()),
    ] {
        assert_eq!(exit.reason(), words);
    }
}
