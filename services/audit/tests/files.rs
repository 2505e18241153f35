//! The append-only files after a crash and after tampering.
//!
//! A program of its own, which starts no process: a child that is between `fork` and `exec` holds
//! the locks of its parent, so a folder that was just closed would now and then be busy.

#[expect(
    dead_code,
    reason = "only the coordinator's remarks are used here, the rest by audit/main.rs"
)]
#[path = "audit/chain_writer.rs"]
mod chain_writer;
#[path = "files/copies.rs"]
mod copies;
#[path = "files/heads.rs"]
mod heads;
#[path = "files/log.rs"]
mod log;
#[path = "files/mirror.rs"]
mod mirror;
#[path = "files/stub.rs"]
mod stub;

use std::fs;
use std::path::{Path, PathBuf};

use audit_core::{Finding, Payload, Record, StreamSequence};
use diloco_audit::{AuditFilesError, Recorder, RecorderError, Span};
use identity::{AuditKey, ManifestKey, TrustBundle};
use proptest::prelude::*;
use schemas::{Code, Message as _, UnixMillis};

use chain_writer::{ChainWriter, WrittenEvent};

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);
const TOMORROW: UnixMillis = UnixMillis(1_700_086_400_000);

/// A trust bundle, and a ledger of `count` events of its coordinator.
fn ledger(count: u64) -> (TrustBundle, Vec<Record>) {
    let key = AuditKey::generate();
    let trust = kit::trust(ManifestKey::generate().public(), key.public());
    let mut chain_writer = ChainWriter::new(trust.domain.as_str(), key);
    let records = (1..=count)
        .map(|at| record(chain_writer.remark(), at))
        .collect();
    (trust, records)
}

/// An event as the stream returns it.
fn record(said: WrittenEvent, sequence: u64) -> Record {
    let (stream_sequence, stored_at) = (StreamSequence(sequence), runtime::clock::now());
    Record {
        stream_sequence,
        subject: said.subject,
        stored_at,
        payload: Payload::of(&said.event.encode()),
    }
}

fn newest(folder: &Path) -> PathBuf {
    let entries = fs::read_dir(folder)
        .expect("the folder is ours")
        .map(|entry| entry.expect("the folder is ours").path());
    entries
        .filter(|path| path.extension().is_some_and(|ending| ending == "log"))
        .max()
        .expect("a file was written")
}

#[test]
fn what_was_kept_is_there_again_and_nothing_twice() {
    let (trust, records) = ledger(7);
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let mut recorder = Recorder::open(scratch.path(), &trust).expect("the files are whole");
    assert_eq!(
        recorder
            .take(&records[..3], NOW)
            .expect("the files are whole"),
        []
    );
    assert!(matches!(
        Recorder::open(scratch.path(), &trust),
        Err(AuditFilesError::Busy(_))
    ));
    drop(recorder);
    let mut recorder = Recorder::open(scratch.path(), &trust).expect("the files are whole");
    assert_eq!(
        (
            recorder.files().last(),
            recorder.auditor().summary().verified
        ),
        (StreamSequence(3), 3)
    );
    assert_eq!(
        recorder
            .take(&records[..6], TOMORROW)
            .expect("the files are whole"),
        []
    );
    assert_eq!(recorder.auditor().summary().verified, 6);
    drop(recorder);
    let lines = |path: &Path| {
        fs::read_to_string(path)
            .expect("the folder is ours")
            .lines()
            .count()
    };
    assert_eq!(lines(&scratch.path().join("20231114.log")), 3);
    assert_eq!(lines(&scratch.path().join("20231115.log")), 3);
    // A clock that goes back does not disturb the order of the files.
    let mut recorder = Recorder::open(scratch.path(), &trust).expect("the files are whole");
    recorder.take(&records, NOW).expect("the disk has room");
    assert_eq!(recorder.files().len(), 7);
    assert_eq!(lines(&scratch.path().join("20231115.log")), 4);
}

/// The number of lines in the folder that are records, and of those that are findings.
fn kinds(folder: &Path) -> (usize, usize) {
    let text = fs::read_to_string(newest(folder)).expect("the folder is ours");
    let count = |kind: &str| {
        text.lines()
            .filter(|line| line.starts_with(&format!("{{\"line\":\"{kind}\"")))
            .count()
    };
    (count("record"), count("finding"))
}

/// A folder in which `records` were kept, with a recorder opened on it.
fn kept(trust: &TrustBundle, records: &[Record]) -> (tempfile::TempDir, Recorder) {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let mut recorder = Recorder::open(scratch.path(), trust).expect("the files are whole");
    assert_eq!(recorder.take(records, NOW).expect("the disk has room"), []);
    drop(recorder);
    let recorder = Recorder::open(scratch.path(), trust).expect("the files are whole");
    (scratch, recorder)
}

fn contradiction(result: Result<impl std::fmt::Debug, RecorderError>) -> Finding {
    let error = result.expect_err("it is not what was kept");
    assert_eq!(error.code(), Code::RecordContradicted, "{error}");
    match error {
        RecorderError::Contradicted { found, .. } => found.finding,
        RecorderError::Files(error) => panic!("{error}"),
        RecorderError::Log(error) => panic!("{error}"),
    }
}

/// Checks that records after the contradiction are not kept, and that the finding is kept and
/// remembered.
#[test]
fn a_changed_stream_contradicts_the_files_and_is_not_recorded() {
    let (trust, records) = ledger(8);
    let mut altered = records.clone();
    let Payload::Whole(bytes) = &mut altered[2].payload else {
        panic!("no event is too long")
    };
    bytes[10] ^= 1;
    let mut holed = records.clone();
    holed.remove(4);
    let (third, fifth) = (StreamSequence(3), StreamSequence(5));
    let cases = [
        (altered, Finding::Altered { sequence: third }),
        (
            holed,
            Finding::Hole {
                from: fifth,
                to: fifth,
            },
        ),
    ];
    for (changed, finding) in cases {
        let (scratch, mut recorder) = kept(&trust, &records[..6]);
        assert_eq!(contradiction(recorder.take(&changed, NOW)), finding);
        assert_eq!(
            kinds(scratch.path()),
            (6, 1),
            "the seventh and eighth are not recorded"
        );
        drop(recorder);
        let mut recorder = Recorder::open(scratch.path(), &trust).expect("the files are whole");
        assert!(
            recorder.auditor().evidence().is_some() == matches!(finding, Finding::Altered { .. })
        );
        // The stream was restored, and continues.
        assert_eq!(
            recorder.take(&records, NOW).expect("it is what was kept"),
            []
        );
        assert_eq!(kinds(scratch.path()), (8, 1));
    }
}

#[test]
fn the_two_ends_of_a_stream_tell_in_one_look() {
    let (trust, records) = ledger(6);
    let span = |first, last| Span {
        messages: 1 + last - first,
        first: StreamSequence(first),
        last: StreamSequence(last),
    };
    let (_scratch, mut recorder) = kept(&trust, &records);
    for whole in [span(1, 6), span(1, 9)] {
        recorder
            .compare(whole, Some(&records[5]), NOW)
            .expect("it is what was kept");
    }
    let sixth = StreamSequence(6);
    let other = Record {
        payload: Payload::of(b"another ledger"),
        ..records[5].clone()
    };
    let cases = [
        (
            Span::EMPTY,
            None,
            Finding::Truncated {
                last: StreamSequence(0),
                kept: sixth,
            },
        ),
        (
            span(1, 4),
            None,
            Finding::Truncated {
                last: StreamSequence(4),
                kept: sixth,
            },
        ),
        (
            span(3, 9),
            Some(&records[5]),
            Finding::Hole {
                from: StreamSequence(1),
                to: StreamSequence(2),
            },
        ),
        (
            span(1, 9),
            None,
            Finding::Hole {
                from: sixth,
                to: sixth,
            },
        ),
        (
            span(1, 9),
            Some(&other),
            Finding::Altered { sequence: sixth },
        ),
    ];
    for (span, newest, finding) in cases {
        assert_eq!(contradiction(recorder.compare(span, newest, NOW)), finding);
    }
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let mut fresh = Recorder::open(scratch.path(), &trust).expect("a fresh folder");
    fresh
        .compare(Span::EMPTY, None, NOW)
        .expect("nothing was kept");
}

/// The broker repairs a copy that has lost its end: the same bytes at another time.
#[test]
fn what_the_broker_stored_again_byte_for_byte_is_what_was_kept() {
    let (trust, records) = ledger(6);
    let (scratch, mut recorder) = kept(&trust, &records[..5]);
    let again: Vec<Record> = records[3..]
        .iter()
        .cloned()
        .map(|record| Record {
            stored_at: UnixMillis(record.stored_at.get() + 1000),
            ..record
        })
        .collect();
    let stream = [records[..3].to_vec(), again].concat();
    let span = Span {
        messages: 6,
        first: StreamSequence(1),
        last: StreamSequence(6),
    };
    recorder
        .compare(span, Some(&stream[4]), NOW)
        .expect("only its time is another");
    assert_eq!(
        recorder
            .take(&stream, NOW)
            .expect("only their times are others"),
        []
    );
    assert_eq!((recorder.take_again(), recorder.take_again()), (2, 0));
    assert_eq!(
        (kinds(scratch.path()), recorder.auditor().evidence()),
        ((6, 0), None)
    );
}

/// While it is read, a stream is replaced by another one that is as long or longer.
#[test]
fn what_comes_behind_something_else_is_not_taken() {
    let (trust, records) = ledger(6);
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let mut recorder = Recorder::open(scratch.path(), &trust).expect("a fresh folder");
    recorder
        .take_behind(&records[..3], NOW)
        .expect("the first of all");
    recorder
        .take_behind(&records[2..5], NOW)
        .expect("behind the third");
    assert_eq!(recorder.read(), StreamSequence(5));
    let fifth = StreamSequence(5);
    let gone = contradiction(recorder.take_behind(&records[5..], NOW));
    assert_eq!(
        gone,
        Finding::Hole {
            from: fifth,
            to: fifth
        }
    );
    let other = Record {
        payload: Payload::of(b"another ledger"),
        ..records[4].clone()
    };
    let mut recorder = {
        drop(recorder);
        Recorder::open(scratch.path(), &trust).expect("the files are whole")
    };
    recorder
        .take_behind(&records[..5], NOW)
        .expect("from the first on");
    assert_eq!(
        contradiction(recorder.take_behind(&[other, records[5].clone()], NOW)),
        Finding::Altered { sequence: fifth }
    );
    assert_eq!(kinds(scratch.path()), (5, 2), "the sixth is never recorded");
}

/// Whatever the stream holds, the service can start again on its files.
#[test]
fn what_is_longest_and_strangest_is_kept_and_read_again() {
    let (trust, mut records) = ledger(2);
    let strange = |sequence, subject: &str, payload: &[u8]| Record {
        stream_sequence: StreamSequence(sequence),
        subject: subject.to_owned(),
        stored_at: NOW,
        payload: Payload::of(payload),
    };
    records.push(strange(
        3,
        &"\u{1}".repeat(4096),
        &vec![1; schemas::limits::SIGNED_EVENT_BYTES_MAX],
    ));
    records.push(strange(4, "diloco.ledger.x", &vec![1; 60_000]));
    records.push(strange(5, "", b""));
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let mut recorder = Recorder::open(scratch.path(), &trust).expect("the files are whole");
    recorder.take(&records, NOW).expect("the disk has room");
    drop(recorder);
    let mut recorder = Recorder::open(scratch.path(), &trust).expect("what was written is read");
    assert_eq!(
        recorder.take(&records, NOW).expect("the disk has room"),
        [],
        "it is what was kept"
    );
    assert_eq!(
        (recorder.files().len(), recorder.auditor().summary().foreign),
        (5, 3)
    );
    assert_eq!(recorder.auditor().evidence(), None);
}

#[test]
fn files_of_an_older_release_are_refused_by_name() {
    let (trust, _) = ledger(0);
    let scratch = tempfile::tempdir().expect("a scratch folder");
    fs::write(
        scratch.path().join("20231114.log"),
        "{\"line\":\"record\",\"v\":1,\"stream_sequence\":1}\n",
    )
    .expect("the folder is ours");
    let error = Recorder::open(scratch.path(), &trust).expect_err("another form");
    assert_eq!(error.code(), Code::AuditFilesOlder);
}

#[test]
fn damage_in_the_middle_is_no_crash() {
    let (trust, records) = ledger(6);
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let mut recorder = Recorder::open(scratch.path(), &trust).expect("the files are whole");
    recorder.take(&records, NOW).expect("the files are whole");
    drop(recorder);
    let path = newest(scratch.path());
    let text = fs::read_to_string(&path).expect("the folder is ours");
    let line = text.lines().nth(3).expect("six lines were written");
    for damaged in [
        line.replacen("verified", "verifiex", 1),
        line.replacen("\"stored_at\":1", "\"stored_at\":2", 1),
    ] {
        assert_ne!(damaged, line);
        fs::write(&path, text.replace(line, &damaged)).expect("the folder is ours");
        let error =
            Recorder::open(scratch.path(), &trust).expect_err("line 4 is not what was written");
        assert!(
            matches!(error, AuditFilesError::Damaged { number: 4, .. }),
            "{error}"
        );
        assert_eq!(error.code(), Code::AuditFileAltered);
    }
    fs::write(&path, &text).expect("the folder is ours");
    assert!(Recorder::open(scratch.path(), &trust).is_ok());
}

/// A crash leaves an unfinished line at the very end; any other broken line has another cause.
#[test]
fn only_the_end_of_the_newest_file_can_be_torn() {
    let (trust, records) = ledger(6);
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let mut recorder = Recorder::open(scratch.path(), &trust).expect("the files are whole");
    recorder
        .take(&records[..3], NOW)
        .expect("the disk has room");
    let older = newest(scratch.path());
    recorder
        .take(&records[3..], TOMORROW)
        .expect("the disk has room");
    drop(recorder);
    let newer = newest(scratch.path());
    assert_ne!(older, newer);
    let is_cut_off = |path: &Path, end: &[u8]| {
        let whole = fs::read(path).expect("the folder is ours");
        fs::write(path, [&whole[..], end].concat()).expect("the folder is ours");
        let opened = Recorder::open(scratch.path(), &trust).map(drop);
        let left = fs::metadata(path).expect("the folder is ours").len();
        fs::write(path, &whole).expect("the folder is ours");
        match opened {
            Ok(()) => left == whole.len() as u64,
            Err(error) => {
                assert!(
                    matches!(&error, AuditFilesError::Damaged { number: 4, path: named } if named == path),
                    "{error}"
                );
                assert_eq!(
                    left,
                    (whole.len() + end.len()) as u64,
                    "what is not understood is not touched"
                );
                false
            }
        }
    };
    assert!(is_cut_off(&newer, b"{\"line\":"), "it is cut off");
    assert!(
        !is_cut_off(&newer, &[b'x'; 64 << 10]),
        "longer than any line"
    );
    assert!(!is_cut_off(&older, b"{\"line\":"), "not the newest");
    // Files with other names are not read.
    for name in ["notes.log", "2023111.log", "2023111x.log", "20231114.txt"] {
        fs::write(scratch.path().join(name), b"garbage").expect("the folder is ours");
    }
    Recorder::open(scratch.path(), &trust).expect("they are skipped");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// A kill at any moment leaves a prefix of the written bytes, cut anywhere.
    #[test]
    fn a_file_that_was_cut_anywhere_is_repaired_and_completed(batches in 1usize..4, cut: prop::sample::Index) {
        let (trust, records) = ledger(8);
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let mut recorder = Recorder::open(scratch.path(), &trust).expect("the files are whole");
        for batch in records.chunks(records.len().div_ceil(batches)) {
            recorder.take(batch, NOW).expect("the files are whole");
        }
        drop(recorder);
        let path = newest(scratch.path());
        let whole = fs::read(&path).expect("the folder is ours");
        fs::write(&path, &whole[..cut.index(whole.len() + 1)]).expect("the folder is ours");
        let mut recorder = Recorder::open(scratch.path(), &trust).expect("the files are whole");
        prop_assert_eq!(recorder.take(&records, NOW).expect("the files are whole"), []);
        prop_assert_eq!(recorder.auditor().summary().verified, 8);
        drop(recorder);
        prop_assert_eq!(fs::read(&path).expect("the folder is ours"), whole, "the same lines, each once");
    }
}
