//! Refusals of URLs. Those that pass lead to another URL until the deadline; final ones lead to two
//! tries.

use std::sync::atomic::Ordering;
use std::time::Duration;

use identity::StoreKeys;
use objects::{Signer, StoreClock, Transfer, Trust};
use schemas::{Bytes, Code, Digest, ObjectRef, UnixMillis};
use tokio::time::Instant;

use crate::support::{Grants, Stub, TestStore, answer, key_of, noise, now, quick, soon};

/// The embedded store, and a coordinator with the keys of another store.
#[tokio::test]
async fn urls_that_were_signed_with_other_keys_are_not_asked_for_without_end() {
    let store = TestStore::start().await;
    let object = store.buckets().put_blob(noise(1000, 8)).await.unwrap();
    let (transfer, keys) = (store.transfer(), StoreKeys::generate());
    let right = store.signer_at(store.address);
    let wrong = Signer::new(
        &store.endpoint_at(store.address),
        &keys,
        StoreClock::default(),
    );
    let wrong = wrong.unwrap();
    let grants = Grants::new(|digest| Some(wrong.get(digest, now())));
    let first = wrong.get(object.digest, now());
    let read = transfer.get(&first, object.bytes, &grants, soon());
    assert_eq!(read.await.unwrap_err().code(), Code::UrlInvalid);
    assert_eq!(grants.asked.load(Ordering::SeqCst), 1, "one more was tried");

    let bytes = noise(100, 4);
    let upload = ObjectRef::of(&bytes);
    let put = |signer: &Signer| signer.put(&key_of(upload), upload.bytes, now());
    let grants = Grants::new(|_| Some(put(&wrong)));
    let first = put(&wrong);
    let stored = transfer.put(&first, bytes.clone(), &grants, soon());
    assert_eq!(stored.await.unwrap_err().code(), Code::UrlInvalid);
    assert_eq!(grants.asked.load(Ordering::SeqCst), 1);
    // A URL that was damaged on its way is replaced by a good one.
    let grants = Grants::new(|_| Some(put(&right)));
    let stored = transfer.put(&first, bytes, &grants, soon());
    assert!(stored.await.is_ok());
}

#[tokio::test]
async fn an_object_that_the_signer_may_not_touch_is_refused_for_good() {
    let denied = || {
        answer(
            "403 Forbidden",
            "",
            b"<Error><Code>AccessDenied</Code><Message>not a right of this key</Message></Error>",
        )
    };
    let stub = Stub::start(vec![denied(), denied()]).await;
    let digest = Digest::of(b"x");
    let grants = Grants::new(|digest| Some(stub.grant(digest)));
    let transfer = Transfer::new(&Trust::PlainLoopback, quick()).unwrap();
    let first = stub.grant(digest);
    let read = transfer.get(&first, Bytes(1), &grants, soon());
    assert_eq!(read.await.unwrap_err().code(), Code::UrlInvalid);
}

#[tokio::test]
async fn urls_that_have_expired_are_replaced_for_as_long_as_there_is_time() {
    let store = TestStore::start().await;
    let object = store.buckets().put_blob(noise(1000, 8)).await.unwrap();
    let signer = store.signer_at(store.address);
    let expired = |digest| signer.get(digest, UnixMillis(now().get() - 120_000));
    let first = expired(object.digest);
    let grants = Grants::new(|digest| Some(expired(digest)));
    let until = Instant::now() + Duration::from_secs(3);
    let transfer = store.transfer();
    let read = transfer.get(&first, object.bytes, &grants, until);
    assert_eq!(read.await.unwrap_err().code(), Code::UrlRefused);
    assert!(grants.asked.load(Ordering::SeqCst) > 2, "again and again");
    // One of the URLs is good at last.
    let good = Grants::new(|digest| Some(signer.get(digest, now())));
    let read = transfer.get(&first, object.bytes, &good, soon());
    assert!(read.await.is_ok());
}
