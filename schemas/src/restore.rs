//! Restore: an operator leads a run back to an earlier full snapshot. Nothing of the history is
//! deleted or renumbered: the weights of the snapshot become the next version of the run's weights,
//! and the merges since then are undone.

use serde::{Deserialize, Serialize};

use crate::hold::Reason;
use crate::message::{V, message};
use crate::{Digest, Round, RunId, UnixMillis};

/// Most restores of one run. The bound is needed because the run's state keeps every restore, with
/// the workers whose contributions were merged since the one before.
pub const RESTORES_MAX: usize = 256;

/// `snapshot.restore`: lead a run back to a full snapshot, weights and outer state alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreRequest {
    /// Version.
    pub v: V<1>,
    /// The digest of the snapshot's manifest.
    pub snapshot: Digest,
    /// The run that the snapshot must belong to; if absent, it is the run that has this snapshot.
    pub run: Option<RunId>,
    /// True to accept a snapshot that contains contributions of a worker in quarantine.
    pub force: bool,
    /// The reason, which the ledger keeps.
    pub reason: Reason,
}

message!(RestoreRequest, "snapshot.restore", 4096);

/// The answer to a [`RestoreRequest`]. The coordinator sends it when the restore is in the ledger
/// and the older uploads are deleted, or could not be deleted in time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreReply {
    /// Version.
    pub v: V<1>,
    /// The run.
    pub run: RunId,
    /// Digest of the snapshot's manifest.
    pub manifest: Digest,
    /// True if this request changed the run. False if the run's last restore was of the same
    /// snapshot, and nothing was sealed or merged since.
    pub changed: bool,
    /// The time of the restore; for a repeated order, of the earlier one.
    pub since: UnixMillis,
    /// The number of the snapshot: the first round that started from it.
    pub snapshot: Round,
    /// The version that the weights had before.
    pub from: Round,
    /// The version that the snapshot's weights have now: the number of the next round.
    pub version: Round,
    /// Merged rounds that are undone.
    pub undone: u64,
    /// Number of leases that this request ended.
    pub leases: u32,
    /// Number of contributions to open rounds that this request dropped.
    pub contributions: u32,
    /// True if the run is frozen now.
    pub frozen: bool,
    /// Number of older uploads that were deleted; absent if the store refused, was away, or took
    /// too long.
    pub uploads: Option<u32>,
}

message!(RestoreReply, "snapshot.restore reply", 4096);
