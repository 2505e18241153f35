//! Transfers over connections that break, and to servers that misbehave.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use objects::{ObjectError, Stored, Transfer, TransferLimits, Trust};
use schemas::blob::Grant;
use schemas::{Code, Digest, ObjectRef};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::support::{
    Cut, Grants, Proxy, Stub, TestStore, answer, key_of, nobody, noise, now, once, quick, soon,
};

#[tokio::test]
async fn a_download_resumes_where_it_broke() {
    let store = TestStore::start().await;
    let bytes = noise(4 << 20, 21);
    let object = store.buckets().put_blob(bytes.clone()).await.unwrap();
    let proxy = Proxy::start(store.address, Cut::Down(400 << 10), 8).await;
    let grant = store.signer_at(proxy.address).get(object.digest, now());
    let read = store
        .transfer()
        .get(&grant, object.bytes, &nobody(), soon())
        .await
        .unwrap();
    assert!(read == bytes, "other bytes");
    // Eight cut connections brought less than 400 KiB each, and the ninth the rest.
    assert_eq!(proxy.connections.load(Ordering::SeqCst), 9);
}

#[tokio::test]
async fn a_broken_upload_asks_for_another_url_and_succeeds() {
    let store = TestStore::start().await;
    let bytes = noise(2 << 20, 22);
    let object = ObjectRef::of(&bytes);
    let proxy = Proxy::start(store.address, Cut::Up(500 << 10), 3).await;
    let signer = store.signer_at(proxy.address);
    let grant = signer.put(&key_of(object), object.bytes, now());
    let grants = Grants::new(|_| Some(signer.put(&key_of(object), object.bytes, now())));
    let stored = store
        .transfer()
        .put(&grant, bytes, &grants, soon())
        .await
        .unwrap();
    // One request for each broken attempt. An attempt that came before the store had noticed the
    // end of the one before was told to wait, and asks for nothing.
    let asked = grants.asked.load(Ordering::SeqCst);
    assert!(
        stored == Stored::Now && (1..=3).contains(&asked),
        "{stored:?}, asked {asked} times"
    );
    assert_eq!(store.uploads().len(), 1);
}

#[tokio::test]
async fn a_lost_answer_is_settled_by_asking() {
    let store = TestStore::start().await;
    let bytes = noise(1 << 20, 23);
    let object = ObjectRef::of(&bytes);
    let proxy = Proxy::start(store.address, Cut::Answer(1 << 20), usize::MAX).await;
    let grant = store
        .signer_at(proxy.address)
        .put(&key_of(object), object.bytes, now());
    // The coordinator asks the store and finds the object.
    let known = Grants::new(|digest| {
        Some(Grant {
            digest,
            action: None,
        })
    });
    let stored = store
        .transfer()
        .put(&grant, bytes.clone(), &known, soon())
        .await
        .unwrap();
    assert_eq!(
        (stored, known.asked.load(Ordering::SeqCst)),
        (Stored::Before, 1)
    );
    store
        .buckets()
        .head_checked(&key_of(object), object)
        .await
        .unwrap();
    // Nobody can tell if it was stored, and the error says so.
    let proxy = Proxy::start(store.address, Cut::Up(100 << 10), usize::MAX).await;
    let signer = store.signer_at(proxy.address);
    let other = noise(1 << 20, 24);
    let object = ObjectRef::of(&other);
    let grant = signer.put(&key_of(object), object.bytes, now());
    let blind = Grants::new(|_| Some(signer.put(&key_of(object), object.bytes, now())));
    let until = Instant::now() + Duration::from_millis(300);
    let unknown = store.transfer().put(&grant, other, &blind, until).await;
    assert!(
        matches!(unknown, Err(ObjectError::Uncertain { .. })),
        "{unknown:?}"
    );
}

#[tokio::test]
async fn an_upload_that_is_not_needed_is_not_sent() {
    let store = TestStore::start().await;
    let grant = Grant {
        digest: Digest::of(b"x"),
        action: None,
    };
    assert_eq!(
        store
            .transfer()
            .put(&grant, Bytes::from_static(b"x"), &nobody(), soon())
            .await
            .unwrap(),
        Stored::Before
    );
    let unreadable = store
        .transfer()
        .get(&grant, schemas::Bytes(1), &nobody(), soon())
        .await;
    assert!(matches!(unreadable, Err(ObjectError::GrantInvalid { .. })));
}

#[tokio::test]
async fn a_deadline_ends_a_transfer_to_nowhere() {
    let store = TestStore::start().await;
    let (signer, transfer) = (store.signer_at(store.address), store.transfer());
    let _root = store.stop().await;
    let start = Instant::now();
    let until = start + Duration::from_millis(400);
    let gone = transfer
        .get(
            &signer.get(Digest::of(b""), now()),
            schemas::Bytes(1),
            &nobody(),
            until,
        )
        .await
        .unwrap_err();
    assert_eq!(gone.code(), Code::StoreUnreachable, "{gone}");
    assert!(
        start.elapsed() < Duration::from_secs(5) && !gone.to_string().contains("X-Amz"),
        "{gone}"
    );
}

#[tokio::test]
async fn a_stranger_with_another_ca_is_not_spoken_to() {
    let store = TestStore::start().await;
    let object = store.buckets().put_blob(noise(10, 1)).await.unwrap();
    let other = Transfer::new(
        &Trust::Authority(crate::support::certificates().authority),
        once(),
    )
    .unwrap();
    let grant = store.signer_at(store.address).get(object.digest, now());
    let refused = other
        .get(&grant, object.bytes, &nobody(), soon())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::CertificateUntrusted, "{refused}");
    assert!(refused.to_string().contains("certificate"), "{refused}");
}

fn plain() -> Transfer {
    Transfer::new(&Trust::PlainLoopback, quick()).unwrap()
}

#[tokio::test]
async fn busy_servers_are_given_the_time_they_ask_for() {
    let body = b"some bytes";
    let busy = answer(
        "503 Slow Down",
        "retry-after: 1\r\n",
        b"<Error><Code>SlowDown</Code></Error>",
    );
    let stub = Stub::start(vec![busy, answer("200 OK", "", body)]).await;
    let start = Instant::now();
    let read = plain()
        .get(
            &stub.grant(Digest::of(body)),
            schemas::Bytes(100),
            &nobody(),
            soon(),
        )
        .await
        .unwrap();
    assert_eq!(&read[..], body);
    assert!(start.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let stub = Stub::start(vec![answer(
        "307 Temporary Redirect",
        "location: http://127.0.0.1:1/\r\n",
        b"",
    )])
    .await;
    let refused = plain()
        .get(
            &stub.grant(Digest::of(b"")),
            schemas::Bytes(100),
            &nobody(),
            soon(),
        )
        .await;
    assert!(
        matches!(refused, Err(ObjectError::Refused { status: 307, .. })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn nothing_is_decoded_and_nothing_asked_for() {
    let body = b"not gzip at all";
    let stub = Stub::start(vec![answer("200 OK", "content-encoding: gzip\r\n", body)]).await;
    let read = plain()
        .get(
            &stub.grant(Digest::of(body)),
            schemas::Bytes(100),
            &nobody(),
            soon(),
        )
        .await
        .unwrap();
    assert_eq!(&read[..], body);
    assert!(
        !stub.heads.lock().await[0]
            .to_lowercase()
            .contains("accept-encoding")
    );
}

#[tokio::test]
async fn tl_11_wrong_bytes_never_reach_the_caller() {
    let wrong = answer("200 OK", "", b"other bytes");
    let stub = Stub::start(vec![wrong, answer("200 OK", "", b"too many bytes")]).await;
    let grant = stub.grant(Digest::of(b"right bytes"));
    let other = plain()
        .get(&grant, schemas::Bytes(11), &nobody(), soon())
        .await;
    assert!(
        matches!(other, Err(ObjectError::Mismatch { .. })),
        "{other:?}"
    );
    let large = plain()
        .get(&grant, schemas::Bytes(11), &nobody(), soon())
        .await;
    assert!(
        matches!(large, Err(ObjectError::TooLarge { .. })),
        "{large:?}"
    );
}

#[tokio::test]
async fn a_server_without_ranges_is_read_from_the_start() {
    // The longer one comes in many pieces.
    for length in [100, 4 << 20] {
        let body = noise(length, 3);
        let whole = answer("200 OK", "", &body);
        let half = whole[..whole.len() - 40].to_vec();
        let stub = Stub::start(vec![half, whole]).await;
        let (grant, most) = (stub.grant(Digest::of(&body)), schemas::Bytes(length as u64));
        let read = plain().get(&grant, most, &nobody(), soon()).await.unwrap();
        assert!(read == body);
        let range = format!("range: bytes={}-", length - 40);
        assert!(stub.heads.lock().await[1].contains(&range));
    }
}

/// Nobody could tell when it is whole, or that it is too large.
#[tokio::test]
async fn an_answer_without_a_length_is_not_read_and_asked_for_again() {
    let endless = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nright bytes".to_vec();
    let right = answer("200 OK", "", b"right bytes");
    let stub = Stub::start(vec![endless, right]).await;
    let grant = stub.grant(Digest::of(b"right bytes"));
    let read = plain()
        .get(&grant, schemas::Bytes(11), &nobody(), soon())
        .await;
    assert_eq!(read.unwrap(), b"right bytes".as_slice());
    assert_eq!(stub.heads.lock().await.len(), 2);
}

#[tokio::test]
async fn fg_20_a_server_that_falls_silent_is_asked_again() {
    let body = noise(100, 3);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stub = Stub {
        address: listener.local_addr().unwrap(),
        heads: Arc::default(),
    };
    let whole = answer("200 OK", "", &body);
    let half = whole[..whole.len() - 40].to_vec();
    let serving = tokio::spawn(async move {
        let mut streams = Vec::new();
        for part in [half, whole] {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(&part).await.unwrap();
            // No connection is closed before the client is done, which sees only silence.
            streams.push(stream);
        }
        streams
    });
    // Long enough for a server that is not silent, even on a busy machine.
    let limits = TransferLimits {
        idle: Duration::from_secs(1),
        ..quick()
    };
    let transfer = Transfer::new(&Trust::PlainLoopback, limits).unwrap();
    let read = transfer
        .get(
            &stub.grant(Digest::of(&body)),
            schemas::Bytes(100),
            &nobody(),
            soon(),
        )
        .await
        .unwrap();
    assert!(read == body);
    serving.await.unwrap();
}
