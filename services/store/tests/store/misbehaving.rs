//! Servers that answer in the form of a store, but do not do what a store must.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use identity::StoreKeys;
use objects::check::{Rule, check};
use objects::{
    Buckets, Endpoint, ObjectError, Regrant, Signer, StoreClock, Stored, Transfer, Trust,
};
use schemas::blob::Grant;
use schemas::{Code, Digest, ObjectRef, Refusal};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::support::{
    Grants, Stub, TestStore, answer, key_of, nobody, noise, now, once, quick, soon,
};

const MISMATCH: &[u8] = b"<Error><Code>BadDigest</Code></Error>";

/// An HTTP server whose answer depends on the request line alone.
struct Puppet {
    address: SocketAddr,
    running: JoinHandle<()>,
}

impl Puppet {
    async fn start(answers: impl Fn(&str, &str) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answers = Arc::new(answers);
        let running = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let answers = answers.clone();
                tokio::spawn(async move { serve(stream, &*answers).await });
            }
        });
        Self { address, running }
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::new(
            &format!("http://{}", self.address),
            "us-east-1",
            Trust::PlainLoopback,
        )
        .unwrap()
    }

    fn buckets(&self) -> Buckets {
        let (keys, patience) = (StoreKeys::generate(), Duration::from_secs(2));
        Buckets::new(
            &self.endpoint(),
            &keys.admin,
            StoreClock::default(),
            quick(),
            patience,
        )
        .unwrap()
    }
}

impl Drop for Puppet {
    fn drop(&mut self) {
        self.running.abort();
    }
}

/// Reads one request with its body on each connection.
async fn serve(
    mut stream: TcpStream,
    answers: &(impl Fn(&str, &str) -> Vec<u8> + ?Sized),
) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let text = String::from_utf8_lossy(&head).to_lowercase();
    let length = text
        .lines()
        .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok())
        .unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    let line = String::from_utf8_lossy(&head).into_owned();
    let mut words = line.split(' ');
    let (method, path) = (words.next()?, words.next()?);
    stream.write_all(&answers(method, path)).await.ok()?;
    stream.shutdown().await.ok()
}

fn is_bucket(path: &str) -> bool {
    !path
        .split('?')
        .next()
        .unwrap_or_default()
        .trim_matches('/')
        .contains('/')
}

/// The rules that such a store breaks.
async fn broken(answers: impl Fn(&str, &str) -> Vec<u8> + Send + Sync + 'static) -> Vec<Rule> {
    let puppet = Puppet::start(answers).await;
    let report = check(&puppet.endpoint(), &StoreKeys::generate())
        .await
        .unwrap();
    assert!(
        !report.is_fit(),
        "such a store is not to be used: {report:#?}"
    );
    let broken: Vec<Rule> = report
        .rows
        .iter()
        .filter(|row| !row.holds)
        .map(|row| row.rule)
        .collect();
    assert!(broken.iter().all(|rule| !report.holds(*rule)));
    broken
}

/// The server accepts everything from everybody, and keeps nothing.
#[tokio::test]
async fn a_store_that_refuses_nothing_is_found_out() {
    let broken = broken(|_, _| answer("200 OK", "", b"")).await;
    for rule in [
        Rule::WrongBytesRefused,
        Rule::GoodObjectKept,
        Rule::OverwriteRefused,
        Rule::SignedHeadersBind,
        Rule::LengthBinds,
        Rule::KeyBinds,
        Rule::AnonymousRefused,
        Rule::ExpiredRefused,
        Rule::ExtraHeaderRefused,
        Rule::ReadUrlCannotWrite,
        Rule::PutKeyCannotWriteBlobs,
        Rule::GetKeyCannotWrite,
        Rule::OneCreatorWins,
        Rule::ChecksumRecorded,
        Rule::CopyBetweenBuckets,
        Rule::RangeServed,
        Rule::ListedAndDeleted,
    ] {
        assert!(broken.contains(&rule), "{rule}");
    }
}

#[tokio::test]
async fn a_store_that_takes_nothing_is_found_out() {
    let broken = broken(|method, path| match method {
        "HEAD" if is_bucket(path) => answer("200 OK", "", b""),
        "PUT" => answer("400 Bad Request", "", MISMATCH),
        "DELETE" => answer("204 No Content", "", b""),
        _ => answer("404 Not Found", "", b""),
    })
    .await;
    for rule in [
        Rule::RightBytesStored,
        Rule::GoodObjectKept,
        Rule::OverwriteRefused,
        Rule::OneCreatorWins,
        Rule::ChecksumRecorded,
        Rule::CopyBetweenBuckets,
        Rule::RangeServed,
        Rule::ListedAndDeleted,
    ] {
        assert!(broken.contains(&rule), "{rule}");
    }
    assert!(
        !broken.contains(&Rule::WrongBytesRefused) && !broken.contains(&Rule::AnonymousRefused)
    );
}

/// The server refuses, but stores the object.
#[tokio::test]
async fn a_store_that_refuses_and_stores_is_found_out() {
    let broken = broken(|method, path| match method {
        "HEAD" if is_bucket(path) => answer("200 OK", "", b""),
        "PUT" => answer("400 Bad Request", "", MISMATCH),
        "DELETE" => answer("204 No Content", "", b""),
        _ => answer("200 OK", "", b""),
    })
    .await;
    for rule in [
        Rule::WrongBytesRefused,
        Rule::SignedHeadersBind,
        Rule::LengthBinds,
        Rule::KeyBinds,
        Rule::AnonymousRefused,
        Rule::ExpiredRefused,
        Rule::ReadUrlCannotWrite,
        Rule::PutKeyCannotWriteBlobs,
        Rule::GetKeyCannotWrite,
    ] {
        assert!(broken.contains(&rule), "{rule}");
    }
}

/// It refuses what is written with the key for reading, and one of its buckets has it.
#[tokio::test]
async fn a_store_that_refuses_and_stores_in_one_bucket_alone_is_found_out() {
    for open in ["/blobs/", "/incoming/"] {
        let broken = broken(move |method, path| match method {
            "HEAD" if is_bucket(path) || path.starts_with(open) => answer("200 OK", "", b""),
            "PUT" => answer("400 Bad Request", "", MISMATCH),
            "DELETE" => answer("204 No Content", "", b""),
            _ => answer("404 Not Found", "", b""),
        })
        .await;
        assert!(broken.contains(&Rule::GetKeyCannotWrite), "{open}");
    }
}

/// The server accepts everything that is written to one of its buckets, with any signature.
#[tokio::test]
async fn a_store_that_refuses_in_one_bucket_alone_is_found_out() {
    for open in ["/blobs/", "/incoming/"] {
        let broken = broken(move |method, path| match method {
            "HEAD" if is_bucket(path) => answer("200 OK", "", b""),
            "PUT" if path.starts_with(open) => answer("200 OK", "", b""),
            "PUT" => answer("400 Bad Request", "", MISMATCH),
            "DELETE" => answer("204 No Content", "", b""),
            _ => answer("404 Not Found", "", b""),
        })
        .await;
        assert!(broken.contains(&Rule::GetKeyCannotWrite), "{open}");
        assert_eq!(
            broken.contains(&Rule::PutKeyCannotWriteBlobs),
            open == "/blobs/"
        );
        assert_eq!(
            broken.contains(&Rule::AnonymousRefused),
            open == "/incoming/"
        );
    }
}

#[tokio::test]
async fn a_promotion_is_believed_only_when_the_store_shows_the_right_object() {
    let object = ObjectRef::of(&noise(100, 1));
    let length = object.bytes.get();
    let checksum = BASE64.encode(object.digest.as_bytes());
    let other = BASE64.encode(Digest::of(b"another").as_bytes());
    let looked = |status: &str, length: u64, checksum: &str| {
        format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nx-amz-checksum-sha256: {checksum}\r\n\r\n")
            .into_bytes()
    };
    let copied = |body: &str| answer("200 OK", "", body.as_bytes());
    let right =
        format!("<CopyObjectResult><ChecksumSHA256>{checksum}</ChecksumSHA256></CopyObjectResult>");
    let wrong = right.replace(&checksum, &other);
    let failed = "<Error><Code>InternalError</Code></Error>";
    let there = looked("200 OK", length, &checksum);
    let promote = async |copy: Vec<u8>, look: Vec<u8>| {
        let answers = move |method: &str, _: &str| {
            if method == "HEAD" {
                look.clone()
            } else {
                copy.clone()
            }
        };
        let puppet = Puppet::start(answers).await;
        puppet
            .buckets()
            .promote(&key_of(object), object)
            .await
            .map_err(|error| error.code())
    };
    let absent = || answer("404 Not Found", "", b"");
    assert_eq!(
        promote(copied(&right), absent()).await,
        Ok(Stored::Now),
        "nobody has to look"
    );
    for body in ["", wrong.as_str()] {
        assert_eq!(
            promote(copied(body), there.clone()).await,
            Ok(Stored::Now),
            "{body:?}: a look is as good"
        );
        for look in [
            looked("200 OK", length, &other),
            looked("200 OK", length + 1, &checksum),
        ] {
            assert_eq!(
                promote(copied(body), look).await,
                Err(Code::ObjectMismatch),
                "{body:?}"
            );
        }
        assert!(promote(copied(body), absent()).await.is_err(), "{body:?}");
    }
    // A copy may fail after its 200 was sent.
    assert!(promote(copied(failed), there.clone()).await.is_err());
    assert!(
        promote(answer("403 Forbidden", "", b""), there.clone())
            .await
            .is_err()
    );
    assert_eq!(promote(absent(), there).await, Ok(Stored::Before));
}

#[tokio::test]
async fn a_store_that_is_busy_is_asked_again_until_patience_ends() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let puppet = Puppet::start(move |_, _| match count.fetch_add(1, Ordering::SeqCst) {
        0 => answer("503 Slow Down", "", b""),
        1 => answer("429 Too Many Requests", "", b""),
        _ => answer("404 Not Found", "", b""),
    })
    .await;
    assert_eq!(
        puppet.buckets().exists(Digest::of(b"x")).await.unwrap(),
        None
    );
    assert_eq!(asked.load(Ordering::SeqCst), 3);
    let busy = Puppet::start(|_, _| answer("503 Slow Down", "", b"")).await;
    let error = busy.buckets().exists(Digest::of(b"x")).await.unwrap_err();
    assert_eq!(error.code(), Code::StoreUnreachable, "{error}");
    let full = Puppet::start(|_, _| answer("507 Insufficient Storage", "", b"")).await;
    let object = ObjectRef::of(b"x");
    let promoted = full.buckets().promote(&key_of(object), object).await;
    assert_eq!(promoted.unwrap_err().code(), Code::StoreFull);
    let empty = Puppet::start(|_, _| answer("404 Not Found", "", b"")).await;
    let error = empty.buckets().ping().await.unwrap_err();
    assert_eq!(error.to_string(), "the store has no bucket incoming");
    // What is deleted already is deleted; what may not be is an error.
    let gone = Puppet::start(|_, _| answer("404 Not Found", "", b"")).await;
    gone.buckets().delete(Digest::of(b"x")).await.unwrap();
    let kept = Puppet::start(|_, _| answer("409 Conflict", "", b"")).await;
    assert!(kept.buckets().delete(Digest::of(b"x")).await.is_err());
}

/// A document without end would fill the memory.
#[tokio::test]
async fn of_an_error_document_only_the_beginning_is_read() {
    let refused = async |padding: usize| {
        let body = format!("<Error>{}<Code>TooFar</Code></Error>", " ".repeat(padding));
        let puppet = Puppet::start(move |_, _| answer("409 Conflict", "", body.as_bytes())).await;
        let error = puppet.buckets().delete(Digest::of(b"x")).await;
        error.unwrap_err().to_string()
    };
    // The longest that is read whole; it comes in more than one piece.
    assert!(refused((8 << 10) - 34).await.contains("TooFar"));
    assert!(!refused(4 << 20).await.contains("TooFar"));
}

#[tokio::test]
async fn an_upload_of_another_length_than_stated_is_not_read() {
    let store = TestStore::start().await;
    let bytes = noise(100, 4);
    let object = ObjectRef::of(&bytes);
    let grant = store
        .signer_at(store.address)
        .put(&key_of(object), object.bytes, now());
    store
        .transfer()
        .put(&grant, bytes, &nobody(), soon())
        .await
        .unwrap();
    let stated = ObjectRef {
        bytes: schemas::Bytes(101),
        ..object
    };
    let read = store.buckets().get_incoming(&key_of(object), stated).await;
    assert!(
        matches!(read, Err(ObjectError::Mismatch { .. })),
        "{read:?}"
    );
}

#[tokio::test]
async fn an_answer_that_begins_elsewhere_is_not_joined_to_what_is_here() {
    let body = noise(100, 3);
    let whole = answer("200 OK", "", &body);
    let half = whole[..whole.len() - 40].to_vec();
    let elsewhere = answer(
        "206 Partial Content",
        "content-range: bytes 50-99/100\r\n",
        &body[50..],
    );
    let right = answer(
        "206 Partial Content",
        "content-range: bytes 60-99/100\r\n",
        &body[60..],
    );
    let stub = Stub::start(vec![half, elsewhere, right]).await;
    let transfer = Transfer::new(&Trust::PlainLoopback, quick()).unwrap();
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
    assert_eq!(stub.heads.lock().await.len(), 3);
}

/// Refuses a few times, then grants.
struct Hesitant<'a> {
    code: Code,
    times: usize,
    asked: AtomicUsize,
    signer: &'a Signer,
}

#[async_trait]
impl Regrant for Hesitant<'_> {
    async fn regrant(&self, digest: Digest) -> Result<Grant, Refusal> {
        match self.asked.fetch_add(1, Ordering::SeqCst) < self.times {
            true => Err(Refusal::new(self.code, "not now")),
            false => Ok(self.signer.get(digest, now())),
        }
    }
}

#[tokio::test]
async fn a_grant_is_for_what_was_asked_and_who_is_away_is_asked_again() {
    let store = TestStore::start().await;
    let object = store.buckets().put_blob(noise(1000, 8)).await.unwrap();
    let signer = store.signer_at(store.address);
    let (transfer, expired) = (
        store.transfer(),
        signer.get(object.digest, schemas::UnixMillis(now().get() - 120_000)),
    );
    // A URL for reading cannot be used for writing.
    let put = transfer
        .put(&expired, noise(1000, 8), &nobody(), soon())
        .await;
    assert!(
        matches!(put, Err(ObjectError::GrantInvalid { .. })),
        "{put:?}"
    );
    let other = Grants::new(|_| Some(signer.get(Digest::of(b"another"), now())));
    let read = transfer.get(&expired, object.bytes, &other, soon()).await;
    assert!(
        matches!(read, Err(ObjectError::GrantInvalid { .. })),
        "{read:?}"
    );
    let hesitant = |code, times| Hesitant {
        code,
        times,
        asked: AtomicUsize::new(0),
        signer: &signer,
    };
    for code in [Code::NoAnswer, Code::Draining, Code::AskedTooMuch] {
        let grants = hesitant(code, 2);
        transfer
            .get(&expired, object.bytes, &grants, soon())
            .await
            .unwrap_or_else(|error| panic!("{code}: {error}"));
        assert_eq!(grants.asked.load(Ordering::SeqCst), 3, "{code}");
    }
    // It does not ask for ever, and not after a final refusal.
    let (never, until) = (
        hesitant(Code::NoAnswer, usize::MAX),
        Instant::now() + Duration::from_millis(400),
    );
    assert_eq!(
        transfer
            .get(&expired, object.bytes, &never, until)
            .await
            .unwrap_err()
            .code(),
        Code::NoAnswer
    );
    let refused = hesitant(Code::ObjectForbidden, 1);
    assert_eq!(
        transfer
            .get(&expired, object.bytes, &refused, soon())
            .await
            .unwrap_err()
            .code(),
        Code::ObjectForbidden
    );
    assert_eq!(refused.asked.load(Ordering::SeqCst), 1);
}

/// The longest silence applies while there is time; when none is left, a short silence ends the
/// transfer.
#[tokio::test]
async fn after_the_deadline_a_silent_store_is_not_waited_for() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let endpoint = Endpoint::new(&endpoint, "us-east-1", Trust::PlainLoopback).unwrap();
    let signer = Signer::new(&endpoint, &StoreKeys::generate(), StoreClock::default()).unwrap();
    let transfer = Transfer::new(&Trust::PlainLoopback, once()).unwrap();
    let (object, begun) = (ObjectRef::of(b"bytes"), Instant::now());
    let grant = signer.put(&key_of(object), object.bytes, now());
    let until = begun + Duration::from_millis(300);
    let unknown = transfer
        .put(&grant, Bytes::from_static(b"bytes"), &nobody(), until)
        .await;
    assert!(
        matches!(unknown, Err(ObjectError::Uncertain { .. })),
        "{unknown:?}"
    );
    assert!(begun.elapsed() < once().idle / 2, "{:?}", begun.elapsed());
    drop(listener);
}
