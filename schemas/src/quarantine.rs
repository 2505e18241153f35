//! Quarantine: an operator shuts a worker out of a run, until an operator lets it in again. It is
//! in the ledger, so it outlives the coordinator's process, and it goes by the worker's key, so it
//! does not matter where the worker runs, or if it is there at the time.

use serde::{Deserialize, Serialize};

use crate::hold::{AtStore, Reason};
use crate::lease::LeaseRef;
use crate::message::{V, message};
use crate::view::SnapshotView;
use crate::{Round, RunId, UnixMillis, WorkerId};

/// Most workers that one run keeps in quarantine: as many as it can have at work.
pub const QUARANTINED_MAX: usize = crate::limits::WORKERS_MAX;
/// Most contributions that a reply names one by one; the others are counted.
pub const WITHDRAWN_NAMED_MAX: usize = 256;
/// Most other keys of a worker that a reply names: each is one that the worker was given since.
pub const OTHER_KEYS_NAMED_MAX: usize = 64;

/// `worker.quarantine`: shut a worker out of a run, or let it in again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuarantineRequest {
    /// Version.
    pub v: V<1>,
    /// The run.
    pub run: RunId,
    /// The worker. It need not have joined.
    pub worker: WorkerId,
    /// True to shut it out, false to let it in again.
    pub quarantined: bool,
    /// The reason, which the ledger keeps.
    pub reason: Reason,
}

message!(QuarantineRequest, "worker.quarantine", 4096);

/// The answer to a [`QuarantineRequest`], sent when the order is in the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuarantineReply {
    /// Version.
    pub v: V<1>,
    /// True if this request changed the run; false if the worker already was where it should be.
    pub changed: bool,
    /// The time since which the worker is in quarantine; none if it is not.
    pub since: Option<UnixMillis>,
    /// True if it ever joined the run.
    pub joined: bool,
    /// Its lease, which ended with this order.
    pub lease: Option<LeaseRef>,
    /// Its contributions that this order withdrew, by the leases under which they came: the first
    /// [`WITHDRAWN_NAMED_MAX`].
    pub withdrawn: Vec<LeaseRef>,
    /// Those that are not named.
    pub withdrawn_more: u32,
    /// Uploads that were deleted; none if the store did not do so in time.
    pub uploads: Option<u32>,
    /// Rounds that are sealed with its contributions, and are merged with them when no hold forbids
    /// merges.
    pub sealed: Vec<Round>,
    /// The merged rounds that its contributions are part of.
    pub merged: Option<MergedRounds>,
    /// The newest full snapshot that nothing of it is part of, if something is merged.
    pub clean: Option<SnapshotView>,
    /// Other keys of the same worker, of before or since, that are in quarantine as well and keep
    /// it out: the first [`OTHER_KEYS_NAMED_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub other_keys: Vec<WorkerId>,
    /// What the store does now with the URLs that the worker has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<AtStore>,
}

message!(QuarantineReply, "worker.quarantine reply", 64 << 10);

/// The merged rounds that a worker's contributions are part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MergedRounds {
    /// The first one.
    pub first: Round,
    /// The last one.
    pub last: Round,
    /// The number of them.
    pub rounds: u64,
}
