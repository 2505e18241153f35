//! Membership: joining and leaving a run, and how openly each process runs.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteArray;

use crate::limits::{MESSAGE_BYTES_MAX, WORKER_MESSAGE_BYTES_MAX};
use crate::message::{V, message};
use crate::run::{RunSpec, TrainerKind};
use crate::{Digest, Millis, PublicKey, UnixMillis};

/// One life of a process, a worker's or a coordinator's, drawn at random when it starts. It tells
/// two apart that hold the same credentials; it is no secret and gives no right.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Session(pub u64);

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// `join`: I want to work for this run. May be repeated; a member's second join renews its entry. A
/// join of another session takes the membership over: the newest process is the worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    /// Version.
    pub v: V<2>,
    /// The life of the worker that asks.
    pub session: Session,
    /// The key that signs the worker's events and statements; not its connection key.
    pub audit_key: PublicKey,
    /// A signature by the audit key, over the run and the worker's name under a prefix of their
    /// own. It shows that the asker holds the key's secret.
    pub proof: ByteArray<64>,
    /// Trainers it has.
    pub trainers: Vec<TrainerKind>,
    /// The device that it computes on, for people: `cpu x1`, `cuda:0 NVIDIA H100`.
    pub device: String,
    /// Its release.
    pub release: String,
    /// The layers of protection that it relaxed.
    pub posture: Posture,
}

/// The answer to a join: the run's settings, which the worker checks against the digest that every
/// lease names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinReply {
    /// Version.
    pub v: V<1>,
    /// The settings.
    pub spec: RunSpec,
    /// Their digest.
    pub spec_digest: Digest,
    /// The coordinator's clock.
    pub now: UnixMillis,
    /// Send a heartbeat at least this often.
    pub heartbeat: Millis,
}

/// `leave`: I stop working for this run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaveRequest {
    /// Version.
    pub v: V<2>,
    /// The life of the worker that asks: one that was replaced ends nobody's membership.
    pub session: Session,
    /// The reason, in words.
    pub reason: String,
}

/// The layers that `require_auth` covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layer {
    /// Connections to NATS: JWT and TLS.
    Bus,
    /// Transfers to and from the store: signatures and TLS.
    Bulk,
    /// Signed lease manifests and commands.
    Manifests,
    /// The decision which workers may join a run.
    Enrolment,
}

impl Layer {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Bus, Self::Bulk, Self::Manifests, Self::Enrolment];

    /// Its name in configuration and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bus => "bus",
            Self::Bulk => "bulk",
            Self::Manifests => "manifests",
            Self::Enrolment => "enrolment",
        }
    }
}

/// The layers of protection that a process relaxed. A peer weaker than the run demands is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Posture {
    /// Layers without authentication, each with the reason given for it.
    pub open: Vec<OpenLayer>,
}

/// A layer that was relaxed on purpose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenLayer {
    /// The layer.
    pub layer: Layer,
    /// The reason, in the operator's words.
    pub reason: String,
}

message!(JoinRequest, "join", WORKER_MESSAGE_BYTES_MAX);
message!(JoinReply, "join reply", MESSAGE_BYTES_MAX);
message!(LeaveRequest, "leave", WORKER_MESSAGE_BYTES_MAX);
