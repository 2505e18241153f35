//! Checkpoints of the ledger: the state after its events, kept as an object, so that a starting
//! coordinator reads only the events after the newest checkpoint.

use serde::{Deserialize, Serialize};

use crate::{Bytes, ChainSequence, Digest, ObjectRef};

/// Largest checkpoint that is written or read. A start holds the object and the decoded state in
/// memory, beside the restored weights. A run of 1,000 rounds and 100 workers takes some 200 KB, so
/// a deployment reaches this limit after thousands of such runs.
pub const CHECKPOINT_BYTES_MAX: Bytes = Bytes::mebi(128);

/// A checkpoint that was saved: the state that it holds, and the place of its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// The `checkpoint-taken` event after which the ledger has this state.
    pub covers: ChainSequence,
    /// The digest of that event's body, which the next event names as the one before it.
    pub head: Digest,
    /// The position of that event in the ledger's stream. It only says where to look: a reader that
    /// continues from there compares the event with `head`.
    pub stream_sequence: u64,
    /// The form of the bytes. A reader that does not know it reads all events.
    pub format: u16,
    /// The bytes, in bucket `blobs`.
    pub object: ObjectRef,
}
