//! Checkpoints of the ledger: the state that its events come to, kept as an object, so that a
//! coordinator that starts reads the events behind the newest one and not all of them.

use serde::{Deserialize, Serialize};

use crate::{Bytes, Digest, ObjectRef, Sequence};

/// Largest checkpoint that is written or read. A start has the object in memory together with what
/// it decodes to, beside what the restored weights take. A run of 1,000 rounds and 100 workers has
/// some 200 KB in it, so a deployment gets here after thousands of them.
pub const CHECKPOINT_BYTES_MAX: Bytes = Bytes::mebi(128);

/// A checkpoint that was saved: which state it is, and where its bytes lie.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// The event after which the state was like this: a `checkpoint-taken`.
    pub covers: Sequence,
    /// The digest of that event's body, which the next event names as the one before it.
    pub head: Digest,
    /// The position of that event in the ledger's stream. It only says where to look: a reader that
    /// goes on from there compares the event there with `head`.
    pub stream_sequence: u64,
    /// The form of the bytes. A reader that does not know it reads all events.
    pub format: u16,
    /// The bytes, in bucket `blobs`.
    pub object: ObjectRef,
}
