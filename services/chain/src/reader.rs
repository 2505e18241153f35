//! One chain, followed strictly: what a process must know that goes on from it.

use schemas::event::EventBody;
use schemas::subject::Incoming;
use schemas::{Digest, PublicKey};

use crate::end::{End, Stand};
use crate::entry::{Claimed, Fault};
use crate::history::History;

/// The ledger as far as it was read, and who may write it.
#[derive(Clone, Debug)]
pub struct Reader {
    domain: String,
    writers: Vec<PublicKey>,
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
            domain: domain.to_owned(),
            writers,
            history: History::default(),
        }
    }

    /// Where the chain ends.
    pub const fn end(&self) -> End {
        self.history.end()
    }

    /// Looks at a message; nothing is added.
    pub fn judge(&self, subject: &str, payload: &[u8]) -> Judgement {
        let foreign = |reason: &dyn std::fmt::Display| Judgement::Foreign(reason.to_string());
        let Ok(named @ Incoming::Ledger { .. }) = subject.parse() else {
            return foreign(&"its subject is none of the ledger's");
        };
        let claimed = match Claimed::read(payload) {
            Ok(claimed) => claimed,
            Err(error) => return foreign(&error),
        };
        if !self.writers.contains(claimed.key()) {
            return foreign(&"its key is not an audit key of the trust bundle");
        }
        let entry = match claimed.open(&self.domain) {
            Ok(entry) => entry,
            Err(Fault::Undecodable(error)) => return Judgement::Broken(error.to_string()),
            Err(fault) => return foreign(&fault),
        };
        if let Err(misplaced) = entry.stands_under(&named) {
            return foreign(&misplaced);
        }
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
