//! The coordinator's chain in stream `LEDGER`: read and verified from the first event at start,
//! then appended to, each event only where the broker still sees the last message that this process
//! knows. A second coordinator's first event therefore ends this one. A message that nobody signed
//! whose chain this could be ends nobody: it is passed over.

mod broker;
mod chain;

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::header::{NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_MESSAGE_ID};
use bytes::Bytes;
use identity::{AuditKey, TrustBundle};
use runtime::{Bus, BusError, StreamError, StreamReader};
use schemas::event::{Event, EventBody, LedgerEvent, SignedEvent};
use schemas::subject::{LEDGER_FILTER, LEDGER_STREAM, ledger_subject};
use schemas::{Code, Digest, Message as _, RunId, Sequence, UnixMillis, V};
use serde_bytes::{ByteArray, ByteBuf};
use tokio::time::{Instant, sleep};

use self::broker::{Published, published};
use self::chain::{Chain, Stand};

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
/// Most foreign messages that are named in the log one by one; all are counted.
const FOREIGN_NAMED_MAX: u64 = 5;

/// The chain, open for appending.
#[derive(Debug)]
pub struct Ledger {
    bus: Bus,
    stream: StreamReader,
    key: AuditKey,
    /// Whose signatures count.
    trust: TrustBundle,
    chain: Chain,
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
            trust,
            chain: Chain::default(),
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
        let before = self.chain.foreign;
        let mut from = (self.chain.stream + 1).max(span.first);
        while from <= span.last {
            let to = span.last.min(from + READ_AT_ONCE - 1);
            for stored in self.stream.range(from, to).await? {
                let at = stored.sequence;
                let broken = |reason| LedgerError::Broken { stream: at, reason };
                match self.chain.judge(&stored, &self.trust) {
                    Stand::Next { body, digest } => {
                        self.chain.extend(at, digest);
                        follow(*body).map_err(|error| broken(error.to_string()))?;
                    }
                    Stand::Repeated => {
                        pass(&mut self.chain, at, "an event that the ledger has already")
                    }
                    Stand::Foreign(reason) => pass(&mut self.chain, at, &reason),
                    Stand::Broken(reason) => return Err(broken(reason)),
                }
            }
            from = to + 1;
        }
        let foreign = self.chain.foreign - before;
        if foreign > FOREIGN_NAMED_MAX {
            tracing::warn!(code = %Code::ForeignMessage, count = foreign, "foreign messages in the ledger were passed over");
        }
        Ok(())
    }

    /// Events in the chain.
    pub fn len(&self) -> u64 {
        self.chain.next().get()
    }

    /// Digest of the last event's body; none before the first.
    pub const fn previous(&self) -> Option<Digest> {
        self.chain.previous()
    }

    /// Position in the stream of the last message that was looked at, an event or not; 0 before the
    /// first.
    pub const fn stream_sequence(&self) -> u64 {
        self.chain.stream
    }

    /// Whether the chain has no event yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Messages of the stream that are in no chain, as far as it was read.
    pub const fn foreign(&self) -> u64 {
        self.chain.foreign
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
        let (kind, sequence) = (event.kind(), self.chain.next());
        let emitter = self.key.public().clone();
        let subject = ledger_subject(run, &emitter, kind);
        let previous = self.chain.previous();
        let event = Event::Ledger(event);
        let body = EventBody {
            v: V,
            emitter,
            sequence,
            previous,
            time,
            run: run.cloned(),
            event,
        };
        let body = body.encode();
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
        let digest = Digest::of(&body);
        let payload = Bytes::from(self.sign(body).encode());
        let deadline = Instant::now() + self.patience;
        let (mut pause, mut told) = (PAUSE.0, None::<Instant>);
        loop {
            let mut waits = true;
            let mut reason = match self.publish(&subject, digest, &payload).await {
                Published::At(stream) => {
                    self.chain.extend(stream, digest);
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
            let before = self.chain.stream;
            match self.look(digest).await {
                Ok(true) => return Ok(()),
                // Somebody's message lay in between: now the end is known again.
                Ok(false) if !waits && self.chain.stream > before => continue,
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

    fn sign(&self, body: Vec<u8>) -> SignedEvent {
        let signature = ByteArray::new(self.key.sign_event(self.trust.domain.as_str(), &body));
        SignedEvent {
            v: V,
            key: self.key.public().clone(),
            signature,
            body: ByteBuf::from(body),
        }
    }

    async fn publish(&self, subject: &str, digest: Digest, payload: &Bytes) -> Published {
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MESSAGE_ID, digest.hex());
        headers.insert(
            NATS_EXPECTED_LAST_SUBJECT_SEQUENCE,
            self.chain.stream.to_string(),
        );
        headers.insert(EXPECTED_FILTER, LEDGER_FILTER);
        match self
            .bus
            .request_raw(subject, headers, payload.clone(), ACK_WAIT)
            .await
        {
            Ok(answer) => published(&answer, self.chain.stream),
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
        while let Some(stored) = self.stream.next(self.chain.stream + 1).await? {
            let found = stored.sequence;
            match self.chain.judge(&stored, &self.trust) {
                Stand::Next { digest, .. } if digest == own => {
                    self.chain.extend(found, digest);
                    return Ok(true);
                }
                Stand::Next { .. } => {
                    return Err(LedgerError::Fenced {
                        expected: self.chain.stream,
                        found,
                    });
                }
                Stand::Repeated => pass(
                    &mut self.chain,
                    found,
                    "an event that the ledger has already",
                ),
                Stand::Foreign(reason) => pass(&mut self.chain, found, &reason),
                Stand::Broken(reason) => {
                    return Err(LedgerError::Broken {
                        stream: found,
                        reason,
                    });
                }
            }
        }
        Ok(false)
    }
}

/// Goes past a message that is in no chain, and says so.
fn pass(chain: &mut Chain, stream: u64, reason: &str) {
    chain.pass(stream);
    if chain.foreign <= FOREIGN_NAMED_MAX {
        tracing::warn!(code = %Code::ForeignMessage, stream, reason, "a foreign message in the ledger was passed over");
    }
}
