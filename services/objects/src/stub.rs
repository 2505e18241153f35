//! A server for the tests of this crate: it gives the answers that it has, whatever it is asked.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Method};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::client::{Client, Response};
use crate::endpoint::Trust;
use crate::limits::TransferLimits;

/// Starts a server that gives these answers in turn, each on a connection of its own, which it then
/// closes.
pub(crate) async fn serve(answers: Vec<String>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
        }
    });
    address
}

/// This answer, as the client of this crate reads it.
pub(crate) async fn response(answer: String) -> Response {
    let uri = format!("http://{}/", serve(vec![answer]).await);
    let client = Client::new(&Trust::PlainLoopback, &TransferLimits::default()).unwrap();
    let asked = client.send(
        Method::GET,
        uri.parse().unwrap(),
        HeaderMap::new(),
        Bytes::new(),
    );
    asked.await.unwrap()
}

/// The text of an answer with this status, these headers, each on a line, and this body.
pub(crate) fn answer(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n{headers}\r\n{body}")
}
