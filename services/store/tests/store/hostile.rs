//! Peers that hold on: to memory, to connections, to other people's room.

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
use crate::support::{TestStore, key_of, nobody, noise, now, soon};

/// Far below the store's own patience, which is 40 s.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Sends a head and nothing after it. The status, once the store has answered and closed the connection.
async fn dismissed(store: &TestStore, line: &str, headers: &str) -> Result<u16, String> {
    let mut stream = tls(store.address, &store.authority).await;
    let head = format!("{line} HTTP/1.1\r\nhost: {}\r\n{headers}\r\n", store.address);
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let closed = timeout(AT_ONCE, stream.read_to_end(&mut answer)).await;
    let text = String::from_utf8_lossy(&answer).into_owned();
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    match (closed, status) {
        (Ok(_), Some(status)) => Ok(status),
        (Ok(_), None) => Err("closed without an answer".to_owned()),
        (Err(_), _) => Err(format!("still open after {text:?}")),
    }
}

/// The path and query of a granted URL, and its headers as they are sent.
fn spoken(action: &HttpAction, bucket: &str) -> (String, String) {
    let path = action.href[action.href.find(bucket).unwrap()..].to_owned();
    (path, action.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect())
}

fn short(idle: Duration) -> StoreLimits {
    StoreLimits { idle, free_bytes_min: schemas::Bytes(0), ..StoreLimits::default() }
}

#[tokio::test]
async fn ls_05_forms_are_refused_before_a_byte_of_them_is_read() {
    let store = TestStore::start().await;
    let header = "authorization: AWS4-HMAC-SHA256 x\r\n";
    for kind in ["multipart/form-data; boundary=b", "Multipart/form-data; boundary=b", "MULTIPART/FORM-DATA;boundary=b"]
    {
        for (line, signature) in [("POST /incoming?delete", header), ("POST /incoming?delete&X-Amz-Signature=x", "")] {
            for length in ["transfer-encoding: chunked\r\n", "content-length: 100\r\n"] {
                let headers = format!("{signature}content-type: {kind}\r\n{length}");
                let status = dismissed(&store, line, &headers).await;
                assert!(matches!(status, Ok(400..=499)), "{line} {headers}: {status:?}");
            }
        }
    }
}
