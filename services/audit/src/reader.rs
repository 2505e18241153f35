//! Stream `AUDIT` in order, by position: what fails is asked again, so that restarts of the broker
//! and lost connections leave neither gaps nor repetitions.

use std::time::Duration;

use audit_core::{Payload, Record, StreamSequence};
use runtime::{Bus, StoredMessage, StreamError, StreamReader};
use schemas::UnixMillis;
use schemas::subject::AUDIT_STREAM;

/// Most records that are handed out at a time: one write to the files, well under a second of
/// checking.
pub const BATCH_MAX: u64 = 256;
/// Pause before reading is tried again: the broker needs seconds to come back.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How often it is asked whether the stream has more: often enough for somebody who watches, and
/// little for the broker.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Where the stream starts and ends.
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

/// Reads the stream.
pub struct Reader {
    stream: StreamReader,
    next: StreamSequence,
    /// The stream's last position, as it was seen last.
    end: StreamSequence,
}

impl Reader {
    /// A reader from position `next` on, 1 being the first. Nothing is asked of the broker yet.
    pub fn new(bus: &Bus, next: StreamSequence) -> Self {
        Self {
            stream: StreamReader::new(bus.clone(), AUDIT_STREAM),
            next,
            end: StreamSequence(0),
        }
    }

    /// Where the stream starts and ends now.
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
        Ok(self.stream.message(at.0).await?.as_ref().map(record))
    }

    /// The next records, at least one: those that are there, without waiting for more. It waits as
    /// long as there is none, and tries again when reading fails. May be dropped while it waits;
    /// nothing is lost.
    pub async fn batch(&mut self) -> Vec<Record> {
        self.batch_behind(StreamSequence(0)).await
    }

    /// The same, and before them the record at position `last`, if it is still there: what a stream
    /// says counts behind what it said before. 0 is before the first.
    pub async fn batch_behind(&mut self, last: StreamSequence) -> Vec<Record> {
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
    pub async fn batch_to(&mut self, end: StreamSequence) -> Option<Vec<Record>> {
        self.read(StreamSequence(0), end).await
    }

    async fn read(&mut self, last: StreamSequence, end: StreamSequence) -> Option<Vec<Record>> {
        while self.next <= end {
            let to = StreamSequence(end.0.min(self.next.0.saturating_add(BATCH_MAX - 1)));
            match self.positions(last, to).await {
                Ok(records) => {
                    self.next = to.next();
                    if records.iter().any(|record| record.stream_sequence > last) {
                        return Some(records);
                    }
                }
                Err(error) => wait(&error).await,
            }
        }
        None
    }

    /// The record at `last` and those from the next position to `to`, as far as they are there.
    async fn positions(
        &self,
        last: StreamSequence,
        to: StreamSequence,
    ) -> Result<Vec<Record>, StreamError> {
        let messages = self.stream.range(self.next.0, to.0).await?;
        // Asked last: where the stream is replaced in between, the new one has to show it.
        let before = if last > StreamSequence(0) {
            self.record(last).await?
        } else {
            None
        };
        Ok(before
            .into_iter()
            .chain(messages.iter().map(record))
            .collect())
    }

    /// How many positions the stream had after the newest record that was handed out, when that was
    /// seen.
    pub const fn pending(&self) -> u64 {
        (self.end.0 + 1).saturating_sub(self.next.0)
    }
}

async fn wait(error: &StreamError) {
    tracing::warn!(code = %error.code(), %error, "reading the stream failed; trying again");
    tokio::time::sleep(RETRY_AFTER).await;
}

fn record(message: &StoredMessage) -> Record {
    let time = message
        .time
        .parse::<jiff::Timestamp>()
        .map_or(0, jiff::Timestamp::as_millisecond);
    Record {
        stream_sequence: StreamSequence(message.sequence),
        subject: message.subject.clone(),
        stored_at: UnixMillis(u64::try_from(time).unwrap_or(0)),
        payload: Payload::of(&message.payload),
    }
}
