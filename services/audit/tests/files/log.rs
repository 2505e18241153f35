//! The log beside the files: continued by each process, and never two histories.

use std::fs;
use std::path::Path;

use audit_core::Record;
use audit_core::log::{Log, Trusted};
use diloco_audit::log::{LogError, LogSigner, read_file};
use diloco_audit::recorder::LOG_FOLDER;
use diloco_audit::{
    AuditFilesError, Recorder, RecorderError, auditor_of, recall_files, signed_events,
};
use identity::{HeadKey, TrustBundle};
use schemas::{Code, Digest, UnixMillis};
use tlog::HEAD_EVERY_MILLIS;

use crate::{NOW, TOMORROW, ledger, newest};

/// A ledger, and the key that signs heads in its domain.
pub(crate) fn signing(count: u64) -> (TrustBundle, Vec<Record>, HeadKey) {
    let (trust, records) = ledger(count);
    let key = HeadKey::generate();
    let head_keys = vec![key.public().clone()];
    (TrustBundle { head_keys, ..trust }, records, key)
}

fn open(folder: &Path, trust: &TrustBundle, key: &HeadKey) -> Result<Recorder, RecorderError> {
    open_with(folder, trust, key, None)
}

fn open_with(
    folder: &Path,
    trust: &TrustBundle,
    key: &HeadKey,
    manifest: Option<&str>,
) -> Result<Recorder, RecorderError> {
    let signer = LogSigner {
        key: key.clone(),
        manifest: manifest.map(str::to_owned),
    };
    Recorder::open_signing(folder, trust, signer, None, NOW)
}

/// Keeps records, and publishes a head.
pub(crate) fn keep(folder: &Path, trust: &TrustBundle, key: &HeadKey, records: &[Record]) -> u64 {
    let mut recorder = open(folder, trust, key).expect("the files are whole");
    recorder.take(records, NOW).expect("the disk has room");
    let head = recorder.publish_head().expect("the disk has room");
    head.expect("something is new").size
}

/// The log in the folder, as a reader sees it.
fn read(folder: &Path, trust: &TrustBundle) -> Log {
    let trusted = Trusted {
        domain: trust.domain.to_string(),
        tenants: trust.tenants.clone(),
        coordinators: trust.audit_keys.clone(),
        ended: Default::default(),
        sentries: trust.sentry_keys.clone(),
        heads: trust.raw_head_keys(),
    };
    let log = folder.join(LOG_FOLDER);
    let file = |path: &str| read_file(&log.join(path)).map_err(|error| error.to_string());
    let opened = Log::open(&file, &trusted, None, &mut |_, _| {});
    opened.unwrap_or_else(|fault| panic!("{fault}"))
}

fn refused(opened: Result<Recorder, RecorderError>) -> (Code, String) {
    let error = opened.expect_err("it may not sign");
    (error.code(), error.to_string())
}

#[test]
fn fg_07_each_process_continues_the_log_of_the_one_before() {
    let (trust, records, key) = signing(600);
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let mut before = None;
    for end in [3, 255, 256, 300, 600] {
        assert_eq!(
            keep(scratch.path(), &trust, &key, &records[..end]),
            end as u64
        );
        let log = read(scratch.path(), &trust);
        assert_eq!(log.head().size, end as u64);
        let root = |size| log.root_at(&|path| Ok(file(scratch.path(), path)), size);
        if let Some((size, was)) = before.replace((end as u64, log.head().root)) {
            assert_eq!(root(size), Ok(was), "the head at {size} is continued");
        }
    }
    let mut recorder = open(scratch.path(), &trust, &key).expect("the files are whole");
    assert_eq!(recorder.publish_head().expect("nothing is written"), None);
    let heads = fs::read_dir(scratch.path().join(LOG_FOLDER).join("heads"));
    assert_eq!(heads.expect("it was made").count(), 5);
}

#[test]
fn what_is_no_file_is_not_read() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    assert!(matches!(read_file(&scratch.path().join("none")), Ok(None)));
    assert!(read_file(scratch.path()).is_err(), "a folder");
    let path = scratch.path().join("long");
    let file = fs::File::create(&path).expect("the folder is ours");
    file.set_len(32 << 20).expect("the disk has room");
    let read = read_file(&path).expect("it may be so long");
    assert_eq!(read.map(|bytes| bytes.len()), Some(32 << 20));
    file.set_len((32 << 20) + 1).expect("the disk has room");
    assert!(read_file(&path).is_err(), "longer than any file of a log");
}

fn file(folder: &Path, path: &str) -> Option<Vec<u8>> {
    read_file(&folder.join(LOG_FOLDER).join(path)).expect("it is ours")
}

#[test]
fn a_head_is_due_after_a_while_and_covers_what_is_kept() {
    let (trust, records, key) = signing(300);
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let mut recorder = open(scratch.path(), &trust, &key).expect("an empty folder");
    assert!(!recorder.is_head_due(TOMORROW), "nothing is kept");
    recorder
        .take(&records[..5], NOW)
        .expect("the disk has room");
    let later = |millis| UnixMillis(NOW.get() + millis);
    assert!(!recorder.is_head_due(later(HEAD_EVERY_MILLIS - 1)));
    assert!(recorder.is_head_due(later(HEAD_EVERY_MILLIS)));
    recorder.take(&records, NOW).expect("the disk has room");
    assert!(recorder.is_head_due(NOW), "many wait");
    recorder.publish_head().expect("the disk has room");
    assert!(!recorder.is_head_due(TOMORROW));
    // A service without a key signs nothing.
    let other = tempfile::tempdir().expect("a scratch folder");
    let mut recorder = Recorder::open(other.path(), &trust).expect("an empty folder");
    recorder.take(&records, NOW).expect("the disk has room");
    assert!(!recorder.is_head_due(TOMORROW));
    assert_eq!(recorder.publish_head().expect("nothing is written"), None);
    assert!(!other.path().join(LOG_FOLDER).exists());
}

/// An older copy of the files, with the newer log beside it.
#[test]
fn fg_07_files_that_lost_their_end_or_were_altered_are_not_signed_again() {
    let (trust, records, key) = signing(9);
    let scratch = tempfile::tempdir().expect("a scratch folder");
    keep(scratch.path(), &trust, &key, &records[..4]);
    let path = newest(scratch.path());
    let older = fs::read(&path).expect("the folder is ours");
    keep(scratch.path(), &trust, &key, &records);
    let checkpoint = file(scratch.path(), "checkpoint");
    fs::write(&path, older).expect("the folder is ours");
    let (code, text) = refused(open(scratch.path(), &trust, &key));
    assert_eq!(code, Code::LogContradicted);
    assert!(
        text.contains("covers 9 events, and only 4 are kept"),
        "{text}"
    );
    // Other events of the same coordinator in their place.
    fs::remove_file(&path).expect("the folder is ours");
    let moved: Vec<Record> = records.iter().rev().cloned().collect();
    let mut recorder = Recorder::open(scratch.path(), &trust).expect("an empty folder");
    recorder.take(&moved, NOW).expect("the disk has room");
    drop(recorder);
    let (code, text) = refused(open(scratch.path(), &trust, &key));
    assert_eq!(code, Code::LogContradicted);
    assert!(
        text.contains("the first 9 events lead to another root"),
        "{text}"
    );
    assert_eq!(
        file(scratch.path(), "checkpoint"),
        checkpoint,
        "nothing was signed"
    );
}

/// What a reader of the files alone compares.
#[test]
fn fg_07_a_reader_of_files_that_were_cut_sees_where_and_that_the_signed_head_covers_more() {
    let (trust, records, key) = signing(9);
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let folder = scratch.path();
    assert_eq!(
        signed_events(folder, &trust).expect("nothing is there"),
        None
    );
    keep(folder, &trust, &key, &records);
    let path = newest(folder);
    let whole = fs::read(&path).expect("the folder is ours");
    let recalled = || recall_files(folder, &mut auditor_of(&trust)).expect("no line is damaged");
    let signed = || signed_events(folder, &trust).expect("it is our head");
    let all = recalled();
    assert_eq!((all.last.0, all.events, all.torn), (9, 9, None));
    assert_eq!(signed(), Some(9));
    // In a line, and between two lines.
    let end = whole[..whole.len() - 1]
        .iter()
        .rposition(|byte| *byte == b'\n');
    let end = end.expect("nine lines were written") + 1;
    for (length, torn) in [(whole.len() - 1, Some(path.clone())), (end, None)] {
        fs::write(&path, &whole[..length]).expect("the folder is ours");
        let cut = recalled();
        assert_eq!((cut.last.0, cut.events, cut.torn), (8, 8, torn));
        assert_eq!(signed(), Some(9), "the head says that there was more");
    }
    // Without the checkpoint the kept head says it, and a head of others says nothing.
    fs::remove_file(folder.join(LOG_FOLDER).join("checkpoint")).expect("the folder is ours");
    assert_eq!(signed(), Some(9));
    let (other, _, _) = signing(1);
    let foreign = signed_events(folder, &other).expect_err("another key has signed it");
    assert!(matches!(foreign, LogError::Head { .. }), "{foreign}");
    let owned = TrustBundle {
        log_manifest: Some(Digest::of(b"manifest")),
        ..trust.clone()
    };
    assert_eq!(
        signed_events(folder, &owned).expect("it is our head"),
        Some(8)
    );
}

/// Somebody puts an older head in the place of the newest, and older files beside it; or a process
/// died between keeping a head and publishing it.
#[test]
fn fg_07_a_kept_head_binds_a_service_whose_checkpoint_is_older_or_gone() {
    let (trust, records, key) = signing(9);
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let log = scratch.path().join(LOG_FOLDER);
    keep(scratch.path(), &trust, &key, &records[..4]);
    let (path, older) = (newest(scratch.path()), file(scratch.path(), "checkpoint"));
    let files = fs::read(&path).expect("the folder is ours");
    keep(scratch.path(), &trust, &key, &records);
    let (all, newer) = (fs::read(&path), file(scratch.path(), "checkpoint"));
    for checkpoint in [older, None] {
        match &checkpoint {
            Some(note) => fs::write(log.join("checkpoint"), note).expect("the folder is ours"),
            None => fs::remove_file(log.join("checkpoint")).expect("the folder is ours"),
        }
        fs::write(&path, &files).expect("the folder is ours");
        let (code, text) = refused(open(scratch.path(), &trust, &key));
        assert_eq!(code, Code::LogContradicted, "{text}");
        assert_eq!(
            file(scratch.path(), "checkpoint"),
            checkpoint,
            "nothing was signed"
        );
        fs::write(&path, all.as_ref().expect("it was read")).expect("the folder is ours");
        open(scratch.path(), &trust, &key).expect("the files are those of the head");
        assert_eq!(file(scratch.path(), "checkpoint"), newer, "it is published");
    }
}

#[test]
fn fg_07_a_file_of_the_log_with_other_bytes_ends_the_service() {
    let (trust, records, key) = signing(6);
    let scratch = tempfile::tempdir().expect("a scratch folder");
    keep(scratch.path(), &trust, &key, &records[..5]);
    let log = scratch.path().join(LOG_FOLDER);
    let tile = log.join("tile/0/000.p/6");
    fs::write(&tile, "another tile").expect("the folder is ours");
    let mut recorder = open(scratch.path(), &trust, &key).expect("the files are whole");
    recorder.take(&records, NOW).expect("the disk has room");
    let error = recorder.publish_head().expect_err("two logs of one size");
    assert_eq!(error.code(), Code::LogContradicted);
    let left = fs::read(&tile).expect("the folder is ours");
    assert_eq!(left, b"another tile", "the evidence stays");
    drop(recorder);
    fs::write(log.join("heads/6"), "no head").expect("the folder is ours");
    let (code, text) = refused(open(scratch.path(), &trust, &key));
    assert_eq!(code, Code::LogContradicted);
    assert!(
        text.contains("heads/6: it is no signed tree head"),
        "{text}"
    );
}

#[test]
fn heads_of_others_keys_of_others_and_folders_in_use_are_refused() {
    let (trust, records, key) = signing(6);
    let scratch = tempfile::tempdir().expect("a scratch folder");
    keep(scratch.path(), &trust, &key, &records[..5]);
    let stranger = HeadKey::generate();
    let (code, _) = refused(open(scratch.path(), &trust, &stranger));
    assert_eq!(code, Code::RoleMismatch);
    let running = open(scratch.path(), &trust, &key).expect("the files are whole");
    let busy = open(scratch.path(), &trust, &key);
    assert!(matches!(
        busy,
        Err(RecorderError::Files(AuditFilesError::Busy(_)))
    ));
    drop(running);
    let other = TrustBundle {
        head_keys: vec![stranger.public().clone()],
        ..trust
    };
    let (code, _) = refused(open(scratch.path(), &other, &stranger));
    assert_eq!(code, Code::LogContradicted, "a head that it has not signed");
}

/// The folder of a running service is moved away: nothing appears in its old place.
#[test]
fn a_log_whose_folder_is_gone_is_not_begun_anew() {
    let (trust, records, key) = signing(6);
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let folder = scratch.path().join("audit");
    let mut recorder = open(&folder, &trust, &key).expect("an empty folder");
    recorder.take(&records, NOW).expect("the disk has room");
    fs::rename(&folder, scratch.path().join("moved")).expect("the folder is ours");
    let error = recorder.publish_head().expect_err("it is gone");
    assert_eq!(error.code(), Code::AuditFolderInvalid);
    assert!(!folder.exists());
}

/// What DL0728 advises: the heads stay, so the next process cannot sign a second history.
#[test]
fn fg_07_tiles_that_were_moved_away_are_written_again_under_the_same_head() {
    let (trust, records, key) = signing(600);
    let scratch = tempfile::tempdir().expect("a scratch folder");
    keep(scratch.path(), &trust, &key, &records);
    let head = read(scratch.path(), &trust).head().clone();
    let tiles = scratch.path().join(LOG_FOLDER).join("tile");
    fs::rename(&tiles, scratch.path().join("moved")).expect("it is ours");
    drop(open(scratch.path(), &trust, &key).expect("the files are whole"));
    assert_eq!(read(scratch.path(), &trust).head(), &head);
    // Other events write nothing there.
    fs::remove_dir_all(&tiles).expect("it was made again");
    for entry in fs::read_dir(scratch.path()).expect("it is ours") {
        let path = entry.expect("it is ours").path();
        if path.extension().is_some_and(|end| end == "log") {
            fs::remove_file(path).expect("it is ours");
        }
    }
    let (code, text) = refused(open(scratch.path(), &trust, &key));
    assert_eq!(code, Code::LogContradicted, "{text}");
    assert!(!tiles.exists());
}

/// The manifest is the first entry, of each process that writes the log, and of no other bytes.
#[test]
fn fg_07_a_log_begins_with_the_manifest_that_the_trust_bundle_names() {
    let (trust, records, key) = signing(300);
    let document = "a.signed.document";
    let named = TrustBundle {
        log_manifest: Some(Digest::of(document.as_bytes())),
        ..trust.clone()
    };
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let folder = scratch.path();
    // Without it nothing is begun, and nothing else is taken for it.
    for (trust, manifest) in [
        (&named, None),
        (&named, Some("another.signed.document")),
        (&trust, Some(document)),
    ] {
        let (code, _) = refused(open_with(folder, trust, &key, manifest));
        assert_eq!(code, Code::LogManifestMissing);
        assert!(!folder.join(LOG_FOLDER).exists());
    }
    let open = || open_with(folder, &named, &key, Some(document)).expect("the files are whole");
    // It is under a head before the first event is.
    let mut recorder = open();
    assert!(recorder.is_head_due(TOMORROW));
    let head = recorder.publish_head().expect("the disk has room");
    assert_eq!(head.map(|head| head.size), Some(1));
    drop(recorder);
    for end in [4, 255, 300] {
        let mut recorder = open();
        assert!(!recorder.is_head_due(TOMORROW), "nothing is new");
        recorder
            .take(&records[..end], NOW)
            .expect("the disk has room");
        let head = recorder.publish_head().expect("the disk has room");
        assert_eq!(head.map(|head| head.size), Some(end as u64 + 1));
        let log = read(folder, &named);
        assert_eq!(log.manifest(), Some(document));
        assert_eq!(log.head().size, end as u64 + 1);
    }
    // Where an event of a worker is: behind the manifest as well.
    let file = |path: &str| Ok(file(folder, path));
    let mut first = None;
    let again = read(folder, &named).again(&file, &mut |index, entry| {
        first = first.take().or((index == 1).then(|| entry.to_vec()));
        Ok(())
    });
    again.expect("it is whole");
    let event = first.and_then(|entry| chain::of_leaf(&entry));
    assert_eq!(
        event.map(|event| event.key),
        named.audit_keys.first().cloned()
    );
    // A process that has lost it signs no second history.
    let (code, _) = refused(open_with(folder, &named, &key, None));
    assert_eq!(code, Code::LogManifestMissing);
    let (code, _) = refused(open_with(folder, &trust, &key, None));
    assert_eq!(code, Code::LogContradicted, "an older trust bundle");
}
