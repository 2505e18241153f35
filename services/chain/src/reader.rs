//! One chain, followed strictly: the facts that a process needs to continue it.

use std::collections::BTreeMap;

use schemas::event::EventBody;
use schemas::{ChainSequence, Digest, PublicKey};

use crate::end::{End, Relation};
use crate::history::History;
use crate::proof::{Proof, Writers};

/// The ledger as far as it was read, and the keys that may write it.
#[derive(Clone, Debug)]
pub struct Reader {
    writers: Writers,
    /// The key that goes on with the chain: one at a time, and none comes back.
    emitter: PublicKey,
    history: History,
}

/// The judgement on a message in the ledger's stream.
#[derive(Debug)]
pub enum Judgement {
    /// The next event.
    Next {
        /// Its body.
        body: Box<EventBody>,
        /// The digest of its body.
        digest: Digest,
    },
    /// An event that is in the chain already, byte for byte.
    Repeated,
    /// An event from before the place where this reader began ([`Reader::continue_from`]): a copy,
    /// or another event in its place. To tell which, compare it with the event at that position.
    Before {
        /// Its position.
        sequence: ChainSequence,
        /// The digest of its body.
        digest: Digest,
    },
    /// It is in no chain: no key that may write here has signed it, or one that may not yet, or no
    /// more. The reason, in words.
    Foreign(String),
    /// The next event, by which the present key names one that no writer here has: these writers
    /// are of before that key was made, or somebody else made it.
    Unknown(PublicKey),
    /// A key that may write here has signed it, but it does not follow. The reason, in words.
    Broken(String),
}

impl Reader {
    /// A reader that has read nothing yet, of the ledger of `domain` (its id as text), which these
    /// keys may write: first the first of them, then each that an event of the chain names, which
    /// must be a later one.
    ///
    /// # Panics
    /// There is no key.
    pub fn new(domain: &str, writers: Vec<PublicKey>) -> Self {
        Self {
            emitter: writers.first().expect("a ledger has a writer").clone(),
            writers: Writers::new(domain, writers),
            history: History::default(),
        }
    }

    /// The same reader, which knows that these keys have ended, each with the event of this number.
    #[must_use]
    pub fn ending(self, ended: BTreeMap<PublicKey, ChainSequence>) -> Self {
        let writers = self.writers.ending(ended);
        Self { writers, ..self }
    }

    /// The key that goes on with the chain.
    pub const fn emitter(&self) -> &PublicKey {
        &self.emitter
    }

    /// True if `next` may go on after the present emitter.
    pub fn may_succeed(&self, next: &PublicKey) -> bool {
        let place = |key| self.writers.place(key);
        place(next).is_some_and(|next| place(&self.emitter).is_some_and(|now| now < next))
    }

    /// The keys that may write it. They suffice to check a message by itself, on any thread, before
    /// [`Reader::place`].
    pub const fn writers(&self) -> &Writers {
        &self.writers
    }

    /// The end of the chain.
    pub const fn end(&self) -> End {
        self.history.end()
    }

    /// Begins after the event at `end`, which is known to be in the chain, signed by `emitter`, and
    /// to name no successor, as if nothing had been read before. Earlier events are not read.
    pub fn continue_from(&mut self, end: End, emitter: PublicKey) {
        self.history = History::behind(end);
        self.emitter = emitter;
    }

    /// Forgets everything that was read.
    pub fn begin_anew(&mut self) {
        self.history = History::default();
        self.emitter = self.writers.first().clone();
    }

    /// Judges a message, and adds nothing.
    pub fn judge(&self, subject: &str, payload: &[u8]) -> Judgement {
        self.place(self.writers.prove(subject, payload))
    }

    /// Judges the place of a message that [`Reader::writers`] has checked, and adds nothing.
    pub fn place(&self, proof: Proof) -> Judgement {
        let entry = match proof {
            Proof::Event(entry) => *entry,
            Proof::Foreign(reason) => return Judgement::Foreign(reason),
            Proof::Broken(signer, reason) if signer == self.emitter => {
                return Judgement::Broken(reason);
            }
            Proof::Broken(signer, _) => return Judgement::Foreign(self.stranger(&signer)),
        };
        let position = entry.body.sequence;
        let relation = self.history.relation(&entry.body, entry.digest);
        if entry.body.emitter != self.emitter && relation != Relation::Repeated {
            return Judgement::Foreign(self.stranger(&entry.body.emitter));
        }
        match relation {
            Relation::Next if self.writers.is_over(&entry.body) => Judgement::Broken(format!(
                "at position {position} of the chain: by the trust bundle {} has named the next key \
                 elsewhere",
                entry.body.emitter
            )),
            Relation::Next if !self.follows(&entry.body) => match self.unknown(&entry.body) {
                Some(next) => Judgement::Unknown(next.clone()),
                None => Judgement::Broken(format!(
                    "at position {position} of the chain: the trust bundle does not have the key that \
                     it names after its own"
                )),
            },
            Relation::Next => Judgement::Next {
                body: Box::new(entry.body),
                digest: entry.digest,
            },
            Relation::Repeated => Judgement::Repeated,
            Relation::Passed { .. } => Judgement::Before {
                sequence: position,
                digest: entry.digest,
            },
            relation => {
                Judgement::Broken(format!("at position {position} of the chain: {relation}"))
            }
        }
    }

    fn stranger(&self, signer: &PublicKey) -> String {
        format!(
            "{signer} is not the key that goes on with the ledger, {} is",
            self.emitter
        )
    }

    /// The key that an event names as the next one, if no writer has it.
    fn unknown<'a>(&self, body: &'a EventBody) -> Option<&'a PublicKey> {
        let next = body.event.next_emitter();
        next.filter(|next| !self.writers.has(next))
    }

    fn follows(&self, body: &EventBody) -> bool {
        body.event
            .next_emitter()
            .is_none_or(|next| self.may_succeed(next))
    }

    /// Adds the next event, by the digest of its body, and the key that it names as the next
    /// emitter, if it does.
    pub fn extend(&mut self, digest: Digest, next_emitter: Option<&PublicKey>) {
        self.history.add(self.history.end().next, digest);
        if let Some(next) = next_emitter {
            self.emitter = next.clone();
        }
    }
}
