//! Uploads: stored, refused, and what they leave behind.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use diloco_store::{Store, StoreConfig, StoreError, StoreLimits, Tls};
use futures::StreamExt as _;
use identity::StoreKeys;
use objects::{Buckets, ObjectError, Recorded, Stored, Transfer, TransferLimits};
use schemas::{Code, ObjectRef};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

use crate::support::{Grants, TestStore, key_of, nobody, noise, now, once, soon};

pub(crate) async fn upload(store: &TestStore, bytes: &Bytes) -> ObjectRef {
    let object = ObjectRef::of(bytes);
    let grant = store
        .signer_at(store.address)
        .put(&key_of(object), object.bytes, now());
    let stored = store
        .transfer()
        .put(&grant, bytes.clone(), &nobody(), soon())
        .await
        .unwrap();
    assert_eq!(stored, Stored::Now);
    object
}

#[tokio::test]
async fn an_object_goes_up_is_promoted_and_comes_down() {
    let store = TestStore::start().await;
    let buckets = store.buckets();
    for length in [0, 1, 70_000, (5 << 20) + 7] {
        let bytes = noise(length, 11);
        let object = upload(&store, &bytes).await;
        let key = key_of(object);
        assert_eq!(
            buckets.head_checked(&key, object).await.unwrap(),
            Recorded::Yes
        );
        assert_eq!(buckets.get_incoming(&key, object).await.unwrap(), bytes);
        assert_eq!(buckets.exists(object.digest).await.unwrap(), None);
        assert_eq!(buckets.promote(&key, object).await.unwrap(), Stored::Now);
        assert_eq!(buckets.promote(&key, object).await.unwrap(), Stored::Now);
        buckets.delete_incoming(&key).await.unwrap();
        assert_eq!(buckets.promote(&key, object).await.unwrap(), Stored::Before);
        assert_eq!(
            buckets.exists(object.digest).await.unwrap(),
            Some(object.bytes)
        );
        assert_eq!(buckets.get(object.digest).await.unwrap(), bytes);
        let grant = store.signer_at(store.address).get(object.digest, now());
        let read = store
            .transfer()
            .get(&grant, object.bytes, &nobody(), soon())
            .await
            .unwrap();
        assert_eq!(read, bytes);
    }
}

#[tokio::test]
async fn own_bytes_are_stored_once_listed_and_deleted() {
    let store = TestStore::start().await;
    let buckets = store.buckets();
    let object = buckets.put_blob(noise(3 << 20, 5)).await.unwrap();
    assert_eq!(buckets.put_blob(noise(3 << 20, 5)).await.unwrap(), object);
    let other = buckets.put_blob(noise(10, 6)).await.unwrap();
    let listed: Vec<ObjectRef> = buckets
        .list()
        .map(|entry| entry.unwrap().object)
        .collect()
        .await;
    let mut expected = [object, other];
    expected.sort_by_key(|object| object.digest);
    assert_eq!(listed, expected);
    buckets.delete(object.digest).await.unwrap();
    buckets.delete(object.digest).await.unwrap();
    assert!(matches!(
        buckets.get(object.digest).await,
        Err(ObjectError::Missing { .. })
    ));
    assert_eq!(buckets.get(other.digest).await.unwrap().len(), 10);
}

#[tokio::test]
async fn tl_26_a_wrong_reference_is_refused_and_absent() {
    let store = TestStore::start().await;
    let object = ObjectRef::of(&noise(1000, 1));
    let grant = store
        .signer_at(store.address)
        .put(&key_of(object), object.bytes, now());
    let wrong = store
        .transfer()
        .put(&grant, noise(1000, 2), &nobody(), soon())
        .await;
    assert!(
        matches!(wrong, Err(ObjectError::Mismatch { .. })),
        "{wrong:?}"
    );
    let short = store
        .transfer()
        .put(&grant, noise(999, 1), &nobody(), soon())
        .await;
    assert!(
        matches!(short, Err(ObjectError::GrantInvalid { .. })),
        "{short:?}"
    );
    assert_eq!(store.uploads(), Vec::<String>::new());
    assert_eq!(store.unfinished(), Vec::<String>::new());
}

#[tokio::test]
async fn tl_27_a_url_used_again_changes_nothing() {
    let store = TestStore::start().await;
    let bytes = noise(1000, 3);
    let object = ObjectRef::of(&bytes);
    let grant = store
        .signer_at(store.address)
        .put(&key_of(object), object.bytes, now());
    let transfer = store.transfer();
    assert_eq!(
        transfer
            .put(&grant, bytes.clone(), &nobody(), soon())
            .await
            .unwrap(),
        Stored::Now
    );
    assert_eq!(
        transfer
            .put(&grant, bytes, &nobody(), soon())
            .await
            .unwrap(),
        Stored::Before
    );
    assert_eq!(store.uploads().len(), 1);
}

#[tokio::test]
async fn tl_18_tl_26_a_promotion_needs_the_upload_and_its_digest() {
    let store = TestStore::start().await;
    let object = ObjectRef::of(b"never uploaded");
    let missing = store.buckets().promote(&key_of(object), object).await;
    let key = format!(
        "sha256/{}/{}",
        &object.digest.hex()[..2],
        object.digest.hex()
    );
    assert!(
        matches!(&missing, Err(ObjectError::Missing { what }) if *what == key),
        "{missing:?}"
    );
    let uploaded = upload(&store, &noise(100, 4)).await;
    let other = store.buckets().promote(&key_of(uploaded), object).await;
    assert!(
        matches!(other, Err(ObjectError::Mismatch { .. })),
        "{other:?}"
    );
    let longer = ObjectRef {
        bytes: schemas::Bytes(101),
        ..uploaded
    };
    let length = store
        .buckets()
        .head_checked(&key_of(uploaded), longer)
        .await;
    assert!(
        matches!(length, Err(ObjectError::Mismatch { .. })),
        "{length:?}"
    );
}

#[tokio::test]
async fn a_full_disk_refuses_before_it_reads() {
    let limits = StoreLimits {
        free_bytes_min: schemas::Bytes(u64::MAX / 2),
        ..StoreLimits::default()
    };
    let store = TestStore::with(limits).await;
    let object = ObjectRef::of(b"abc");
    let grant = store
        .signer_at(store.address)
        .put(&key_of(object), object.bytes, now());
    let transfer = Transfer::new(&store.trust(), once()).unwrap();
    let full = transfer
        .put(&grant, Bytes::from_static(b"abc"), &nobody(), soon())
        .await
        .unwrap_err();
    assert_eq!(full.code(), Code::StoreFull, "{full}");
    assert_eq!(store.uploads(), Vec::<String>::new());
    // A full store is an answer, so a transfer with a day's patience ends at once.
    let patient = Transfer::new(&store.trust(), TransferLimits::default()).unwrap();
    let tomorrow = Instant::now() + Duration::from_secs(86_400);
    let full = patient
        .put(&grant, Bytes::from_static(b"abc"), &nobody(), tomorrow)
        .await
        .unwrap_err();
    assert_eq!(full.code(), Code::StoreFull, "{full}");
}

#[tokio::test]
async fn larger_objects_than_allowed_are_refused() {
    let limits = StoreLimits {
        object_bytes_max: schemas::Bytes(1000),
        free_bytes_min: schemas::Bytes(0),
        ..StoreLimits::default()
    };
    let store = TestStore::with(limits).await;
    upload(&store, &noise(1000, 1)).await;
    let large = noise(1001, 1);
    let object = ObjectRef::of(&large);
    let grant = store
        .signer_at(store.address)
        .put(&key_of(object), object.bytes, now());
    assert!(
        store
            .transfer()
            .put(&grant, large, &nobody(), soon())
            .await
            .is_err()
    );
    assert_eq!(store.uploads().len(), 1);
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_nothing_and_can_be_repeated() {
    let store = TestStore::start().await;
    let bytes = noise(2 << 20, 9);
    let object = ObjectRef::of(&bytes);
    let grant = store
        .signer_at(store.address)
        .put(&key_of(object), object.bytes, now());
    let action = grant.action.clone().unwrap();
    let mut head = format!(
        "PUT {} HTTP/1.1\r\nhost: {}\r\n",
        &action.href[action.href.find("/incoming").unwrap()..],
        store.address
    );
    for (name, value) in &action.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    let mut stream = crate::connections::tls(store.address, &store.authority).await;
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&bytes[..1 << 20]).await.unwrap();
    stream.shutdown().await.unwrap();
    // The answer of the store to half a body does not matter: when the store closes, the request is
    // over.
    let mut answer = Vec::new();
    let _closed = stream.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
    assert_eq!(store.uploads(), Vec::<String>::new());
    let again = store
        .transfer()
        .put(&grant, bytes, &nobody(), soon())
        .await
        .unwrap();
    assert_eq!(again, Stored::Now);
    let root = store.stop().await;
    assert_eq!(
        std::fs::read_dir(root.path().join("tmp")).unwrap().count(),
        0
    );
}

#[tokio::test]
async fn a_root_is_served_by_one_process() {
    let store = TestStore::start().await;
    let config = StoreConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        root: store.root.path().to_owned(),
        keys: StoreKeys::generate(),
        tls: Tls::PlainLoopback,
        durability: diloco_store::Durability::Always,
        limits: StoreLimits::default(),
    };
    let second = Store::bind(config.clone())
        .await
        .map(|store| store.address());
    assert!(
        matches!(&second, Err(error @ StoreError::Busy { .. }) if error.code() == Code::StoreBusy),
        "{second:?}"
    );
    let _root = store.stop().await;
    Store::bind(config).await.unwrap();
}

/// A store without encryption.
fn plain(listen: std::net::SocketAddr, root: &std::path::Path) -> StoreConfig {
    StoreConfig {
        listen,
        root: root.to_owned(),
        keys: StoreKeys::generate(),
        tls: Tls::PlainLoopback,
        durability: diloco_store::Durability::Kernel,
        limits: StoreLimits::default(),
    }
}

#[tokio::test]
async fn a_port_that_is_taken_is_named_as_such() {
    let store = TestStore::start().await;
    let root = tempfile::tempdir().unwrap();
    let refused = Store::bind(plain(store.address, root.path()))
        .await
        .map(|store| store.address());
    assert!(
        matches!(&refused, Err(error) if error.code() == Code::PortTaken),
        "{refused:?}"
    );
}

#[tokio::test]
async fn tl_02_plaintext_stays_on_loopback() {
    let root = tempfile::tempdir().unwrap();
    let refused = Store::bind(plain("0.0.0.0:0".parse().unwrap(), root.path()))
        .await
        .map(|store| store.address());
    assert!(
        matches!(refused, Err(StoreError::Plaintext(_))),
        "{refused:?}"
    );
}

#[tokio::test]
async fn objects_survive_a_restart() {
    let store = TestStore::start().await;
    let object = store.buckets().put_blob(noise(1000, 8)).await.unwrap();
    let keys = store.keys.clone();
    let root = store.stop().await;
    let store = TestStore::on(root, keys, StoreLimits::default()).await;
    assert_eq!(
        store.buckets().get(object.digest).await.unwrap(),
        noise(1000, 8)
    );
}

#[tokio::test]
async fn tl_26_a_damaged_object_is_not_handed_out() {
    let store = TestStore::start().await;
    let object = store.buckets().put_blob(noise(1000, 8)).await.unwrap();
    let path = store
        .root
        .path()
        .join("blobs")
        .join(objects::BlobKey(object.digest).to_string());
    std::fs::write(path, noise(1000, 9)).unwrap();
    let damaged = store.buckets().get(object.digest).await;
    assert!(
        matches!(damaged, Err(ObjectError::Mismatch { .. })),
        "{damaged:?}"
    );
}

#[tokio::test]
async fn the_clock_of_the_store_is_measured() {
    let store = TestStore::start().await;
    let clock = objects::StoreClock::default();
    let patience = Duration::from_secs(5);
    let buckets = Buckets::new(
        &store.endpoint(),
        &store.keys.admin,
        clock.clone(),
        crate::support::quick(),
        patience,
    )
    .unwrap();
    buckets.ping().await.unwrap();
    assert!(
        clock.offset_ms().abs() <= 1000 && !clock.is_alarming(),
        "{}",
        clock.offset_ms()
    );
}

#[tokio::test]
async fn tl_27_an_expired_url_is_replaced_once() {
    let store = TestStore::start().await;
    let object = store.buckets().put_blob(noise(1000, 8)).await.unwrap();
    let signer = store.signer_at(store.address);
    let expired = signer.get(object.digest, schemas::UnixMillis(now().get() - 120_000));
    let grants = Grants::new(|digest| Some(signer.get(digest, now())));
    let read = store
        .transfer()
        .get(&expired, object.bytes, &grants, soon())
        .await
        .unwrap();
    assert_eq!((read.len(), grants.asked.load(Ordering::SeqCst)), (1000, 1));
    let denied = store
        .transfer()
        .get(&expired, object.bytes, &nobody(), soon())
        .await
        .unwrap_err();
    assert_eq!(denied.code(), Code::ObjectForbidden);
}

/// A contribution is read by its digest before it is promoted or merged, so other bytes under its
/// name get into neither.
#[tokio::test]
async fn tl_26_a_damaged_upload_is_not_read() {
    let store = TestStore::start().await;
    let object = upload(&store, &noise(1000, 8)).await;
    let key = key_of(object);
    std::fs::write(store.upload(&key), noise(1000, 9)).unwrap();
    let read = store.buckets().get_incoming(&key, object).await;
    assert!(
        matches!(read, Err(ObjectError::Mismatch { .. })),
        "{read:?}"
    );
}
