//! Stream `AUDIT` in order, by position: what fails is asked again, so that restarts of the broker
//! and lost connections leave neither gaps nor repetitions. Each record is looked at on all cores,
//! ahead of who takes them in order.

use std::sync::Arc;
use std::time::Duration;

use audit_core::{Payload, Record, StreamSequence};
use runtime::{Ahead, Bus, StoredMessage, StreamError, StreamReader};
use schemas::UnixMillis;
use schemas::subject::AUDIT_STREAM;

/// Pause before reading is tried again: the broker needs seconds to come back.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Time between two looks for more of the stream: short enough for somebody who watches, and little
/// work for the broker.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// The first and the last position of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Messages in it.
    pub messages: u64,
    /// The position of its oldest message; one after `last` when it has none.
    pub first: StreamSequence,
    /// The position of the newest message that it ever took; 0 before the first.
    pub last: StreamSequence,
}

impl Span {
    /// Of a stream that never took a message.
    pub const EMPTY: Self = Self {
        messages: 0,
        first: StreamSequence(1),
        last: StreamSequence(0),
    };
}

/// Makes something of each of some records, in their order.
type Look<T> = dyn Fn(Vec<Record>) -> Vec<T> + Send + Sync;

/// Reads the stream, and makes a `T` of each record, ahead and on all cores.
pub struct Reader<T> {
    stream: StreamReader,
    look: Arc<Look<T>>,
    next: StreamSequence,
    /// The stream's last position, as it was seen last.
    end: StreamSequence,
    /// The batch that is being read, and the position up to which.
    ahead: Option<(StreamSequence, Ahead<T>)>,
    /// A batch that was read and not handed out yet.
    ready: Vec<T>,
}

impl<T: Send + 'static> Reader<T> {
    /// A reader from position `next` on, 1 being the first. Nothing is asked of the broker yet.
    /// `look` sees some records at a time, and such parts in no order.
    pub fn new(
        bus: &Bus,
        next: StreamSequence,
        look: impl Fn(Vec<Record>) -> Vec<T> + Send + Sync + 'static,
    ) -> Self {
        Self {
            stream: StreamReader::new(bus.clone(), AUDIT_STREAM),
            look: Arc::new(look),
            next,
            end: StreamSequence(0),
            ahead: None,
            ready: Vec::new(),
        }
    }

    /// The first and the last position of the stream now.
    ///
    /// # Errors
    /// There is no such stream, the broker does not answer, or this credential may not ask.
    pub async fn span(&self) -> Result<Span, StreamError> {
        let span = self.stream.span().await?;
        let (first, last) = (StreamSequence(span.first), StreamSequence(span.last));
        Ok(Span {
            messages: span.messages,
            first,
            last,
        })
    }

    /// The record at a position; none when it is not there.
    ///
    /// # Errors
    /// As [`Reader::span`].
    pub async fn record(&self, at: StreamSequence) -> Result<Option<Record>, StreamError> {
        Ok(self.stream.message(at.0).await?.map(record))
    }

    /// The next records, at least one: those that are there, without waiting for more. It waits as
    /// long as there is none, and tries again when reading fails. May be dropped while it waits;
    /// nothing is lost.
    pub async fn batch(&mut self) -> Vec<T> {
        self.batch_behind(StreamSequence(0)).await
    }

    /// The same, and before them the record at position `last`, if it is still there: what a stream
    /// says counts behind what it said before. 0 is before the first.
    pub async fn batch_behind(&mut self, last: StreamSequence) -> Vec<T> {
        loop {
            if let Some(records) = self.read(last, self.end).await {
                return records;
            }
            match self.span().await {
                Ok(span) if span.last >= self.next => self.end = span.last,
                Ok(_) => tokio::time::sleep(LOOK_EVERY).await,
                Err(error) => wait(&error).await,
            }
        }
    }

    /// The next records up to position `end`, at least one; none when everything up to there was
    /// read. It tries again when reading fails. May be dropped while it waits; nothing is lost.
    pub async fn batch_to(&mut self, end: StreamSequence) -> Option<Vec<T>> {
        self.read(StreamSequence(0), end).await
    }

    async fn read(&mut self, last: StreamSequence, end: StreamSequence) -> Option<Vec<T>> {
        while self.fill(end).await {
            // Asked last: where the stream is replaced in between, the new one has to show it.
            let before = if last > StreamSequence(0) {
                self.record(last).await
            } else {
                Ok(None)
            };
            match before {
                Ok(before) => {
                    let mut records = (self.look)(before.into_iter().collect());
                    records.append(&mut self.ready);
                    return Some(records);
                }
                Err(error) => wait(&error).await,
            }
        }
        None
    }

    /// Sees to it that a batch is there to be handed out. False when everything up to `end` was
    /// read.
    async fn fill(&mut self, end: StreamSequence) -> bool {
        while self.ready.is_empty() {
            if self.next > end {
                return false;
            }
            let ahead = match &mut self.ahead {
                Some((to, ahead)) if *to == end => ahead,
                ahead => {
                    let look = Arc::clone(&self.look);
                    let from = self.next.0;
                    let look = move |messages: Vec<StoredMessage>| {
                        look(messages.into_iter().map(record).collect())
                    };
                    let begun = self.stream.ahead(from, end.0, look);
                    &mut ahead.insert((end, begun)).1
                }
            };
            match ahead.next().await {
                Some(Ok(batch)) => {
                    self.next = StreamSequence(batch.to).next();
                    self.ready = batch.found;
                }
                Some(Err(error)) => {
                    self.ahead = None;
                    wait(&error).await;
                }
                None => unreachable!("the last batch reaches the end"),
            }
        }
        true
    }

    /// Positions of the stream after the newest record that was handed out, at the last look.
    pub const fn pending(&self) -> u64 {
        (self.end.0 + 1).saturating_sub(self.next.0)
    }
}

async fn wait(error: &StreamError) {
    tracing::warn!(code = %error.code(), %error, "reading the stream failed; trying again");
    tokio::time::sleep(RETRY_AFTER).await;
}

fn record(message: StoredMessage) -> Record {
    let time = message
        .time
        .parse::<jiff::Timestamp>()
        .map_or(0, jiff::Timestamp::as_millisecond);
    Record {
        stream_sequence: StreamSequence(message.sequence),
        subject: message.subject,
        stored_at: UnixMillis(u64::try_from(time).unwrap_or(0)),
        payload: Payload::of(&message.payload),
    }
}
