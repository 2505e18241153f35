//! Many messages for one question: a direct get, which costs the broker a fraction of the single
//! questions. It is only a shorter way. A position whose message does not come this way, or comes
//! with headers that can be read in two ways, is asked for by itself; so no message is missing
//! because an answer was lost, was cut off, or came from a copy of the stream that lags behind.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::header::{NATS_SEQUENCE, NATS_STREAM, NATS_SUBJECT, NATS_TIME_STAMP};
use async_nats::{HeaderMap, HeaderName, Message};
use bytes::Bytes;
use schemas::Code;
use tokio::time::Instant;

use super::{ANSWER_MAX, StoredMessage, StreamError, StreamReader};
use crate::bus::BusError;

/// Most bytes of messages that the broker may send for one question: a few times what a full batch
/// of events has. Messages of the largest size come with several questions, one after another.
const ANSWER_BYTES_MAX: u64 = 4 << 20;
/// Pause after a broker did not answer such a question, before it is asked another.
const AGAIN_AFTER: Duration = Duration::from_secs(60);

/// The readiness of the broker to send many messages together. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Willing {
    refused: Arc<Mutex<Option<Instant>>>,
}

/// The broker's answer for one position, as it came.
pub(super) enum Sent {
    /// The answer to a question of its own, in JSON.
    Alone(Bytes),
    /// A message that came together with others.
    Together(StoredMessage),
}

/// The messages of a range that have come so far.
struct Gathered<'a> {
    stream: &'a str,
    from: u64,
    /// One place for each position.
    places: Vec<Option<StoredMessage>>,
    /// The first position that may still come.
    next: u64,
}

impl Willing {
    fn is_worth_asking(&self) -> bool {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.is_none_or(|at| at.elapsed() >= AGAIN_AFTER)
    }

    fn has_refused(&self) -> bool {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.is_some()
    }

    /// Notes a refusal, and returns true for the first.
    fn refuse(&self) -> bool {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.replace(Instant::now()).is_none()
    }
}

impl StreamReader {
    /// The same reader, which reads ahead with questions for many messages where the broker answers
    /// them. The last of their answers is empty and goes where the asker says, so only an account
    /// without streams may ask them.
    #[must_use]
    pub fn together(self) -> Self {
        Self {
            willing: Some(Willing::default()),
            ..self
        }
    }

    /// True if the broker did not answer a question for many messages when it was asked last.
    pub fn is_refused_many(&self) -> bool {
        self.willing.as_ref().is_some_and(Willing::has_refused)
    }

    /// The broker's answers for each position of a range, in order.
    pub(super) async fn sent(&self, from: u64, to: u64) -> Result<Vec<Sent>, StreamError> {
        let Some(willing) = self.willing.as_ref().filter(|one| one.is_worth_asking()) else {
            let answers = self.answers(from..=to).await?;
            return Ok(answers.into_iter().map(Sent::Alone).collect());
        };
        let mut gathered = Gathered::new(&self.stream, from, to);
        if let Err(error) = self.gather(&mut gathered).await {
            self.ungathered(willing, &gathered, &error);
        }
        let missing = gathered.missing();
        let alone = if missing.is_empty() {
            Vec::new()
        } else {
            self.answers(missing).await?
        };
        let mut alone = alone.into_iter();
        let sent = gathered.places.into_iter().map(|place| match place {
            Some(message) => Sent::Together(message),
            None => Sent::Alone(alone.next().expect("each missing one was asked for")),
        });
        Ok(sent.collect())
    }

    /// Asks until all have come, or an answer brings nothing new.
    async fn gather(&self, gathered: &mut Gathered<'_>) -> Result<(), BusError> {
        let subject = format!("$JS.API.DIRECT.GET.{}", self.stream);
        while let Some(wanted) = gathered.wanted() {
            let (seq, batch) = wanted;
            let question =
                format!("{{\"seq\":{seq},\"batch\":{batch},\"max_bytes\":{ANSWER_BYTES_MAX}}}");
            let take = |message| gathered.take(message);
            let asked = self
                .bus
                .request_parts(&subject, question.into(), ANSWER_MAX, take);
            asked.await?;
            if gathered.wanted() == Some(wanted) {
                break;
            }
        }
        Ok(())
    }

    /// The questions for single messages tell whether the stream can be read at all. Here it only
    /// counts whether the other question is worth asking.
    fn ungathered(&self, willing: &Willing, gathered: &Gathered<'_>, error: &BusError) {
        let silent = gathered.next == gathered.from;
        let unanswered = match error {
            BusError::Denied { .. } | BusError::NoResponders { .. } => true,
            BusError::TimedOut { .. } => silent,
            _ => false,
        };
        if unanswered && willing.refuse() {
            let (code, stream) = (Code::ReadersBehind, &self.stream);
            tracing::warn!(%code, stream, %error, "the stream is read message by message");
        }
    }
}

impl<'a> Gathered<'a> {
    fn new(stream: &'a str, from: u64, to: u64) -> Self {
        Self {
            stream,
            from,
            places: (from..=to).map(|_| None).collect(),
            next: from,
        }
    }

    /// One after the last position.
    fn end(&self) -> u64 {
        self.from.saturating_add(self.places.len() as u64)
    }

    /// The first position that may still come, and how many from there on; none when the last has
    /// come.
    fn wanted(&self) -> Option<(u64, u64)> {
        let count = self.end().saturating_sub(self.next);
        (count > 0).then_some((self.next, count))
    }

    fn missing(&self) -> Vec<u64> {
        let places = (self.from..).zip(&self.places);
        places
            .filter(|(_, place)| place.is_none())
            .map(|(position, _)| position)
            .collect()
    }

    /// Puts a message into its place. Returns false at the end of an answer.
    fn take(&mut self, message: Message) -> bool {
        let Some(stored) = stored(self.stream, &message) else {
            // The broker's own messages have no payload and no position: no more come.
            let position = |all: &HeaderMap| all.get(NATS_SEQUENCE).is_some();
            let positioned = message.headers.as_ref().is_some_and(position);
            return positioned || !message.payload.is_empty();
        };
        let position = stored.sequence;
        if position >= self.end() {
            return false;
        }
        // The broker sends them in order; an older one was answered before.
        if position >= self.next {
            let place = usize::try_from(position - self.from).expect("a place in memory");
            self.places[place] = Some(stored);
            self.next = position + 1;
        }
        self.next < self.end()
    }
}

/// The stored message that an answer holds. The broker appends its headers to those that the
/// message was stored with, which its sender chose: a header that is there twice says nothing. None
/// if the headers leave a doubt.
fn stored(stream: &str, message: &Message) -> Option<StoredMessage> {
    let headers = message.headers.as_ref()?;
    if message.status.is_some() || only(headers, NATS_STREAM)? != stream {
        return None;
    }
    let subject = only(headers, NATS_SUBJECT)?;
    // Space around a header is lost, and a subject may hold characters that count as space.
    let exact = !subject.is_empty() && subject.bytes().all(|byte| byte.is_ascii_graphic());
    Some(StoredMessage {
        sequence: only(headers, NATS_SEQUENCE)?.parse().ok()?,
        subject: exact.then(|| subject.to_owned())?,
        payload: message.payload.clone(),
        time: only(headers, NATS_TIME_STAMP)?.to_owned(),
    })
}

/// The value of a header that is there once.
fn only(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    let mut values = headers.get_all(name);
    let value = values.next()?;
    values.next().is_none().then(|| value.as_str())
}

#[cfg(test)]
mod tests {
    use async_nats::StatusCode;

    use super::*;

    fn answer(sequence: u64) -> Message {
        let mut headers = HeaderMap::new();
        headers.append("Left-By-Its-Sender", "x");
        headers.append(NATS_STREAM, "S");
        headers.append(NATS_SUBJECT, "a.b");
        headers.append(NATS_SEQUENCE, sequence.to_string());
        headers.append(NATS_TIME_STAMP, "2026-01-01T00:00:00Z");
        Message {
            subject: "inbox".into(),
            reply: None,
            payload: Bytes::from(format!("event {sequence}")),
            headers: Some(headers),
            status: None,
            description: None,
            length: 0,
        }
    }

    /// An answer with one header more.
    fn with(name: &str, value: &str) -> Message {
        let mut message = answer(2);
        let headers = message.headers.as_mut().expect("it has headers");
        headers.append(name, value);
        message
    }

    /// A message of the broker itself.
    fn status(code: u16) -> Message {
        Message {
            payload: Bytes::new(),
            headers: Some(HeaderMap::new()),
            status: StatusCode::from_u16(code).ok(),
            ..answer(0)
        }
    }

    fn came(gathered: &Gathered<'_>) -> Vec<u64> {
        let all = gathered.places.iter().flatten();
        all.map(|message| message.sequence).collect()
    }

    #[test]
    fn a_message_is_read_as_it_is_stored() {
        let expected = StoredMessage {
            sequence: 7,
            subject: "a.b".to_owned(),
            payload: Bytes::from("event 7"),
            time: "2026-01-01T00:00:00Z".to_owned(),
        };
        assert_eq!(stored("S", &answer(7)), Some(expected));
        assert_eq!(stored("OTHER", &answer(7)), None);
    }

    /// The sender of a message chose the headers that it was stored with.
    #[test]
    fn a_message_whose_headers_leave_a_doubt_is_left_to_a_question_of_its_own() {
        let doubtful = [
            with("Nats-Sequence", "3"),
            with("Nats-Subject", "c.d"),
            with("Nats-Stream", "S"),
            with("Nats-Time-Stamp", "2020-01-01T00:00:00Z"),
            Message {
                status: StatusCode::from_u16(503).ok(),
                ..answer(2)
            },
            Message {
                status: StatusCode::from_u16(204).ok(),
                payload: Bytes::new(),
                ..answer(2)
            },
            Message {
                headers: None,
                ..answer(2)
            },
        ];
        for message in doubtful {
            let mut gathered = Gathered::new("S", 1, 3);
            let text = format!("{message:?}");
            assert!(gathered.take(answer(1)), "{text}");
            assert!(gathered.take(message), "not the end: {text}");
            assert!(!gathered.take(answer(3)), "{text}");
            assert_eq!(gathered.missing(), [2], "{text}");
        }
        let mut other = answer(2);
        let headers = other.headers.as_mut().expect("it has headers");
        headers.insert(NATS_SUBJECT, "a.b\u{a0}");
        assert_eq!(stored("S", &other), None, "a space that is not one");
    }

    #[test]
    fn what_does_not_come_is_missing_and_what_is_behind_the_end_is_left() {
        let mut gathered = Gathered::new("S", 4, 8);
        assert_eq!(gathered.wanted(), Some((4, 5)));
        for position in [5, 6, 5, 3] {
            assert!(gathered.take(answer(position)), "{position}");
        }
        for code in [204, 404, 408, 503] {
            assert!(!gathered.take(status(code)), "{code} ends an answer");
        }
        assert_eq!(
            (gathered.wanted(), came(&gathered)),
            (Some((7, 2)), vec![5, 6])
        );
        assert_eq!(gathered.missing(), [4, 7, 8]);
        assert!(!gathered.take(answer(9)), "the next range has it");
        assert!(gathered.take(answer(7)) && !gathered.take(answer(8)));
        assert_eq!((gathered.wanted(), gathered.missing()), (None, vec![4]));
    }

    #[test]
    fn a_broker_that_refuses_is_asked_again_after_a_pause_and_reported_once() {
        let willing = Willing::default();
        assert!(willing.is_worth_asking() && !willing.has_refused());
        assert!(willing.refuse() && willing.has_refused(), "the first");
        assert!(!willing.is_worth_asking() && !willing.refuse());
        let before = Instant::now().checked_sub(AGAIN_AFTER);
        *willing.refused.lock().expect("no thread has panicked") = before;
        assert!(willing.is_worth_asking() && !willing.refuse());
    }
}
