//! The coordinator's chain in stream `LEDGER`: read and verified from the first event at start,
//! then appended to, each event only where the broker still sees the last message that this process
//! knows. A second coordinator's first event therefore ends this one. A message that nobody signed
//! whose chain this could be ends nobody: it is passed over.

mod broker;

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::header::{NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_MESSAGE_ID};
use bytes::Bytes;
use chain::{Draft, Judgement, Reader};
use identity::{AuditKey, TrustBundle};
use runtime::{Bus, BusError, StoredMessage, StreamError, StreamReader};
use schemas::event::{Event, EventBody, LedgerEvent};
use schemas::subject::{LEDGER_FILTER, LEDGER_STREAM, ledger_subject};
use schemas::{Code, Digest, Message as _, RunId, Sequence, UnixMillis};
use tokio::time::{Instant, sleep};

use self::broker::{Published, published};

/// Header that widens an expected sequence from one subject to a filter; the broker then compares
/// with the last message of any ledger event.
const EXPECTED_FILTER: &str = "Nats-Expected-Last-Subject-Sequence-Subject";
/// How long one publish waits for its acknowledgement: above the fail-over of a replicated stream
/// (6 s).
const ACK_WAIT: Duration = Duration::from_secs(8);
/// Messages that are read before they are looked at: a few MB at the most.
const READ_AT_ONCE: u64 = 512;
/// First and longest pause between two tries.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// How often it is said that the ledger takes no event now; a full disk lasts for minutes.
const TOLD_EVERY: Duration = Duration::from_secs(10);
/// What is logged of a copy.
const REPEATED: &str = "an event that the ledger has already";
/// Most foreign messages that are named in the log one by one; all are counted.
const FOREIGN_NAMED_MAX: u64 = 5;

/// The chain, open for appending.
#[derive(Debug)]
pub struct Ledger {
    bus: Bus,
    stream: StreamReader,
    key: AuditKey,
    /// The domain's id as text.
    domain: String,
    chain: Reader,
    /// Position in the stream of the last message that was looked at, in the chain or not; 0 for
    /// none. It is what the next append expects to be the last.
    stream_sequence: u64,
    /// Messages that were passed over.
    foreign: u64,
    patience: Duration,
}

/// Why the ledger cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Another coordinator has appended.
    #[error(
        "event {found} of stream {LEDGER_STREAM} follows on event {expected}, the last that is known here, and is not \
             from here: another coordinator leads"
    )]
    Fenced {
        /// Stream sequence of the last message that this process knows.
        expected: u64,
        /// Stream sequence of the event of somebody else that follows in the chain.
        found: u64,
    },
    /// An event was signed by who may write the ledger, and does not follow.
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
    /// It cannot be read.
    #[error(transparent)]
    Unreadable(#[from] StreamError),
}

impl LedgerError {
    /// The code of the page that says what to do.
    pub const fn code(&self) -> Code {
        match self {
            Self::Fenced { .. } => Code::LedgerFenced,
            Self::Broken { .. } => Code::LedgerBroken,
            Self::Unwritable { .. } => Code::LedgerUnwritable,
            Self::Unreadable(error) => error.code(),
        }
    }
}

schemas::coded!(LedgerError);

impl Ledger {
    /// The chain as it is before anything was read: [`Ledger::catch_up`] comes first. A publish is
    /// retried until `patience` has passed.
    pub fn new(bus: Bus, key: AuditKey, trust: TrustBundle, patience: Duration) -> Self {
        let stream = StreamReader::new(bus.clone(), LEDGER_STREAM);
        Self {
            bus,
            stream,
            key,
            domain: trust.domain.to_string(),
            chain: Reader::new(trust.domain.as_str(), trust.audit_keys),
            stream_sequence: 0,
            foreign: 0,
            patience,
        }
    }

    /// Reads and verifies what was appended since this process last read or appended, and hands
    /// each body to `follow`, oldest first; none is kept. Afterwards this process may append.
    ///
    /// # Errors
    /// [`LedgerError::Broken`] names the first event that was signed and does not follow, or that
    /// `follow` does not take; otherwise the stream cannot be read.
    pub async fn catch_up<E: std::fmt::Display>(
        &mut self,
        mut follow: impl FnMut(EventBody) -> Result<(), E>,
    ) -> Result<(), LedgerError> {
        let span = self.stream.span().await?;
        let before = self.foreign;
        let mut from = (self.stream_sequence + 1).max(span.first);
        while from <= span.last {
            let to = span.last.min(from + READ_AT_ONCE - 1);
            for stored in self.stream.range(from, to).await? {
                let at = stored.sequence;
                let broken = |reason| LedgerError::Broken { stream: at, reason };
                match self.judge(&stored) {
                    Judgement::Next { body, digest } => {
                        self.extend(at, digest);
                        follow(*body).map_err(|error| broken(error.to_string()))?;
                    }
                    Judgement::Repeated => self.pass(at, REPEATED),
                    Judgement::Foreign(reason) => self.pass(at, &reason),
                    Judgement::Broken(reason) => return Err(broken(reason)),
                }
            }
            from = to + 1;
        }
        let foreign = self.foreign - before;
        if foreign > FOREIGN_NAMED_MAX {
            tracing::warn!(code = %Code::ForeignMessage, count = foreign, "foreign messages in the ledger were passed over");
        }
        Ok(())
    }

    /// Events in the chain.
    pub fn len(&self) -> u64 {
        self.chain.end().next.get()
    }

    /// Digest of the last event's body; none before the first.
    pub const fn previous(&self) -> Option<Digest> {
        self.chain.end().previous
    }

    /// Position in the stream of the last message that was looked at, an event or not; 0 before the
    /// first.
    pub const fn stream_sequence(&self) -> u64 {
        self.stream_sequence
    }

    /// Whether the chain has no event yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Messages of the stream that are in no chain, as far as it was read.
    pub const fn foreign(&self) -> u64 {
        self.foreign
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
        let (kind, emitter) = (event.kind(), self.key.public());
        let subject = ledger_subject(run, emitter, kind);
        let Draft {
            sequence,
            body,
            digest,
        } = self
            .chain
            .end()
            .write(emitter, time, run, Event::Ledger(event));
        let unwritable = |reason| LedgerError::Unwritable {
            sequence,
            kind,
            reason,
        };
        if body.len() > EventBody::BYTES_MAX {
            return Err(unwritable(format!(
                "it has {} bytes, at most {} are kept",
                body.len(),
                EventBody::BYTES_MAX
            )));
        }
        let payload = Bytes::from(self.key.sign_event(&self.domain, body).encode());
        let deadline = Instant::now() + self.patience;
        let (mut pause, mut told) = (PAUSE.0, None::<Instant>);
        loop {
            let mut waits = true;
            let mut reason = match self.publish(&subject, digest, &payload).await {
                Published::At(stream) => {
                    self.extend(stream, digest);
                    return Ok(());
                }
                Published::Refused(reason) => return Err(unwritable(reason)),
                Published::Elsewhere => {
                    waits = false;
                    "the broker sees another end of the ledger".to_owned()
                }
                Published::NotNow(reason) => reason,
            };
            // It is published again only where everything behind the known end has been looked at:
            // never twice.
            let before = self.stream_sequence;
            match self.look(digest).await {
                Ok(true) => return Ok(()),
                // Somebody's message lay in between: now the end is known again.
                Ok(false) if !waits && self.stream_sequence > before => continue,
                Ok(false) => {}
                Err(LedgerError::Unreadable(error @ StreamError::Unreadable { .. })) => {
                    reason = error.to_string()
                }
                Err(error) => return Err(error),
            }
            if Instant::now() + pause > deadline {
                return Err(unwritable(reason));
            }
            if told.is_none_or(|told| told.elapsed() >= TOLD_EVERY) {
                told = Some(Instant::now());
                tracing::warn!(
                    kind,
                    sequence = sequence.get(),
                    reason,
                    "the ledger takes no event now; trying again"
                );
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    async fn publish(&self, subject: &str, digest: Digest, payload: &Bytes) -> Published {
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MESSAGE_ID, digest.hex());
        headers.insert(
            NATS_EXPECTED_LAST_SUBJECT_SEQUENCE,
            self.stream_sequence.to_string(),
        );
        headers.insert(EXPECTED_FILTER, LEDGER_FILTER);
        match self
            .bus
            .request_raw(subject, headers, payload.clone(), ACK_WAIT)
            .await
        {
            Ok(answer) => published(&answer, self.stream_sequence),
            Err(error @ BusError::Denied { .. }) => Published::Refused(error.to_string()),
            Err(error) => Published::NotNow(
                self.bus
                    .explain_silence(error, LEDGER_STREAM)
                    .await
                    .to_string(),
            ),
        }
    }

    /// Looks at every message behind the known end: whether one of them is the event whose body has
    /// this digest. Foreign ones are passed over.
    ///
    /// # Errors
    /// [`LedgerError::Fenced`] for another event that follows in the chain, [`LedgerError::Broken`]
    /// for one that does not.
    async fn look(&mut self, own: Digest) -> Result<bool, LedgerError> {
        while let Some(stored) = self.stream.next(self.stream_sequence + 1).await? {
            let found = stored.sequence;
            match self.judge(&stored) {
                Judgement::Next { digest, .. } if digest == own => {
                    self.extend(found, digest);
                    return Ok(true);
                }
                Judgement::Next { .. } => {
                    return Err(LedgerError::Fenced {
                        expected: self.stream_sequence,
                        found,
                    });
                }
                Judgement::Repeated => self.pass(found, REPEATED),
                Judgement::Foreign(reason) => self.pass(found, &reason),
                Judgement::Broken(reason) => {
                    return Err(LedgerError::Broken {
                        stream: found,
                        reason,
                    });
                }
            }
        }
        Ok(false)
    }

    fn judge(&self, stored: &StoredMessage) -> Judgement {
        self.chain.judge(&stored.subject, &stored.payload)
    }

    /// Adds the next event, which lies at position `stream`.
    fn extend(&mut self, stream: u64, digest: Digest) {
        self.stream_sequence = stream;
        self.chain.extend(digest);
    }

    /// Goes past a message that is in no chain, and says so.
    fn pass(&mut self, stream: u64, reason: &str) {
        self.stream_sequence = stream;
        self.foreign += 1;
        if self.foreign <= FOREIGN_NAMED_MAX {
            tracing::warn!(code = %Code::ForeignMessage, stream, reason, "a foreign message in the ledger was passed over");
        }
    }
}
