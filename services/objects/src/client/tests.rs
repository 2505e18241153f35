use std::future::poll_fn;
use std::io;

use futures::FutureExt as _;
use hyper::rt::Write as _;
use tokio::io::{AsyncReadExt as _, BufWriter};
use tokio::net::{TcpListener, TcpStream};

use super::*;

#[tokio::test]
async fn a_connection_is_written_flushed_and_ended_as_it_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tcp = TcpStream::connect(listener.local_addr().unwrap());
    let line = Counted::new(tcp.await.unwrap()).line().clone();
    let (ours, mut peer) = tokio::io::duplex(64);
    let mut stream = Stream(TokioIo::new(Box::pin(BufWriter::new(ours))), line);
    let written = poll_fn(|context| Pin::new(&mut stream).poll_write(context, b"abc")).await;
    assert_eq!(written.unwrap(), 3);
    let mut read = [0; 3];
    assert!(peer.read_exact(&mut read).now_or_never().is_none());
    let flushed = poll_fn(|context| Pin::new(&mut stream).poll_flush(context)).await;
    flushed.unwrap();
    peer.read_exact(&mut read).now_or_never().unwrap().unwrap();
    assert_eq!(&read, b"abc");
    let mut rest = Vec::new();
    assert!(peer.read_to_end(&mut rest).now_or_never().is_none());
    let ended = poll_fn(|context| Pin::new(&mut stream).poll_shutdown(context)).await;
    ended.unwrap();
    peer.read_to_end(&mut rest).now_or_never().unwrap().unwrap();
    assert_eq!(rest, b"");
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
