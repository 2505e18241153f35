//! One message of stream `AUDIT`, as it was received.

use std::fmt;

use schemas::limits::SIGNED_EVENT_BYTES_MAX;
use schemas::{Digest, Hasher, UnixMillis};
use serde::{Deserialize, Serialize};

/// Position of a message in stream `AUDIT`, from 1. It differs from [`schemas::ChainSequence`],
/// which counts one emitter's events.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
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

/// One message; nothing in it is trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its position.
    pub stream_sequence: StreamSequence,
    /// Its subject.
    pub subject: String,
    /// The time at which the stream took it, by the broker's clock.
    pub stored_at: UnixMillis,
    /// The message's body.
    pub payload: Payload,
}

/// The body of a message. Its headers are ignored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// The whole body.
    Whole(Vec<u8>),
    /// A body that is longer than any event. Its length and digest are kept, and identify the
    /// bytes.
    TooLong {
        /// The number of its bytes.
        bytes: u64,
        /// The digest of all of them.
        digest: Digest,
    },
}

impl Payload {
    /// Takes the bytes of a message, or their digest if they are more than an event may have.
    pub fn of(bytes: &[u8]) -> Self {
        if bytes.len() > SIGNED_EVENT_BYTES_MAX {
            Self::TooLong {
                bytes: bytes.len() as u64,
                digest: Digest::of(bytes),
            }
        } else {
            Self::Whole(bytes.to_vec())
        }
    }

    fn measure(&self) -> (u64, Digest) {
        match self {
            Self::Whole(bytes) => (bytes.len() as u64, Digest::of(bytes)),
            Self::TooLong { bytes, digest } => (*bytes, *digest),
        }
    }
}

impl Record {
    /// The digest over the whole record. Each part is preceded by its length, so that two records
    /// with the same digest are equal.
    pub fn digest(&self) -> Digest {
        let mut hasher = Hasher::default();
        hasher.update(&self.stream_sequence.0.to_be_bytes());
        hasher.update(&self.stored_at.get().to_be_bytes());
        hasher.update(&(self.subject.len() as u64).to_be_bytes());
        hasher.update(self.subject.as_bytes());
        let (bytes, digest) = self.payload.measure();
        hasher.update(&bytes.to_be_bytes());
        hasher.update(digest.as_bytes());
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(subject: &str, payload: &[u8]) -> Record {
        Record {
            stream_sequence: StreamSequence(1),
            subject: subject.to_owned(),
            stored_at: UnixMillis(0),
            payload: Payload::of(payload),
        }
    }

    #[test]
    fn bytes_that_move_between_parts_change_the_digest() {
        assert_ne!(record("ab", b"c").digest(), record("a", b"bc").digest());
        assert_eq!(record("ab", b"c").digest(), record("ab", b"c").digest());
    }

    #[test]
    fn what_is_too_long_is_known_by_its_digest() {
        let longest = vec![7; SIGNED_EVENT_BYTES_MAX];
        assert_eq!(Payload::of(&longest), Payload::Whole(longest.clone()));
        let longer = [longest, vec![7]].concat();
        let kept = Payload::of(&longer);
        assert!(
            matches!(kept, Payload::TooLong { bytes, .. } if bytes == longer.len() as u64),
            "{kept:?}"
        );
        let mut other = longer.clone();
        other[3] ^= 1;
        assert_ne!(record("a", &longer).digest(), record("a", &other).digest());
    }
}
