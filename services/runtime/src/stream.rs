//! Reading a stream without a consumer: where it starts and ends, and its messages by position.
//!
//! The owner of a consumer chooses where its messages go. They may be empty, and an empty message
//! under a subject of `$JS.API` deletes what the subject names; so a role that only reads may not
//! use consumers. The questions here have answers that are never empty, and that cannot be taken
//! for an order. Many of them are asked at a time, and several batches are read ahead. A direct get
//! of many messages is faster, and ends with an empty message: only a reader in an account without
//! streams asks for it, see [`StreamReader::together`].

mod ahead;
mod together;

use std::borrow::Cow;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::ErrorCode;
use bytes::Bytes;
use data_encoding::BASE64;
use schemas::Code;
use serde::Deserialize;

pub use ahead::{Ahead, Batch};
use together::{Sent, Willing};

use crate::bus::{Bus, BusError};

/// Longest time for one answer of the broker; a stream that waits for a new leader takes 6 s.
const ANSWER_MAX: Duration = Duration::from_secs(8);
/// Most questions at a time: with this many the broker is the bottleneck and not the line to it.
/// Their answers are some 300 KB, and 22 MB if each message has the largest size.
pub(crate) const ASKED_MAX: u64 = 256;
/// The broker's error number for a missing message.
const NO_MESSAGE: u64 = 10037;

/// A stream, to be read.
#[derive(Clone, Debug)]
pub struct StreamReader {
    bus: Bus,
    stream: String,
    /// Set in a reader that may ask for many messages with one question.
    willing: Option<Willing>,
}

/// The first and the last position of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct StreamSpan {
    /// Number of messages in the stream.
    pub messages: u64,
    /// Position of the oldest message; one after `last` in an empty stream.
    #[serde(rename = "first_seq")]
    pub first: u64,
    /// Position of the newest message that the stream ever took; 0 before the first.
    #[serde(rename = "last_seq")]
    pub last: u64,
}

/// A message as it is stored in a stream. Its headers are not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredMessage {
    /// Its position.
    pub sequence: u64,
    /// Its subject.
    pub subject: String,
    /// Its payload.
    pub payload: Bytes,
    /// The time at which the stream stored it, by the broker's clock: RFC 3339.
    pub time: String,
}

/// Reasons why a stream cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The broker says that the stream does not exist.
    #[error("stream {0} does not exist")]
    Missing(String),
    /// The credentials do not allow reading it.
    #[error("{0}")]
    Denied(String),
    /// The stream cannot be read at this moment; the reason is in the broker's words.
    #[error("stream {stream} cannot be read now: {reason}")]
    Unreadable {
        /// The stream.
        stream: String,
        /// The reason.
        reason: String,
    },
}

impl StreamError {
    /// The code of the page that says what to do.
    pub const fn code(&self) -> Code {
        match self {
            Self::Missing(_) => Code::StreamMissing,
            Self::Denied(_) => Code::BusDenied,
            Self::Unreadable { .. } => Code::StreamUnreadable,
        }
    }
}

schemas::coded!(StreamError);

/// An error of JetStream, as its answers to questions and to publishes carry it.
#[derive(Debug, Deserialize)]
pub struct ApiError {
    /// JetStream's own number of the error.
    #[serde(default)]
    pub err_code: u64,
    /// The description.
    #[serde(default)]
    pub description: String,
}

#[derive(Deserialize)]
struct Info {
    state: Option<StreamSpan>,
    error: Option<ApiError>,
}

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    message: Option<Message<'a>>,
    error: Option<ApiError>,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(default)]
    subject: String,
    seq: u64,
    /// In base64, which needs no JSON escapes; a broker that escapes it all the same is understood.
    #[serde(default, borrow)]
    data: Cow<'a, str>,
    #[serde(default)]
    time: String,
}

impl StreamReader {
    /// A reader of `stream`; this asks nothing yet.
    pub fn new(bus: Bus, stream: impl Into<String>) -> Self {
        Self {
            bus,
            stream: stream.into(),
            willing: None,
        }
    }

    /// The first and the last position now.
    ///
    /// # Errors
    /// The stream does not exist, the credentials do not allow reading it, or the broker cannot
    /// answer.
    pub async fn span(&self) -> Result<StreamSpan, StreamError> {
        let subject = format!("$JS.API.STREAM.INFO.{}", self.stream);
        let answer = self.ask(&subject, String::new()).await?;
        let Info { state, error } = self.parse(&answer)?;
        match (state, error) {
            (Some(span), None) => Ok(span),
            (_, Some(error)) => Err(self.failed(error)),
            (None, None) => Err(self.unreadable("the broker gave no answer")),
        }
    }

    /// The message at a position; none when it is not there.
    ///
    /// # Errors
    /// As [`StreamReader::span`].
    pub async fn message(&self, sequence: u64) -> Result<Option<StoredMessage>, StreamError> {
        self.get(&serde_json::json!({ "seq": sequence })).await
    }

    /// The first message at or behind a position; none when there is none.
    ///
    /// # Errors
    /// As [`StreamReader::span`].
    pub async fn next(&self, from: u64) -> Result<Option<StoredMessage>, StreamError> {
        self.get(&serde_json::json!({ "seq": from, "next_by_subj": ">" }))
            .await
    }

    /// The first message at or behind a position that is under a subject, which may have wildcards;
    /// none when there is none.
    ///
    /// # Errors
    /// As [`StreamReader::span`].
    pub async fn first_under(
        &self,
        subject: &str,
        from: u64,
    ) -> Result<Option<StoredMessage>, StreamError> {
        self.get(&serde_json::json!({ "seq": from, "next_by_subj": subject }))
            .await
    }

    /// The newest message under a subject, which may have wildcards; none when there is none.
    ///
    /// # Errors
    /// As [`StreamReader::span`].
    pub async fn last_under(&self, subject: &str) -> Result<Option<StoredMessage>, StreamError> {
        self.get(&serde_json::json!({ "last_by_subj": subject }))
            .await
    }

    /// The messages from one position to another, both included, in order; those that are not there
    /// are left out.
    ///
    /// # Errors
    /// As [`StreamReader::span`].
    pub async fn range(&self, from: u64, to: u64) -> Result<Vec<StoredMessage>, StreamError> {
        let mut messages = Vec::new();
        let mut next = from;
        while next <= to {
            let last = to.min(next.saturating_add(ASKED_MAX - 1));
            for answer in self.answers(next..=last).await? {
                messages.extend(self.message_in(&answer)?);
            }
            next = last + 1;
        }
        Ok(messages)
    }

    /// The broker's answers to one question for each of some positions.
    async fn answers(
        &self,
        positions: impl IntoIterator<Item = u64>,
    ) -> Result<Vec<Bytes>, StreamError> {
        let question = |sequence| format!("{{\"seq\":{sequence}}}").into();
        let questions = positions.into_iter().map(question);
        let subject = self.get_subject();
        let answers = self.bus.request_many(&subject, questions, ANSWER_MAX);
        answers.await.map_err(|error| self.unanswered(error))
    }

    async fn get(
        &self,
        question: &serde_json::Value,
    ) -> Result<Option<StoredMessage>, StreamError> {
        let answer = self.ask(&self.get_subject(), question.to_string()).await?;
        self.message_in(&answer)
    }

    fn get_subject(&self) -> String {
        format!("$JS.API.STREAM.MSG.GET.{}", self.stream)
    }

    /// The message that was sent for a position; none when it is not there.
    fn message_of(&self, sent: Sent) -> Result<Option<StoredMessage>, StreamError> {
        match sent {
            Sent::Alone(answer) => self.message_in(&answer),
            Sent::Together(message) => Ok(Some(message)),
        }
    }

    /// The message that an answer holds; none when it is not there.
    fn message_in(&self, answer: &[u8]) -> Result<Option<StoredMessage>, StreamError> {
        let Answer { message, error } = self.parse(answer)?;
        match (message, error) {
            (
                Some(Message {
                    subject,
                    seq,
                    data,
                    time,
                }),
                _,
            ) => {
                let payload = BASE64
                    .decode(data.as_bytes())
                    .map_err(|error| self.unreadable(error))?;
                Ok(Some(StoredMessage {
                    sequence: seq,
                    subject,
                    payload: payload.into(),
                    time,
                }))
            }
            (None, Some(error)) if error.err_code == NO_MESSAGE => Ok(None),
            (None, Some(error)) => Err(self.failed(error)),
            (None, None) => Err(self.unreadable("the broker gave no answer")),
        }
    }

    async fn ask(&self, subject: &str, question: String) -> Result<Bytes, StreamError> {
        let answer = self
            .bus
            .request_raw(subject, HeaderMap::new(), question.into(), ANSWER_MAX)
            .await;
        answer.map_err(|error| self.unanswered(error))
    }

    fn unanswered(&self, error: BusError) -> StreamError {
        match error {
            BusError::Denied { .. } => StreamError::Denied(error.to_string()),
            error => self.unreadable(error),
        }
    }

    fn parse<'a, T: Deserialize<'a>>(&self, answer: &'a [u8]) -> Result<T, StreamError> {
        serde_json::from_slice(answer)
            .map_err(|error| self.unreadable(format_args!("the answer is not one: {error}")))
    }

    fn failed(&self, error: ApiError) -> StreamError {
        if error.err_code == ErrorCode::STREAM_NOT_FOUND.0 {
            return StreamError::Missing(self.stream.clone());
        }
        self.unreadable(error.description)
    }

    fn unreadable(&self, reason: impl std::fmt::Display) -> StreamError {
        StreamError::Unreadable {
            stream: self.stream.clone(),
            reason: reason.to_string(),
        }
    }
}
