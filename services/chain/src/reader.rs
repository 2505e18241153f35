//! One chain, followed strictly: what a process must know that goes on from it.

use schemas::event::EventBody;
use schemas::{Digest, PublicKey};

use crate::end::{End, Stand};
use crate::history::History;
use crate::proof::{Proof, Writers};

/// The ledger as far as it was read, and who may write it.
#[derive(Clone, Debug)]
pub struct Reader {
    writers: Writers,
    history: History,
}

/// What a message in the ledger's stream is.
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
    /// In no chain: nobody signed it who may write here. The reason, in words.
    Foreign(String),
    /// Signed by somebody who may write here, and it does not follow. The reason, in words.
    Broken(String),
}

impl Reader {
    /// Nothing was read yet. The ledger is the one of `domain` (its id as text), and these keys may
    /// write it.
    pub fn new(domain: &str, writers: Vec<PublicKey>) -> Self {
        Self {
            writers: Writers::new(domain, writers),
            history: History::default(),
        }
    }

    /// Who may write it: what a message is by itself is looked at with this, before
    /// [`Reader::place`] and away from it.
    pub const fn writers(&self) -> &Writers {
        &self.writers
    }

    /// Where the chain ends.
    pub const fn end(&self) -> End {
        self.history.end()
    }

    /// Looks at a message; nothing is added.
    pub fn judge(&self, subject: &str, payload: &[u8]) -> Judgement {
        self.place(self.writers.prove(subject, payload))
    }

    /// Looks at the place of a message that [`Reader::writers`] has looked at; nothing is added.
    pub fn place(&self, proof: Proof) -> Judgement {
        let entry = match proof {
            Proof::Event(entry) => *entry,
            Proof::Foreign(reason) => return Judgement::Foreign(reason),
            Proof::Broken(reason) => return Judgement::Broken(reason),
        };
        let position = entry.body.sequence;
        match self.history.stand(&entry.body, entry.digest) {
            Stand::Next => Judgement::Next {
                body: Box::new(entry.body),
                digest: entry.digest,
            },
            Stand::Repeated => Judgement::Repeated,
            stand => Judgement::Broken(format!("at position {position} of the chain: {stand}")),
        }
    }

    /// Adds the next event, by the digest of its body.
    pub fn extend(&mut self, digest: Digest) {
        self.history.add(self.history.end().next, digest);
    }
}
