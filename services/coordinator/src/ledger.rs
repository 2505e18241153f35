//! The coordinator's chain in stream `LEDGER`. At start it is read and verified, from the newest
//! checkpoint or from the first event. An append succeeds only if the broker's last message is
//! still the last one that this process knows, so the first event of a second coordinator ends this
//! one. A message without the signature of a key for this chain ends nobody: it is skipped.

mod append;
mod broker;
mod checkpoint;
mod grouping;
mod succession;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use chain::{Judgement, Reader};
use identity::{AuditKey, TrustBundle};
use runtime::{Bus, StreamError, StreamReader};
use schemas::event::{EventBody, LedgerEvent};
use schemas::head::KnownHead;
use schemas::subject::LEDGER_STREAM;
use schemas::{ChainSequence, Code, Digest, PublicKey, RunId, UnixMillis};

pub(crate) use self::checkpoint::Place;
pub use self::checkpoint::{Marked, Named};
use self::grouping::Grouping;

/// The log's words for a copy.
const REPEATED: &str = "an event that the ledger has already";
/// Most foreign messages that the log names one by one; all are counted.
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
    /// The keys that have ended by the trust bundle, each with its last event.
    ended: BTreeMap<PublicKey, ChainSequence>,
    /// Position in the stream of the last message that was read, in the chain or not; 0 for none.
    /// The next append expects it to be the last one.
    stream_sequence: u64,
    /// The event after which this process began to read; none if it began with the first.
    base: Option<Place>,
    /// The event that took the last checkpoint.
    taken: Option<Place>,
    /// Number of messages that were skipped.
    foreign: u64,
    /// The number of events that share a publish.
    grouping: Grouping,
    patience: Duration,
    /// The newest verified head of the log, which events name.
    known: Option<KnownHead>,
    /// The newest event that this process has stored.
    stored: Option<(ChainSequence, Bytes)>,
}

/// An event to append.
#[derive(Clone, Debug)]
pub struct NewEvent {
    /// The time of the event, as the coordinator's state holds it.
    pub time: UnixMillis,
    /// The run it concerns.
    pub run: Option<RunId>,
    /// The event itself.
    pub event: LedgerEvent,
}

/// The reason why the ledger cannot be read or written.
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
        /// Stream sequence of another coordinator's event that follows in the chain.
        found: u64,
    },
    /// An event was signed by a key that may write the ledger, but it does not follow the one
    /// before.
    #[error("event {stream} of stream {LEDGER_STREAM}: {reason}")]
    Broken {
        /// Its sequence in the stream.
        stream: u64,
        /// The fault in it.
        reason: String,
    },
    /// Another key goes on with the ledger than this process has.
    #[error(
        "stream {LEDGER_STREAM} is continued with the key {present}, and this coordinator signs with {own}"
    )]
    Succeeded {
        /// The key that goes on.
        present: PublicKey,
        /// The key of this process.
        own: PublicKey,
    },
    /// The trust bundle of this process is of before the key that goes on was made.
    #[error(
        "event {stream} of stream {LEDGER_STREAM} names {next} as the key that goes on, and trust.json here does not have it"
    )]
    Outdated {
        /// Its sequence in the stream.
        stream: u64,
        /// The key that goes on.
        next: PublicKey,
    },
    /// The key of this process has ended by the trust bundle.
    #[error(
        "by the trust bundle {own}, with which this coordinator signs, has ended with event {last}"
    )]
    Ended {
        /// The key of this process.
        own: PublicKey,
        /// The number of its last event.
        last: ChainSequence,
    },
    /// The stream does not accept an event.
    #[error("event {sequence} ({kind}) was not appended: {reason}")]
    Unwritable {
        /// Its position in the chain.
        sequence: ChainSequence,
        /// Its kind.
        kind: &'static str,
        /// The reason.
        reason: String,
    },
    /// The stream cannot be read.
    #[error(transparent)]
    Unreadable(#[from] StreamError),
}

impl LedgerError {
    /// The code of the page that says what to do.
    pub const fn code(&self) -> Code {
        match self {
            Self::Fenced { .. } => Code::LedgerFenced,
            Self::Broken { .. } => Code::LedgerBroken,
            Self::Succeeded { .. } | Self::Ended { .. } => Code::EventKeySucceeded,
            Self::Outdated { .. } => Code::TrustOutdated,
            Self::Unwritable { .. } => Code::LedgerUnwritable,
            Self::Unreadable(error) => error.code(),
        }
    }
}

schemas::coded!(LedgerError);

impl Ledger {
    /// The chain before anything was read: call [`Ledger::catch_up`] first. A publish is retried
    /// until `patience` has passed.
    pub fn new(bus: Bus, key: AuditKey, trust: TrustBundle, patience: Duration) -> Self {
        let stream = StreamReader::new(bus.clone(), LEDGER_STREAM);
        let ended = trust.ends();
        Self {
            bus,
            stream,
            key,
            domain: trust.domain.to_string(),
            chain: Reader::new(trust.domain.as_str(), trust.audit_keys).ending(ended.clone()),
            ended,
            stream_sequence: 0,
            base: None,
            taken: None,
            foreign: 0,
            grouping: Grouping::default(),
            patience,
            known: None,
            stored: None,
        }
    }

    /// From now on events name this head of the log, which was verified.
    pub const fn know(&mut self, head: Option<KnownHead>) {
        self.known = head;
    }

    /// The position of the newest event that this process has stored, and its message.
    pub fn stored(&self) -> Option<(ChainSequence, &[u8])> {
        let (sequence, message) = self.stored.as_ref()?;
        Some((*sequence, message))
    }

    /// Reads and verifies what was appended since this process last read or appended, and hands
    /// each body to `follow`, oldest first; none is kept. Signatures are checked on all cores,
    /// ahead of the chain. Afterwards this process may append.
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
        let from = (self.stream_sequence + 1).max(span.first);
        let writers = self.chain.writers().clone();
        let mut messages = self.stream.ahead(from, span.last, move |stored| {
            let messages = stored.iter().map(|one| (&*one.subject, &*one.payload));
            let proofs = writers.prove_all(messages);
            let positions = stored.iter().map(|one| one.sequence);
            positions.zip(proofs).collect()
        });
        while let Some(batch) = messages.next().await {
            for (at, proof) in batch?.found {
                let broken = |reason| LedgerError::Broken { stream: at, reason };
                match self.chain.place(proof) {
                    Judgement::Next { body, digest } => {
                        let (kind, next) = (body.event.kind(), body.event.next_emitter());
                        self.extend(at, digest, kind, next);
                        follow(*body).map_err(|error| broken(error.to_string()))?;
                    }
                    Judgement::Repeated => self.pass(at, REPEATED),
                    Judgement::Before { sequence, digest } => {
                        if !self.is_copy(sequence, digest).await? {
                            return Err(broken(format!("event {sequence} is another one")));
                        }
                        self.pass(at, REPEATED);
                    }
                    Judgement::Foreign(reason) => self.pass(at, &reason),
                    Judgement::Unknown(next) => {
                        return Err(LedgerError::Outdated { stream: at, next });
                    }
                    Judgement::Broken(reason) => return Err(broken(reason)),
                }
            }
        }
        let foreign = self.foreign - before;
        if foreign > FOREIGN_NAMED_MAX {
            tracing::warn!(code = %Code::ForeignMessage, count = foreign, "foreign messages in the ledger were skipped");
        }
        Ok(())
    }

    /// A reader of the same ledger that begins with the first event; it appends nothing.
    pub fn again(&self) -> Self {
        let mut again = Self {
            bus: self.bus.clone(),
            stream: self.stream.clone(),
            key: self.key.clone(),
            domain: self.domain.clone(),
            chain: self.chain.clone(),
            ended: self.ended.clone(),
            grouping: Grouping::default(),
            stored: None,
            ..*self
        };
        again.begin_anew();
        again
    }

    /// A reader of the stream.
    pub(crate) fn reader(&self) -> StreamReader {
        self.stream.clone()
    }

    /// The connection to the ledger's account.
    pub const fn bus(&self) -> &Bus {
        &self.bus
    }

    /// Number of events in the chain.
    pub fn len(&self) -> u64 {
        self.chain.end().next.get()
    }

    /// Digest of the last event's body; none before the first.
    pub const fn previous(&self) -> Option<Digest> {
        self.chain.end().previous
    }

    /// Position in the stream of the last message that was read, an event or not; 0 before the
    /// first.
    pub const fn stream_sequence(&self) -> u64 {
        self.stream_sequence
    }

    /// True when the chain has no event yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of messages, as far as the stream was read, that are in no chain.
    pub const fn foreign(&self) -> u64 {
        self.foreign
    }

    /// Adds the next event, which lies at position `stream`, and the key that it names as the next
    /// emitter, if it does.
    fn extend(&mut self, stream: u64, digest: Digest, kind: &str, next: Option<&PublicKey>) {
        if kind == LedgerEvent::CheckpointTaken.kind() {
            self.taken = Some(Place {
                sequence: self.chain.end().next,
                digest,
                stream_sequence: stream,
            });
        }
        self.stream_sequence = stream;
        self.chain.extend(digest, next);
    }

    /// Skips a message that is in no chain, and logs it.
    fn pass(&mut self, stream: u64, reason: &str) {
        self.stream_sequence = stream;
        self.foreign += 1;
        if self.foreign <= FOREIGN_NAMED_MAX {
            tracing::warn!(code = %Code::ForeignMessage, stream, reason, "a foreign message in the ledger was skipped");
        }
    }
}
