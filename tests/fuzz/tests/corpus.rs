//! Every target reads its seeds, its corpus, and some thousand changes of these.

use std::path::PathBuf;

use fuzz::change::Changes;
use fuzz::{TARGETS, Target};

/// The folder of a target's corpus.
fn folder(target: &Target) -> PathBuf {
    let corpus = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus");
    corpus.join(target.name)
}

/// The corpus of a target, in the order of names.
fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let Ok(entries) = std::fs::read_dir(folder(target)) else {
        return Vec::new();
    };
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("a file").path()).collect();
    paths.sort();
    let read = |path| std::fs::read(path).expect("a file of the corpus");
    paths.into_iter().map(read).collect()
}

fn replay(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name);
    let target = target.expect("a target");
    let mut inputs = (target.seeds)();
    assert!(!inputs.is_empty(), "{name} has no seed");
    inputs.extend(corpus(target));
    for input in &inputs {
        (target.run)(input);
    }
    for number in 0..target.changes {
        let mut changes = Changes::of(number);
        let at = number as usize % inputs.len();
        let other = (number as usize * 7 + 1) % inputs.len();
        let changed = changes.change(&inputs[at], &inputs[other]);
        (target.run)(&changed);
    }
}

macro_rules! replays {
    ($($name:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            replay(stringify!($name));
        })*

        #[test]
        fn every_target_is_replayed() {
            let replayed = [$(stringify!($name)),*];
            let targets: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(targets, replayed);
        }
    };
}

replays![
    message,
    name,
    broker,
    sentry,
    token,
    manifest,
    certificate,
    envelope,
    event,
    head,
    weights,
    tensors,
    model,
    checkpoint,
    coordinator,
    intake,
    store,
];

#[test]
fn every_folder_of_the_corpus_is_a_targets() {
    let corpus = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for entry in std::fs::read_dir(corpus).expect("the corpus") {
        let name = entry.expect("a folder").file_name();
        let known = TARGETS.iter().any(|target| *target.name == *name);
        assert!(known, "{name:?} is no target's");
    }
}
