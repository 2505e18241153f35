use std::collections::BTreeMap;

use schemas::UnixMillis;

use super::*;
use crate::stub::{self, answer};

/// A client with limits of which this test changes some.
fn transfer(limits: TransferLimits) -> Transfer {
    Transfer::new(&Trust::PlainLoopback, limits).unwrap()
}

/// The time that a transfer gets for its wait for another one, which moves these bytes meanwhile.
async fn added(up: u64, down: u64) -> Duration {
    let transfer = transfer(TransferLimits {
        parallel_max: 1,
        ..TransferLimits::default()
    });
    let mut pace = Pace::new(&transfer.limits, Instant::now());
    let before = pace.deadline();
    let other = transfer.up.enter().await;
    let moving = async {
        transfer.moved.up.fetch_add(up, Ordering::Relaxed);
        transfer.moved.down.fetch_add(down, Ordering::Relaxed);
        drop(other);
    };
    let ((_lane, is_old), ()) = tokio::join!(transfer.lane(&transfer.up, &mut pace), moving);
    assert!(!is_old);
    pace.deadline() - before
}

#[tokio::test]
async fn a_wait_for_others_costs_no_time_if_they_get_on() {
    assert_eq!(added(0, 0).await, Duration::ZERO);
    assert!(added(1, 0).await > Duration::ZERO);
    assert!(added(0, 1).await > Duration::ZERO);
}

#[test]
fn a_url_is_old_after_half_of_its_life() {
    let half = URL_LIFE.as_duration() / 2;
    let ages = [half - Duration::from_millis(1), half];
    assert_eq!(ages.map(is_old), [false, true]);
}

#[test]
fn a_transfer_is_looked_at_each_second_and_four_times_in_its_longest_silence() {
    let looks = [20, 4, 2].map(|idle| look_every(Duration::from_secs(idle)));
    assert_eq!(looks.map(|every| every.as_millis()), [1000, 1000, 500]);
}

#[test]
fn an_exchange_that_took_long_does_not_show_the_time() {
    let short = CLOCK_EXCHANGE_MAX - Duration::from_millis(1);
    let took = [Duration::ZERO, short, CLOCK_EXCHANGE_MAX];
    assert_eq!(took.map(shows_clock), [true, true, false]);
}

#[tokio::test]
async fn a_refusal_is_final_or_leads_to_another_url_or_to_another_try() {
    let transfer = transfer(TransferLimits::default());
    let refused = async |status: &str, code: &str| {
        let body = format!("<Error><Code>{code}</Code></Error>");
        let response = stub::response(answer(status, "retry-after: 7\r\n", &body)).await;
        transfer.refused(Digest::of(b"x"), response).await
    };
    for code in ["BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch"] {
        let failure = refused("400 Bad Request", code).await;
        let is_mismatch = matches!(failure, Failure::Final(ObjectError::Mismatch { .. }));
        assert!(is_mismatch, "{code}");
    }
    for (status, code) in [
        ("400 Bad Request", "InvalidRequest"),
        ("403 Forbidden", "AccessDenied"),
        ("403 Forbidden", "BadDigest"),
    ] {
        let failure = refused(status, code).await;
        assert!(matches!(failure, Failure::Url(_)), "{status} {code}");
    }
    let failure = refused("404 Not Found", "").await;
    let is_missing = matches!(failure, Failure::Final(ObjectError::Missing { .. }));
    assert!(is_missing);
    let asked = Duration::from_secs(7);
    for status in [
        "408 Request Timeout",
        "409 Conflict",
        "429 Too Many Requests",
        "500 Internal Server Error",
        "507 Insufficient Storage",
    ] {
        let failure = refused(status, "").await;
        let waits = matches!(failure, Failure::Busy(_, Some(wait)) if wait == asked);
        assert!(waits, "{status}");
    }
    for status in ["307 Temporary Redirect", "405 Method Not Allowed"] {
        let failure = refused(status, "").await;
        let is_final = matches!(
            failure,
            Failure::Final(ObjectError::Refused { for_good: true, .. })
        );
        assert!(is_final, "{status}");
    }
}

/// Grants nothing.
struct Nobody;

#[async_trait]
impl Regrant for Nobody {
    async fn regrant(&self, _digest: Digest) -> Result<Grant, Refusal> {
        Err(Refusal::new(Code::ObjectForbidden, "no more"))
    }
}

/// Each connection brings one byte and breaks. Pauses that only double take longer than the time of
/// the transfer, so it ends well only if each byte makes them short again.
#[tokio::test]
async fn a_download_that_gets_on_has_its_short_pauses_again() {
    let body = "ten bytes.";
    let parts = (0..body.len()).map(|first| {
        let range = format!("content-range: bytes {first}-9/10\r\n");
        let whole = match first {
            0 => answer("200 OK", "", body),
            _ => answer("206 Partial Content", &range, &body[first..]),
        };
        let behind = body.len() - first - 1;
        whole[..whole.len() - behind].to_owned()
    });
    let address = stub::serve(parts.collect()).await;
    let transfer = transfer(TransferLimits {
        pause_first: Duration::from_millis(20),
        pause_max: Duration::from_secs(60),
        ..TransferLimits::default()
    });
    let grant = Grant {
        digest: Digest::of(body.as_bytes()),
        action: Some(HttpAction {
            method: Method::Get,
            href: format!("http://{address}/x"),
            headers: BTreeMap::new(),
            expires_at: UnixMillis(0),
        }),
    };
    let until = Instant::now() + Duration::from_secs(2);
    let read = transfer.get(&grant, schemas::Bytes(10), &Nobody, until);
    assert_eq!(read.await.unwrap(), body);
    assert_eq!(transfer.moved.down.load(Ordering::Relaxed), 10);
    assert_eq!(transfer.moved.failures.load(Ordering::Relaxed), 9);
}
