//! A unit, from the claim to the answer to its result.

use schemas::contribution::{Evaluation, Fate, Outcome, Statement};
use schemas::event::WorkerEvent;
use schemas::lease::{UnitKind, Work};
use schemas::masking::CohortSeal;
use schemas::provenance::{HandedIn, MadeFrom, Provenance};
use schemas::run::{RunSpec, SecureAggregation};
use schemas::{Chunks, Code, Digest, Message as _, ObjectRef, Refusal, Tokens};
use serde_bytes::ByteArray;
use worker_core::{Agreed, Effect, Input, Request, ResultEnd, Trained, WorkId};

use crate::scene::{
    Scene, claims, dropped, ends, exits, fate, keeps, lease, manifest, refused, renews, settings,
    spec, submits, trained,
};

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
        outcome: Ok(None),
    });
    assert!(scene.has(|effect| matches!(effect, Effect::Train { .. })));
    scene.give(Input::Trained {
        work,
        outcome: Ok(trained()),
    });
    assert!(scene.has(|effect| matches!(effect, Effect::Upload { .. })));
    let chunks = Chunks::Named(vec![ObjectRef::of(b"chunk")]);
    scene.give(Input::Uploaded {
        work,
        outcome: Ok(chunks.clone()),
    });
    let (_, Request::Submit(result)) = scene.request() else {
        panic!("a result is submitted")
    };
    let statement = Statement::decode(&result.statement).expect("what was encoded");
    let Outcome::Contribution(contribution) = statement.outcome else {
        panic!("of a training unit")
    };
    // It signs what its lease says that it was made from.
    let (manifest, join) = (manifest(held, scene.now), settings().join);
    let Work::Train { shards, .. } = manifest.work else {
        panic!("a training unit")
    };
    let handed = HandedIn {
        spec: &spec(),
        spec_digest: statement.spec,
        worker: &settings().worker,
        lease: held,
        contribution: &contribution,
        statement: Digest::of(&result.statement),
    };
    let from = MadeFrom {
        base: manifest.base,
        shards,
        release: join.release,
    };
    let said = Provenance::of_contribution(handed, &from, "a-domain", &join.audit_key);
    assert_eq!(result.provenance, Some(said.to_json()));
    assert_eq!(
        (statement.lease, contribution.chunks, contribution.tokens),
        (held, chunks, Tokens(64))
    );
    scene.answer(fate(Fate::Merged));
    assert!(scene.has(|effect| matches!(effect, Effect::Emit(WorkerEvent::Submitted { .. }))));
    assert!(scene.has(claims) && scene.has(keeps(&ResultEnd::Counted)));
}

/// A run of three units with secure aggregation.
fn masked_spec() -> RunSpec {
    let mut spec = spec();
    spec.policy.norm_max = 0.0;
    (spec.schedule.units, spec.policy.workers_min) = (3, 3);
    spec.upload = kit::FP32;
    spec.secure_aggregation = Some(SecureAggregation {
        threshold: 3,
        largest: 1.0,
    });
    spec
}

fn agreed() -> Box<Agreed> {
    let seal = CohortSeal {
        key: kit::operator(),
        signature: ByteArray::new([7; 64]),
    };
    let cohort = Digest::of(b"cohort");
    Box::new(Agreed { cohort, seal })
}

#[test]
fn tl_17_a_worker_tells_its_cohort_before_it_trains_and_states_it_with_its_contribution() {
    let held = lease(0, UnitKind::Train, 1);
    let mut scene = Scene::joined_to(masked_spec());
    let work = scene.grant(held);
    let Agreed { cohort, seal } = *agreed();
    let outcome = Ok(Some(agreed()));
    scene.give(Input::Fetched { work, outcome });
    let told = WorkerEvent::Masked {
        lease: held,
        cohort,
        seal,
    };
    let place = |found: &dyn Fn(&Effect) -> bool| scene.effects.iter().position(found);
    let at = place(&|effect| matches!(effect, Effect::Record { event, .. } if *event == told));
    let trains = place(&|effect| matches!(effect, Effect::Train { .. }));
    assert!(at.is_some() && at < trains);
    let outcome = Ok(());
    scene.give(Input::Recorded { work, outcome });
    scene.give(Input::Trained {
        work,
        outcome: Ok(trained()),
    });
    let chunks = Chunks::Named(vec![ObjectRef::of(b"chunk")]);
    scene.give(Input::Uploaded {
        work,
        outcome: Ok(chunks),
    });
    let (_, Request::Submit(result)) = scene.request() else {
        panic!("a result is submitted")
    };
    let statement = Statement::decode(&result.statement).expect("what was encoded");
    let Outcome::Contribution(contribution) = statement.outcome else {
        panic!("of a training unit")
    };
    assert_eq!(
        (contribution.cohort, contribution.loss),
        (Some(cohort), 0.0)
    );
}

/// A worker of a masked run that trains, and whose event about its cohort is under way.
fn masking() -> (Scene, WorkId) {
    let mut scene = Scene::joined_to(masked_spec());
    let work = scene.grant(lease(0, UnitKind::Train, 1));
    let outcome = Ok(Some(agreed()));
    scene.give(Input::Fetched { work, outcome });
    (scene, work)
}

fn uploads(effect: &Effect) -> bool {
    matches!(effect, Effect::Upload { .. })
}

#[test]
fn tl_17_a_masked_contribution_leaves_the_worker_once_its_cohort_is_recorded_and_not_before() {
    let (mut scene, work) = masking();
    let outcome = Ok(trained());
    let trained = Input::Trained { work, outcome };
    let recorded = |work| {
        let outcome = Ok(());
        Input::Recorded { work, outcome }
    };
    scene.give(trained.clone());
    assert!(!scene.has(uploads));
    // It says what it waits for, and keeps its lease.
    let waits = |effect: &Effect| matches!(effect, Effect::Waiting { refusal, .. } if refusal.code == Code::EventLater);
    assert!(scene.has(waits));
    scene.until(renews);
    assert!(!scene.has(uploads));
    // What was told about other work says nothing about this one.
    scene.give(recorded(WorkId(work.0 + 1)));
    assert!(!scene.has(uploads));
    scene.give(recorded(work));
    assert!(scene.has(uploads));
    scene.give(recorded(work));
    assert!(!scene.has(uploads), "once");

    let (mut scene, work) = masking();
    scene.give(recorded(work));
    assert!(!scene.has(uploads), "nothing is trained yet");
    scene.give(trained);
    assert!(scene.has(uploads) && !scene.has(waits));
}

/// A coordinator that removes the worker from the ledger, or names another key of it, has its
/// events refused; a cohort that it shows then is in no record.
#[test]
fn tl_17_a_worker_whose_event_about_its_cohort_is_refused_uploads_nothing() {
    for has_trained in [false, true] {
        for code in [
            Code::EventRefused,
            Code::ChainForked,
            Code::EventLater,
            Code::WorkerChainInvalid,
            Code::WorkerQuarantined,
        ] {
            let (mut scene, work) = masking();
            if has_trained {
                let outcome = Ok(trained());
                scene.give(Input::Trained { work, outcome });
            }
            let outcome = Err(Refusal::new(code, "played by the test"));
            scene.give(Input::Recorded { work, outcome });
            let stops =
                |effect: &Effect| matches!(effect, Effect::Stop { work: of } if *of == work);
            // One that is shut out ends at once.
            let ends = scene.has(stops) && scene.has(dropped(code)) || scene.has(exits);
            assert!(ends, "{code}");
            // What comes late of the work that was stopped changes nothing.
            let outcome = Ok(());
            scene.give(Input::Recorded { work, outcome });
            let outcome = Ok(trained());
            scene.give(Input::Trained { work, outcome });
            assert!(!scene.has(uploads), "{code}");
        }
    }
}

#[test]
fn tl_17_nothing_is_trained_for_a_masked_round_without_a_cohort_and_nothing_else_for_one() {
    for (spec, kind, outcome) in [
        (masked_spec(), UnitKind::Train, None),
        (masked_spec(), UnitKind::Evaluate, Some(agreed())),
        (spec(), UnitKind::Train, Some(agreed())),
    ] {
        let mut scene = Scene::joined_to(spec);
        let work = scene.grant(lease(0, kind, 1));
        let outcome = Ok(outcome);
        scene.give(Input::Fetched { work, outcome });
        assert!(
            !scene.has(|effect| matches!(effect, Effect::Train { .. } | Effect::Evaluate { .. }))
        );
        assert!(scene.has(|effect| matches!(
            effect,
            Effect::Emit(WorkerEvent::Dropped {
                code: Code::CohortOther,
                ..
            })
        )));
    }
}

#[test]
fn an_evaluation_needs_no_upload_and_touches_no_inner_state() {
    let (mut scene, work) = Scene::holding(lease(0, UnitKind::Evaluate, 1));
    scene.give(Input::Fetched {
        work,
        outcome: Ok(None),
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
    assert!(scene.has(claims) && ends(&scene).is_empty());
}

/// LS-03, LS-04: nothing counts as done before its reply says so.
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

/// The text of a failure goes into the record, and a loss in it would be a number without noise.
#[test]
fn tl_16_tl_17_a_run_that_protects_contributions_tells_no_number_of_a_unit_that_failed() {
    let failures = [
        Ok(Trained {
            loss: 10_001.5,
            ..trained()
        }),
        Err(Refusal::new(Code::TrainingFailed, "the loss is 10001.5")),
    ];
    for failure in failures {
        for (private, masked) in [(false, false), (true, false), (false, true)] {
            let mut spec = if masked { masked_spec() } else { spec() };
            spec.policy.norm_max = 0.0;
            spec.privacy = private.then(kit::privacy);
            let covered = private || masked;
            let mut scene = Scene::joined_to(spec);
            let work = scene.grant(lease(0, UnitKind::Train, 1));
            for input in [
                Input::Fetched {
                    work,
                    outcome: Ok(masked.then(agreed)),
                },
                Input::Trained {
                    work,
                    outcome: failure.clone(),
                },
            ] {
                scene.give(input);
            }
            let told = scene.effects.iter().find_map(|effect| match effect {
                Effect::Emit(WorkerEvent::Dropped { code, detail, .. }) => Some((*code, detail)),
                _ => None,
            });
            let (code, detail) = told.expect("the unit is given back");
            assert_eq!(code, Code::TrainingFailed);
            assert_eq!(detail.contains("10001.5"), !covered, "{detail}");
            // Neither does what else leaves the worker: the release, the heartbeat, the log.
            let all = format!("{:?}", scene.effects);
            assert_eq!(all.contains("10001.5"), !covered, "{all}");
        }
    }
}
