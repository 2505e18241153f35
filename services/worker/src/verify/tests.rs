mod bounds;
mod process;
mod scene;

use identity::ManifestKey;
use identity::key::{KeyKind, SigningKey};
use schemas::{Bytes, Listed, Round, Steps, UnitIndex};
use serde_json::{Value, json};

use super::*;
use scene::{CHUNKS, NOW, SESSION, Scene, flipped, leaves, object, unit};

#[test]
fn what_the_coordinator_signs_is_accepted() {
    let scene = Scene::new();
    for unit in [
        unit(UnitKind::Train, 0),
        unit(UnitKind::Train, 3),
        unit(UnitKind::Evaluate, 4),
    ] {
        let claims = scene.claims(unit);
        let document = scene
            .key
            .sign_document(MANIFEST_TYPE, &claims)
            .expect("small claims");
        assert_eq!(scene.check(&document).expect("good"), claims, "{unit}");
    }
}

/// TL-24: a document is refused whichever of its fields was changed, and no lease is given back for
/// it.
#[test]
fn tl_24_a_document_with_any_field_altered_is_refused() {
    let scene = Scene::new();
    let claims = scene.claims(unit(UnitKind::Train, 3));
    let document = scene
        .key
        .sign_document(MANIFEST_TYPE, &claims)
        .expect("small claims");
    let good = serde_json::to_value(&claims).expect("JSON");
    let mut places = Vec::new();
    leaves(&good, "", &mut places);
    assert!(places.len() > 25, "{places:?}");
    for place in &places {
        let mut bad = good.clone();
        let value = bad.pointer_mut(place).expect("a leaf");
        *value = flipped(value);
        let forged = scene
            .key
            .sign_document(MANIFEST_TYPE, &bad)
            .expect("small claims");
        let [header, _, signature] = document.split('.').collect::<Vec<_>>()[..] else {
            panic!("three parts")
        };
        let altered = format!(
            "{header}.{}.{signature}",
            forged.split('.').nth(1).expect("three parts")
        );
        let error = scene.check(&altered).expect_err(place);
        assert_eq!(
            (error.refusal.code, error.lease),
            (Code::SignatureInvalid, None),
            "{place}"
        );
    }
}

/// TL-10: in a document with a good signature, every field that is fixed elsewhere must agree with
/// its source.
#[test]
fn tl_10_tl_24_a_signed_document_must_agree_with_settings_and_lease() {
    let scene = Scene::new();
    // Fields that the coordinator may choose: what store and data set vouch for, and what only the
    // coordinator knows.
    let free = |place: &str| {
        ["/iat", "/expires_at", "/work/train/seed"].contains(&place)
            || place.ends_with("/digest")
            || place.starts_with("/work/train/shards")
            || place == "/work/train/steps_before"
    };
    let good = serde_json::to_value(scene.claims(unit(UnitKind::Train, 1))).expect("JSON");
    let mut places = Vec::new();
    leaves(&good, "", &mut places);
    let mut refused = 0;
    for place in places.iter().filter(|place| !free(place)) {
        let mut bad = good.clone();
        let value = bad.pointer_mut(place).expect("a leaf");
        *value = match place.as_str() {
            // One second more would still be a valid window, so it is moved far away.
            "/nbf" => json!(NOW.get() / 1000 + 3600),
            "/exp" => json!(NOW.get() / 1000 - 3600),
            "/base/codec/kind" => json!("fp32"),
            "/base/codec/rounding" => json!("stochastic"),
            "/lease/unit/kind" => json!("evaluate"),
            _ => flipped(value),
        };
        assert!(scene.check_claims(&bad).is_err(), "{place} of {bad}");
        refused += 1;
    }
    assert!(refused > 15, "{refused}");
}

#[test]
fn tl_10_every_claim_is_required() {
    let scene = Scene::new();
    let good = serde_json::to_value(scene.claims(unit(UnitKind::Train, 1))).expect("JSON");
    let mut places = Vec::new();
    leaves(&good, "", &mut places);
    for place in &places {
        let (parent, name) = place.rsplit_once('/').expect("a pointer");
        let mut bad = good.clone();
        let Some(map) = bad
            .pointer_mut(parent)
            .expect("it holds a leaf")
            .as_object_mut()
        else {
            continue;
        };
        map.remove(name).expect("a leaf");
        let error = scene.check_claims(&bad).expect_err(place);
        assert_eq!(
            (error.refusal.code, error.lease),
            (Code::ManifestInvalid, None),
            "{place}"
        );
    }
}

/// Everything is wrong at first; a check reports only after those before it pass.
#[test]
fn tl_11_signature_window_audience_and_binding_are_checked_in_this_order() {
    let scene = Scene::new();
    let good = scene.claims(unit(UnitKind::Train, 1));
    let other = SigningKey::generate(KeyKind::User)
        .public()
        .as_str()
        .parse()
        .expect("a user key");
    let unbound = Manifest {
        spec: Digest::of(b"other"),
        ..good.clone()
    };
    let before = Manifest {
        session: Session(SESSION.0 + 1),
        ..unbound.clone()
    };
    let foreign = Manifest {
        aud: other,
        ..before.clone()
    };
    let old = Manifest {
        exp: NOW.get() / 1000 - 3600,
        ..foreign.clone()
    };
    let refused = |key: &ManifestKey, claims: &Manifest| {
        let document = key
            .sign_document(MANIFEST_TYPE, claims)
            .expect("small claims");
        scene.check(&document).expect_err("refused").refusal
    };
    assert_eq!(
        refused(&ManifestKey::generate(), &old).code,
        Code::SignatureInvalid
    );
    for (claims, says) in [
        (&old, "is valid from"),
        (&foreign, "the manifest is for"),
        (&before, "the lease is for session"),
        (&unbound, "settings are"),
    ] {
        let refusal = refused(&scene.key, claims);
        assert!(refusal.detail.contains(says), "{says}: {}", refusal.detail);
    }
    assert!(
        scene
            .check_claims(&serde_json::to_value(&good).expect("JSON"))
            .is_ok()
    );
}

#[test]
fn a_lease_of_another_time_says_by_how_much_and_is_given_back_only_when_it_is_ours() {
    let scene = Scene::new();
    let good = scene.claims(unit(UnitKind::Train, 1));
    let seconds = NOW.get() / 1000;
    let other = SigningKey::generate(KeyKind::User)
        .public()
        .as_str()
        .parse()
        .expect("a user key");
    let late = Manifest {
        exp: seconds - 90,
        nbf: seconds - 120,
        ..good.clone()
    };
    let early = Manifest {
        nbf: seconds + 3600,
        exp: seconds + 3700,
        ..good
    };
    for (claims, ours, says) in [
        (&late, true, "90 s in the past"),
        (&early, true, "3600 s in the future"),
        (
            &Manifest {
                aud: other,
                ..late.clone()
            },
            false,
            "90 s in the past",
        ),
        (
            &Manifest {
                run: "another".parse().expect("a name"),
                ..late.clone()
            },
            false,
            "90 s in the past",
        ),
    ] {
        let refused = scene
            .check_claims(&serde_json::to_value(claims).expect("JSON"))
            .expect_err("not now");
        assert_eq!(
            (refused.refusal.code, refused.lease.is_some()),
            (Code::ClockOff, ours)
        );
        assert!(
            refused.refusal.detail.contains(&format!("a time {says}")),
            "{}",
            refused.refusal.detail
        );
    }
}

#[test]
fn tl_13_either_of_two_trusted_keys_may_sign_until_it_leaves_the_bundle() {
    let mut scene = Scene::new();
    let next = ManifestKey::generate();
    let by_old = scene.claims(unit(UnitKind::Train, 1));
    let by_next = Manifest {
        iss: next.public().to_string(),
        ..by_old.clone()
    };
    let old = scene
        .key
        .sign_document(MANIFEST_TYPE, &by_old)
        .expect("small claims");
    let new = next
        .sign_document(MANIFEST_TYPE, &by_next)
        .expect("small claims");
    assert!(scene.check(&old).is_ok() && scene.check(&new).is_err());
    scene.trust.manifest_keys.push(next.public().clone());
    assert!(scene.check(&old).is_ok() && scene.check(&new).is_ok());
    scene.trust.manifest_keys.remove(0);
    assert!(scene.check(&old).is_err() && scene.check(&new).is_ok());
}

fn named(chunks: &mut Chunks) -> &mut Vec<ObjectRef> {
    match chunks {
        Chunks::Named(chunks) => chunks,
        Chunks::Listed(_) => panic!("the run names its chunks"),
    }
}

#[test]
fn a_list_of_weights_has_the_numbers_of_the_run() {
    let mut scene = Scene::new();
    let Chunks::Named(chunks) = scene.spec.model.initial.clone() else {
        panic!("they are named")
    };
    scene.spec.model.initial = Chunks::Listed(Listed::of(&chunks).0);
    let sound = Listed::of(&[object(200), object(200), object(20)]).0;
    let refused = |listed: Listed| {
        let mut claims = scene.claims(unit(UnitKind::Train, 1));
        claims.base.chunks = Chunks::Listed(listed);
        scene
            .check_claims(&serde_json::to_value(&claims).expect("JSON"))
            .is_err()
    };
    assert!(!refused(sound));
    for (chunks, total) in [(2, 420), (4, 420), (3, 2), (3, 601)] {
        assert!(refused(Listed {
            chunks,
            total: Bytes(total),
            ..sound
        }));
    }
    let mut named = scene.claims(unit(UnitKind::Train, 1));
    named.base.chunks = vec![object(200), object(200), object(20)].into();
    let named = serde_json::to_value(&named).expect("JSON");
    assert!(scene.check_claims(&named).is_err(), "the run lists them");
}

#[test]
fn the_initial_weights_are_those_of_the_settings() {
    let scene = Scene::new();
    let mut claims = scene.claims(unit(UnitKind::Train, 0));
    named(&mut claims.base.chunks)[0].digest = Digest::of(b"others");
    assert!(
        scene
            .check_claims(&serde_json::to_value(&claims).expect("JSON"))
            .is_err()
    );
}

#[test]
fn work_is_within_the_run() {
    let scene = Scene::new();
    let refused = |change: &dyn Fn(&mut Manifest)| {
        let mut claims = scene.claims(unit(UnitKind::Train, 1));
        change(&mut claims);
        claims.jti = format!("demo/{}/{}", claims.lease.unit, claims.lease.epoch);
        scene
            .check_claims(&serde_json::to_value(&claims).expect("JSON"))
            .is_err()
    };
    assert!(!refused(&|_| {}));
    assert!(refused(&|claims| claims.lease.unit.index = UnitIndex(2)));
    // A run that was restored has more rounds than its schedule, and no more steps.
    assert!(!refused(&|claims| {
        claims.lease.unit.round = Round(4);
        claims.base.round = Round(4);
    }));
    assert!(refused(
        &|claims| named(&mut claims.base.chunks).truncate(CHUNKS as usize - 1)
    ));
    assert!(refused(
        &|claims| named(&mut claims.base.chunks).push(object(20))
    ));
    assert!(refused(
        &|claims| named(&mut claims.base.chunks)[2].bytes = Bytes(22)
    ));
    // The run names its chunks, so a manifest must not list them.
    assert!(refused(&|claims| {
        claims.base.chunks = Chunks::Listed(Listed::of(named(&mut claims.base.chunks)).0);
    }));
    let work = |shards, steps, steps_before| {
        move |claims: &mut Manifest| {
            claims.work = Work::Train {
                shards,
                seed: 1,
                steps,
                steps_before,
            }
        }
    };
    let with = |count: usize, steps: u64, before: u64| {
        let mut claims = scene.claims(unit(UnitKind::Train, 1));
        work(vec![object(8); count], Steps(steps), Steps(before))(&mut claims);
        scene
            .check_claims(&serde_json::to_value(&claims).expect("JSON"))
            .is_err()
    };
    assert!(!with(1, 10, 10) && !with(UNIT_SHARDS_MAX, 10, 0));
    assert!(with(1, 10, 11), "the second round begins after one");
    assert!(with(0, 10, 10) && with(UNIT_SHARDS_MAX + 1, 10, 10));
    assert!(with(1, 11, 10) && with(1, 10, 31) && with(1, 10, u64::MAX));
}

/// The lease is known and given back only if the document is the coordinator's and for this worker.
#[test]
fn only_our_own_lease_is_given_back() {
    let scene = Scene::new();
    let lease = |claims: &Manifest| {
        scene
            .check_claims(&serde_json::to_value(claims).expect("JSON"))
            .expect_err("refused")
            .lease
    };
    let good = scene.claims(unit(UnitKind::Train, 1));
    assert_eq!(
        lease(&Manifest {
            spec: Digest::of(b"other"),
            ..good.clone()
        }),
        Some(good.lease)
    );
    let other = SigningKey::generate(KeyKind::User)
        .public()
        .as_str()
        .parse()
        .expect("a user key");
    assert_eq!(
        lease(&Manifest {
            aud: other,
            ..good.clone()
        }),
        None
    );
    assert_eq!(
        lease(&Manifest {
            run: "other".parse().expect("a name"),
            ..good.clone()
        }),
        None
    );
    // Signed and for this worker; it is given back at once, since the clocks differ.
    let lease_of = good.lease;
    assert_eq!(
        lease(&Manifest {
            exp: NOW.get() / 1000 - 61,
            ..good
        }),
        Some(lease_of)
    );
}

#[test]
fn tl_10_a_window_without_end_is_refused() {
    let scene = Scene::new();
    let claims = Manifest {
        exp: u64::MAX,
        ..scene.claims(unit(UnitKind::Train, 1))
    };
    assert!(
        scene
            .check_claims(&serde_json::to_value(&claims).expect("JSON"))
            .is_err()
    );
    let command = Command {
        exp: u64::MAX,
        ..scene.command(CommandVerb::Stop)
    };
    let document = scene
        .key
        .sign_document(COMMAND_TYPE, &command)
        .expect("small claims");
    assert!(command_once(document.as_bytes(), &scene).is_err());
}

#[test]
fn tl_09_other_documents_are_no_manifests() {
    let scene = Scene::new();
    let claims = scene.claims(unit(UnitKind::Train, 1));
    let as_command = scene
        .key
        .sign_document(COMMAND_TYPE, &claims)
        .expect("small claims");
    assert_eq!(
        scene
            .check(&as_command)
            .expect_err("another type")
            .refusal
            .code,
        Code::ManifestInvalid
    );
    let stranger = ManifestKey::generate()
        .sign_document(MANIFEST_TYPE, &claims)
        .expect("small claims");
    assert_eq!(
        scene
            .check(&stranger)
            .expect_err("another key")
            .refusal
            .code,
        Code::SignatureInvalid
    );
    for text in ["", "a.b.c", "nonsense"] {
        assert!(scene.check(text).is_err());
    }
}

/// The check of a command by a worker that has obeyed none.
fn command_once(payload: &[u8], scene: &Scene) -> Result<CommandVerb, Refusal> {
    super::command(payload, &scene.expected(), &mut Commands::default())
}

#[test]
fn tl_14_a_command_is_obeyed_once() {
    let scene = Scene::new();
    let mut obeyed = Commands::default();
    let mut obey = |command: &Command| {
        let document = scene
            .key
            .sign_document(COMMAND_TYPE, command)
            .expect("small claims");
        super::command(document.as_bytes(), &scene.expected(), &mut obeyed)
    };
    let first = scene.command(CommandVerb::Drain);
    // A forgery with the same token uses nothing up.
    let forged = Command {
        run: "other".parse().expect("a name"),
        ..first.clone()
    };
    assert!(obey(&forged).is_err());
    assert_eq!(obey(&first), Ok(CommandVerb::Drain));
    let again = obey(&first).expect_err("a replay");
    assert!(again.detail.contains("obeyed before"), "{again}");
    let next = Command {
        jti: "two".to_owned(),
        ..first
    };
    assert_eq!(
        obey(&next),
        Ok(CommandVerb::Drain),
        "the coordinator's next"
    );
}

#[test]
fn commands_must_be_signed_for_us_and_now() {
    let scene = Scene::new();
    let check = |key: &ManifestKey, command: &Command| {
        let document = key
            .sign_document(COMMAND_TYPE, command)
            .expect("small claims");
        command_once(document.as_bytes(), &scene)
    };
    let good = scene.command(CommandVerb::Drain);
    assert_eq!(check(&scene.key, &good), Ok(CommandVerb::Drain));
    let other: WorkerId = SigningKey::generate(KeyKind::User)
        .public()
        .as_str()
        .parse()
        .expect("a user key");
    for bad in [
        Command {
            aud: other,
            ..good.clone()
        },
        Command {
            run: "other".parse().expect("a name"),
            ..good.clone()
        },
        Command {
            exp: good.iat - 100,
            iat: good.iat - 200,
            ..good.clone()
        },
        Command {
            iat: good.iat + 200,
            exp: good.iat + 300,
            ..good.clone()
        },
        Command {
            exp: good.iat + 7200,
            ..good.clone()
        },
        Command {
            iss: "someone".to_owned(),
            ..good.clone()
        },
    ] {
        assert!(check(&scene.key, &bad).is_err(), "{bad:?}");
    }
    assert!(check(&ManifestKey::generate(), &good).is_err());
    let mut for_all = serde_json::to_value(&good).expect("JSON");
    for_all["aud"] = Value::Null;
    let for_all = scene
        .key
        .sign_document(COMMAND_TYPE, &for_all)
        .expect("small claims");
    assert!(
        command_once(for_all.as_bytes(), &scene).is_err(),
        "a command names its worker"
    );
    let plain = serde_json::to_vec(&good).expect("JSON");
    for payload in [&plain[..], b"", b"\xff\xfe", b"a.b.c"] {
        assert!(command_once(payload, &scene).is_err());
    }
}
