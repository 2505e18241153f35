//! A TCP connection that knows how many bytes have really moved over it. Written bytes first lie in
//! the kernel's buffer, which holds megabytes and takes minutes to drain over a slow line. So only
//! bytes that the peer's machine has acknowledged count as moved.

use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Counts of bytes that a connection has moved, for the transfer that waits for it. Clones share
/// the same connection.
#[derive(Clone, Debug)]
pub(crate) struct Line(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    read: AtomicU64,
    written: AtomicU64,
    /// Bytes that had moved at the end of the last request.
    settled: AtomicU64,
    /// None once the connection is closed, since its number may then belong to another.
    socket: Mutex<Option<RawFd>>,
}

/// A TCP stream with its [`Line`].
pub(crate) struct Counted {
    stream: TcpStream,
    line: Line,
}

impl Line {
    /// Bytes read, and bytes written that the peer's machine has acknowledged.
    pub(crate) fn moved(&self) -> u64 {
        let Counts {
            read,
            written,
            socket,
            ..
        } = &*self.0;
        let socket = socket.lock().unwrap_or_else(PoisonError::into_inner);
        let underway = socket.map_or(0, unacknowledged);
        let (read, written) = (
            read.load(Ordering::Relaxed),
            written.load(Ordering::Relaxed),
        );
        read.saturating_add(written.saturating_sub(underway))
    }

    /// Bytes of the present request. A connection serves one request after the other, and earlier
    /// ones do not count.
    pub(crate) fn moved_since_settled(&self) -> u64 {
        self.moved()
            .saturating_sub(self.0.settled.load(Ordering::Relaxed))
    }

    /// Ends a request: the bytes so far belong to it and to earlier ones.
    pub(crate) fn settle(&self) {
        self.0.settled.store(self.moved(), Ordering::Relaxed);
    }
}

impl Counted {
    pub(crate) fn new(stream: TcpStream) -> Self {
        let socket = Mutex::new(Some(stream.as_raw_fd()));
        let counts = Counts {
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
            settled: AtomicU64::new(0),
            socket,
        };
        Self {
            stream,
            line: Line(Arc::new(counts)),
        }
    }

    pub(crate) const fn line(&self) -> &Line {
        &self.line
    }

    fn wrote(&self, poll: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &poll {
            self.line
                .0
                .written
                .fetch_add(*bytes as u64, Ordering::Relaxed);
        }
        poll
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        *self
            .line
            .0
            .socket
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        self.line
            .0
            .read
            .fetch_add((buf.filled().len() - before) as u64, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.wrote(poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.wrote(poll)
    }

    /// TCP takes several slices at a time.
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

/// Bytes that were written to an open TCP socket and not acknowledged by the other machine; 0 where
/// the system does not say.
pub fn unacknowledged(socket: RawFd) -> u64 {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the request writes one c_int to the address that it is given, which is that of a live
    // one. On a number that is no socket it fails and writes nothing.
    let failed = unsafe { libc::ioctl(socket, libc::TIOCOUTQ, &raw mut bytes) };
    if failed == 0 {
        u64::try_from(bytes).unwrap_or(0)
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// A connection, and its other end.
    async fn connected() -> (Counted, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await;
        (
            Counted::new(stream.unwrap()),
            listener.accept().await.unwrap().0,
        )
    }

    #[tokio::test]
    async fn what_lies_in_a_buffer_here_has_not_moved() {
        let (mut counted, mut peer) = connected().await;
        let line = counted.line().clone();
        // The peer does not read: the buffers of both machines fill up, and then nothing moves.
        let length = 16 << 20;
        let body = vec![7; length];
        let mut written = 0;
        let full = std::time::Duration::from_millis(200);
        while let Ok(more) = tokio::time::timeout(full, counted.write(&body[written..])).await {
            written += more.unwrap();
        }
        let stuck = line.moved();
        assert!(stuck < written as u64, "{stuck} of {written}");
        let reading = tokio::spawn(async move {
            let mut all = Vec::new();
            peer.read_to_end(&mut all).await.map(|_| all.len())
        });
        counted.write_all(&body[written..]).await.unwrap();
        counted.shutdown().await.unwrap();
        assert_eq!(reading.await.unwrap().unwrap(), length);
        assert_eq!(line.moved(), length as u64);
        drop(counted);
        assert_eq!(line.moved(), length as u64, "a closed one keeps its count");
    }

    #[tokio::test]
    async fn bytes_of_both_directions_count_for_the_request_that_moved_them() {
        let (mut counted, mut peer) = connected().await;
        let line = counted.line().clone();
        assert_eq!(counted.write(b"one").await.unwrap(), 3);
        assert!(counted.is_write_vectored());
        let slices = [b"four", b"five"].map(|slice| io::IoSlice::new(slice));
        assert_eq!(counted.write_vectored(&slices).await.unwrap(), 8);
        let mut read = [0; 11];
        peer.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"onefourfive");
        // An answer acknowledges all that came before it.
        peer.write_all(b"seven").await.unwrap();
        let mut room = [0; 16];
        let mut buffer = ReadBuf::new(&mut room);
        buffer.put_slice(b"two");
        poll_fn(|cx| Pin::new(&mut counted).poll_read(cx, &mut buffer))
            .await
            .unwrap();
        assert_eq!(buffer.filled(), b"twoseven");
        let moved = || (line.moved(), line.moved_since_settled());
        assert_eq!(moved(), (16, 16));
        line.settle();
        assert_eq!(moved(), (16, 0));
        peer.write_all(b"more").await.unwrap();
        counted.read_exact(&mut [0; 4]).await.unwrap();
        assert_eq!(moved(), (20, 4));
    }

    #[tokio::test]
    async fn a_connection_that_is_ended_is_told_to_the_peer_and_asked_no_more() {
        let (mut counted, mut peer) = connected().await;
        counted.shutdown().await.unwrap();
        let ended = tokio::time::timeout(std::time::Duration::from_secs(5), peer.read_u8()).await;
        let end = ended.expect("the peer is told").unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
        let line = counted.line().clone();
        drop(counted);
        let socket = *line.0.socket.lock().unwrap();
        assert_eq!(socket, None, "its number may belong to another by now");
    }
}
