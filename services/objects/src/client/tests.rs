use std::io;

use futures::FutureExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufWriter};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::stub;

#[tokio::test]
async fn a_connection_is_read_written_flushed_and_ended_as_it_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tcp = TcpStream::connect(listener.local_addr().unwrap());
    let line = Counted::new(tcp.await.unwrap()).line().clone();
    let (ours, mut peer) = tokio::io::duplex(64);
    let stream = Stream {
        io: TokioIo::new(Box::pin(BufWriter::new(ours))),
        line,
        shown: None,
    };
    // The stream is for hyper; tokio reads and writes it through another such wrapper.
    let mut stream = TokioIo::new(stream);
    assert_eq!(stream.write(b"abc").await.unwrap(), 3);
    assert!(stream.is_write_vectored());
    let slices = [b"de", b"fg"].map(|slice| io::IoSlice::new(slice));
    assert_eq!(stream.write_vectored(&slices).await.unwrap(), 4);
    let mut read = [0; 7];
    assert!(peer.read_exact(&mut read).now_or_never().is_none());
    stream.flush().await.unwrap();
    peer.read_exact(&mut read).now_or_never().unwrap().unwrap();
    assert_eq!(&read, b"abcdefg");
    peer.write_all(b"hi").await.unwrap();
    let mut answer = [0; 2];
    let got = stream.read_exact(&mut answer).now_or_never();
    got.unwrap().unwrap();
    assert_eq!(&answer, b"hi");
    let mut rest = Vec::new();
    assert!(peer.read_to_end(&mut rest).now_or_never().is_none());
    stream.shutdown().await.unwrap();
    peer.read_to_end(&mut rest).now_or_never().unwrap().unwrap();
    assert_eq!(rest, b"");
}

/// No piece of a body crosses the border between two chunks.
#[tokio::test]
async fn a_document_is_read_until_it_is_longer_than_the_longest() {
    let code_behind = async |bytes: usize| {
        let chunks = [" ".repeat(bytes), "<Code>Behind</Code>".to_owned()];
        let chunks = chunks.map(|chunk| format!("{:x}\r\n{chunk}\r\n", chunk.len()));
        let head = "HTTP/1.1 409 Conflict\r\ntransfer-encoding: chunked\r\n\r\n";
        let response = stub::response(format!("{head}{}0\r\n\r\n", chunks.concat())).await;
        s3_answer(response, LISTING_PATIENCE).await.code
    };
    assert_eq!(code_behind(ERROR_BYTES_MAX).await, "Behind");
    assert_eq!(code_behind(ERROR_BYTES_MAX + 1).await, "");
}

#[test]
fn an_error_is_described_with_all_its_causes() {
    #[derive(Debug, thiserror::Error)]
    #[error("the request failed")]
    struct Outer(#[source] io::Error);
    assert_eq!(
        describe(&Outer(io::Error::other("no route"))),
        "the request failed: no route"
    );
}
