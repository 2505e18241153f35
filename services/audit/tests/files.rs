//! The append-only files: what a crash leaves, and what tampering leaves.
//!
//! A program of its own, which starts no process: a child that is between `fork` and `exec` holds the locks of its parent,
//! so a folder that was just closed would now and then be busy.

#[expect(dead_code, reason = "only the coordinator's remarks are used here, the rest by audit/main.rs")]
#[path = "audit/scribe.rs"]
mod scribe;

use std::fs;
use std::path::{Path, PathBuf};

use audit_core::{Finding, Record, StreamSequence};
use diloco_audit::{Desk, KeepError};
use identity::{AuditKey, ManifestKey, SigningKey, TrustBundle};
use proptest::prelude::*;
use schemas::{Code, UnixMillis, V};

use scribe::{Said, Scribe};

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);
const TOMORROW: UnixMillis = UnixMillis(1_700_086_400_000);

/// A trust bundle, and a ledger of `count` events of its coordinator.
fn ledger(count: u64) -> (TrustBundle, Vec<Record>) {
    let key = AuditKey::generate();
    let trust = TrustBundle {
        v: V,
        domain: SigningKey::generate(identity::KeyKind::Operator).public().clone(),
        tenants: vec![
            SigningKey::generate(identity::KeyKind::Account).public().as_str().parse().expect("an account's id"),
        ],
        manifest_keys: vec![ManifestKey::generate().public().clone()],
        audit_keys: vec![key.public().clone()],
        ca: PathBuf::new(),
    };
    let mut scribe = Scribe::new(trust.domain.as_str(), key);
    let records = (1..=count).map(|at| record(scribe.remark(), at)).collect();
    (trust, records)
}

/// An event as the stream gives it back.
fn record(said: Said, sequence: u64) -> Record {
    let Said { subject, key, signature, body } = said;
    let (stream_sequence, stored_at) = (StreamSequence(sequence), runtime::clock::now());
    Record { stream_sequence, subject, key, signature, stored_at, body }
}

fn newest(folder: &Path) -> PathBuf {
    let entries =
        fs::read_dir(folder).expect("the folder is ours").map(|entry| entry.expect("the folder is ours").path());
    entries.filter(|path| path.extension().is_some_and(|ending| ending == "log")).max().expect("a file was written")
}

#[test]
fn what_was_kept_is_there_again_and_nothing_twice() {
    let (trust, records) = ledger(7);
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let mut desk = Desk::open(scratch.path(), &trust).expect("the files are whole");
    assert_eq!(desk.take(&records[..3], NOW).expect("the files are whole"), []);
    assert!(matches!(Desk::open(scratch.path(), &trust), Err(KeepError::Busy(_))));
    drop(desk);
    let mut desk = Desk::open(scratch.path(), &trust).expect("the files are whole");
    assert_eq!((desk.keep().last(), desk.auditor().summary().verified), (StreamSequence(3), 3));
    assert_eq!(desk.take(&records[..6], TOMORROW).expect("the files are whole"), []);
    assert_eq!(desk.auditor().summary().verified, 6);
    drop(desk);
    let lines = |path: &Path| fs::read_to_string(path).expect("the folder is ours").lines().count();
    assert_eq!(lines(&scratch.path().join("20231114.log")), 3);
    assert_eq!(lines(&scratch.path().join("20231115.log")), 3);
    // A clock that goes back does not disturb the order of the files.
    let mut desk = Desk::open(scratch.path(), &trust).expect("the files are whole");
    desk.take(&records, NOW).expect("the disk has room");
    assert_eq!(desk.keep().len(), 7);
    assert_eq!(lines(&scratch.path().join("20231115.log")), 4);
}

#[test]
fn a_changed_stream_contradicts_the_files() {
    let (trust, records) = ledger(6);
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let mut desk = Desk::open(scratch.path(), &trust).expect("the files are whole");
    desk.take(&records, NOW).expect("the files are whole");
    drop(desk);
    // The third message has other bytes, the fifth is gone.
    let mut changed = records.clone();
    changed[2].body[10] ^= 1;
    changed.remove(4);
    let mut desk = Desk::open(scratch.path(), &trust).expect("the files are whole");
    let found: Vec<Finding> =
        desk.take(&changed, NOW).expect("the files are whole").into_iter().map(|found| found.finding).collect();
    assert!(found.contains(&Finding::Altered { sequence: StreamSequence(3) }), "{found:?}");
    assert!(found.contains(&Finding::Hole { from: StreamSequence(5), to: StreamSequence(5) }), "{found:?}");
    assert!(found.iter().any(|finding| matches!(finding, Finding::BadSignature { .. } | Finding::Malformed { .. })));
    // It is remembered.
    drop(desk);
    let desk = Desk::open(scratch.path(), &trust).expect("the files are whole");
    assert_eq!(desk.auditor().evidence().expect("the files are whole").code(), Code::LedgerBroken);
}

#[test]
fn a_stream_that_lost_its_tail_is_found_once() {
    let (trust, records) = ledger(6);
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let mut desk = Desk::open(scratch.path(), &trust).expect("the files are whole");
    desk.take(&records, NOW).expect("the files are whole");
    assert_eq!(desk.stream_ends(StreamSequence(6), NOW).expect("the files are whole"), None);
    let found = desk.stream_ends(StreamSequence(4), NOW).expect("the files are whole").expect("two are lost");
    assert_eq!(found.finding, Finding::Truncated { last: StreamSequence(4), kept: StreamSequence(6) });
    assert_eq!(desk.stream_ends(StreamSequence(4), NOW).expect("the files are whole"), None);
    // The emitter sends what was lost again, byte for byte: the files agree, and nothing new is wrong.
    let again: Vec<Record> = records[4..].iter().cloned().map(|record| Record { stored_at: NOW, ..record }).collect();
    let found = desk.take(&[records[..4].to_vec(), again].concat(), NOW).expect("the files are whole");
    assert!(
        found.iter().all(|found| matches!(found.finding, Finding::Altered { .. } | Finding::Rewound { .. })),
        "{found:?}"
    );
    assert_eq!(desk.auditor().summary().emitters[0].events, 6);
    assert!(desk.auditor().summary().emitters[0].whole, "the broker lost them, nobody rewrote them");
    drop(desk);
    let mut desk = Desk::open(scratch.path(), &trust).expect("the files are whole");
    assert_eq!(desk.stream_ends(StreamSequence(4), NOW).expect("the files are whole"), None, "it is in the files");
}

#[test]
fn damage_in_the_middle_is_no_crash() {
    let (trust, records) = ledger(6);
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let mut desk = Desk::open(scratch.path(), &trust).expect("the files are whole");
    desk.take(&records, NOW).expect("the files are whole");
    drop(desk);
    let path = newest(scratch.path());
    let text = fs::read_to_string(&path).expect("the folder is ours");
    let line = text.lines().nth(3).expect("six lines were written");
    for damaged in [line.replacen("verified", "verifiex", 1), line.replacen("\"stored_at\":1", "\"stored_at\":2", 1)] {
        assert_ne!(damaged, line);
        fs::write(&path, text.replace(line, &damaged)).expect("the folder is ours");
        let error = Desk::open(scratch.path(), &trust).expect_err("line 4 is not what was written");
        assert!(matches!(error, KeepError::Damaged { number: 4, .. }), "{error}");
        assert_eq!(error.code(), Code::AuditFolderInvalid);
    }
    fs::write(&path, &text).expect("the folder is ours");
    assert!(Desk::open(scratch.path(), &trust).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// A kill at any moment leaves a prefix of what was written, cut anywhere.
    #[test]
    fn a_file_that_was_cut_anywhere_is_repaired_and_completed(batches in 1usize..4, cut: prop::sample::Index) {
        let (trust, records) = ledger(8);
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let mut desk = Desk::open(scratch.path(), &trust).expect("the files are whole");
        for batch in records.chunks(records.len().div_ceil(batches)) {
            desk.take(batch, NOW).expect("the files are whole");
        }
        drop(desk);
        let path = newest(scratch.path());
        let whole = fs::read(&path).expect("the folder is ours");
        fs::write(&path, &whole[..cut.index(whole.len() + 1)]).expect("the folder is ours");
        let mut desk = Desk::open(scratch.path(), &trust).expect("the files are whole");
        prop_assert_eq!(desk.take(&records, NOW).expect("the files are whole"), []);
        prop_assert_eq!(desk.auditor().summary().verified, 8);
        drop(desk);
        prop_assert_eq!(fs::read(&path).expect("the folder is ours"), whole, "the same lines, each once");
    }
}
