//! Stream `AUDIT` in order: an ordered pull consumer that is made anew from the next position whenever it fails, so that
//! restarts of the broker and lost connections leave neither gaps nor repetitions.

use std::time::Duration;

use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::{Ordered, OrderedConfig};
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::{self, Context, ErrorCode};
use audit_core::{Record, StreamSequence};
use futures::{FutureExt as _, StreamExt as _};
use runtime::Bus;
use schemas::event::{KEY_HEADER, SIGNATURE_HEADER};
use schemas::subject::AUDIT_STREAM;
use schemas::{Code, UnixMillis};

/// Most records that are handed out at a time: one write to the files, well under a second of checking.
pub const BATCH_MAX: usize = 256;
/// Pause before reading is tried again: the broker needs seconds to come back.
const RETRY_AFTER: Duration = Duration::from_secs(1);

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

/// Why the stream cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is no such stream.
    #[error("stream {AUDIT_STREAM} does not exist; `diloctl cluster init` creates it")]
    Missing,
    /// The broker does not answer, or refuses.
    #[error("stream {AUDIT_STREAM} cannot be read: {0}")]
    Unreadable(String),
}

impl ReadError {
    /// The code of the page that says what to do.
    pub const fn code(&self) -> Code {
        match self {
            Self::Missing => Code::StreamMissing,
            Self::Unreadable(_) => Code::NoAnswer,
        }
    }
}

/// Reads the stream.
pub struct Reader {
    jetstream: Context,
    messages: Option<Ordered>,
    next: StreamSequence,
    pending: u64,
}

impl Reader {
    /// A reader from position `next` on, 1 being the first. Nothing is asked of the broker yet.
    pub fn new(bus: &Bus, next: StreamSequence) -> Self {
        Self { jetstream: jetstream::new(bus.client().clone()), messages: None, next, pending: 0 }
    }

    /// Where the stream starts and ends now.
    ///
    /// # Errors
    /// There is no such stream, or the broker does not answer.
    pub async fn span(&self) -> Result<Span, ReadError> {
        let stream = self.jetstream.get_stream(AUDIT_STREAM).await.map_err(|error| match error.kind() {
            GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                ReadError::Missing
            }
            _ => ReadError::Unreadable(error.to_string()),
        })?;
        let state = &stream.cached_info().state;
        let (first, last) = (StreamSequence(state.first_sequence), StreamSequence(state.last_sequence));
        Ok(Span { messages: state.messages, first, last })
    }

    /// The next records, at least one: those that are there, without waiting for more. It waits as long as there is none,
    /// and tries again when reading fails. May be dropped while it waits; nothing is lost.
    pub async fn batch(&mut self) -> Vec<Record> {
        loop {
            match self.try_batch().await {
                Ok(records) if records.is_empty() => {}
                Ok(records) => return records,
                Err(error) => {
                    self.messages = None;
                    tracing::warn!(code = %error.code(), %error, "reading the stream failed; trying again");
                    tokio::time::sleep(RETRY_AFTER).await;
                }
            }
        }
    }

    /// How many messages the stream had after the newest record that was handed out, when that was sent.
    pub const fn pending(&self) -> u64 {
        self.pending
    }

    /// Starts again at the stream's first message.
    pub fn rewind(&mut self) {
        self.messages = None;
        self.next = StreamSequence(1);
    }

    async fn try_batch(&mut self) -> Result<Vec<Record>, ReadError> {
        if self.messages.is_none() {
            self.messages = Some(self.consume().await?);
        }
        let messages = self.messages.as_mut().expect("just made");
        let mut records = Vec::new();
        let mut item = messages.next().await;
        loop {
            let ended = || ReadError::Unreadable("the consumer ended".to_owned());
            let message = match item.ok_or_else(ended).and_then(|item| item.map_err(|error| unreadable(&error))) {
                Ok(message) => message,
                // What was read is handed out first; the failure comes again.
                Err(_) if !records.is_empty() => return Ok(records),
                Err(error) => return Err(error),
            };
            let (record, pending) = record(message)?;
            // A consumer that the client made anew before its first message starts at 1.
            if record.stream_sequence >= self.next {
                self.next = record.stream_sequence.next();
                self.pending = pending;
                records.push(record);
            }
            if records.len() == BATCH_MAX {
                return Ok(records);
            }
            match messages.next().now_or_never() {
                Some(more) => item = more,
                None => return Ok(records),
            }
        }
    }

    async fn consume(&self) -> Result<Ordered, ReadError> {
        let stream = self.jetstream.get_stream_no_info(AUDIT_STREAM).await.map_err(|error| unreadable(&error))?;
        let config = OrderedConfig {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: self.next.0 },
            ..OrderedConfig::default()
        };
        let consumer = stream.create_consumer(config).await.map_err(|error| unreadable(&error))?;
        consumer.messages().await.map_err(|error| unreadable(&error))
    }
}

fn unreadable(error: &dyn std::fmt::Display) -> ReadError {
    ReadError::Unreadable(error.to_string())
}

/// A message as a record, and how many came after it.
fn record(message: jetstream::Message) -> Result<(Record, u64), ReadError> {
    let info = message.info().map_err(|error| unreadable(&error))?;
    let (stream_sequence, pending) = (StreamSequence(info.stream_sequence), info.pending);
    let stored_at = u64::try_from(info.published.unix_timestamp_nanos() / 1_000_000).unwrap_or(0);
    let async_nats::Message { subject, payload, headers, .. } = message.message;
    let header = |name| headers.as_ref().and_then(|headers| headers.get(name)).map(ToString::to_string);
    let record = Record {
        stream_sequence,
        subject: subject.to_string(),
        key: header(KEY_HEADER).unwrap_or_default(),
        signature: header(SIGNATURE_HEADER).unwrap_or_default(),
        stored_at: UnixMillis(stored_at),
        body: payload.to_vec(),
    };
    Ok((record, pending))
}
