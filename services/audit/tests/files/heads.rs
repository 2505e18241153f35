//! Heads for workers that ask, and the cosignatures that they give.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use diloco_audit::heads::Heads;
use diloco_audit::log::read_file;
use diloco_audit::recorder::LOG_FOLDER;
use identity::{HeadKey, TrustBundle, WitnessKey};
use schemas::head::{CosignRequest, HeadReply};
use schemas::{ChainSequence, Code, UnixMillis, V, WorkerId};
use serde_bytes::ByteArray;
use tlog::Head;
use tlog::layout;
use witness::{Followed, Step, is_included};

use crate::NOW;
use crate::log::{keep, signing};

/// A log of 300 events with heads over these numbers of them.
struct Scene {
    scratch: tempfile::TempDir,
    trust: TrustBundle,
    heads: Heads,
    followed: Followed,
}

impl Scene {
    fn of(ends: &[usize]) -> Self {
        let (trust, records, key) = signing(300);
        let scratch = tempfile::tempdir().expect("a scratch folder");
        for end in ends {
            keep(scratch.path(), &trust, &key, &records[..*end]);
        }
        Self::new(scratch, trust)
    }

    fn new(scratch: tempfile::TempDir, trust: TrustBundle) -> Self {
        let folder = scratch.path().join(LOG_FOLDER);
        let origin = format!("diloco/{}", trust.domain);
        Self {
            heads: Heads::new(folder, &trust),
            followed: Followed::new(origin, trust.raw_head_keys()),
            scratch,
            trust,
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.scratch.path().join(LOG_FOLDER).join(name)
    }

    fn head(&self, size: u64) -> Head {
        let note = fs::read(self.file(&layout::head(size))).expect("it is kept");
        self.followed.open(&note).expect("it is signed")
    }
}

fn follow(scene: &Scene, kept: Option<&Head>, reply: &HeadReply) -> Option<Step> {
    let hashes: Vec<[u8; 32]> = reply.consistency.iter().map(|hash| **hash).collect();
    let step = scene.followed.follow(kept, reply.note.as_bytes(), &hashes);
    step.ok()
}

#[test]
fn tl_03_whoever_keeps_an_older_head_is_led_to_the_newest() {
    let scene = Scene::of(&[1, 5, 255, 256, 300]);
    let newest = scene.head(300);
    for size in [1, 5, 255, 256] {
        let reply = scene.heads.newest(size, &[]).expect("there is a head");
        let kept = scene.head(size);
        assert_eq!(
            follow(&scene, Some(&kept), &reply),
            Some(Step::Newer(newest.clone()))
        );
    }
    let first = scene.heads.newest(0, &[]).expect("there is a head");
    assert_eq!(
        follow(&scene, None, &first),
        Some(Step::Newer(newest.clone()))
    );
    let same = scene.heads.newest(300, &[]).expect("there is a head");
    assert_eq!(follow(&scene, Some(&newest), &same), Some(Step::Same));
    // Who has seen more gets the head, and finds that the log went back.
    let more = scene.heads.newest(301, &[]).expect("there is a head");
    assert_eq!(more.consistency.len(), 0);
    assert_eq!(more.note, same.note);
}

#[test]
fn an_event_under_the_newest_head_is_proven_and_a_newer_one_is_left_out() {
    let scene = Scene::of(&[256, 300]);
    let asked = [
        (ChainSequence(7), 3),
        (ChainSequence(8), 299),
        (ChainSequence(9), 300),
    ];
    let reply = scene.heads.newest(0, &asked).expect("there is a head");
    let proven: Vec<_> = reply
        .events
        .iter()
        .map(|one| (one.sequence, one.index))
        .collect();
    assert_eq!(proven, asked[..2]);
    let bundle = |name: &str| read_file(&scene.file(name)).expect("it is ours");
    for one in &reply.events {
        let (name, at) = (one.index / 256, (one.index % 256) as usize);
        let bytes = match name {
            0 => bundle("tile/entries/000"),
            _ => bundle("tile/entries/001.p/44"),
        };
        let bytes = bytes.expect("it is there");
        let (entries, _) = layout::first_entries(&bytes, at + 1).expect("so many");
        let hashes: Vec<[u8; 32]> = one.hashes.iter().map(|hash| **hash).collect();
        assert!(is_included(
            &scene.head(300),
            one.index,
            entries[at],
            &hashes
        ));
    }
}

#[test]
fn without_a_head_or_a_tile_there_is_a_refusal_and_no_false_alarm() {
    let scene = Scene::of(&[5, 300]);
    let tile = scene.file("tile/0/000");
    let whole = fs::read(&tile).expect("it is there");
    fs::remove_file(&tile).expect("it is ours");
    let refused = scene.heads.newest(5, &[]).expect_err("no way leads there");
    assert_eq!(refused.code, Code::HeadMissing);
    fs::write(&tile, whole).expect("it is ours");
    scene.heads.newest(5, &[]).expect("it is there again");
    fs::remove_file(scene.file("checkpoint")).expect("it is ours");
    let refused = scene.heads.newest(5, &[]).expect_err("there is no head");
    assert_eq!(refused.code, Code::HeadMissing);
}

fn worker(letter: char) -> WorkerId {
    let text = format!("U{}", letter.to_string().repeat(55));
    text.parse().expect("the form of a key")
}

fn cosigned(key: &WitnessKey, head: &Head) -> CosignRequest {
    CosignRequest {
        v: V,
        key: key.public().clone(),
        size: head.size,
        time: NOW,
        signature: ByteArray::new(key.cosign_raw(head, NOW.get() / 1000)),
    }
}

fn kept(folder: &Path, worker: &WorkerId) -> Option<Vec<u8>> {
    read_file(&folder.join(layout::cosigned(worker.as_str()))).expect("it is ours")
}

#[test]
fn fg_07_the_newest_head_that_each_worker_cosigned_is_kept_and_nothing_false() {
    let scene = Scene::of(&[5, 256, 300]);
    let folder = scene.file("");
    let (one, other) = (worker('A'), worker('B'));
    let (key, stranger) = (WitnessKey::generate(), WitnessKey::generate());
    let witness = key.witness(one.as_str()).expect("a name");
    let keep = |size: u64| scene.heads.keep(&one, &cosigned(&key, &scene.head(size)));
    let seen = || {
        let note = kept(&folder, &one).expect("it is kept");
        let head = scene.followed.open(&note).expect("it is signed");
        let at = witness.cosigned_at(&note, &head);
        (head.size, at.expect("it holds"))
    };
    let seconds = Some(NOW.get() / 1000);
    for (size, newest) in [(256, 256), (5, 256), (256, 256), (300, 300)] {
        keep(size).expect("it is true");
        assert_eq!(seen(), (newest, seconds), "{size}");
    }

    let whole = kept(&folder, &one);
    let good = cosigned(&key, &scene.head(300));
    let alter: [fn(&mut CosignRequest, &WitnessKey); 4] = [
        |it, _| it.signature[5] ^= 1,
        |it, _| it.time = UnixMillis(it.time.get() + 1000),
        |it, stranger| it.key = stranger.public().clone(),
        |it, _| it.size = 256,
    ];
    for (at, alter) in alter.into_iter().enumerate() {
        let mut bad = good.clone();
        alter(&mut bad, &stranger);
        let refused = scene.heads.keep(&one, &bad).expect_err("it is false");
        assert_eq!(refused.code, Code::CosignatureRefused, "{at}");
    }
    let root = [1; 32];
    let fork = cosigned(
        &key,
        &Head {
            root,
            ..scene.head(300)
        },
    );
    assert!(scene.heads.keep(&one, &fork).is_err(), "another history");
    let none = cosigned(
        &key,
        &Head {
            size: 299,
            ..scene.head(300)
        },
    );
    let refused = scene
        .heads
        .keep(&one, &none)
        .expect_err("there is no such head");
    assert_eq!(refused.code, Code::HeadMissing);
    assert_eq!(kept(&folder, &one), whole);
    assert_eq!(kept(&folder, &other), None);
    // Another worker has its own file, and one key may be used by both.
    scene.heads.keep(&other, &good).expect("it is true");
    assert!(kept(&folder, &other).is_some_and(|note| Some(note) != whole));
    let names = fs::read_dir(scene.file("cosigned")).expect("it was made");
    assert_eq!(names.count(), 2, "nothing half written is left");
    drop(scene.trust);
}

/// Somebody who has a worker's credentials and not its key can bring a cosignature in its name. One
/// over the same events does not take the place of the worker's own; one over more does, until the
/// worker cosigns again.
#[test]
fn fg_07_a_cosignature_of_another_key_does_not_hide_one_of_the_same_head() {
    let scene = Scene::of(&[5, 300]);
    let (folder, name) = (scene.file(""), worker('A'));
    let (own, strange) = (WitnessKey::generate(), WitnessKey::generate());
    let keep = |key: &WitnessKey, size: u64| {
        let kept = scene.heads.keep(&name, &cosigned(key, &scene.head(size)));
        kept.expect("it is true");
    };
    let by = |key: &WitnessKey| {
        let note = kept(&folder, &name).expect("it is kept");
        let head = scene.followed.open(&note).expect("it is signed");
        let witness = key.witness(name.as_str()).expect("a name");
        matches!(witness.cosigned_at(&note, &head), Ok(Some(_)))
    };
    keep(&own, 5);
    keep(&strange, 5);
    assert!(by(&own), "it was there before");
    keep(&own, 5);
    assert!(by(&own), "its own again");
    keep(&strange, 300);
    assert!(by(&strange), "nobody can tell which key is the worker's");
    // A file that is no head at all is in nobody's way.
    fs::write(folder.join(layout::cosigned(name.as_str())), "x").expect("it is ours");
    keep(&own, 5);
    assert!(by(&own));
}

#[test]
fn fg_07_the_oldest_cosignature_makes_room_for_that_of_a_further_worker() {
    let scene = Scene::of(&[5]);
    let key = WitnessKey::generate();
    let keep = |letter: char| {
        let good = cosigned(&key, &scene.head(5));
        scene
            .heads
            .keep(&worker(letter), &good)
            .expect("it is true");
    };
    keep('A');
    keep('B');
    let folder = scene.file("cosigned");
    let old = |name: &Path| {
        let file = fs::File::options().write(true).open(name);
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        file.and_then(|file| file.set_modified(long_ago))
            .expect("it is ours");
    };
    for number in 2..8192 {
        fs::write(folder.join(format!("other-{number}")), "").expect("it is ours");
    }
    old(&folder.join(worker('B').as_str()));
    // One that is there already needs no room.
    keep('A');
    assert!(kept(&scene.file(""), &worker('B')).is_some());
    keep('C');
    let there = ['A', 'B', 'C'].map(|letter| kept(&scene.file(""), &worker(letter)).is_some());
    assert_eq!(there, [true, false, true]);
    let count = fs::read_dir(&folder).expect("it was made").count();
    assert_eq!(count, 8192);
}

/// A key of another domain has signed none of these heads.
#[test]
fn a_folder_with_another_domains_log_answers_nobody() {
    let scene = Scene::of(&[5]);
    let head_keys = vec![HeadKey::generate().public().clone()];
    let trust = TrustBundle {
        head_keys,
        ..scene.trust.clone()
    };
    let heads = Heads::new(scene.file(""), &trust);
    let refused = heads
        .newest(0, &[])
        .expect_err("nobody trusted has signed it");
    assert_eq!(refused.code, Code::HeadMissing);
}
