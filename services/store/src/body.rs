//! A request's body whose sender must keep sending; otherwise one silent sender could hold a
//! connection for ever.

use std::error::Error;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

/// Slowest peer that the store waits for, in either direction. It is half the rate at which our
/// clients give up, so that the clients end an attempt first and know why. Each of eight transfers
/// over a line of 40 KB/s has ten times as much. A peer at this rate holds a connection for long,
/// so one address may hold only a share of all connections.
pub(crate) const BYTES_PER_SECOND_MIN: u64 = 512;

/// A body that fails when its sender is silent for too long, or makes the store wait longer than
/// its bytes so far allow. Time in which nobody asks for more does not count.
///
/// It reads the clock when a wait begins and when it ends; the timer is set once for each window,
/// and not for each frame.
pub(crate) struct Paced<B> {
    body: B,
    /// Longest silence, and the credit that a sender starts with.
    idle: Duration,
    received: u64,
    /// Sum of the waits that are over.
    waited: Duration,
    waiting_since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl<B> Paced<B> {
    pub(crate) const fn new(body: B, idle: Duration) -> Self {
        Self {
            body,
            idle,
            received: 0,
            waited: Duration::ZERO,
            waiting_since: None,
            timer: None,
        }
    }

    /// Ready when the sender has used up its time.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let since = *self.waiting_since.get_or_insert_with(Instant::now);
        let worth =
            Duration::from_millis(self.received.saturating_mul(1000) / BYTES_PER_SECOND_MIN);
        let credit = self.idle.saturating_add(worth).saturating_sub(self.waited);
        let due = since + credit.min(self.idle);
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        loop {
            // The due time only moves forward, so an old timer fires too early, and never too late.
            ready!(timer.as_mut().poll(cx));
            if timer.deadline() >= due {
                return Poll::Ready(());
            }
            timer.as_mut().reset(due);
        }
    }
}

impl<B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Unpin> Body for Paced<B> {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
            ready!(self.poll_late(cx));
            let late = io::Error::new(io::ErrorKind::TimedOut, "the body comes too slowly");
            return Poll::Ready(Some(Err(late.into())));
        };
        if let Some(since) = self.waiting_since.take() {
            self.waited += since.elapsed();
        }
        if let Some(data) = frame
            .as_ref()
            .and_then(|frame| frame.as_ref().ok()?.data_ref())
        {
            self.received += data.len() as u64;
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// True when a body failed because it came too slowly.
pub(crate) fn is_late(error: &(dyn Error + 'static)) -> bool {
    let timed_out = |error: &io::Error| error.kind() == io::ErrorKind::TimedOut;
    std::iter::successors(Some(error), |error| (**error).source())
        .any(|error| error.downcast_ref::<io::Error>().is_some_and(timed_out))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::poll_fn;

    use tokio::sync::mpsc;
    use tokio::time::sleep;

    use super::*;

    /// A body of the pieces that come through a channel.
    struct Pieces(mpsc::Receiver<Bytes>);

    impl Body for Pieces {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            self.0
                .poll_recv(cx)
                .map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
        }
    }

    // Long enough that pauses of a quarter of it stay below it, even on a busy machine.
    const IDLE: Duration = Duration::from_millis(500);

    fn body() -> (mpsc::Sender<Bytes>, Paced<Pieces>) {
        let (sender, pieces) = mpsc::channel(1);
        (sender, Paced::new(Pieces(pieces), IDLE))
    }

    /// Reads to the end. Returns the number of bytes, or true if the error was one of time.
    async fn read(mut body: Paced<Pieces>) -> Result<usize, bool> {
        let mut length = 0;
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            length += frame
                .map_err(|error| is_late(&*error))?
                .into_data()
                .map_or(0, |data| data.len());
        }
        Ok(length)
    }

    /// A body that knows its length.
    struct Known(Option<Bytes>);

    impl Body for Known {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
        }

        fn is_end_stream(&self) -> bool {
            self.0.is_none()
        }

        fn size_hint(&self) -> SizeHint {
            SizeHint::with_exact(self.0.as_ref().map_or(0, |bytes| bytes.len() as u64))
        }
    }

    /// The protocol layer asks for both.
    #[tokio::test]
    async fn a_body_still_says_how_long_it_is_and_when_it_is_over() {
        let mut body = Paced::new(Known(Some(Bytes::from_static(b"abc"))), IDLE);
        assert_eq!(
            (body.size_hint().exact(), body.is_end_stream()),
            (Some(3), false)
        );
        let frame = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
        assert!(frame.is_some_and(|frame| frame.is_ok()));
        assert_eq!(
            (body.size_hint().exact(), body.is_end_stream()),
            (Some(0), true)
        );
    }

    #[test]
    fn a_body_that_breaks_off_did_not_come_too_slowly() {
        assert!(is_late(&io::Error::from(io::ErrorKind::TimedOut)));
        assert!(!is_late(&io::Error::from(io::ErrorKind::ConnectionReset)));
    }

    #[tokio::test]
    async fn silence_ends_a_body() {
        let (sender, body) = body();
        let start = Instant::now();
        sender.send(Bytes::from(vec![0; 1 << 20])).await.unwrap();
        assert_eq!(read(body).await, Err(true));
        assert!(start.elapsed() >= IDLE, "and no sooner");
    }

    #[tokio::test]
    async fn a_trickle_ends_although_it_never_falls_silent() {
        let (sender, body) = body();
        let reading = tokio::spawn(read(body));
        let start = Instant::now();
        while !sender.is_closed() {
            assert!(start.elapsed() < 20 * IDLE);
            sleep(IDLE / 10).await;
            let _closed = sender.try_send(Bytes::from_static(b"x"));
        }
        assert_eq!(reading.await.unwrap(), Err(true));
    }

    #[tokio::test]
    async fn a_sender_with_pauses_is_waited_for_as_long_as_it_brings_enough() {
        let (sender, body) = body();
        let reading = tokio::spawn(read(body));
        let start = Instant::now();
        while start.elapsed() < 5 * IDLE {
            sender.send(Bytes::from(vec![0; 16 << 10])).await.unwrap();
            sleep(IDLE / 4).await;
        }
        drop(sender);
        assert!(
            reading
                .await
                .unwrap()
                .is_ok_and(|length| length >= 64 << 10)
        );
    }

    #[tokio::test]
    async fn what_a_slow_reader_takes_is_not_the_senders_time() {
        let (sender, mut body) = body();
        for _ in 0..3 {
            let piece = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx));
            let sent = sender.send(Bytes::from_static(b"x"));
            let (piece, _sent) = tokio::join!(piece, sent);
            assert!(piece.unwrap().is_ok());
            sleep(IDLE).await;
        }
        drop(sender);
        assert_eq!(read(body).await, Ok(0));
    }
}
