//! Limits, each at its last good value and at the first bad one.

use schemas::limits::{LEASE_MAX, OBJECT_BYTES_MAX};
use schemas::{Bytes, Round, Steps, UnitIndex};

use super::super::*;
use super::named;
use super::scene::{NOW, Scene, object, unit};

/// The code of the refusal of a manifest after a change to it, if it is refused.
fn checked(
    scene: &Scene,
    unit: UnitKind,
    change: impl FnOnce(&mut Manifest),
) -> Result<(), String> {
    let mut claims = scene.claims(self::unit(unit, 1));
    change(&mut claims);
    claims.jti = format!("demo/{}/{}", claims.lease.unit, claims.lease.epoch);
    let claims = serde_json::to_value(&claims).expect("JSON");
    let checked = scene.check_claims(&claims);
    checked.map(|_| ()).map_err(|error| error.refusal.detail)
}

#[test]
fn a_manifest_is_valid_for_a_lease_and_an_hour_at_most() {
    let scene = Scene::new();
    let longest = LEASE_MAX.get() / 1000 + 3600;
    let valid = |seconds: u64| {
        checked(&scene, UnitKind::Train, |claims| {
            claims.nbf = NOW.get() / 1000;
            claims.exp = claims.nbf + seconds;
        })
    };
    assert_eq!(valid(longest), Ok(()));
    let said = format!("the manifest is valid for {} s", longest + 1);
    assert_eq!(valid(longest + 1), Err(said));
}

#[test]
fn a_command_is_valid_for_an_hour_at_most() {
    let scene = Scene::new();
    let valid = |seconds: u64| {
        let mut command = scene.command(CommandVerb::Drain);
        command.exp = command.iat + seconds;
        let document = scene.key.sign_document(COMMAND_TYPE, &command);
        let document = document.expect("small claims");
        let checked = super::super::command(
            document.as_bytes(),
            &scene.expected(),
            &mut Commands::default(),
        );
        checked.map_err(|refusal| refusal.detail)
    };
    assert_eq!(valid(3600), Ok(CommandVerb::Drain));
    let said = "the command is valid for 3601 s".to_owned();
    assert_eq!(valid(3601), Err(said));
}

#[test]
fn units_are_those_of_the_run() {
    let scene = Scene::new();
    let at = |kind: UnitKind, round: u64, index: u32| {
        checked(&scene, kind, |claims| {
            claims.lease.unit.round = Round(round);
            claims.lease.unit.index = UnitIndex(index);
            claims.base.round = Round(round);
        })
    };
    let no_unit = |checked: Result<(), String>| {
        checked.is_err_and(|detail| detail.starts_with("the run has no unit"))
    };
    assert_eq!(at(UnitKind::Train, 3, 1), Ok(()), "the last one");
    assert!(no_unit(at(UnitKind::Train, 3, 2)));
    assert_eq!(at(UnitKind::Evaluate, 4, 0), Ok(()), "the last weights");
    // A run that was restored has more rounds than its schedule. The steps before a unit are never
    // more than those of all rounds before.
    assert_eq!(at(UnitKind::Train, 4, 1), Ok(()));
    assert_eq!(at(UnitKind::Evaluate, 5, 0), Ok(()));
    assert!(
        no_unit(at(UnitKind::Train, 0, 1)),
        "steps before the first round"
    );
}

#[test]
fn evaluations_are_of_as_many_sequences_as_the_settings_say() {
    let scene = Scene::new();
    let of = |sequences: u32| {
        checked(&scene, UnitKind::Evaluate, |claims| {
            let shards = vec![object(8)];
            claims.work = Work::Evaluate { shards, sequences };
        })
    };
    assert_eq!(of(16), Ok(()));
    let said = "17 held-out sequences, the settings say 16".to_owned();
    assert_eq!(of(17), Err(said));
    let other = checked(&scene, UnitKind::Evaluate, |claims| {
        claims.work = scene.claims(unit(UnitKind::Train, 1)).work;
    });
    assert_eq!(
        other,
        Err("the work does not fit unit 1/evaluate-0".to_owned())
    );
}

#[test]
fn no_object_is_larger_than_one_can_be() {
    let scene = Scene::new();
    let shard = |bytes: u64| {
        checked(&scene, UnitKind::Evaluate, |claims| {
            let shards = vec![object(8), object(bytes)];
            let sequences = 16;
            claims.work = Work::Evaluate { shards, sequences };
        })
    };
    let most = OBJECT_BYTES_MAX.get();
    assert_eq!(shard(most), Ok(()));
    let detail = shard(most + 1).expect_err("too large");
    assert!(
        detail.ends_with(&format!("of {} bytes", most + 1)),
        "{detail}"
    );
    // A layout with larger chunks: the settings agree with it, but it cannot be fetched.
    let chunk = |bytes: u64| {
        let mut scene = Scene::new();
        named(&mut scene.spec.model.initial)[0].bytes = Bytes(2 * bytes);
        checked(&scene, UnitKind::Train, |claims| {
            named(&mut claims.base.chunks)[0].bytes = Bytes(bytes);
        })
    };
    assert_eq!(chunk(most), Ok(()));
    let detail = chunk(most + 2).expect_err("too large");
    assert!(detail.starts_with("chunk 0 has"), "{detail}");
}

#[test]
fn a_window_says_by_how_much_it_is_over_or_has_not_begun() {
    let scene = Scene::new();
    let now = NOW.get() / 1000;
    for (nbf, exp, says) in [
        (now + 3600, now + 3700, "3600 s in the future"),
        (now - 120, now - 90, "90 s in the past"),
        // The window begins now, and is over nevertheless.
        (now, now, "0 s in the past"),
        (now, now - 10, "10 s in the past"),
    ] {
        let detail = checked(&scene, UnitKind::Train, |claims| {
            (claims.nbf, claims.exp) = (nbf, exp);
        });
        let detail = detail.expect_err("not now");
        assert!(detail.contains(&format!("of a time {says},")), "{detail}");
    }
}

/// Only round 0 starts from the initial weights, and they are unchanged.
#[test]
fn initial_weights_are_no_weights_of_a_later_round() {
    let scene = Scene::new();
    let base = |round: u64, codec: Codec| {
        checked(&scene, UnitKind::Train, |claims| {
            claims.lease.unit.round = Round(round);
            if let Work::Train { steps_before, .. } = &mut claims.work {
                *steps_before = Steps(0);
            }
            claims.base = Weights {
                round: Round(round),
                codec,
                chunks: scene.spec.model.initial.clone(),
            };
        })
    };
    let fp32 = scene.claims(unit(UnitKind::Train, 0)).base.codec;
    assert_eq!(base(0, fp32), Ok(()));
    let refused = base(0, scene.spec.download).expect_err("another codec");
    assert_eq!(refused, "the weights of round 0 are not the initial ones");
    let refused = base(1, fp32).expect_err("of another round");
    assert!(refused.starts_with("codec "), "{refused}");
}
