//! A store whose clock differs from ours: a request that it refuses for that is signed once more,
//! with its time.

use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::rfc2822;
use objects::{Buckets, Endpoint, Signer, StoreClock, Trust};
use schemas::{Code, ObjectRef};

use crate::support::{Stub, answer, noise, now, quick};

/// Seconds by which the store's clock is ahead.
const AHEAD_SECONDS: i64 = 1000;

/// The answer of a store whose clock is ahead to a request that our clock signed.
fn expired() -> Vec<u8> {
    let body = b"<Error><Code>AccessDenied</Code><Message>expired</Message></Error>";
    answer("403 Forbidden", &date(), body)
}

fn date() -> String {
    let at = Timestamp::now() + jiff::SignedDuration::from_secs(AHEAD_SECONDS);
    let text = rfc2822::DateTimePrinter::new()
        .timestamp_to_rfc9110_string(&at)
        .unwrap();
    format!("date: {text}\r\n")
}

fn buckets(stub: &Stub, clock: &StoreClock) -> Buckets {
    let endpoint = Endpoint::new(
        &format!("http://{}", stub.address),
        "us-east-1",
        Trust::PlainLoopback,
    )
    .unwrap();
    let keys = identity::StoreKeys::generate();
    Buckets::new(
        &endpoint,
        &keys.admin,
        clock.clone(),
        quick(),
        Duration::from_secs(20),
    )
    .unwrap()
}

/// The time in the signature of a request, in seconds since 1970.
fn signed_at(head: &str) -> i64 {
    let (_, rest) = head.split_once("X-Amz-Date=").unwrap();
    let text = rest.split_once('&').unwrap().0;
    let digits = |range: std::ops::Range<usize>| &text[range];
    let stamp = format!(
        "{}-{}-{}T{}:{}:{}Z",
        digits(0..4),
        digits(4..6),
        digits(6..8),
        digits(9..11),
        digits(11..13),
        digits(13..15)
    );
    stamp.parse::<Timestamp>().unwrap().as_second()
}

fn assert_corrected(heads: &[String]) {
    assert_eq!(heads.len(), 2, "{heads:?}");
    let later = signed_at(&heads[1]) - signed_at(&heads[0]);
    assert!((later - AHEAD_SECONDS).abs() < 10, "signed {later} s later");
}

#[tokio::test]
async fn the_first_request_to_a_store_of_another_time_is_signed_again_and_works() {
    let stub = Stub::start(vec![expired(), answer("404 Not Found", &date(), b"")]).await;
    let clock = StoreClock::default();
    let found = buckets(&stub, &clock)
        .exists(ObjectRef::of(b"x").digest)
        .await
        .unwrap();
    assert_eq!(found, None);
    assert_corrected(&stub.heads.lock().await);
    // From then on, URLs for others carry the store's time.
    let endpoint = Endpoint::new("http://127.0.0.1:1", "us-east-1", Trust::PlainLoopback).unwrap();
    let signer = Signer::new(&endpoint, &identity::StoreKeys::generate(), clock).unwrap();
    let url = signer
        .get(ObjectRef::of(b"x").digest, now())
        .action
        .unwrap()
        .href;
    assert!((signed_at(&url) - Timestamp::now().as_second() - AHEAD_SECONDS).abs() < 10);
}

#[tokio::test]
async fn an_upload_to_a_store_of_another_time_is_signed_again_and_works() {
    let stub = Stub::start(vec![expired(), answer("200 OK", &date(), b"")]).await;
    let stored = buckets(&stub, &StoreClock::default())
        .put_blob(noise(0, 1))
        .await;
    assert!(stored.is_ok(), "{stored:?}");
    assert_corrected(&stub.heads.lock().await);
}

#[tokio::test]
async fn a_refusal_that_time_does_not_explain_is_final() {
    let denied = answer(
        "403 Forbidden",
        "",
        b"<Error><Code>SignatureDoesNotMatch</Code></Error>",
    );
    let stub = Stub::start(vec![denied]).await;
    let refused = buckets(&stub, &StoreClock::default())
        .exists(ObjectRef::of(b"x").digest)
        .await
        .unwrap_err();
    // An answer to `HEAD` has no body that gives the reason.
    assert_eq!(refused.code(), Code::UrlRefused);
    // The same holds for a refusal that stays when the time is right.
    let stub = Stub::start(vec![expired(), expired()]).await;
    let refused = buckets(&stub, &StoreClock::default())
        .exists(ObjectRef::of(b"x").digest)
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::UrlRefused);
    assert_eq!(stub.heads.lock().await.len(), 2, "once more, and no more");
}

#[tokio::test]
async fn a_store_of_another_time_that_answers_is_asked_once() {
    let absent = || answer("404 Not Found", &date(), b"");
    let stub = Stub::start(vec![absent(), absent()]).await;
    let found = buckets(&stub, &StoreClock::default())
        .exists(ObjectRef::of(b"x").digest)
        .await;
    assert_eq!(found.unwrap(), None);
    assert_eq!(stub.heads.lock().await.len(), 1);
}
