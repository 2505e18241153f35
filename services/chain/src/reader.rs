//! One chain, followed strictly: what a process must know that goes on from it.

use schemas::event::EventBody;
use schemas::subject::Incoming;
use schemas::{Digest, PublicKey, Sequence};

use crate::end::{End, Stand};
use crate::entry::{Claimed, Entry, Fault};
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
    /// An event from before the place where this reader began ([`Reader::continue_from`]): a copy,
    /// or another event in its place. Who has the event that was there can tell.
    Before {
        /// Its position.
        sequence: Sequence,
        /// The digest of its body.
        digest: Digest,
    },
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

    /// Begins behind the event at `end`, which is known to be in the chain, as if nothing had been
    /// read before. What came before it is not read.
    pub fn continue_from(&mut self, end: End) {
        self.history = History::behind(end);
    }

    /// Looks at a message by itself, wherever in the chain it may be: the event, when it was
    /// signed by somebody who may write here, and stands under its own subject.
    ///
    /// # Errors
    /// [`Judgement::Foreign`] or [`Judgement::Broken`], with the reason.
    pub fn open(&self, subject: &str, payload: &[u8]) -> Result<Entry, Judgement> {
        let foreign = |reason: &dyn std::fmt::Display| Judgement::Foreign(reason.to_string());
        let Ok(named @ Incoming::Ledger { .. }) = subject.parse() else {
            return Err(foreign(&"its subject is none of the ledger's"));
        };
        let claimed = Claimed::read(payload).map_err(|error| foreign(&error))?;
        if !self.writers.contains(claimed.key()) {
            return Err(foreign(&"its key is not an audit key of the trust bundle"));
        }
        let entry = claimed.open(&self.domain).map_err(|fault| match fault {
            Fault::Undecodable(error) => Judgement::Broken(error.to_string()),
            fault => foreign(&fault),
        })?;
        match entry.stands_under(&named) {
            Ok(()) => Ok(entry),
            Err(misplaced) => Err(foreign(&misplaced)),
        }
    }

    /// Looks at a message; nothing is added.
    pub fn judge(&self, subject: &str, payload: &[u8]) -> Judgement {
        let entry = match self.open(subject, payload) {
            Ok(entry) => entry,
            Err(judgement) => return judgement,
        };
        let position = entry.body.sequence;
        match self.history.stand(&entry.body, entry.digest) {
            Stand::Next => Judgement::Next {
                body: Box::new(entry.body),
                digest: entry.digest,
            },
            Stand::Repeated => Judgement::Repeated,
            Stand::Passed { .. } => Judgement::Before {
                sequence: position,
                digest: entry.digest,
            },
            stand => Judgement::Broken(format!("at position {position} of the chain: {stand}")),
        }
    }

    /// Adds the next event, by the digest of its body.
    pub fn extend(&mut self, digest: Digest) {
        self.history.add(self.history.end().next, digest);
    }
}
