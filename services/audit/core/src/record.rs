//! One message of stream `AUDIT`, as it was received.

use std::fmt;

use schemas::{Digest, Hasher, UnixMillis};
use serde::{Deserialize, Serialize};

/// Position of a message in stream `AUDIT`, from 1. Other than [`schemas::Sequence`], which counts one emitter's events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StreamSequence(pub u64);

impl StreamSequence {
    /// The position after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for StreamSequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One message, with nothing about it taken for granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its position.
    pub stream_sequence: StreamSequence,
    /// Its subject.
    pub subject: String,
    /// Header `Diloco-Key`; empty when it is missing.
    pub key: String,
    /// Header `Diloco-Signature`; empty when it is missing.
    pub signature: String,
    /// When the stream took it, by the broker's clock.
    pub stored_at: UnixMillis,
    /// The payload.
    pub body: Vec<u8>,
}

impl Record {
    /// The digest over everything that the record says, each part with its length, so that two records with the same
    /// digest are the same record.
    pub fn digest(&self) -> Digest {
        let mut hasher = Hasher::default();
        hasher.update(&self.stream_sequence.0.to_be_bytes());
        hasher.update(&self.stored_at.get().to_be_bytes());
        for part in [self.subject.as_bytes(), self.key.as_bytes(), self.signature.as_bytes(), &self.body] {
            hasher.update(&(part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_move_between_parts_change_the_digest() {
        let record = |subject: &str, key: &str| Record {
            stream_sequence: StreamSequence(1),
            subject: subject.to_owned(),
            key: key.to_owned(),
            signature: String::new(),
            stored_at: UnixMillis(0),
            body: Vec::new(),
        };
        assert_ne!(record("ab", "c").digest(), record("a", "bc").digest());
        assert_eq!(record("ab", "c").digest(), record("ab", "c").digest());
    }
}
