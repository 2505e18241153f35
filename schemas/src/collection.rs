//! Collection: an operator has old objects of a run deleted. What goes is told first; the ledger
//! then names it as given up, and only after that the store loses it.

use serde::{Deserialize, Serialize};

use crate::hold::Reason;
use crate::message::{V, message};
use crate::{Bytes, ChainSequence, Round, RunId};

/// Most collections of one run: its state keeps each, with the snapshots that went. One a week for
/// five years.
pub const COLLECTIONS_MAX: usize = 256;

/// `run.gc`: give up the objects of a run's old rounds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CollectRequest {
    /// Version.
    pub v: V<1>,
    /// The run.
    pub run: RunId,
    /// Full snapshots to keep, the newest from which the present weights descend, with everything
    /// that was made since the oldest of them. At least one is kept.
    pub keep: u32,
    /// The reason to delete, which the ledger keeps; none to be told what would go.
    pub delete: Option<Reason>,
    /// The operator's word that no other trust domain uses the store. Nothing is deleted without
    /// it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub store_is_ours: bool,
}

message!(CollectRequest, "run.gc", 4096);

/// Objects of one kind that the store has and that nothing needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Collected {
    /// Their number.
    pub objects: u64,
    /// The sum of their lengths.
    pub bytes: Bytes,
    /// The oldest and the newest round that they belong to; none if there are no objects.
    pub rounds: Option<(Round, Round)>,
}

/// The answer to a [`CollectRequest`]: when the objects are counted, or, to an order to delete,
/// when the store has lost them. An object that is of several kinds is counted once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CollectReply {
    /// Version.
    pub v: V<1>,
    /// The run.
    pub run: RunId,
    /// Everything that belongs to this round, and to later ones, is kept.
    pub through: Round,
    /// Contributions to earlier rounds.
    pub contributions: Collected,
    /// Weights that workers got for earlier rounds.
    pub weights: Collected,
    /// Earlier full snapshots.
    pub snapshots: Collected,
    /// Full snapshots that are given up now.
    pub snapshots_given_up: u32,
    /// The event that names what is given up; none if nothing was to be given up, or if this only
    /// tells.
    pub event: Option<ChainSequence>,
    /// Objects that were deleted; none if this only tells.
    pub deleted: Option<u64>,
}

message!(CollectReply, "run.gc reply", 4096);

impl CollectReply {
    /// All objects, and the sum of their lengths.
    pub fn total(&self) -> (u64, Bytes) {
        let kinds = [self.contributions, self.weights, self.snapshots];
        kinds.iter().fold((0, Bytes(0)), |(objects, bytes), kind| {
            (objects + kind.objects, bytes + kind.bytes)
        })
    }
}
