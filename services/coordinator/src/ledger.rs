//! The coordinator's chain in stream `LEDGER`: read and verified from the first event at start, then appended to, each
//! event only where the broker still sees the last one that this process knows. A second coordinator's first event
//! therefore ends this one.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::header::{NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_MESSAGE_ID};
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use async_nats::jetstream::{self, Context};
use bytes::Bytes;
use data_encoding::BASE64URL_NOPAD;
use futures::StreamExt as _;
use identity::event::verify_event;
use identity::{AuditKey, TrustBundle};
use runtime::{Bus, BusError, Failure};
use schemas::event::{Event, EventBody, KEY_HEADER, LedgerEvent, SIGNATURE_HEADER};
use schemas::subject::{Incoming, LEDGER_FILTER, LEDGER_STREAM, ledger_subject};
use schemas::{Code, Digest, Message as _, RunId, Sequence, UnixMillis, V};
use serde::Deserialize;
use tokio::time::{Instant, sleep, timeout};

/// Header that widens an expected sequence from one subject to a filter; the broker then compares with the last message
/// of any ledger event.
const EXPECTED_FILTER: &str = "Nats-Expected-Last-Subject-Sequence-Subject";
/// The broker's error for an expectation that does not hold.
const WRONG_LAST_SEQUENCE: u64 = 10071;
/// How long one publish waits for its acknowledgement: above the fail-over of a replicated stream (6 s).
const ACK_WAIT: Duration = Duration::from_secs(8);
/// Longest wait for the next stored event while reading.
const READ_WAIT: Duration = Duration::from_secs(10);
/// Longest pause between two tries.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Where the chain ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tail {
    /// Sequence in the stream of the last event; 0 for none.
    stream: u64,
    /// Position of the next event in the chain.
    next: Sequence,
    /// Digest of the last body.
    previous: Option<Digest>,
}

/// The chain, open for appending.
#[derive(Debug)]
pub struct Ledger {
    bus: Bus,
    jetstream: Context,
    key: AuditKey,
    /// Whose signatures count.
    trust: TrustBundle,
    tail: Tail,
    patience: Duration,
}

/// Why the ledger cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Another coordinator has appended.
    #[error(
        "expected event {expected} of the stream to be the ledger's last, found {found}: another coordinator leads"
    )]
    Fenced {
        /// Stream sequence of the last event that this process knows.
        expected: u64,
        /// Stream sequence of the last event that is there.
        found: u64,
    },
    /// An event does not verify.
    #[error("event {stream} of stream {LEDGER_STREAM}: {reason}")]
    Broken {
        /// Its sequence in the stream.
        stream: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// The stream takes no event.
    #[error("event {sequence} ({kind}) was not appended: {reason}")]
    Unwritable {
        /// Its position in the chain.
        sequence: Sequence,
        /// Its kind.
        kind: &'static str,
        /// Why.
        reason: String,
    },
    /// The stream cannot be read.
    #[error("stream {LEDGER_STREAM} cannot be read: {0}")]
    Unreadable(String),
}

impl LedgerError {
    /// The code of the page that says what to do.
    pub const fn code(&self) -> Code {
        match self {
            Self::Fenced { .. } => Code::LedgerFenced,
            Self::Broken { .. } => Code::LedgerBroken,
            Self::Unwritable { .. } => Code::LedgerUnwritable,
            Self::Unreadable(_) => Code::StreamMissing,
        }
    }
}

impl From<LedgerError> for Failure {
    fn from(error: LedgerError) -> Self {
        Self::new(error.code(), error)
    }
}

/// An event as it lies in the stream.
struct Stored {
    stream: u64,
    subject: String,
    headers: HeaderMap,
    payload: Bytes,
}

/// What came of one publish.
enum Published {
    At(u64),
    /// The broker refused the expectation, or took the event for a repeat: the end of the ledger tells.
    Elsewhere,
    /// Nobody knows: the answer did not come.
    Unknown(String),
    Refused(String),
}

/// A stream's answer to a publish.
#[derive(Deserialize)]
struct Acknowledgement {
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
    error: Option<AckError>,
}

#[derive(Deserialize)]
struct AckError {
    code: u64,
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

impl Ledger {
    /// The chain as it is before anything was read: [`Ledger::catch_up`] comes first. A publish is retried until `patience`
    /// has passed.
    pub fn new(bus: Bus, key: AuditKey, trust: TrustBundle, patience: Duration) -> Self {
        let jetstream = jetstream::new(bus.client().clone());
        Self { bus, jetstream, key, trust, tail: Tail::default(), patience }
    }

    /// Looks whether the credential is one that may read the ledger; reading would only time out.
    ///
    /// # Errors
    /// The broker refuses it.
    pub async fn probe(&self) -> Result<(), Failure> {
        let subject = format!("$JS.API.STREAM.INFO.{LEDGER_STREAM}");
        match self.bus.request_raw(&subject, HeaderMap::new(), Bytes::new(), ACK_WAIT).await {
            Err(error @ BusError::Denied { .. }) => Err(Failure::from(error.into_refusal())),
            _ => Ok(()),
        }
    }

    /// Reads and verifies what was appended since this process last read or appended, and hands each body to `follow`, oldest
    /// first; none is kept. Afterwards this process may append.
    ///
    /// # Errors
    /// [`LedgerError::Broken`] names the first event that does not verify, or that `follow` does not take; otherwise the
    /// stream cannot be read.
    pub async fn catch_up<E: std::fmt::Display>(
        &mut self,
        mut follow: impl FnMut(EventBody) -> Result<(), E>,
    ) -> Result<(), LedgerError> {
        let policy = match self.tail.stream {
            0 => DeliverPolicy::All,
            last => DeliverPolicy::ByStartSequence { start_sequence: last + 1 },
        };
        let Self { jetstream, tail, trust, .. } = self;
        read(jetstream, policy, |stored| {
            let broken = |reason| LedgerError::Broken { stream: stored.stream, reason };
            let body = verify(&stored, tail, trust).map_err(broken)?;
            let previous = Some(Digest::of(&stored.payload));
            *tail = Tail { stream: stored.stream, next: body.sequence.next(), previous };
            follow(body).map_err(|error| broken(error.to_string()))
        })
        .await
    }

    /// Events in the chain.
    pub const fn len(&self) -> u64 {
        self.tail.next.get()
    }

    /// Whether the chain has no event yet.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends one event and returns when it is stored, exactly once.
    ///
    /// # Errors
    /// [`LedgerError::Fenced`]: it is not in the chain, since others have appended. After any other error whether it will
    /// ever be there is for the next reader to see. Who leads must stand down either way.
    pub async fn append(
        &mut self,
        time: UnixMillis,
        run: Option<&RunId>,
        event: LedgerEvent,
    ) -> Result<(), LedgerError> {
        let (kind, sequence) = (event.kind(), self.tail.next);
        let emitter = self.key.public().clone();
        let subject = ledger_subject(run, &emitter, kind);
        let previous = self.tail.previous;
        let event = Event::Ledger(event);
        let body = EventBody { v: V, emitter, sequence, previous, time, run: run.cloned(), event };
        let body = Bytes::from(body.encode());
        let unwritable = |reason| LedgerError::Unwritable { sequence, kind, reason };
        if body.len() > EventBody::BYTES_MAX {
            return Err(unwritable(format!("it has {} bytes, at most {} are kept", body.len(), EventBody::BYTES_MAX)));
        }
        let digest = Digest::of(&body);
        let headers = self.headers(&body, digest);
        let deadline = Instant::now() + self.patience;
        let mut pause = Duration::from_millis(50);
        let stream = loop {
            let mut reason = match self.publish(&subject, &headers, &body).await {
                Published::At(stream) => break stream,
                Published::Refused(reason) => return Err(unwritable(reason)),
                Published::Elsewhere => "the broker sees another end of the ledger".to_owned(),
                Published::Unknown(reason) => reason,
            };
            // It is published again only when the ledger is seen to end where it did: never twice.
            match self.last().await {
                Ok(Some((stream, last))) if last == digest => break stream,
                Ok(last) => {
                    let found = last.map_or(0, |(stream, _)| stream);
                    if found != self.tail.stream {
                        return Err(LedgerError::Fenced { expected: self.tail.stream, found });
                    }
                }
                Err(error) => reason = error.to_string(),
            }
            if Instant::now() + pause > deadline {
                return Err(unwritable(reason));
            }
            tracing::warn!(kind, sequence = sequence.get(), reason, "event not acknowledged; trying again");
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        };
        self.tail = Tail { stream, next: sequence.next(), previous: Some(digest) };
        Ok(())
    }

    fn headers(&self, body: &[u8], digest: Digest) -> HeaderMap {
        let signature = self.key.sign_event(self.trust.domain.as_str(), body);
        let mut headers = HeaderMap::new();
        headers.insert(KEY_HEADER, self.key.public().as_str());
        headers.insert(SIGNATURE_HEADER, BASE64URL_NOPAD.encode(&signature));
        headers.insert(NATS_MESSAGE_ID, digest.hex());
        headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, self.tail.stream.to_string());
        headers.insert(EXPECTED_FILTER, LEDGER_FILTER);
        headers
    }

    async fn publish(&self, subject: &str, headers: &HeaderMap, body: &Bytes) -> Published {
        let answer = match self.bus.request_raw(subject, headers.clone(), body.clone(), ACK_WAIT).await {
            Ok(answer) => answer,
            Err(error @ BusError::Denied { .. }) => return Published::Refused(error.to_string()),
            Err(error) => return Published::Unknown(error.to_string()),
        };
        let Ok(ack) = serde_json::from_slice::<Acknowledgement>(&answer) else {
            return Published::Unknown("the stream's answer is not one".to_owned());
        };
        match ack.error {
            None if !ack.duplicate && ack.seq > self.tail.stream => Published::At(ack.seq),
            None => Published::Elsewhere,
            Some(error) if error.err_code == WRONG_LAST_SEQUENCE => Published::Elsewhere,
            // A server that is starting or electing; anything else will not change by itself.
            Some(error) if error.code >= 500 && error.err_code != STREAM_FULL => Published::Unknown(error.description),
            Some(error) => Published::Refused(error.description),
        }
    }

    /// Stream sequence and digest of the last ledger event.
    async fn last(&self) -> Result<Option<(u64, Digest)>, LedgerError> {
        let mut last = None;
        let note = |stored: Stored| {
            last = Some((stored.stream, Digest::of(&stored.payload)));
            Ok(())
        };
        read(&self.jetstream, DeliverPolicy::Last, note).await?;
        Ok(last)
    }
}

/// The broker's error for a stream that is full and refuses new messages.
const STREAM_FULL: u64 = 10077;

/// Gives every ledger event that `policy` selects to `each`, until one is refused.
async fn read(
    jetstream: &Context,
    policy: DeliverPolicy,
    mut each: impl FnMut(Stored) -> Result<(), LedgerError>,
) -> Result<(), LedgerError> {
    let unreadable = |error: &dyn std::fmt::Display| LedgerError::Unreadable(error.to_string());
    let stream = jetstream.get_stream_no_info(LEDGER_STREAM).await.map_err(|error| unreadable(&error))?;
    let config =
        OrderedConfig { filter_subject: LEDGER_FILTER.to_owned(), deliver_policy: policy, ..OrderedConfig::default() };
    let consumer = stream.create_consumer(config).await.map_err(|error| unreadable(&error))?;
    let mut pending = consumer.cached_info().num_pending;
    if pending == 0 {
        return Ok(());
    }
    let mut messages = consumer.messages().await.map_err(|error| unreadable(&error))?;
    while pending > 0 {
        let next = timeout(READ_WAIT, messages.next()).await;
        let next = next.map_err(|_| unreadable(&format_args!("{pending} events did not come in {READ_WAIT:?}")))?;
        let message =
            next.ok_or_else(|| unreadable(&"the reading ended early"))?.map_err(|error| unreadable(&error))?;
        let info = message.info().map_err(|error| unreadable(&error))?;
        let stream = info.stream_sequence;
        pending = info.pending;
        let async_nats::Message { subject, payload, headers, .. } = message.message;
        each(Stored { stream, subject: subject.to_string(), headers: headers.unwrap_or_default(), payload })?;
    }
    Ok(())
}

/// Checks an event's signature, key, place and subject, and gives its body.
fn verify(stored: &Stored, tail: &Tail, trust: &TrustBundle) -> Result<EventBody, String> {
    let header = |name| stored.headers.get(name).map(|value| value.as_str().to_owned());
    let key = header(KEY_HEADER).ok_or("it names no key")?;
    let key = trust.audit_keys.iter().find(|trusted| trusted.as_str() == key);
    let key = key.ok_or("its key is not an audit key of the trust bundle")?;
    let signature = header(SIGNATURE_HEADER).ok_or("it has no signature")?;
    let signature = BASE64URL_NOPAD.decode(signature.as_bytes()).map_err(|_| "its signature is not base64url")?;
    verify_event(trust.domain.as_str(), key, &signature, &stored.payload).map_err(|error| error.to_string())?;
    let body = EventBody::decode(&stored.payload).map_err(|error| error.to_string())?;
    if body.emitter != *key {
        return Err(format!("its emitter is {}, its signer {key}", body.emitter));
    }
    if body.sequence != tail.next {
        return Err(format!("it has position {} in the chain, expected {}", body.sequence, tail.next));
    }
    if body.previous != tail.previous {
        return Err(format!("it follows on {:?}, the event before it is {:?}", body.previous, tail.previous));
    }
    let named =
        Incoming::Ledger { run: body.run.clone(), emitter: body.emitter.clone(), kind: body.event.kind().to_owned() };
    if stored.subject.parse() != Ok(named) {
        return Err(format!("it lies under {}, which is not its subject", stored.subject));
    }
    Ok(body)
}
