//! Leases: a worker claims, and gets a signed manifest of the unit's work; then it renews,
//! releases, or hands in a result.

use serde::{Deserialize, Serialize};

use crate::blob::Grant;
use crate::limits::{MESSAGE_BYTES_MAX, WORKER_MESSAGE_BYTES_MAX};
use crate::member::Session;
use crate::message::{V, message};
pub use crate::weights::Weights;
use crate::{
    Bytes, Digest, Epoch, Millis, ObjectRef, Round, RunId, Steps, UnitIndex, UnixMillis, WorkerId,
};

/// The type header of a lease's JWS.
pub const MANIFEST_TYPE: &str = "diloco-lease+jwt";

/// A unit of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnitId {
    /// The round it belongs to.
    pub round: Round,
    /// Training or evaluation.
    pub kind: UnitKind,
    /// Its position among the round's units of that kind.
    pub index: UnitIndex,
}

/// The purpose of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnitKind {
    /// Inner steps that end in a contribution.
    Train,
    /// Held-out loss of the round's global snapshot.
    Evaluate,
}

/// One grant of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseRef {
    /// The unit.
    pub unit: UnitId,
    /// The number of this grant of the unit.
    pub epoch: Epoch,
}

/// `lease.claim`: asks for work; the question may stay open for a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClaimRequest {
    /// Version.
    pub v: V<2>,
    /// The session that asks; one that was replaced gets no work.
    pub session: Session,
    /// The time for which the answer may wait for work; at most `CLAIM_WAIT_MAX`.
    pub wait: Millis,
}

/// The answer to a claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClaimReply {
    /// Version.
    pub v: V<2>,
    /// The grant, or the reason for none.
    pub outcome: ClaimOutcome,
    /// URLs to read the first objects of the lease's base, at most `limits::BASE_GRANTS_MAX`. The
    /// worker needs these objects next, and so saves a request. The URLs prove nothing: the worker
    /// hashes what it reads.
    pub base: Vec<Grant>,
}

/// The answer to a claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClaimOutcome {
    /// Work: a compact JWS of type [`MANIFEST_TYPE`] over a [`Manifest`].
    Lease(String),
    /// No work at present; claim again.
    Nothing,
    /// The run is over.
    Complete,
}

/// The claims of a lease's JWS: the only source of truth about the work. Times are Unix seconds, as
/// in RFC 7519.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version.
    pub v: V<2>,
    /// The public manifest key that signed it.
    pub iss: String,
    /// The worker that it is for.
    pub aud: WorkerId,
    /// The process of that worker that it is for: no other one holds the lease.
    pub session: Session,
    /// Start of its validity.
    pub nbf: u64,
    /// End of its validity, exclusive. A renewal extends the lease and not the manifest, which must
    /// be valid when work starts.
    pub exp: u64,
    /// Time of issue.
    pub iat: u64,
    /// Unique id: run, unit and epoch.
    pub jti: String,
    /// The run.
    pub run: RunId,
    /// The digest of the run's settings.
    pub spec: Digest,
    /// The grant.
    pub lease: LeaseRef,
    /// The end of the lease unless it is renewed, by the coordinator's clock.
    pub expires_at: UnixMillis,
    /// The weights to start from.
    pub base: Weights,
    /// The work to do on them.
    pub work: Work,
}

/// The work that a lease asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Work {
    /// Inner steps.
    Train {
        /// The shards that sequences are drawn from.
        shards: Vec<ObjectRef>,
        /// Seed of the choice of sequences.
        seed: u64,
        /// The number of steps.
        steps: Steps,
        /// Inner steps before this round, for the learning-rate schedule.
        steps_before: Steps,
    },
    /// Held-out loss.
    Evaluate {
        /// The held-out shards.
        shards: Vec<ObjectRef>,
        /// Number of sequences to read, evenly spaced.
        sequences: u32,
    },
}

/// `lease.renew`: the holder goes on with the unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenewRequest {
    /// Version.
    pub v: V<2>,
    /// The grant.
    pub lease: LeaseRef,
    /// Steps done so far.
    pub steps_done: Steps,
    /// Bytes that the worker has transferred to and from the store since its process started,
    /// including transfers under way. A lease without progress in steps and bytes is taken back.
    pub bytes_moved: Bytes,
}

/// The answer to a renewal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenewReply {
    /// Version.
    pub v: V<1>,
    /// The lease's new end, by the coordinator's clock.
    pub expires_at: UnixMillis,
    /// The new end as a span from now, for holders whose clock differs.
    pub remaining: Millis,
}

/// `lease.release`: the holder will not finish the unit, which another may get.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseRequest {
    /// Version.
    pub v: V<1>,
    /// The grant.
    pub lease: LeaseRef,
    /// The reason, in words.
    pub reason: String,
}

/// An answer that only confirms the request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Done {
    /// Version.
    pub v: V<1>,
}

/// An offer on the work queue: it announces that a unit waits for a holder. It carries no right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offer {
    /// Version.
    pub v: V<1>,
    /// The run.
    pub run: RunId,
    /// The unit.
    pub unit: UnitId,
}

impl ClaimReply {
    /// The answer with this outcome, without URLs.
    pub const fn of(outcome: ClaimOutcome) -> Self {
        Self {
            v: V,
            outcome,
            base: vec![],
        }
    }
}

message!(ClaimRequest, "lease.claim", WORKER_MESSAGE_BYTES_MAX);
message!(ClaimReply, "lease.claim reply", MESSAGE_BYTES_MAX);
message!(RenewRequest, "lease.renew", WORKER_MESSAGE_BYTES_MAX);
message!(RenewReply, "lease.renew reply", MESSAGE_BYTES_MAX);
message!(ReleaseRequest, "lease.release", WORKER_MESSAGE_BYTES_MAX);
message!(Done, "done", 4096);
message!(Offer, "work offer", 4096);

impl UnitId {
    /// Its name as one subject token: `train-3`.
    pub fn token(&self) -> String {
        match self.kind {
            UnitKind::Train => format!("train-{}", self.index),
            UnitKind::Evaluate => format!("evaluate-{}", self.index),
        }
    }
}

impl std::fmt::Display for UnitId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.round, self.token())
    }
}

impl std::fmt::Display for LeaseRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.unit, self.epoch)
    }
}
