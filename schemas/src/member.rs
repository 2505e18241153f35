//! Membership: joining and leaving a run, and the layers of protection that each process relaxed.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteArray;

use crate::limits::{MESSAGE_BYTES_MAX, TEXT_BYTES_MAX, WORKER_MESSAGE_BYTES_MAX};
use crate::message::{V, message};
use crate::run::{RunSpec, TrainerKind};
use crate::{Digest, Millis, PublicKey, UnixMillis};

/// The session of a process, a worker's or a coordinator's: a random number that is drawn at its
/// start. It distinguishes processes with the same credentials; it is no secret and gives no right.
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

/// `join`: a worker wants to work for the run. May be repeated: a second join of a member renews
/// its entry. A join of another session takes the membership over, so that the newest process is
/// the worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    /// Version.
    pub v: V<2>,
    /// The session that asks.
    pub session: Session,
    /// The key that signs the worker's events and statements; not its connection key.
    pub audit_key: PublicKey,
    /// A signature by the audit key over the run and the worker's name, under a prefix of its own.
    /// It shows that the asker holds the key's secret.
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
    /// Longest time between two heartbeats.
    pub heartbeat: Millis,
}

/// `leave`: the worker stops working for the run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaveRequest {
    /// Version.
    pub v: V<2>,
    /// The session that asks; one that was replaced cannot end the membership.
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

/// The layers of protection that a process relaxed. A peer that relaxed more than the run allows is
/// refused.
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

impl Posture {
    /// The same for a record: no reason is longer than a text in an event, and each layer is named
    /// once.
    pub fn shortened(mut self) -> Self {
        let mut named = Vec::new();
        self.open.retain(|open| {
            let is_new = !named.contains(&open.layer);
            named.push(open.layer);
            is_new
        });
        for open in &mut self.open {
            let end = (0..=TEXT_BYTES_MAX.min(open.reason.len()))
                .rev()
                .find(|at| open.reason.is_char_boundary(*at));
            open.reason.truncate(end.unwrap_or(0));
        }
        self
    }

    /// True if no layer was relaxed.
    pub const fn is_closed(&self) -> bool {
        self.open.is_empty()
    }

    /// True for a layer that was relaxed.
    pub fn is_open(&self, layer: Layer) -> bool {
        self.open.iter().any(|open| open.layer == layer)
    }
}

message!(JoinRequest, "join", WORKER_MESSAGE_BYTES_MAX);
message!(JoinReply, "join reply", MESSAGE_BYTES_MAX);
message!(LeaveRequest, "leave", WORKER_MESSAGE_BYTES_MAX);
