//! One chain, followed strictly: the facts that a process needs to continue it.

use schemas::event::EventBody;
use schemas::{ChainSequence, Digest, PublicKey};

use crate::end::{End, Relation};
use crate::history::History;
use crate::proof::{Proof, Writers};

/// The ledger as far as it was read, and the keys that may write it.
#[derive(Clone, Debug)]
pub struct Reader {
    writers: Writers,
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
    /// It is in no chain: no key that may write here has signed it. The reason, in words.
    Foreign(String),
    /// A key that may write here has signed it, but it does not follow. The reason, in words.
    Broken(String),
}

impl Reader {
    /// A reader that has read nothing yet, of the ledger of `domain` (its id as text), which these
    /// keys may write.
    pub fn new(domain: &str, writers: Vec<PublicKey>) -> Self {
        Self {
            writers: Writers::new(domain, writers),
            history: History::default(),
        }
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

    /// Begins after the event at `end`, which is known to be in the chain, as if nothing had been
    /// read before. Earlier events are not read.
    pub fn continue_from(&mut self, end: End) {
        self.history = History::behind(end);
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
            Proof::Broken(reason) => return Judgement::Broken(reason),
        };
        let position = entry.body.sequence;
        match self.history.relation(&entry.body, entry.digest) {
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

    /// Adds the next event, by the digest of its body.
    pub fn extend(&mut self, digest: Digest) {
        self.history.add(self.history.end().next, digest);
    }
}
