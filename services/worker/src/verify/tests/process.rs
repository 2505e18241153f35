//! Documents that were signed for another process of the worker.

use serde_json::{Value, json};

use super::super::*;
use super::command_once;
use super::scene::{NOW, SESSION, Scene, unit};

/// A captured broker shows a process what ended the one before it, or what that one worked on.
#[test]
fn tl_14_what_was_signed_for_another_process_of_the_worker_is_refused() {
    let scene = Scene::new();
    let now = Expected {
        session: Session(SESSION.0 + 1),
        ..scene.expected()
    };
    for verb in [
        CommandVerb::Stop,
        CommandVerb::Drain,
        CommandVerb::Quarantine,
    ] {
        let document = scene
            .key
            .sign_document(COMMAND_TYPE, &scene.command(verb))
            .expect("small claims");
        let mut obeyed = Commands::default();
        let mut obey = |expected: &Expected<'_>| {
            super::super::command(document.as_bytes(), expected, &mut obeyed)
        };
        let refused = obey(&now).expect_err("it was for the process before");
        assert_eq!(refused.code, Code::ProcessOther);
        assert!(refused.detail.contains(&SESSION.to_string()), "{refused}");
        assert_eq!(obey(&scene.expected()), Ok(verb), "a refusal uses nothing");
    }

    let claims = scene.claims(unit(UnitKind::Train, 1));
    let document = scene
        .key
        .sign_document(MANIFEST_TYPE, &claims)
        .expect("small claims");
    let check = |expected: &Expected<'_>| {
        manifest(&document, expected, &scene.spec, scene.spec.to_object().1)
    };
    for now in [NOW, NOW.after(Millis::from_secs(3600))] {
        let expected = Expected {
            session: Session(SESSION.0 + 1),
            now,
            ..scene.expected()
        };
        let refused = check(&expected).expect_err("it was for the process before");
        assert_eq!(refused.lease, None, "another process gives nothing back");
        if now == NOW {
            assert_eq!(refused.refusal.code, Code::ProcessOther);
        }
    }
    assert_eq!(check(&scene.expected()).expect("its own"), claims);
}

/// Documents of the builds before name no process.
#[test]
fn tl_14_a_document_of_the_version_before_is_refused() {
    let scene = Scene::new();
    let older = |claims: Value| {
        let mut claims = claims;
        claims["v"] = json!(1);
        claims.as_object_mut().expect("claims").remove("session");
        claims
    };
    let command = serde_json::to_value(scene.command(CommandVerb::Stop)).expect("JSON");
    let document = scene.key.sign_document(COMMAND_TYPE, &older(command));
    let refused = command_once(document.expect("small claims").as_bytes(), &scene);
    assert_eq!(
        refused.expect_err("it is older").code,
        Code::ManifestInvalid
    );
    let claims = serde_json::to_value(scene.claims(unit(UnitKind::Train, 1))).expect("JSON");
    let refused = scene.check_claims(&older(claims)).expect_err("it is older");
    assert_eq!(refused.refusal.code, Code::ManifestInvalid);
}
