//! A connection whose peer must keep reading; otherwise one slow reader could hold a connection for
//! ever.

use std::io;
use std::os::fd::AsRawFd as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use crate::body::BYTES_PER_SECOND_MIN;

/// A TCP stream that fails when a write makes too little progress. Reads are bounded elsewhere,
/// where heads and bodies are read.
pub(crate) struct Guarded {
    stream: TcpStream,
    window: Duration,
    /// Set while the peer is behind.
    behind: Option<Pin<Box<Sleep>>>,
    written: u64,
    /// Bytes that the peer's machine had received when the window began.
    taken: u64,
}

impl Guarded {
    pub(crate) const fn new(stream: TcpStream, window: Duration) -> Self {
        Self {
            stream,
            window,
            behind: None,
            written: 0,
            taken: 0,
        }
    }

    /// Bytes that have left this machine. A waiting write says nothing about the megabytes in the
    /// kernel's buffer, which may take minutes to drain over a slow line.
    fn left_us(&self) -> u64 {
        self.written
            .saturating_sub(objects::unacknowledged(self.stream.as_raw_fd()))
    }

    fn judge(
        &mut self,
        cx: &mut Context<'_>,
        poll: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(result) = poll {
            self.written += result.as_ref().map_or(0, |written| *written as u64);
            if self
                .behind
                .as_ref()
                .is_some_and(|timer| timer.deadline() <= Instant::now())
            {
                self.behind = None;
            }
            return Poll::Ready(result);
        }
        let least = (BYTES_PER_SECOND_MIN * self.window.as_secs()).max(1);
        loop {
            if self.behind.is_none() {
                self.taken = self.left_us();
            }
            let window = self.window;
            let timer = self
                .behind
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(window)));
            ready!(timer.as_mut().poll(cx));
            if self.left_us().saturating_sub(self.taken) < least {
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the peer reads too slowly",
                )));
            }
            self.behind = None;
        }
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.judge(cx, poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.judge(cx, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair(window: Duration) -> (Guarded, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        (
            Guarded::new(listener.accept().await.unwrap().0, window),
            peer,
        )
    }

    #[tokio::test]
    async fn a_peer_that_does_not_read_is_dropped() {
        let (mut guarded, _peer) = pair(Duration::from_millis(50)).await;
        let error = guarded.write_all(&vec![0; 64 << 20]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_peer_that_reads_gets_everything() {
        let (mut guarded, mut peer) = pair(Duration::from_secs(5)).await;
        let reader = tokio::spawn(async move {
            let mut taken = Vec::new();
            peer.read_to_end(&mut taken).await.map(|_| taken.len())
        });
        guarded.write_all(&vec![0; 8 << 20]).await.unwrap();
        guarded.shutdown().await.unwrap();
        assert_eq!(reader.await.unwrap().unwrap(), 8 << 20);
    }
}
