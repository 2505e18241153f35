//! Every target reads its seeds, its corpus, and some thousand changes of these.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

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
    worker,
    intake,
    question,
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

/// The functions that read bytes, texts or files and check what they hold, in the crates whose
/// readers are for signed and carried documents. Each has a target, or is none for others' bytes.
const READERS: &[(&str, &str)] = &[
    ("chain/entry::read", "event"),
    ("identity/broker::read", OWN),
    ("identity/clients::read", OWN),
    ("identity/credentials::parse", "token"),
    ("identity/credentials::read", OWN),
    ("identity/domain::open", OWN),
    ("identity/domain::readmit", OWN),
    ("identity/dsse::open_data_provenance", "envelope"),
    ("identity/dsse::open_provenance", "envelope"),
    ("identity/dsse::verify_provenance", CHECKED),
    ("identity/endorsed::read_endorsed", "manifest"),
    ("identity/enrolment::verify_question", "intake"),
    ("identity/event::verify_statement", CHECKED),
    ("identity/heir::verify_succession", "intake"),
    ("identity/invitation::read", "manifest"),
    ("identity/issuer::open", OWN),
    ("identity/issuer::read", OWN),
    ("identity/join::verify_join", CHECKED),
    ("identity/jws::verify", "manifest"),
    ("identity/jwt::verify", "token"),
    ("identity/jwt::verify_chain", "token"),
    ("identity/key::parse_public", "name"),
    ("identity/key::read", OWN),
    ("identity/key::verify_strict", CHECKED),
    ("identity/log_manifest::open", "event"),
    ("identity/log_manifest::read", "event"),
    ("identity/mark::open", OWN),
    ("identity/mark::read", OWN),
    ("identity/purpose::read", OWN),
    ("identity/release::open", "envelope"),
    ("identity/release::read", OWN),
    ("identity/reissue::read", "manifest"),
    ("identity/secret::read", OWN),
    ("identity/secret::read_anchor", OWN),
    ("identity/secret::read_secret", OWN),
    ("identity/source::open", OWN),
    ("identity/store_keys::read", OWN),
    ("identity/store_keys::read_auditors", OWN),
    ("identity/store_keys::read_log", OWN),
    ("identity/store_keys::read_to_derive", OWN),
    ("identity/trust::read", "manifest"),
    ("tlog/cosign::read", "head"),
    ("tlog/note::open", "head"),
];
/// A file or folder that this domain wrote for itself.
const OWN: &str = "own files";
/// A signature over bytes that are compared and not parsed.
const CHECKED: &str = "not parsed";

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("sources") {
        let path = entry.expect("a file").path();
        match path.is_dir() {
            true => sources(&path, found),
            false => found.push(path),
        }
    }
}

/// The names of public functions of a source whose names say that they read, and whose arguments
/// are bytes, a text or a path.
fn readers(text: &str) -> Vec<&str> {
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    let functions = code.split("pub fn ").skip(1);
    let read = functions.filter_map(|function| {
        let arguments = function.split('{').next()?.split("->").next()?;
        let name = arguments.split(['<', '(']).next()?;
        let verbs = ["open", "read", "parse", "decode", "verify"];
        let takes = ["[u8]", "str", "Path"].map(|kind| arguments.contains(kind));
        (verbs.iter().any(|verb| name.starts_with(verb)) && takes.contains(&true)).then_some(name)
    });
    read.collect()
}

#[test]
fn every_reader_of_a_document_has_a_target_or_a_reason() {
    let mut found = BTreeSet::new();
    for name in ["chain", "identity", "tlog"] {
        let services = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../services");
        let root = services.join(name).join("src");
        let mut paths = Vec::new();
        sources(&root, &mut paths);
        for path in paths {
            let text = std::fs::read_to_string(&path).expect("a source");
            let module = path
                .strip_prefix(&root)
                .expect("it is below")
                .with_extension("");
            for reader in readers(&text) {
                found.insert(format!("{name}/{}::{reader}", module.display()));
            }
        }
    }
    let known: BTreeSet<String> = READERS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(found, known);
    for (reader, target) in READERS {
        let is_one = TARGETS.iter().any(|one| one.name == *target);
        assert!(
            is_one || [OWN, CHECKED].contains(target),
            "{reader}: {target}"
        );
    }
}
