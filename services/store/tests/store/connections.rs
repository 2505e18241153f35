//! Connections to the port that bring no valid request: garbage, strangers, other protocols.

use std::net::SocketAddr;
use std::sync::Arc;

use objects::BlobKey;
use rustls::SupportedProtocolVersion;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use schemas::ObjectRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::support::{TestStore, noise, now};

/// So many connections that an end without goodbye shows, even if half of them say goodbye by
/// chance.
const CONNECTIONS_AT_THE_END: usize = 16;

/// A TLS connection to a store, for any bytes.
pub(crate) async fn tls(address: SocketAddr, authority: &[u8]) -> TlsStream<TcpStream> {
    let stream = TcpStream::connect(address).await.unwrap();
    over_tls(stream, authority, rustls::DEFAULT_VERSIONS)
        .await
        .unwrap()
}

/// TLS of one of these versions over a connection.
pub(crate) async fn over_tls(
    stream: TcpStream,
    authority: &[u8],
    versions: &[&'static SupportedProtocolVersion],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(authority).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
}

async fn say(store: &TestStore, text: &str) -> String {
    let mut stream = tls(store.address, &store.authority).await;
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // Some refusals end the connection without a TLS goodbye; the bytes read so far count.
    let _closed = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

async fn status(store: &TestStore, method: &str, path: &str, headers: &str) -> u16 {
    let answer = say(
        store,
        &format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n{headers}\r\n",
            store.address
        ),
    )
    .await;
    answer
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .unwrap_or(0)
}

#[tokio::test]
async fn garbage_does_no_harm() {
    let store = TestStore::start().await;
    for garbage in [
        noise(5000, 1).to_vec(),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        Vec::new(),
    ] {
        let mut stream = TcpStream::connect(store.address).await.unwrap();
        stream.write_all(&garbage).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _closed = stream.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP"), "plaintext was answered");
    }
    for garbage in [
        "\0\0\0\r\n\r\n",
        "GET\r\n\r\n",
        "BREW /pot HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    ] {
        let answer = say(&store, garbage).await;
        assert!(
            answer.is_empty()
                || answer.starts_with("HTTP/1.1 4")
                || answer.starts_with("HTTP/1.1 5"),
            "{answer}"
        );
    }
    store.buckets().ping().await.unwrap();
}

/// A client must suspect that a connection without the TLS goodbye was cut, and its last answer
/// with it.
#[tokio::test]
async fn a_store_that_is_stopped_says_goodbye_on_every_connection() {
    let store = TestStore::start().await;
    let object = store.buckets().put_blob(noise(10, 1)).await.unwrap();
    let signer = store.signer_at(store.address);
    // The request is signed, since the store ends the connection of a stranger by itself.
    let request = || {
        let url = signer.get(object.digest, now()).action.unwrap().href;
        let path = &url[url.find("/blobs").unwrap()..];
        format!("GET {path} HTTP/1.1\r\nhost: {}\r\n\r\n", store.address)
    };
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS_AT_THE_END {
        let mut stream = tls(store.address, &store.authority).await;
        stream.write_all(request().as_bytes()).await.unwrap();
        connections.push(stream);
    }
    // The answer shows that the connection is served.
    for stream in &mut connections {
        stream.read_u8().await.unwrap();
    }
    let stopped = tokio::spawn(store.stop());
    for stream in &mut connections {
        let mut rest = Vec::new();
        stream
            .read_to_end(&mut rest)
            .await
            .expect("an end that was announced");
        assert!(
            rest.starts_with(b"TTP/1.1 200"),
            "{}",
            String::from_utf8_lossy(&rest)
        );
    }
    stopped.await.unwrap();
}

#[tokio::test]
async fn ls_01_ls_05_strangers_and_old_signatures_are_refused() {
    let store = TestStore::start().await;
    let object = store.buckets().put_blob(noise(10, 1)).await.unwrap();
    let path = format!("/blobs/{}", BlobKey(object.digest));
    assert_eq!(status(&store, "GET", "/", "").await, 403);
    assert_eq!(status(&store, "GET", &path, "").await, 403);
    let bare = say(&store, &format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n")).await;
    assert!(bare.contains("a signature is required"), "{bare}");
    assert_eq!(
        status(
            &store,
            "GET",
            &format!("{path}?AWSAccessKeyId=get&Signature=x&Expires=9999999999"),
            ""
        )
        .await,
        403
    );
    assert_eq!(
        status(
            &store,
            "GET",
            &path,
            "authorization: AWS get:c2lnbmF0dXJl\r\n"
        )
        .await,
        403
    );
    let form = "content-type: multipart/form-data; boundary=x\r\ncontent-length: 0\r\n";
    assert_eq!(
        status(&store, "POST", "/incoming?X-Amz-Signature=x", form).await,
        405
    );
}

#[tokio::test]
async fn tl_20_a_url_serves_its_one_request() {
    let store = TestStore::start().await;
    let object = store.buckets().put_blob(noise(10, 1)).await.unwrap();
    let url = store
        .signer_at(store.address)
        .get(object.digest, now())
        .action
        .unwrap()
        .href;
    let path = &url[url.find("/blobs").unwrap()..];
    assert_eq!(status(&store, "GET", path, "").await, 200);
    assert_eq!(status(&store, "HEAD", path, "").await, 403);
    assert_eq!(status(&store, "DELETE", path, "").await, 403);
    assert_eq!(
        status(&store, "PUT", path, "content-length: 0\r\n").await,
        403
    );
    assert_eq!(
        status(&store, "GET", path, "x-amz-note: unsigned\r\n").await,
        403
    );
    assert_eq!(
        status(
            &store,
            "GET",
            &path.replace("X-Amz-Expires=60", "X-Amz-Expires=600"),
            ""
        )
        .await,
        403
    );
    let other = BlobKey(ObjectRef::of(b"other").digest).to_string();
    assert_eq!(
        status(
            &store,
            "GET",
            &path.replace(&BlobKey(object.digest).to_string(), &other),
            ""
        )
        .await,
        403
    );
    assert_eq!(
        status(&store, "GET", &path.replace("/blobs/", "/incoming/"), "").await,
        403
    );
}

#[tokio::test]
async fn an_object_of_several_pieces_comes_in_one_answer() {
    let store = TestStore::start().await;
    let bytes = noise((3 << 20) + 5, 2);
    let object = store.buckets().put_blob(bytes.clone()).await.unwrap();
    let url = store
        .signer_at(store.address)
        .get(object.digest, now())
        .action
        .unwrap()
        .href;
    let mut stream = tls(store.address, &store.authority).await;
    let path = &url[url.find("/blobs").unwrap()..];
    let text = format!(
        "GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n",
        store.address
    );
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _closed = stream.read_to_end(&mut answer).await;
    assert!(answer.ends_with(&bytes), "{} bytes", answer.len());
}

#[tokio::test]
async fn ranges_are_exact() {
    let store = TestStore::start().await;
    let bytes = noise(3000, 1);
    let object = store.buckets().put_blob(bytes.clone()).await.unwrap();
    let url = store
        .signer_at(store.address)
        .get(object.digest, now())
        .action
        .unwrap()
        .href;
    let path = url[url.find("/blobs").unwrap()..].to_owned();
    for (range, expected) in [
        ("0-0", 0..1),
        ("2990-", 2990..3000),
        ("-10", 2990..3000),
        ("2999-5000", 2999..3000),
    ] {
        let mut stream = tls(store.address, &store.authority).await;
        let text = format!(
            "GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\nrange: bytes={range}\r\n\r\n",
            store.address
        );
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _closed = stream.read_to_end(&mut answer).await;
        let text = String::from_utf8_lossy(&answer).to_lowercase();
        assert!(text.starts_with("http/1.1 206"), "{range}: {text}");
        assert!(
            text.contains(&format!(
                "content-range: bytes {}-{}/3000",
                expected.start,
                expected.end - 1
            )),
            "{range}"
        );
        assert!(answer.ends_with(&bytes[expected]), "{range}");
    }
    assert_eq!(
        status(&store, "GET", &path, "range: bytes=3000-\r\n").await,
        416
    );
}

#[tokio::test]
async fn hostile_keys_are_refused_even_to_the_admin() {
    let store = TestStore::start().await;
    let endpoint: url::Url = format!("https://{}", store.address).parse().unwrap();
    let bucket =
        rusty_s3::Bucket::new(endpoint, rusty_s3::UrlStyle::Path, "blobs", "us-east-1").unwrap();
    let admin = rusty_s3::Credentials::new(store.keys.admin.id(), store.keys.admin.expose_secret());
    let digest = ObjectRef::of(b"x").digest.hex();
    let long = "a".repeat(1100);
    for key in [
        ".hidden",
        "a/.hidden",
        "ü",
        "a b",
        "a//b",
        "a\\b",
        "sha256/x",
        &format!("sha256/00/{digest}"),
        &long,
    ] {
        let action = rusty_s3::actions::PutObject::new(&bucket, Some(&admin), key);
        let url = rusty_s3::S3Action::sign(&action, std::time::Duration::from_secs(60));
        let path = url
            .as_str()
            .strip_prefix(&format!("https://{}", store.address))
            .unwrap()
            .to_owned();
        let got = status(&store, "PUT", &path, "content-length: 0\r\n").await;
        assert!(
            (400..500).contains(&got) || (key.contains("sha256/") && got == 400),
            "{key}: {got}"
        );
    }
    // Paths that a URL library would normalise first; their signatures cannot match either.
    for path in [
        "/blobs/../../etc/passwd",
        "/blobs/%2e%2e/%2e%2e/etc/passwd",
        "/incoming/..%2fblobs/x",
        "//blobs/x",
    ] {
        assert_eq!(
            status(
                &store,
                "PUT",
                &format!("{path}?X-Amz-Signature=x"),
                "content-length: 0\r\n"
            )
            .await
                / 100,
            4,
            "{path}"
        );
    }
    let files = std::fs::read_dir(store.root.path().join("blobs"))
        .unwrap()
        .count();
    assert_eq!((files, store.uploads().len()), (0, 0));
    let named = rusty_s3::actions::PutObject::new(&bucket, Some(&admin), "audit/checkpoint");
    let url = rusty_s3::S3Action::sign(&named, std::time::Duration::from_secs(60));
    let path = url
        .as_str()
        .strip_prefix(&format!("https://{}", store.address))
        .unwrap()
        .to_owned();
    assert_eq!(
        status(&store, "PUT", &path, "content-length: 0\r\n").await,
        200
    );
}
