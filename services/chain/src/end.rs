//! The end of a chain: the facts that the next event must state about the events before it.

use std::fmt;

use schemas::event::{Event, EventBody};
use schemas::head::KnownHead;
use schemas::{ChainSequence, Digest, Message as _, PublicKey, RunId, UnixMillis, V};

/// The end of a chain; the default is a chain without events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// Position of the next event.
    pub next: ChainSequence,
    /// Digest of the last event's body; none before the first.
    pub previous: Option<Digest>,
}

/// An event that is written and not yet signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// Its position.
    pub sequence: ChainSequence,
    /// The encoded body, which is signed, hashed, sent and stored unchanged.
    pub body: Vec<u8>,
    /// Digest of the body.
    pub digest: Digest,
}

/// The relation of an event to a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// It is the next event.
    Next,
    /// It is an event of the chain, byte for byte.
    Repeated,
    /// The events from `from` up to the one before it are missing.
    Gap {
        /// The first missing position.
        from: ChainSequence,
    },
    /// It has the right position, but names another event before it.
    OtherPast {
        /// The digest that it names.
        named: Option<Digest>,
        /// The last event.
        expected: Option<Digest>,
    },
    /// The chain has another event at its position.
    Taken,
    /// It fills a place that a gap left open.
    Late,
    /// The chain has passed its position, and nobody can tell if it is a copy.
    Passed {
        /// Position of the next event.
        next: ChainSequence,
    },
}

impl End {
    /// Writes the next event of `emitter`, whose chain ends here. The chain grows only when the
    /// caller takes the draft's [`Draft::end`] as its end.
    pub fn write(
        &self,
        emitter: &PublicKey,
        time: UnixMillis,
        run: Option<&RunId>,
        event: Event,
    ) -> Draft {
        self.write_knowing(None, emitter, time, run, event)
    }

    /// The same, with the newest head of the log that the emitter has verified.
    pub fn write_knowing(
        &self,
        known: Option<KnownHead>,
        emitter: &PublicKey,
        time: UnixMillis,
        run: Option<&RunId>,
        event: Event,
    ) -> Draft {
        let body = EventBody {
            v: V,
            emitter: emitter.clone(),
            sequence: self.next,
            previous: self.previous,
            time,
            run: run.cloned(),
            known,
            event,
        }
        .encode();
        Draft {
            sequence: self.next,
            digest: Digest::of(&body),
            body,
        }
    }

    /// The relation of an event to the chain that ends here. The event is at `sequence`, names
    /// `previous` as the one before it, and its body has `digest`. Of the earlier events only the
    /// last is known here.
    pub fn relation(
        &self,
        sequence: ChainSequence,
        previous: Option<Digest>,
        digest: Digest,
    ) -> Relation {
        if sequence > self.next {
            return Relation::Gap { from: self.next };
        }
        if sequence < self.next {
            let is_last = sequence.next() == self.next;
            return match self.previous {
                Some(last) if is_last && last == digest => Relation::Repeated,
                Some(_) if is_last => Relation::Taken,
                _ => Relation::Passed { next: self.next },
            };
        }
        if previous == self.previous {
            Relation::Next
        } else {
            Relation::OtherPast {
                named: previous,
                expected: self.previous,
            }
        }
    }

    /// The end after an event at `sequence`.
    pub fn after(sequence: ChainSequence, digest: Digest) -> Self {
        Self {
            next: sequence.next(),
            previous: Some(digest),
        }
    }
}

impl Draft {
    /// The end of the chain once it holds this event.
    pub fn end(&self) -> End {
        End::after(self.sequence, self.digest)
    }
}

impl fmt::Display for Relation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Next => write!(f, "it is the next event"),
            Self::Repeated => write!(f, "it is an event that the chain has already"),
            Self::Gap { from } => write!(f, "event {from} is expected, and this is a later one"),
            Self::OtherPast { named, expected } => write!(
                f,
                "it follows on {named:?}, the event before it is {expected:?}"
            ),
            Self::Taken => write!(f, "the chain has another event at its position"),
            Self::Late => write!(f, "it comes after its successors"),
            Self::Passed { next } => {
                write!(f, "event {next} is expected, and this is an older one")
            }
        }
    }
}
