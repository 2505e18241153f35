//! Restore: an operator leads a run back to an earlier full snapshot. Nothing of the history is
//! deleted or renumbered: the weights of the snapshot become the next version of the run's weights,
//! and the merges since then are undone.

use serde::{Deserialize, Serialize};

use crate::hold::Reason;
use crate::message::{V, message};
use crate::{Digest, Round, RunId, UnixMillis};

/// Most restores of one run: its state keeps each, with the workers whose contributions were merged
/// before. A run that needs more has another problem.
pub const RESTORES_MAX: usize = 256;

/// `snapshot.restore`: lead a run back to a full snapshot, weights and outer state alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreRequest {
    /// Version.
    pub v: V<1>,
    /// The digest of the snapshot's manifest.
    pub snapshot: Digest,
    /// The run that the caller means; none if the snapshot decides.
    pub run: Option<RunId>,
    /// True to accept a snapshot that contains contributions of a worker in quarantine.
    pub force: bool,
    /// The reason, which the ledger keeps.
    pub reason: Reason,
}

message!(RestoreRequest, "snapshot.restore", 4096);

/// The answer to a [`RestoreRequest`], sent when the restore is in the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreReply {
    /// Version.
    pub v: V<1>,
    /// The run.
    pub run: RunId,
    /// Digest of the snapshot's manifest.
    pub manifest: Digest,
    /// True if this request changed the run; false if nothing was merged since an earlier restore
    /// of the same snapshot.
    pub changed: bool,
    /// The time of the restore.
    pub since: UnixMillis,
    /// The round that first started from the snapshot.
    pub snapshot: Round,
    /// The version that the weights had before.
    pub from: Round,
    /// The version that the snapshot's weights have now: the number of the next round.
    pub version: Round,
    /// Merged rounds that are undone.
    pub undone: u64,
    /// Leases that ended.
    pub leases: u32,
    /// Contributions to the open round that were dropped.
    pub contributions: u32,
    /// True while a freeze stands.
    pub frozen: bool,
    /// Uploads that were deleted; none if the store did not do so in time.
    pub uploads: Option<u32>,
}

message!(RestoreReply, "snapshot.restore reply", 4096);
