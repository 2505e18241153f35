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
use url::Url;

use crate::connections::tls;
use crate::support::{
    Cut, Grants, Proxy, Stub, TestStore, answer, key_of, nobody, noise, now, once, quick, soon,
};

#[tokio::test]
async fn a_download_resumes_where_it_broke() {
    let store = TestStore::start().await;
    let bytes = noise(4 << 20, 21);
    let object = store.buckets().put_blob(bytes.clone()).await.unwrap();
    let proxy = Proxy::start(store.address, Cut::Down(400 << 10), 8).await;
    let signer = store.signer_at(proxy.address);
    let grants = Grants::new(|digest| Some(signer.get(digest, now())));
    let grant = signer.get(object.digest, now());
    let transfer = store.transfer();
    let read = transfer.get(&grant, object.bytes, &grants, soon()).await;
    assert!(read.unwrap() == bytes, "other bytes");
    // Eight cut connections brought less than 400 KiB each, and the ninth the rest.
    assert_eq!(proxy.connections.load(Ordering::SeqCst), 9);
    // What was lost on the way counts as served, so other URLs were asked for.
    let asked = grants.asked.load(Ordering::SeqCst);
    assert!((1..=8).contains(&asked), "asked {asked} times");
}

/// A URL that was found in a log is worth nothing once its holder has read the object.
#[tokio::test]
async fn tl_27_a_leaked_url_is_refused_once_its_object_was_read_with_it() {
    let store = TestStore::start().await;
    let bytes = noise(3 << 20, 23);
    let object = store.buckets().put_blob(bytes.clone()).await.unwrap();
    let signer = store.signer_at(store.address);
    let (holder, thief) = (store.transfer(), store.transfer());
    let grant = signer.get(object.digest, now());
    let read = holder.get(&grant, object.bytes, &nobody(), soon()).await;
    assert!(read.unwrap() == bytes, "other bytes");
    let nothing = nobody();
    let stolen = thief.get(&grant, object.bytes, &nothing, soon()).await;
    assert!(matches!(stolen, Err(ObjectError::Denied(_))), "{stolen:?}");
    assert_eq!(
        nothing.asked.load(Ordering::SeqCst),
        1,
        "it would need a URL"
    );
    // Who may have another one gets it, and so reads the object again.
    let grants = Grants::new(|digest| Some(signer.get(digest, now())));
    let read = holder.get(&grant, object.bytes, &grants, soon()).await;
    assert!(read.unwrap() == bytes, "other bytes");
    assert_eq!(grants.asked.load(Ordering::SeqCst), 1);
}

/// Parts of an object are served with one URL until they add up to the object.
#[tokio::test]
async fn tl_27_the_parts_that_a_url_serves_add_up_to_its_object() {
    let store = TestStore::start().await;
    let bytes = noise(1000, 24);
    let object = store.buckets().put_blob(bytes.clone()).await.unwrap();
    let signer = store.signer_at(store.address);
    let url = || Url::parse(&signer.get(object.digest, now()).action.unwrap().href).unwrap();
    let ask = async |url: &Url, range: &str| {
        let mut stream = tls(store.address, &store.authority).await;
        let target = format!("{}?{}", url.path(), url.query().unwrap());
        let request = format!(
            "GET {target} HTTP/1.1\r\nhost: {}\r\nrange: bytes={range}\r\nconnection: close\r\n\r\n",
            store.address
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        answer
    };
    let status = |answer: &[u8]| String::from_utf8_lossy(&answer[9..12]).into_owned();
    let one = url();
    let first = ask(&one, "0-499").await;
    assert!(status(&first) == "206" && first.ends_with(&bytes[..500]));
    let more = ask(&one, "0-500").await;
    assert_eq!(status(&more), "403", "one byte more than is left");
    let second = ask(&one, "500-").await;
    assert!(status(&second) == "206" && second.ends_with(&bytes[500..]));
    let third = ask(&one, "0-0").await;
    assert_eq!(status(&third), "403");
    let said = String::from_utf8_lossy(&third).into_owned();
    assert!(
        said.contains("AccessDenied") && said.contains("was read with it"),
        "{said}"
    );
    let other = ask(&url(), "0-0").await;
    assert_eq!(status(&other), "206", "another URL of the same second");
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
