//! Events: signed, chained per emitter, kept in streams. The coordinator's chain is the ledger: its
//! state is its fold.

use serde::{Deserialize, Serialize};
use serde_bytes::{ByteArray, ByteBuf};

use crate::checkpoint::Checkpoint;
use crate::code::Code;
use crate::contribution::{Contribution, Evaluation};
use crate::lease::{LeaseRef, Weights};
use crate::limits::{EVENT_BYTES_MAX, SIGNED_EVENT_BYTES_MAX};
use crate::member::{Posture, Session};
use crate::message::{V, message};
use crate::run::{RunSpec, TrainerKind};
use crate::sync::SealedInput;
use crate::{
    AccountId, Digest, Fragment, ObjectRef, PublicKey, Round, RunId, Sequence, Tokens, UnixMillis,
    WorkerId,
};

/// An event as it is sent and stored. Key and signature stand beside the body in one payload and
/// not in headers: a reader of strangers' messages asks for no headers, since a header can be
/// anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedEvent {
    /// Version.
    pub v: V<1>,
    /// The public audit key that signed.
    pub key: PublicKey,
    /// The signature over the body under its domain prefix.
    pub signature: ByteArray<64>,
    /// An encoded [`EventBody`], as it was signed.
    pub body: ByteBuf,
}

message!(SignedEvent, "signed event", SIGNED_EVENT_BYTES_MAX);

/// The body of an event: encoded once, signed, hashed and stored as it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventBody {
    /// Version.
    pub v: V<1>,
    /// The public audit key of the emitter.
    pub emitter: PublicKey,
    /// Its position in the emitter's chain.
    pub sequence: Sequence,
    /// The digest of the emitter's previous body; none for the first.
    pub previous: Option<Digest>,
    /// The emitter's clock: a claim.
    pub time: UnixMillis,
    /// The run it concerns; none for the cluster as a whole.
    pub run: Option<RunId>,
    /// The event itself.
    pub event: Event,
}

message!(EventBody, "event", EVENT_BYTES_MAX);

/// An event, by kind of emitter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// An event of the coordinator: a change of its state.
    Ledger(LedgerEvent),
    /// An event of a worker: its own account of its life.
    Worker(WorkerEvent),
}

/// A change of the coordinator's state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[expect(
    missing_docs,
    reason = "fields are named after the types and words of this crate"
)]
pub enum LedgerEvent {
    /// A coordinator took the lead; every lease that is still open runs on from here for one lease
    /// time.
    CoordinatorStarted {
        release: String,
        posture: Posture,
        /// The process that took it, named by a random number: two that begin in the same moment
        /// sign different events. A ledger of an earlier release names none.
        #[serde(default)]
        session: Session,
    },
    /// It gave the lead up in order.
    CoordinatorStopped { reason: String },
    /// An operator created a run.
    RunCreated {
        spec: Box<RunSpec>,
        operator: PublicKey,
    },
    /// All rounds are closed and the last snapshot is evaluated.
    RunCompleted,
    /// A worker is a member, or renewed its entry.
    WorkerJoined {
        worker: WorkerId,
        account: AccountId,
        audit_key: PublicKey,
        trainers: Vec<TrainerKind>,
        device: String,
        release: String,
        posture: Posture,
        /// The life of the worker that joined; a ledger of an earlier release names none.
        #[serde(default)]
        session: Session,
    },
    /// A worker is no longer a member.
    WorkerLeft {
        worker: WorkerId,
        cause: Departure,
        detail: String,
    },
    /// The round's units are on offer. Which they are follows from the run's settings.
    RoundOpened { round: Round },
    /// A worker holds a unit.
    LeaseGranted { lease: LeaseRef, worker: WorkerId },
    /// It holds it no longer, and left no result. `tokens` are abandoned.
    LeaseEnded {
        lease: LeaseRef,
        worker: WorkerId,
        cause: LeaseEnd,
        tokens: Tokens,
    },
    /// A contribution counts. From here on its objects are kept until a full snapshot holds it.
    ContributionAccepted {
        lease: LeaseRef,
        worker: WorkerId,
        contribution: Box<Contribution>,
        norm: f64,
        statement: Digest,
        signature: ByteArray<64>,
    },
    /// A result was refused. `tokens` are rejected.
    ContributionRejected {
        lease: LeaseRef,
        worker: WorkerId,
        code: Code,
        detail: String,
        tokens: Tokens,
    },
    /// A held-out loss of the round's snapshot.
    EvaluationAccepted {
        lease: LeaseRef,
        worker: WorkerId,
        evaluation: Evaluation,
        statement: Digest,
        signature: ByteArray<64>,
    },
    /// These contributions are merged, and no others: contributions that come to the round later
    /// are late. A set of more than [`SEALED_MAX`](crate::limits::SEALED_MAX) is named by several
    /// events in a row, ascending by unit; `rest` counts the contributions that the following ones
    /// name, and 0 completes the seal.
    RoundSealed {
        round: Round,
        fragment: Fragment,
        inputs: Vec<SealedInput>,
        rest: u32,
    },
    /// The sealed set is merged: `broadcast` are the resulting weights. In a ledger of an
    /// earlier release no seal comes before, and the set is all that was accepted.
    RoundClosed {
        round: Round,
        #[serde(default, skip_serializing_if = "Fragment::is_first")]
        fragment: Fragment,
        broadcast: Weights,
        norm: f64,
        tokens: Tokens,
    },
    /// A full snapshot of the weights that round `round` starts from stands.
    SnapshotSaved { round: Round, manifest: ObjectRef },
    /// An operator gave an order that changes state, and that it may give. Orders that are refused
    /// or repeated are not recorded.
    ControlReceived { operator: PublicKey, verb: String },
    /// Somebody was refused. A few of each sender are recorded at once, then one now and again;
    /// `suppressed` counts the others, of anybody, since the last.
    RequestDenied {
        account: AccountId,
        worker: WorkerId,
        verb: String,
        code: Code,
        suppressed: u64,
    },
    /// The state as it is after this event is written out as a checkpoint. The event marks it, so
    /// that every reader of the chain knows which state is meant.
    CheckpointTaken,
    /// The state of the last `CheckpointTaken` lies in the store, and was found there.
    CheckpointSaved { checkpoint: Checkpoint },
}

/// The reason why a worker is no longer a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Departure {
    /// It said so.
    Left,
    /// It was not heard for too long.
    Silent,
    /// It was removed for too many refused results.
    Removed,
    /// Another process joined with its credentials and is the worker now.
    Replaced,
}

/// The reason why a lease ended without a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseEnd {
    /// Not renewed in time.
    Expired,
    /// Given back.
    Released,
    /// Its holder is no longer a member.
    Orphaned,
    /// Renewed for long without progress.
    Stalled,
}

/// A worker's own account of its life.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[expect(
    missing_docs,
    reason = "fields are named after the types and words of this crate"
)]
pub enum WorkerEvent {
    /// It joined the run.
    Joined { release: String, device: String },
    /// It verified a lease and started on it.
    Started { lease: LeaseRef },
    /// It handed in a result, whose statement has this digest.
    Submitted { lease: LeaseRef, statement: Digest },
    /// It gave a lease up.
    Dropped {
        lease: LeaseRef,
        code: Code,
        detail: String,
    },
    /// It refused something that was sent to it.
    Refused { code: Code, detail: String },
    /// It stops.
    Stopped { reason: String },
}

impl Event {
    /// Its kind as one subject token.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Ledger(event) => event.kind(),
            Self::Worker(event) => event.kind(),
        }
    }
}

impl LedgerEvent {
    /// Its kind as one subject token.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::CoordinatorStarted { .. } => "coordinator-started",
            Self::CoordinatorStopped { .. } => "coordinator-stopped",
            Self::RunCreated { .. } => "run-created",
            Self::RunCompleted => "run-completed",
            Self::WorkerJoined { .. } => "worker-joined",
            Self::WorkerLeft { .. } => "worker-left",
            Self::RoundOpened { .. } => "round-opened",
            Self::LeaseGranted { .. } => "lease-granted",
            Self::LeaseEnded { .. } => "lease-ended",
            Self::ContributionAccepted { .. } => "contribution-accepted",
            Self::ContributionRejected { .. } => "contribution-rejected",
            Self::EvaluationAccepted { .. } => "evaluation-accepted",
            Self::RoundSealed { .. } => "round-sealed",
            Self::RoundClosed { .. } => "round-closed",
            Self::SnapshotSaved { .. } => "snapshot-saved",
            Self::ControlReceived { .. } => "control-received",
            Self::RequestDenied { .. } => "request-denied",
            Self::CheckpointTaken => "checkpoint-taken",
            Self::CheckpointSaved { .. } => "checkpoint-saved",
        }
    }
}

impl WorkerEvent {
    /// Its kind as one subject token.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Joined { .. } => "joined",
            Self::Started { .. } => "started",
            Self::Submitted { .. } => "submitted",
            Self::Dropped { .. } => "dropped",
            Self::Refused { .. } => "refused",
            Self::Stopped { .. } => "stopped",
        }
    }
}
