//! Peers that hold on to memory, to connections, or to space that others need.

use std::net::SocketAddr;
use std::time::Duration;

use diloco_store::StoreLimits;
use objects::Stored;
use rustls::SupportedProtocolVersion;
use rustls::version::{TLS12, TLS13};
use schemas::ObjectRef;
use schemas::blob::HttpAction;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout};

use crate::connections::{over_tls, tls};
use crate::support::{Grants, TestStore, key_of, noise, now, soon};

/// Much less than the store's own patience, which is 40 s.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Sends a head and nothing after it. Returns the status once the store has answered and closed the
/// connection.
async fn dismissed(store: &TestStore, line: &str, headers: &str) -> Result<u16, String> {
    let mut stream = tls(store.address, &store.authority).await;
    let head = format!(
        "{line} HTTP/1.1\r\nhost: {}\r\n{headers}\r\n",
        store.address
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let closed = timeout(AT_ONCE, stream.read_to_end(&mut answer)).await;
    let text = String::from_utf8_lossy(&answer).into_owned();
    let status = text
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    match (closed, status) {
        (Ok(_), Some(status)) => Ok(status),
        (Ok(_), None) => Err("closed without an answer".to_owned()),
        (Err(_), _) => Err(format!("still open after {text:?}")),
    }
}

/// The path and query of a granted URL, and its headers in the form in which they are sent.
fn spoken(action: &HttpAction, bucket: &str) -> (String, String) {
    let path = action.href[action.href.find(bucket).unwrap()..].to_owned();
    (
        path,
        action
            .headers
            .iter()
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect(),
    )
}

fn short(idle: Duration) -> StoreLimits {
    StoreLimits {
        idle,
        free_bytes_min: schemas::Bytes(0),
        ..StoreLimits::default()
    }
}

#[tokio::test]
async fn ls_05_forms_are_refused_before_a_byte_of_them_is_read() {
    let store = TestStore::start().await;
    let header = "authorization: AWS4-HMAC-SHA256 x\r\n";
    for kind in [
        "multipart/form-data; boundary=b",
        "Multipart/form-data; boundary=b",
        "MULTIPART/FORM-DATA;boundary=b",
    ] {
        for (line, signature) in [
            ("POST /incoming?delete", header),
            ("POST /incoming?delete&X-Amz-Signature=x", ""),
        ] {
            for length in ["transfer-encoding: chunked\r\n", "content-length: 100\r\n"] {
                let headers = format!("{signature}content-type: {kind}\r\n{length}");
                let status = dismissed(&store, line, &headers).await;
                assert!(
                    matches!(status, Ok(400..=499)),
                    "{line} {headers}: {status:?}"
                );
            }
        }
    }
}

#[tokio::test]
async fn whoever_is_not_admitted_is_let_go_at_once() {
    let store = TestStore::start().await;
    let object = store.buckets().put_blob(noise(10, 1)).await.unwrap();
    let (read, _) = spoken(
        &store
            .signer_at(store.address)
            .get(object.digest, now())
            .action
            .unwrap(),
        "/blobs",
    );
    let (_, rest) = read.split_once("X-Amz-Date=").unwrap();
    let (time, day) = (&rest[..16], &rest[..8]);
    let id = store.keys.put.id();
    let signed = |service: &str| {
        format!(
            "authorization: AWS4-HMAC-SHA256 Credential={id}/{day}/us-east-1/{service}/aws4_request, \
             SignedHeaders=host;x-amz-date, Signature={}\r\nx-amz-date: {time}\r\n",
            "0".repeat(64)
        )
    };
    let plain = "x-amz-content-sha256: UNSIGNED-PAYLOAD\r\n";
    let framed = "x-amz-content-sha256: STREAMING-UNSIGNED-PAYLOAD-TRAILER\r\nx-amz-decoded-content-length: 9\r\n";
    let waiting = "content-length: 100\r\n";
    let mut kept = Vec::new();
    for (line, headers) in [
        ("GET /blobs/x".to_owned(), String::new()),
        (
            read.replace("X-Amz-Expires=60", "X-Amz-Expires=61"),
            String::new(),
        ),
        (read.replace("/blobs/", "/incoming/"), String::new()),
        (
            "POST /incoming?delete".to_owned(),
            format!("{}{waiting}", signed("sts")),
        ),
        (
            "POST /incoming?delete".to_owned(),
            format!("{}{waiting}", signed("s3")),
        ),
        (
            "POST /incoming?delete".to_owned(),
            format!("{}{plain}{waiting}", signed("s3")),
        ),
        (
            "PUT /incoming/x".to_owned(),
            format!("{}{framed}{waiting}", signed("s3")),
        ),
        (
            "PUT /incoming/x?X-Amz-Signature=x".to_owned(),
            "transfer-encoding: chunked\r\n".to_owned(),
        ),
        (
            "PUT /incoming/x?X-Amz-Signature=x".to_owned(),
            waiting.to_owned(),
        ),
        (
            "PUT /incoming/x?X-Amz-Signature=x".to_owned(),
            String::new(),
        ),
    ] {
        let line = if line.starts_with('/') {
            format!("GET {line}")
        } else {
            line
        };
        let status = dismissed(&store, &line, &headers).await;
        if !matches!(status, Ok(400..=499)) {
            kept.push(format!("{line}\r\n{headers}: {status:?}"));
        }
    }
    assert!(kept.is_empty(), "{}", kept.join("\n\n"));
}

/// Many clients send their whole body before they read. Their socket must not be reset before they
/// read the answer.
#[tokio::test]
async fn who_sends_a_whole_body_before_it_reads_is_told_why_it_is_refused() {
    let store = TestStore::start().await;
    let body = vec![7; 24 << 20];
    for signature in ["", "?X-Amz-Signature=x"] {
        let mut stream = tls(store.address, &store.authority).await;
        let (host, length) = (store.address, body.len());
        let head = format!(
            "PUT /incoming/x{signature} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {length}\r\n\r\n"
        );
        let told = timeout(AT_ONCE, async {
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(&body).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.map(|_| answer)
        });
        let answer = told
            .await
            .expect("the store takes or refuses it")
            .expect("the connection is not reset");
        assert!(
            answer.starts_with("HTTP/1.1 4") && answer.contains("<Code>"),
            "{signature}: {answer}"
        );
    }
}

#[tokio::test]
async fn a_signed_body_that_falls_silent_ends() {
    let store = TestStore::with(short(Duration::from_millis(300))).await;
    let endpoint: url::Url = format!("https://{}", store.address).parse().unwrap();
    let bucket =
        rusty_s3::Bucket::new(endpoint, rusty_s3::UrlStyle::Path, "blobs", "us-east-1").unwrap();
    let admin = &store.keys.admin;
    let url = rusty_s3::signing::sign(
        &jiff::Timestamp::now(),
        rusty_s3::Method::Post,
        bucket.base_url().clone(),
        admin.id(),
        admin.expose_secret(),
        None,
        bucket.region(),
        60,
        [("delete", "")].into_iter(),
        std::iter::empty(),
    );
    let path = url
        .as_str()
        .strip_prefix(&format!("https://{}", store.address))
        .unwrap()
        .to_owned();
    let headers = "content-type: application/xml\r\ncontent-length: 100\r\n";
    let ended = dismissed(&store, &format!("POST {path}"), headers).await;
    assert!(
        !ended
            .as_ref()
            .is_err_and(|text| text.starts_with("still open")),
        "{ended:?}"
    );
}

#[tokio::test]
async fn an_upload_that_trickles_ends() {
    let store = TestStore::with(short(Duration::from_millis(400))).await;
    let object = ObjectRef::of(&noise(1 << 20, 2));
    let grant = store
        .signer_at(store.address)
        .put(&key_of(object), object.bytes, now());
    let (path, headers) = spoken(&grant.action.unwrap(), "/incoming");
    let mut stream = tls(store.address, &store.authority).await;
    stream
        .write_all(
            format!(
                "PUT {path} HTTP/1.1\r\nhost: {}\r\n{headers}\r\n",
                store.address
            )
            .as_bytes(),
        )
        .await
        .unwrap();
    let start = Instant::now();
    let mut answer = [0; 1];
    while timeout(Duration::from_millis(50), stream.read(&mut answer))
        .await
        .is_err()
    {
        assert!(
            start.elapsed() < AT_ONCE,
            "a byte now and then keeps the place"
        );
        let _closed = stream.write_all(b"x").await;
        let _closed = stream.flush().await;
    }
    let root = store.stop().await;
    assert_eq!(
        std::fs::read_dir(root.path().join("tmp")).unwrap().count(),
        0
    );
}

#[tokio::test]
async fn tl_27_a_key_takes_one_upload_at_a_time() {
    let store = TestStore::start().await;
    let bytes = noise(4 << 20, 3);
    let object = ObjectRef::of(&bytes);
    let signer = store.signer_at(store.address);
    let grant = signer.put(&key_of(object), object.bytes, now());
    let (path, headers) = spoken(grant.action.as_ref().unwrap(), "/incoming");
    let mut first = tls(store.address, &store.authority).await;
    let head = format!(
        "PUT {path} HTTP/1.1\r\nhost: {}\r\n{headers}expect: 100-continue\r\n\r\n",
        store.address
    );
    first.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    first.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 100", "the store waits for the body");
    first.write_all(&bytes[..500]).await.unwrap();
    for _ in 0..3 {
        assert_eq!(
            dismissed(&store, &format!("PUT {path}"), &headers).await,
            Ok(409)
        );
    }
    // Our own client waits until the name is free. The refusal may overtake its bytes, and then
    // looks like a cut line.
    let transfer = store.transfer();
    let grants = Grants::new(|_| Some(signer.put(&key_of(object), object.bytes, now())));
    let mut waiting = std::pin::pin!(transfer.put(&grant, bytes, &grants, soon()));
    assert!(
        timeout(Duration::from_millis(300), waiting.as_mut())
            .await
            .is_err()
    );
    drop(first);
    assert_eq!(waiting.await.unwrap(), Stored::Now);
    assert_eq!(store.uploads().len(), 1);
    assert_eq!(store.unfinished(), Vec::<String>::new());
}

/// A client that repeats a finished upload gets its answer before it sends a byte.
#[tokio::test]
async fn a_key_that_is_filled_is_refused_by_the_head_alone() {
    let store = TestStore::start().await;
    let bytes = noise(1 << 20, 4);
    let object = ObjectRef::of(&bytes);
    let grant = store
        .signer_at(store.address)
        .put(&key_of(object), object.bytes, now());
    let nobody = crate::support::nobody();
    assert_eq!(
        store
            .transfer()
            .put(&grant, bytes, &nobody, soon())
            .await
            .unwrap(),
        Stored::Now
    );
    let (path, headers) = spoken(grant.action.as_ref().unwrap(), "/incoming");
    assert_eq!(
        dismissed(&store, &format!("PUT {path}"), &headers).await,
        Ok(412)
    );
}

/// Silent before a request, in the middle of its head, and in the handshake.
#[tokio::test]
async fn who_connects_and_says_nothing_is_let_go() {
    let store = TestStore::with(short(Duration::from_millis(300))).await;
    for said in ["", "GET /blobs/x HTTP/1.1\r\nhost: "] {
        let mut stream = tls(store.address, &store.authority).await;
        stream.write_all(said.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let closed = timeout(AT_ONCE, stream.read_to_end(&mut answer)).await;
        assert!(closed.is_ok(), "still open after {said:?}");
        assert!(!answer.starts_with(b"HTTP/1.1 2"));
    }
    let mut silent = TcpStream::connect(store.address).await.unwrap();
    let closed = timeout(3 * AT_ONCE, silent.read_u8()).await;
    assert!(
        matches!(closed, Ok(Err(_))),
        "no handshake keeps the place: {closed:?}"
    );
}

async fn from(source: [u8; 4], store: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((source, 0))).unwrap();
    socket.connect(store).await.unwrap()
}

#[tokio::test]
async fn one_peer_cannot_take_every_connection() {
    let store = TestStore::with(StoreLimits {
        connections_max: 8,
        ..short(Duration::from_secs(40))
    })
    .await;
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push(from([127, 0, 0, 2], store.address).await);
    }
    // The store closes the surplus half without an answer, in the order of arrival.
    for stream in &mut held[4..] {
        let closed = timeout(AT_ONCE, stream.read_u8())
            .await
            .expect("it is too much");
        assert!(closed.is_err(), "nothing is said on it");
    }
    for stream in &held[..4] {
        assert!(
            stream
                .try_read(&mut [0])
                .is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock),
            "it is open"
        );
    }
    timeout(AT_ONCE, store.buckets().ping())
        .await
        .expect("there is a place for another peer")
        .unwrap();
    // A freed place can be used again.
    drop(held);
    let again = from([127, 0, 0, 2], store.address).await;
    let spoken = timeout(AT_ONCE, over_tls(again, &store.authority, &[&TLS13])).await;
    assert!(spoken.is_ok_and(|spoken| spoken.is_ok()));
}

/// Each peer takes all it can get and stays silent; the next client is served.
#[tokio::test]
async fn several_peers_together_cannot_take_every_connection() {
    let store = TestStore::with(StoreLimits {
        connections_max: 8,
        ..short(Duration::from_secs(40))
    })
    .await;
    let mut held = Vec::new();
    for host in 2..=9 {
        for _ in 0..8 {
            held.push(from([127, 0, 0, host], store.address).await);
        }
    }
    timeout(AT_ONCE, store.buckets().ping())
        .await
        .expect("there is a place for another peer")
        .unwrap();
}

/// A client that was served keeps its connection when many strangers come.
#[tokio::test]
async fn strangers_make_room_before_those_who_are_known() {
    let store = TestStore::with(StoreLimits {
        connections_max: 4,
        ..short(Duration::from_secs(40))
    })
    .await;
    let object = store.buckets().put_blob(noise(10, 1)).await.unwrap();
    let signer = store.signer_at(store.address);
    let mut known = tls(store.address, &store.authority).await;
    let mut answers = 0;
    for host in 2..=20 {
        let grant = signer.get(object.digest, now());
        let (path, _) = spoken(&grant.action.unwrap(), "/blobs");
        let ask = format!("GET {path} HTTP/1.1\r\nhost: {}\r\n\r\n", store.address);
        let mut answer = vec![0; 12];
        known.write_all(ask.as_bytes()).await.unwrap();
        timeout(AT_ONCE, known.read_exact(&mut answer))
            .await
            .expect("it is served")
            .unwrap();
        assert!(
            answer.starts_with(b"HTTP/1.1 200"),
            "after {answers} answers"
        );
        while !answer.ends_with(&noise(10, 1)) {
            answer.push(known.read_u8().await.unwrap());
        }
        answers += 1;
        let _silent = from([127, 0, 0, host], store.address).await;
    }
    assert_eq!(answers, 19);
}

/// No known client is ended for a newcomer, and there is no place beyond the last.
#[tokio::test]
async fn where_all_places_are_with_those_who_are_known_a_newcomer_has_none() {
    let limits = StoreLimits {
        connections_max: 2,
        connections_peer_percent: 100,
        ..short(Duration::from_secs(40))
    };
    let store = TestStore::with(limits).await;
    let grant = store
        .signer_at(store.address)
        .get(ObjectRef::of(b"absent").digest, now());
    let (path, _) = spoken(&grant.action.unwrap(), "/blobs");
    // An answer that there is no such object is an answer too.
    let ask = format!("GET {path} HTTP/1.1\r\nhost: {}\r\n\r\n", store.address);
    let mut known = Vec::new();
    for _ in 0..2 {
        let mut stream = tls(store.address, &store.authority).await;
        stream.write_all(ask.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 404");
        known.push(stream);
    }
    // The newcomer waits, or is disconnected if the store had begun to wait before all others were
    // known.
    let newcomer = async || {
        let stream = from([127, 0, 0, 2], store.address).await;
        over_tls(stream, &store.authority, &[&TLS13]).await
    };
    for _ in 0..3 {
        let served = timeout(Duration::from_millis(200), newcomer()).await;
        assert!(!matches!(served, Ok(Ok(_))), "there is no place");
    }
    for stream in &mut known {
        stream.write_all(ask.as_bytes()).await.unwrap();
    }
    drop(known.pop());
    // The store finds one by one that those who gave up waiting are gone.
    let served = async { while newcomer().await.is_err() {} };
    timeout(AT_ONCE, served)
        .await
        .expect("there is a place now");
}

#[tokio::test]
async fn tl_21_the_running_store_speaks_nothing_older_than_tls_1_3() {
    let store = TestStore::start().await;
    let speak = async |version: &'static SupportedProtocolVersion| {
        let stream = TcpStream::connect(store.address).await.unwrap();
        over_tls(stream, &store.authority, &[version]).await
    };
    speak(&TLS13).await.unwrap();
    let refused = speak(&TLS12).await.expect_err("an old version");
    assert!(refused.to_string().contains("ProtocolVersion"), "{refused}");
}
