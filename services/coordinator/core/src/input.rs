//! Inputs: messages and events from the world to the coordinator. The shell decodes messages and
//! checks their form; everything that depends on state is decided in the core.

use ledger::Plan;
use schemas::checkpoint::Checkpoint;
use schemas::foundry::Answer;
use schemas::lease::{UnitId, Weights};
use schemas::subject::Verb;
use schemas::telemetry::Heartbeat;
use schemas::{AccountId, ObjectRef, PublicKey, Refusal, RunId, Seat, UnixMillis, WorkerId};

pub use schemas::call::{ControlRequest, WorkerRequest};
pub use schemas::contribution::Submission;
pub use schemas::foundry::{Merged, Screened, ScreeningId};

/// A request that waits for its answer; the shell knows where to send it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplyId(pub u64);

/// One delivery of an offer by the queue; the shell knows its ack subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeliveryId(pub u64);

/// The sender of a request, as the broker wrote it into the subject; never read from the payload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    /// The tenant's account.
    pub account: AccountId,
    /// The run in the subject, which the sender's credential is bound to.
    pub run: RunId,
    /// The sender's nkey.
    pub worker: WorkerId,
}

/// What the record of issued credentials says about a worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recorded {
    /// Its seat in a group of workers.
    pub seat: Option<Seat>,
    /// The keys that it had before, the last one first.
    pub before: Vec<WorkerId>,
}

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// A worker asks. The shell has verified the proof of a join.
    Request {
        /// The worker that asks.
        peer: Peer,
        /// For a join: what the record of issued credentials says about the worker. It comes from
        /// no message of the worker.
        recorded: Option<Box<Recorded>>,
        /// The request.
        request: WorkerRequest,
        /// The place for the answer.
        reply: ReplyId,
    },
    /// An operator asks.
    Control {
        /// The operator, as the broker enforces it.
        operator: PublicKey,
        /// The request.
        request: ControlRequest,
        /// The place for the answer.
        reply: ReplyId,
    },
    /// A worker reports that it lives.
    Heartbeat {
        /// The worker.
        peer: Peer,
        /// Its report.
        heartbeat: Heartbeat,
    },
    /// A request was refused before it reached the core (bad form, identity mismatch).
    Denied {
        /// The worker that asked.
        peer: Peer,
        /// The verb that it asked for, by the subject.
        verb: String,
        /// The reason.
        refusal: Refusal,
    },
    /// A worker's request was refused by a check of the shell that needs keys; the worker waits for
    /// the answer.
    Refused {
        /// The worker that asked.
        peer: Peer,
        /// The verb that it asked for.
        verb: Verb,
        /// The reason.
        refusal: Refusal,
        /// The place for the answer.
        reply: ReplyId,
    },
    /// The list of issued credentials says that a revoked key was issued anew. It comes before what
    /// the key's holder asks.
    Reissued {
        /// The key.
        key: PublicKey,
        /// The time of issue of its token.
        issued: UnixMillis,
    },
    /// The queue delivered an offer. Nothing waits for it: the unit can be granted with or without
    /// it.
    Offered {
        /// The run.
        run: RunId,
        /// The unit.
        unit: UnitId,
        /// This delivery.
        delivery: DeliveryId,
    },
    /// The objects that a new run names were checked ([`crate::Effect::CheckRun`]).
    RunChecked {
        /// The request.
        reply: ReplyId,
        /// Ok when all are there and fit together; otherwise the reason for the refusal.
        verdict: Result<(), Refusal>,
    },
    /// A full snapshot was read back ([`crate::Effect::CheckSnapshot`]).
    SnapshotChecked {
        /// Its run.
        run: RunId,
        /// The copy of its weights that workers get; otherwise the reason for the refusal.
        verdict: Result<Weights, Refusal>,
    },
    /// Store and ledger were looked at for a collection ([`crate::Collect::Look`]).
    Looked {
        /// The objects that go, or the reason why nobody can tell.
        outcome: Result<Plan, Refusal>,
    },
    /// Old objects were deleted ([`crate::Collect::Delete`]).
    Collected {
        /// Their number, or the reason why some are left.
        outcome: Result<u64, Refusal>,
    },
    /// An operator's uploads were checked ([`crate::Effect::CheckUploads`]).
    UploadsChecked {
        /// The request.
        reply: ReplyId,
        /// The objects that `blobs` does not have; the others are there.
        verdict: Result<Vec<ObjectRef>, Refusal>,
    },
    /// An operator's uploads were promoted ([`crate::Effect::Promote`]).
    Promoted {
        /// The request.
        reply: ReplyId,
        /// Ok when all were promoted; otherwise the reason.
        outcome: Result<(), Refusal>,
    },
    /// A run's foundry answers an order ([`crate::Effect::Foundry`]). A data manifest is not in the
    /// ledger, so the foundry answers with it again after every start; no lease is granted before.
    Foundry {
        /// The run.
        run: RunId,
        /// The foundry's answer.
        answer: Answer,
    },
    /// The bytes of a checkpoint are in the store ([`crate::Effect::WriteCheckpoint`]).
    CheckpointWritten {
        /// The checkpoint with its place, or the reason why it was not written.
        outcome: Result<Checkpoint, Refusal>,
    },
    /// Only time has passed.
    Tick,
}

impl Input {
    /// The kind of input, as logs and metrics name it.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Request { .. } => "request",
            Self::Control { .. } => "control",
            Self::Heartbeat { .. } => "heartbeat",
            Self::Denied { .. } => "denied",
            Self::Refused { .. } => "refused",
            Self::Reissued { .. } => "reissued",
            Self::Offered { .. } => "offered",
            Self::RunChecked { .. } => "run_checked",
            Self::SnapshotChecked { .. } => "snapshot_checked",
            Self::Looked { .. } => "looked",
            Self::Collected { .. } => "collected",
            Self::UploadsChecked { .. } => "uploads_checked",
            Self::Promoted { .. } => "promoted",
            Self::Foundry { answer, .. } => answer.kind(),
            Self::CheckpointWritten { .. } => "checkpoint_written",
            Self::Tick => "tick",
        }
    }
}
