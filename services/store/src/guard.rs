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
    /// Counts the bytes that wait in the kernel's buffer; tests put their own count in its place.
    waiting_bytes: fn(&TcpStream) -> u64,
}

impl Guarded {
    pub(crate) const fn new(stream: TcpStream, window: Duration) -> Self {
        Self {
            stream,
            window,
            behind: None,
            written: 0,
            taken: 0,
            waiting_bytes: |stream| objects::unacknowledged(stream.as_raw_fd()),
        }
    }

    /// Bytes that have left this machine. A waiting write says nothing about the megabytes in the
    /// kernel's buffer, which may take minutes to drain over a slow line.
    fn left_us(&self) -> u64 {
        self.written
            .saturating_sub((self.waiting_bytes)(&self.stream))
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
        true
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
    use std::cell::Cell;
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::time::{sleep, timeout};

    use super::*;

    /// Longer than any test here takes.
    const LONG: Duration = Duration::from_secs(3600);

    thread_local! {
        /// Bytes that wait in the buffer that a test plays.
        static WAITING: Cell<u64> = const { Cell::new(0) };
    }

    /// A stream whose peer was sent `written` bytes, none of which have left this machine.
    async fn behind(window: Duration, written: usize) -> (Guarded, TcpStream) {
        let (guarded, peer) = pair(window).await;
        let mut guarded = Guarded {
            waiting_bytes: |_| WAITING.get(),
            ..guarded
        };
        WAITING.set(written as u64);
        let _written = judged(&mut guarded, Poll::Ready(Ok(written))).await;
        (guarded, peer)
    }

    /// The judgement of a write that ended like this.
    async fn judged(guarded: &mut Guarded, poll: Poll<io::Result<usize>>) -> io::Result<usize> {
        let mut poll = Some(poll);
        poll_fn(|cx| guarded.judge(cx, poll.take().expect("it is judged once"))).await
    }

    /// Counts the windows until the peer is given up. In each of the first ones it takes `bytes`.
    async fn windows(guarded: &mut Guarded, bytes: u64, taking: usize) -> usize {
        let mut windows = 0;
        let waiting = poll_fn(|cx| {
            if (1..=taking).contains(&windows) {
                WAITING.set(WAITING.get() - bytes);
            }
            windows += 1;
            guarded.judge(cx, Poll::Pending)
        });
        let error = timeout(LONG / 60, waiting).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        windows - 1
    }

    #[tokio::test]
    async fn a_peer_that_takes_something_in_each_window_is_waited_for() {
        let (mut guarded, _peer) = behind(Duration::from_millis(20), 1000).await;
        assert_eq!(windows(&mut guarded, 1, 5).await, 6);
        let (mut guarded, _peer) = behind(Duration::from_millis(20), 1000).await;
        assert_eq!(windows(&mut guarded, 1, 0).await, 1);
    }

    #[tokio::test]
    async fn a_peer_has_to_take_as_much_as_a_window_is_long() {
        let (window, least) = (Duration::from_secs(1), BYTES_PER_SECOND_MIN);
        let (mut guarded, _peer) = behind(window, 10_000).await;
        assert_eq!(windows(&mut guarded, least, 1).await, 2);
        let (mut guarded, _peer) = behind(window, 10_000).await;
        assert_eq!(windows(&mut guarded, least - 1, 1).await, 1);
    }

    /// Otherwise a peer that takes a byte now and then would begin a window each time.
    #[tokio::test]
    async fn a_write_that_succeeds_begins_no_window_before_the_end_of_the_last() {
        let (mut guarded, _peer) = behind(LONG, 10).await;
        for (span, kept) in [(LONG, true), (Duration::ZERO, false)] {
            guarded.behind = Some(Box::pin(sleep(span)));
            let written = judged(&mut guarded, Poll::Ready(Ok(1))).await;
            assert_eq!(written.unwrap(), 1);
            assert_eq!(guarded.behind.is_some(), kept, "{span:?}");
        }
        let broken = io::ErrorKind::BrokenPipe;
        let ended = judged(&mut guarded, Poll::Ready(Err(broken.into()))).await;
        assert_eq!(ended.unwrap_err().kind(), broken);
    }

    /// Answers have a head and a body, and one call writes both.
    #[tokio::test]
    async fn several_buffers_are_written_by_one_call() {
        let (mut guarded, mut peer) = pair(LONG).await;
        assert!(guarded.is_write_vectored());
        let parts = [io::IoSlice::new(b"head"), io::IoSlice::new(b"body")];
        let write = poll_fn(|cx| Pin::new(&mut guarded).poll_write_vectored(cx, &parts));
        assert_eq!(write.await.unwrap(), 8);
        let mut taken = [0; 8];
        peer.read_exact(&mut taken).await.unwrap();
        assert_eq!(&taken, b"headbody");
    }

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
