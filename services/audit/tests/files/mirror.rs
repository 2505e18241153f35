//! The log in the store: the same as in the folder, continued by one service, and never two
//! histories.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use audit_core::Record;
use diloco_audit::copying::{Copying, Found, Turn};
use diloco_audit::log::LogSigner;
use diloco_audit::mirror::{Mirror, MirrorError, Stored};
use diloco_audit::recorder::LOG_FOLDER;
use diloco_audit::{Recorder, RecorderError};
use identity::{HeadKey, StoreKeys, TrustBundle};
use objects::{Endpoint, LogBucket, TransferLimits, Trust};
use schemas::Code;
use store::{Durability, Store, StoreConfig, StoreLimits, Tls};
use tempfile::TempDir;
use tlog::layout;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::NOW;
use crate::log::signing;
use crate::stub::Stub;

/// A store in this process.
pub(crate) struct Running {
    root: TempDir,
    keys: StoreKeys,
    address: std::net::SocketAddr,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl Running {
    pub(crate) async fn start() -> Self {
        let root = tempfile::tempdir().expect("a scratch folder");
        Self::on(
            root,
            StoreKeys::generate(),
            "127.0.0.1:0".parse().expect("an address"),
        )
        .await
    }

    async fn on(root: TempDir, keys: StoreKeys, listen: std::net::SocketAddr) -> Self {
        let config = StoreConfig {
            listen,
            root: root.path().to_owned(),
            keys: keys.clone(),
            tls: Tls::PlainLoopback,
            durability: Durability::Kernel,
            limits: StoreLimits {
                free_bytes_min: schemas::Bytes(0),
                ..StoreLimits::default()
            },
        };
        let store = Store::bind(config).await.expect("a free port");
        let (address, stop) = (store.address(), CancellationToken::new());
        let serving = tokio::spawn(store.run(stop.clone()));
        Self {
            root,
            keys,
            address,
            stop,
            serving,
        }
    }

    /// Ends it; its folder stays.
    pub(crate) async fn end(self) -> (TempDir, StoreKeys, std::net::SocketAddr) {
        self.stop.cancel();
        self.serving.await.expect("it does not panic");
        (self.root, self.keys, self.address)
    }

    pub(crate) fn mirror(&self, folder: &Path, trust: &TrustBundle) -> Mirror {
        let key = self.keys.log.as_ref().expect("it was generated");
        mirror_at(self.address, key, folder, trust)
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.root.path().join("log").join(name)
    }
}

fn mirror_at(
    address: std::net::SocketAddr,
    key: &identity::AccessKey,
    folder: &Path,
    trust: &TrustBundle,
) -> Mirror {
    let url = format!("http://{address}");
    let endpoint = Endpoint::new(&url, "us-east-1", Trust::PlainLoopback).expect("an address");
    let limits = TransferLimits {
        pause_first: Duration::from_millis(5),
        ..TransferLimits::default()
    };
    let bucket = LogBucket::new(&endpoint, key, limits, Duration::from_millis(300));
    Mirror::new(bucket.expect("an address"), folder.join(LOG_FOLDER), trust)
}

/// All files below a folder, by name.
pub(crate) fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).expect("it is ours") {
            let path = entry.expect("it is ours").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(folder).expect("it lies in it");
            let bytes = std::fs::read(&path).expect("it is ours");
            found.insert(name.display().to_string(), bytes);
        }
    }
    found
}

fn open(
    folder: &Path,
    trust: &TrustBundle,
    key: &HeadKey,
    stored: Option<&Stored>,
) -> Result<Recorder, RecorderError> {
    let head = stored.map(|stored| &stored.head);
    let signer = LogSigner {
        key: key.clone(),
        manifest: None,
    };
    Recorder::open_signing(folder, trust, signer, head, NOW)
}

/// Keeps records and publishes a head in the folder.
pub(crate) fn keep(folder: &Path, trust: &TrustBundle, key: &HeadKey, records: &[Record]) {
    let mut recorder = open(folder, trust, key, None).expect("the files are whole");
    recorder.take(records, NOW).expect("the disk has room");
    recorder.publish_head().expect("the disk has room");
}

fn code<T: std::fmt::Debug>(refused: Result<T, MirrorError>) -> Code {
    refused.expect_err("it may not be copied").code()
}

pub(crate) fn scratch() -> TempDir {
    tempfile::tempdir().expect("a scratch folder")
}

#[tokio::test]
async fn fg_07_the_log_in_the_store_is_that_of_the_folder_however_often_it_is_copied() {
    let (trust, records, key) = signing(600);
    let (running, scratch) = (Running::start().await, scratch());
    let mirror = running.mirror(scratch.path(), &trust);
    assert_eq!(mirror.stored().await.expect("it answers"), None);
    assert_eq!(mirror.copy(None).await.expect("nothing is there"), None);
    let mut known = None;
    // A head at a time, then several that were signed while the store was away.
    for ends in [&[3_usize][..], &[255], &[256], &[257, 300, 511], &[600]] {
        for end in ends {
            keep(scratch.path(), &trust, &key, &records[..*end]);
        }
        known = mirror.copy(known.as_ref()).await.expect("it is copied");
        let size = known.as_ref().map(|stored| stored.head.size);
        assert_eq!(size, ends.last().map(|end| *end as u64));
        let (here, there) = (scratch.path().join(LOG_FOLDER), running.file(""));
        assert_eq!(files(&here), files(&there), "{ends:?}");
    }
    assert_eq!(mirror.stored().await.expect("it answers"), known);
    // A process that knows nothing, as after a crash, changes nothing and finds the same.
    let again = running.mirror(scratch.path(), &trust);
    assert_eq!(again.copy(None).await.expect("all is there"), known);
}

/// A copy that was broken off anywhere is repeated.
#[tokio::test]
async fn a_copy_goes_on_wherever_it_broke_off() {
    let (trust, records, key) = signing(300);
    let scratch = scratch();
    for end in [200, 300] {
        keep(scratch.path(), &trust, &key, &records[..end]);
    }
    let here = files(&scratch.path().join(LOG_FOLDER));
    // The order of writing: of the files that a crash may have left.
    let mut order = layout::between(0, 200);
    order.push(layout::head(200));
    order.extend(layout::between(200, 300));
    order.push(layout::head(300));
    order.retain(|name| here.contains_key(name));
    assert!(order.len() > 6, "{order:?}");
    for left in 0..=order.len() {
        let running = Running::start().await;
        for name in &order[..left] {
            let path = running.file(name);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("it is ours");
            std::fs::write(path, &here[name]).expect("it is ours");
        }
        // Each store is the first one of this folder.
        let _none = std::fs::remove_file(scratch.path().join("log.copied"));
        let mirror = running.mirror(scratch.path(), &trust);
        mirror.copy(None).await.expect("it is repeated");
        assert_eq!(files(&running.file("")), here, "{left} files were left");
        running.end().await;
    }
}

#[tokio::test]
async fn fg_07_a_file_of_the_store_with_other_bytes_is_found_and_left() {
    let (trust, records, key) = signing(300);
    let scratch = scratch();
    keep(scratch.path(), &trust, &key, &records);
    for name in [
        "tile/0/000",
        "tile/entries/000",
        "tile/entries/001.p/44",
        "heads/300",
    ] {
        let running = Running::start().await;
        let path = running.file(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("it is ours");
        std::fs::write(&path, b"other").expect("it is ours");
        let mirror = running.mirror(scratch.path(), &trust);
        let refused = mirror.copy(None).await;
        assert_eq!(code(refused), Code::LogStoreAltered, "{name}");
        assert_eq!(std::fs::read(&path).expect("it is ours"), b"other");
        assert_eq!(mirror.stored().await.expect("it answers"), None, "{name}");
    }
    let running = Running::start().await;
    std::fs::write(running.file("checkpoint"), b"other").expect("it is ours");
    let stored = running.mirror(scratch.path(), &trust).stored().await;
    assert_eq!(code(stored), Code::LogStoreAltered);
}

#[tokio::test]
async fn of_two_services_that_write_one_log_the_one_that_is_behind_ends() {
    let (trust, records, key) = signing(20);
    let (running, one, other) = (Running::start().await, scratch(), scratch());
    keep(one.path(), &trust, &key, &records[..5]);
    let first = running.mirror(one.path(), &trust);
    let known = first.copy(None).await.expect("it is copied");
    // The other one takes the log up where the store is, and goes on with it.
    let second = running.mirror(other.path(), &trust);
    let found = second.stored().await.expect("it answers");
    assert_eq!(found, known);
    let mut recorder = open(other.path(), &trust, &key, found.as_ref()).expect("it is new");
    recorder
        .take(&records[..12], NOW)
        .expect("the disk has room");
    recorder.publish_head().expect("the disk has room");
    drop(recorder);
    second
        .copy(found.as_ref())
        .await
        .expect("it knows the newest");
    keep(one.path(), &trust, &key, &records[..9]);
    assert_eq!(code(first.copy(known.as_ref()).await), Code::LogTaken);
    let stored = second.stored().await.expect("it answers").expect("a head");
    assert_eq!(stored.head.size, 12, "the loser has changed nothing");
    // A service that finds its own newer head, after a lost answer, goes on.
    keep(other.path(), &trust, &key, &records[..15]);
    let third = running.mirror(other.path(), &trust);
    let gone_on = third
        .copy(known.as_ref())
        .await
        .expect("the head is its own");
    assert_eq!(gone_on.map(|stored| stored.head.size), Some(15));
}

#[tokio::test]
async fn a_store_that_went_back_or_lost_the_checkpoint_is_not_taken_for_a_new_one() {
    let (trust, records, key) = signing(20);
    let (running, scratch) = (Running::start().await, scratch());
    let mirror = running.mirror(scratch.path(), &trust);
    keep(scratch.path(), &trust, &key, &records[..5]);
    let old = mirror.copy(None).await.expect("it is copied");
    let checkpoint = std::fs::read(running.file("checkpoint")).expect("it is ours");
    keep(scratch.path(), &trust, &key, &records[..9]);
    let known = mirror.copy(old.as_ref()).await.expect("it is copied");
    keep(scratch.path(), &trust, &key, &records);
    std::fs::write(running.file("checkpoint"), checkpoint).expect("it is ours");
    assert_eq!(
        code(mirror.copy(known.as_ref()).await),
        Code::LogStoreAltered
    );
    std::fs::remove_file(running.file("checkpoint")).expect("it is ours");
    assert_eq!(
        code(mirror.copy(known.as_ref()).await),
        Code::LogStoreAltered
    );
    let again = mirror.copy(old.as_ref()).await;
    assert_eq!(code(again), Code::LogStoreAltered);
}

/// A person puts right what was wrong, and the copying says so by itself: not before everything
/// that is in the folder is there.
#[tokio::test]
async fn fg_07_what_was_put_right_in_the_store_is_noticed_by_itself() {
    let (trust, records, key) = signing(20);
    let (running, scratch) = (Running::start().await, scratch());
    keep(scratch.path(), &trust, &key, &records[..5]);
    let mirror = || running.mirror(scratch.path(), &trust);
    let first = mirror().copy(None).await.expect("it is copied");
    keep(scratch.path(), &trust, &key, &records);
    let head = running.file("heads/20");
    std::fs::write(&head, b"other").expect("it is ours");
    let newest = first.as_ref().expect("a head").head.clone();
    let mut copying = Copying::begin(mirror(), Found::Has(first));
    let Turn::Wrong(failure) = copying.turn().await else {
        panic!("nothing is wrong");
    };
    assert_eq!(failure.code(), Code::LogStoreAltered);
    std::fs::remove_file(&head).expect("it is ours");
    copying.wake(&newest);
    let Turn::Whole(Some(whole)) = copying.turn().await else {
        panic!("it is not whole");
    };
    assert_eq!(whole.size, 20, "everything was copied first");
    copying.end().await.expect("it ends in order");
    assert!(head.exists());
}

/// A process that was not there when the store went back knows it all the same.
#[tokio::test]
async fn fg_07_a_store_that_went_back_between_two_processes_is_found() {
    let (trust, records, key) = signing(20);
    let (running, scratch) = (Running::start().await, scratch());
    let mirror = || running.mirror(scratch.path(), &trust);
    let checkpoint = running.file("checkpoint");
    let mut known = None;
    for end in [5, 9] {
        keep(scratch.path(), &trust, &key, &records[..end]);
        known = mirror().copy(known.as_ref()).await.expect("it is copied");
    }
    let newest = std::fs::read(&checkpoint).expect("it is ours");
    let first = std::fs::read(running.file("heads/5")).expect("it is ours");
    std::fs::write(&checkpoint, first).expect("it is ours");
    assert_eq!(code(mirror().stored().await), Code::LogStoreAltered);
    std::fs::remove_file(&checkpoint).expect("it is ours");
    assert_eq!(code(mirror().stored().await), Code::LogStoreAltered);
    assert_eq!(code(mirror().copy(None).await), Code::LogStoreAltered);
    assert!(!checkpoint.exists(), "an empty bucket is no new log");
    // Another head of the same size, which the key has signed.
    let root = [1; 32];
    let head = known.expect("it was copied").head;
    let forked = key.sign_head(&tlog::Head { root, ..head });
    std::fs::write(&checkpoint, forked).expect("it is ours");
    assert_eq!(code(mirror().stored().await), Code::LogStoreAltered);
    std::fs::write(&checkpoint, newest).expect("it is ours");
    let stored = mirror().stored().await.expect("it is as it was");
    assert_eq!(stored.map(|stored| stored.head.size), Some(9));
    // A keeper who knows why may begin anew.
    std::fs::remove_file(&checkpoint).expect("it is ours");
    std::fs::remove_file(scratch.path().join("log.copied")).expect("it is there");
    let stored = mirror().stored().await.expect("it answers");
    assert_eq!(stored, None);
    let whole = mirror().copy(None).await.expect("it is written anew");
    assert_eq!(whole.map(|stored| stored.head.size), Some(9));
}

pub(crate) fn to_stub(stub: &Stub, folder: &Path, trust: &TrustBundle) -> Mirror {
    mirror_at(
        stub.address,
        &identity::AccessKey::generate(),
        folder,
        trust,
    )
}

/// Answers that come of load, and of stores that are not ready, are no evidence.
#[tokio::test]
async fn a_store_that_is_busy_or_contradicts_itself_is_asked_again() {
    let (trust, records, key) = signing(20);
    let (stub, scratch) = (Stub::start().await, scratch());
    keep(scratch.path(), &trust, &key, &records);
    let mirror = to_stub(&stub, scratch.path(), &trust);
    for (method, at, status) in [
        ("put", "heads/20", 409),
        // Taken, and then not there.
        ("put", "heads/20", 412),
        ("put", "checkpoint", 409),
        ("put", "checkpoint", 412),
    ] {
        stub.instead(move |asked, name| ((asked, name) == (method, at)).then_some((status, "")));
        assert_eq!(
            code(mirror.copy(None).await),
            Code::LogStoreBehind,
            "{at} {status}"
        );
    }
    stub.instead(|method, _| (method == "get").then_some((404, "NoSuchBucket")));
    assert_eq!(
        code(mirror.stored().await),
        Code::LogStoreBehind,
        "no bucket"
    );
    let mut conflicts = 3;
    stub.instead(move |method, _| {
        let busy = method == "put" && conflicts > 0;
        conflicts -= i32::from(busy);
        busy.then_some((409, "ConditionalRequestConflict"))
    });
    let known = mirror.copy(None).await.expect("the others have broken off");
    assert_eq!(known.map(|stored| stored.head.size), Some(20));
}

/// The head is there when partial files stay: another try would take its own head for a stranger's.
#[tokio::test]
async fn a_head_is_stored_though_partial_files_stay() {
    let (trust, records, key) = signing(300);
    let (stub, scratch) = (Stub::start().await, scratch());
    keep(scratch.path(), &trust, &key, &records[..200]);
    let mirror = to_stub(&stub, scratch.path(), &trust);
    let known = mirror.copy(None).await.expect("it is copied");
    keep(scratch.path(), &trust, &key, &records);
    stub.instead(|method, _| (method == "delete").then_some((403, "AccessDenied")));
    let known = mirror
        .copy(known.as_ref())
        .await
        .expect("the head is stored");
    assert_eq!(known.map(|stored| stored.head.size), Some(300));
    assert!(stub.has("tile/0/000.p/200"), "nothing was deleted");
}

#[tokio::test]
async fn a_store_that_is_away_is_caught_up_with() {
    let (trust, records, key) = signing(40);
    let (running, scratch) = (Running::start().await, scratch());
    keep(scratch.path(), &trust, &key, &records[..5]);
    let mirror = running.mirror(scratch.path(), &trust);
    let known = mirror.copy(None).await.expect("it is copied");
    let (root, keys, address) = running.end().await;
    keep(scratch.path(), &trust, &key, &records[..25]);
    keep(scratch.path(), &trust, &key, &records);
    assert_eq!(
        code(mirror.copy(known.as_ref()).await),
        Code::LogStoreBehind
    );
    let running = Running::on(root, keys, address).await;
    mirror
        .copy(known.as_ref())
        .await
        .expect("it is there again");
    let here = files(&scratch.path().join(LOG_FOLDER));
    assert_eq!(files(&running.file("")), here);
}

/// A head that was signed binds, wherever it is kept.
#[tokio::test]
async fn fg_07_a_service_whose_folder_is_lost_signs_nothing_but_what_the_store_has() {
    let (trust, records, key) = signing(30);
    let (running, scratch) = (Running::start().await, scratch());
    keep(scratch.path(), &trust, &key, &records[..20]);
    let mirror = running.mirror(scratch.path(), &trust);
    let stored = mirror.copy(None).await.expect("it is copied");
    let fresh = tempfile::tempdir().expect("a scratch folder");
    let mut recorder = open(fresh.path(), &trust, &key, stored.as_ref()).expect("it may wait");
    assert_eq!(recorder.missing_up_to(), Some(20));
    recorder
        .take(&records[..19], NOW)
        .expect("the disk has room");
    assert!(!recorder.is_head_due(crate::TOMORROW));
    assert_eq!(recorder.publish_head().expect("nothing is written"), None);
    recorder.take(&records, NOW).expect("they lead to the head");
    assert_eq!(recorder.missing_up_to(), None);
    let head = recorder.publish_head().expect("the disk has room");
    assert_eq!(head.expect("it goes on").size, 30);
    // Other events are no continuation of that head, whatever folder they come from.
    let other = tempfile::tempdir().expect("a scratch folder");
    let mut recorder = open(other.path(), &trust, &key, stored.as_ref()).expect("it may wait");
    let refused = recorder
        .take(&records[1..25], NOW)
        .expect_err("another history");
    assert_eq!(refused.code(), Code::LogContradicted);
    let unsigned = recorder.publish_head().expect("nothing is written");
    assert_eq!(unsigned, None, "nor afterwards");
    // A folder that has signed another head of that size.
    let forked = tempfile::tempdir().expect("a scratch folder");
    keep(forked.path(), &trust, &key, &records[1..21]);
    let refused = open(forked.path(), &trust, &key, stored.as_ref());
    let refused = refused.map(drop).expect_err("two heads of one size");
    assert_eq!(refused.code(), Code::LogContradicted);
}

/// A service that is to copy the log, and cannot, would sign heads that nothing elsewhere binds.
#[test]
fn fg_07_a_store_without_the_key_to_it_ends_the_service() {
    let (trust, scratch) = (signing(1).0, scratch());
    let mut config = diloco_audit::Config {
        domain: scratch.path().to_owned(),
        ..diloco_audit::Config::default()
    }
    .completed();
    let listed = |config: &diloco_audit::Config| {
        let mut items = config.materials(NOW).items.into_iter();
        items.any(|item| {
            matches!(
                item,
                runtime::Material::StoreLogKey {
                    key: "store.keys",
                    ..
                }
            )
        })
    };
    let opened = Mirror::open(&config, &trust).expect("no store is named");
    assert!(opened.is_none() && !listed(&config));
    config.store.url = "http://127.0.0.1:9000".to_owned();
    assert!(listed(&config), "`--check-config` looks at it");
    let refused = Mirror::open(&config, &trust).expect_err("there is no key");
    assert_eq!(refused.code(), Code::CredentialMissing);
    let key = identity::AccessKey::generate();
    key.write_log(&config.store.keys)
        .expect("the folder takes files");
    let opened = Mirror::open(&config, &trust).expect("there is a key");
    assert!(opened.is_some());
}
