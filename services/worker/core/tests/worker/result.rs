//! The ends of a result: counted, refused, or unknown. The answer to the submit alone decides.

use schemas::contribution::{Fate, SubmitReply};
use schemas::lease::UnitKind;
use schemas::public::CommandVerb;
use schemas::{Class, Code, ObjectRef, Refusal, V};
use worker_core::{Answer, Effect, Input, Request, RequestId, ResultEnd};

use crate::scene::{
    LEASE, Scene, claims, ends, exits, fate, joins, keeps, lease, refused, renews, submits, trained,
};

fn is_refused(scene: &Scene) -> bool {
    matches!(ends(scene)[..], [ResultEnd::Refused(_)])
}

/// A worker whose submit and whose renewal wait for their answers.
fn renewing_beside_the_submit() -> (Scene, RequestId, RequestId) {
    let (mut scene, ..) = Scene::submitting();
    let submit = scene.request().0;
    scene.until(renews);
    let sent = scene
        .sent()
        .find(|(_, request)| matches!(request, Request::Renew(_)));
    let renewal = sent.expect("it was asked for").0;
    (scene, submit, renewal)
}

#[test]
fn the_answer_to_the_submit_is_the_end_and_there_is_one_order_for_the_state() {
    for (answer, counts) in [
        (fate(Fate::Merged), true),
        (fate(Fate::Late), false),
        (fate(Fate::Abandoned), false),
        (fate(Fate::Rejected), false),
        (refused(Code::AlreadyCounted), false),
        (refused(Code::NotFinite), false),
        (refused(Code::StatementInvalid), false),
        (refused(Code::LeaseLost), false),
        (refused(Code::LeaseStalled), false),
        (refused(Code::RunClosed), false),
    ] {
        let (mut scene, ..) = Scene::submitting();
        scene.answer(answer.clone());
        assert_eq!(scene.has(keeps(&ResultEnd::Counted)), counts, "{answer:?}");
        assert_eq!(is_refused(&scene), !counts, "{answer:?}");
    }
}

/// The refusal decides that a state which came from a file is dropped.
#[test]
fn the_end_names_the_refusal() {
    let (mut scene, ..) = Scene::submitting();
    scene.answer(refused(Code::NormOutlier));
    let of_numbers =
        |end: &&ResultEnd| matches!(end, ResultEnd::Refused(why) if why.code == Code::NormOutlier);
    assert!(ends(&scene).iter().all(of_numbers) && !ends(&scene).is_empty());
}

#[test]
fn a_renewal_that_is_refused_leaves_the_end_to_the_submit() {
    for code in [
        Code::LeaseLost,
        Code::LeaseUnknown,
        Code::LeaseStalled,
        Code::NotJoined,
        Code::RunClosed,
    ] {
        let (mut scene, submit, renewal) = renewing_beside_the_submit();
        let refusal = Refusal::new(code, "played by the test");
        scene.give(Input::Replied {
            id: renewal,
            outcome: Err(refusal),
        });
        let gave_up = |effect: &Effect| matches!(effect, Effect::Stop { .. }) || claims(effect);
        assert!(!scene.has(gave_up) && ends(&scene).is_empty(), "{code}");
        scene.give(Input::Replied {
            id: submit,
            outcome: fate(Fate::Merged),
        });
        assert!(
            scene.has(keeps(&ResultEnd::Counted)) && scene.has(claims),
            "{code}"
        );
    }
}

#[test]
fn a_result_that_is_never_answered_is_unknown_when_the_lease_runs_out() {
    let (mut scene, _, renewal) = renewing_beside_the_submit();
    scene.give(Input::Replied {
        id: renewal,
        outcome: refused(Code::LeaseLost),
    });
    let begun = scene.now;
    scene.until(claims);
    assert!(scene.has(keeps(&ResultEnd::Unknown)));
    assert!(begun.until(scene.now) <= LEASE);
}

#[test]
fn a_worker_that_ends_before_the_answer_does_not_know_the_end() {
    let (mut scene, ..) = Scene::submitting();
    scene.give(Input::Command(CommandVerb::Stop));
    assert!(ends(&scene).is_empty(), "the answer may come in time");
    scene.until(exits);
    assert!(scene.has(keeps(&ResultEnd::Unknown)));
    let (mut scene, ..) = Scene::submitting();
    scene.answer(refused(Code::Replaced));
    assert!(scene.has(keeps(&ResultEnd::Unknown)) && scene.has(exits));
}

/// The first submit may have counted, so long ago that the coordinator has forgotten it.
#[test]
fn a_submit_that_is_said_again_and_finds_no_lease_is_unknown() {
    for (code, goes_on) in [
        (Code::LeaseLost, claims as fn(&Effect) -> bool),
        (Code::NotJoined, joins),
    ] {
        let (mut scene, ..) = Scene::submitting();
        scene.answer(refused(Code::NoAnswer));
        assert!(ends(&scene).is_empty());
        scene.until(submits);
        scene.answer(refused(code));
        assert!(scene.has(keeps(&ResultEnd::Unknown)), "{code}");
        scene.until(goes_on);
    }
    // An answer of a coordinator that still knows the result decides nevertheless.
    for (answer, counts) in [
        (fate(Fate::Merged), true),
        (refused(Code::NotFinite), false),
    ] {
        let (mut scene, ..) = Scene::submitting();
        scene.answer(refused(Code::NoAnswer));
        scene.until(submits);
        scene.answer(answer);
        assert_eq!(scene.has(keeps(&ResultEnd::Counted)), counts);
        assert_eq!(is_refused(&scene), !counts);
    }
}

/// A coordinator that has lost the lead does not know the leases and members that its successor has
/// let in, while the successor counts the result.
#[test]
fn what_the_coordinator_does_not_know_proves_nothing_about_the_first_submit_either() {
    for code in [
        Code::LeaseUnknown,
        Code::NotJoined,
        Code::IdentityMismatch,
        Code::UploadMissing,
        Code::ObjectMissing,
    ] {
        let (mut scene, ..) = Scene::submitting();
        scene.answer(refused(code));
        assert_eq!(ends(&scene), [&ResultEnd::Unknown], "{code}");
    }
    // Asked again, it may hear of a run that it knows.
    let (mut scene, ..) = Scene::submitting();
    scene.answer(refused(Code::RunUnknown));
    assert!(ends(&scene).is_empty());
    scene.until(submits);
}

#[test]
fn an_answer_that_cannot_be_read_decides_nothing() {
    for code in [Code::MessageInvalid, Code::AnswerForeign] {
        let (mut scene, ..) = Scene::submitting();
        scene.answer(refused(code));
        assert!(scene.has(keeps(&ResultEnd::Unknown)), "{code}");
    }
}

/// No refusal code turns a result that may have counted into a refused one.
#[test]
fn only_words_about_the_result_or_the_end_of_its_lease_decide() {
    for code in Code::ALL.iter().copied() {
        let (mut scene, ..) = Scene::submitting();
        scene.answer(refused(code));
        if is_refused(&scene) {
            let in_the_ledger = [Code::LeaseLost, Code::LeaseStalled, Code::RunClosed];
            let about_it = code.class() == Class::Final || code == Code::AlreadyCounted;
            assert!(about_it || in_the_ledger.contains(&code), "{code}");
        }
        let (mut scene, ..) = Scene::submitting();
        scene.answer(refused(Code::NoAnswer));
        scene.until(submits);
        scene.answer(refused(code));
        if is_refused(&scene) {
            let about_it = code.class() == Class::Final || code == Code::AlreadyCounted;
            assert!(about_it, "{code}");
        }
    }
}

#[test]
fn a_unit_that_was_not_handed_in_is_refused_whatever_ended_it() {
    let (mut scene, ..) = Scene::training();
    scene.until(claims);
    assert!(is_refused(&scene), "the lease ran out");
    let (mut scene, work, _) = Scene::training();
    scene.give(Input::Trained {
        work,
        outcome: Ok(trained()),
    });
    let failed = Refusal::new(Code::StoreFull, "no room");
    scene.give(Input::Uploaded {
        work,
        outcome: Err(failed),
    });
    assert!(is_refused(&scene));
}

#[test]
fn the_end_names_the_work_that_it_is_of() {
    let mut scene = Scene::joined();
    for epoch in 1..4 {
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
        let fate = Fate::Merged;
        scene.answer(Ok(Answer::Submit(SubmitReply { v: V, fate })));
        let of_it =
            |effect: &Effect| matches!(effect, Effect::KeepInner { work: of, .. } if *of == work);
        assert!(scene.has(of_it), "epoch {epoch}");
    }
}
