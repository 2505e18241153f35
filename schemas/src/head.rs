//! Tree heads of the log of all events, as workers and the coordinator ask for them, and as workers
//! cosign them.
//!
//! A head comes as the answer to a worker's own question: a subject that several workers hear could
//! be named as the subject of any answer, which would then reach them all.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteArray;

use crate::limits::WORKER_MESSAGE_BYTES_MAX;
use crate::message::{V, message};
use crate::{ChainSequence, PublicKey, UnixMillis};

/// Most events of its own about which an emitter asks in one question: their proofs then have some
/// 40 KiB in a log of a billion events.
pub const ASKED_MAX: usize = 32;

/// A question for the newest head, and for proofs that events of the asker are under it: a worker's
/// own ones, or the coordinator's in the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadRequest {
    /// Version.
    pub v: V<1>,
    /// The events under the head that the asker keeps; 0 if it keeps none.
    pub known: u64,
    /// The public audit key of the asker's chain.
    pub emitter: PublicKey,
    /// Positions in that chain, at most [`ASKED_MAX`].
    pub events: Vec<ChainSequence>,
}

/// The newest head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadReply {
    /// Version.
    pub v: V<1>,
    /// The signed text (C2SP tlog-checkpoint).
    pub note: String,
    /// The hashes that lead from the head over `known` events to this one (RFC 6962); none if it
    /// covers no more.
    pub consistency: Vec<ByteArray<32>>,
    /// The events that were asked for and are under this head.
    pub events: Vec<Inclusion>,
}

/// The place of one event under a head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inclusion {
    /// Its position in its emitter's chain.
    pub sequence: ChainSequence,
    /// Its index in the log.
    pub index: u64,
    /// The hashes that lead from it to the root (RFC 6962).
    pub hashes: Vec<ByteArray<32>>,
}

/// A worker's cosignature of a head, as a witness whose name is the worker's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CosignRequest {
    /// Version.
    pub v: V<1>,
    /// The public key that cosigns.
    pub key: PublicKey,
    /// The events under the head.
    pub size: u64,
    /// The time that was cosigned, by the worker's clock; whole seconds count.
    pub time: UnixMillis,
    /// The signature (C2SP tlog-cosignature, `cosignature/v1`).
    pub signature: ByteArray<64>,
}

/// A head of the log as an event names it: without its signature, which its emitter has checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownHead {
    /// The events under it.
    pub size: u64,
    /// The root over them (RFC 6962).
    pub root: ByteArray<32>,
}

message!(HeadRequest, "head-request", WORKER_MESSAGE_BYTES_MAX);
message!(HeadReply, "head-reply", WORKER_MESSAGE_BYTES_MAX);
message!(CosignRequest, "cosign-request", WORKER_MESSAGE_BYTES_MAX);
