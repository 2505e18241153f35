//! Stream `AUDIT` in order, by position. A failed read is repeated, so that restarts of the broker
//! and lost connections leave neither gaps nor repetitions. Records are examined on all cores,
//! ahead of the caller, who takes them in order.

use std::sync::Arc;
use std::time::Duration;

use audit_core::{Payload, Record, StreamSequence};
use runtime::{Ahead, Bus, StoredMessage, StreamError, StreamReader};
use schemas::UnixMillis;
use schemas::subject::AUDIT_STREAM;

/// Pause before a failed read is repeated: the broker needs seconds to come back.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Pause between two looks for more messages: short enough for somebody who watches, and little
/// work for the broker.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// The first and the last position of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Number of messages in the stream.
    pub messages: u64,
    /// Position of the oldest message; one after `last` in an empty stream.
    pub first: StreamSequence,
    /// Position of the newest message that the stream ever took; 0 before the first.
    pub last: StreamSequence,
}

impl Span {
    /// The span of a stream that never took a message.
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
    /// The stream's last position at the last look.
    end: StreamSequence,
    /// The batch that is being read, with its last position.
    ahead: Option<(StreamSequence, Ahead<T>)>,
    /// A batch that was read and not returned yet.
    ready: Vec<T>,
}

impl<T: Send + 'static> Reader<T> {
    /// A reader from position `next`, 1 being the first. This asks the broker nothing yet. `look`
    /// sees a part of the records at a time, and the parts in any order.
    pub fn new(
        bus: &Bus,
        next: StreamSequence,
        look: impl Fn(Vec<Record>) -> Vec<T> + Send + Sync + 'static,
    ) -> Self {
        Self {
            stream: StreamReader::new(bus.clone(), AUDIT_STREAM).together(),
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
    /// The stream does not exist, the broker does not answer, or the credentials do not allow it.
    pub async fn span(&self) -> Result<Span, StreamError> {
        let span = self.stream.span().await?;
        let (first, last) = (StreamSequence(span.first), StreamSequence(span.last));
        Ok(Span {
            messages: span.messages,
            first,
            last,
        })
    }

    /// The record at a position; none if there is none.
    ///
    /// # Errors
    /// As [`Reader::span`].
    pub async fn record(&self, at: StreamSequence) -> Result<Option<Record>, StreamError> {
        Ok(self.stream.message(at.0).await?.map(record))
    }

    /// Returns the next records, at least one: those that are there, without waiting for more. It
    /// waits while there is none, and repeats failed reads. If the future is dropped while it
    /// waits, nothing is lost.
    pub async fn batch(&mut self) -> Vec<T> {
        self.batch_behind(StreamSequence(0)).await
    }

    /// Returns the next records, and before them the record at position `last` if it is still
    /// there: records count only if the one before them is unchanged. 0 is before the first.
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

    /// Returns the next records up to position `end`, at least one; none if everything up to there
    /// was read. It repeats failed reads. If the future is dropped while it waits, nothing is lost.
    pub async fn batch_to(&mut self, end: StreamSequence) -> Option<Vec<T>> {
        self.read(StreamSequence(0), end).await
    }

    async fn read(&mut self, last: StreamSequence, end: StreamSequence) -> Option<Vec<T>> {
        while self.fill(end).await {
            // Asked last: if the stream is replaced meanwhile, the new one must show this record.
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

    /// Makes sure that a batch is ready to be returned. Returns false if everything up to `end` was
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

    /// True if the broker is asked for one message at a time, since it does not send many together.
    pub fn is_refused_many(&self) -> bool {
        self.stream.is_refused_many()
    }

    /// Number of positions after the newest returned record, at the last look.
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
