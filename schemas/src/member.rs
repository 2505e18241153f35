//! Membership: joining and leaving a run, and how openly each process runs.

use serde::{Deserialize, Serialize};

use crate::limits::{MESSAGE_BYTES_MAX, WORKER_MESSAGE_BYTES_MAX};
use crate::message::{V, message};
use crate::run::{RunSpec, TrainerKind};
use crate::{Digest, Millis, PublicKey, UnixMillis};

/// `join`: I want to work for this run. May be repeated; a member's second join renews its entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    /// Version.
    pub v: V<1>,
    /// The key that signs the worker's events and statements; not its connection key.
    pub audit_key: PublicKey,
    /// Trainers it has.
    pub trainers: Vec<TrainerKind>,
    /// What it computes on, for people: `cpu x1`, `cuda:0 NVIDIA H100`.
    pub device: String,
    /// Its release.
    pub release: String,
    /// How openly it runs.
    pub posture: Posture,
}

/// The answer to a join: the run's settings, which the worker checks against the digest that every lease names.
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
    pub v: V<1>,
    /// Why.
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
    /// Who may join a run.
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

/// How openly a process runs: which layers it relaxed. A peer weaker than the run demands is refused.
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
    /// Which.
    pub layer: Layer,
    /// Why, in the operator's words.
    pub reason: String,
}

message!(JoinRequest, "join", WORKER_MESSAGE_BYTES_MAX);
message!(JoinReply, "join reply", MESSAGE_BYTES_MAX);
message!(LeaveRequest, "leave", WORKER_MESSAGE_BYTES_MAX);
