//! What the world tells the coordinator. The shell decodes messages and checks their form;
//! everything that depends on state is decided in the core.

use schemas::checkpoint::Checkpoint;
use schemas::foundry::Answer;
use schemas::lease::UnitId;
use schemas::subject::Verb;
use schemas::telemetry::Heartbeat;
use schemas::{AccountId, ObjectRef, PublicKey, Refusal, RunId, WorkerId};

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

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// A worker asks. The proof of a join was verified.
    Request {
        /// Who.
        peer: Peer,
        /// What.
        request: WorkerRequest,
        /// Where the answer goes.
        reply: ReplyId,
    },
    /// An operator asks.
    Control {
        /// Who, as the broker enforces it.
        operator: PublicKey,
        /// What.
        request: ControlRequest,
        /// Where the answer goes.
        reply: ReplyId,
    },
    /// A worker lives.
    Heartbeat {
        /// Who.
        peer: Peer,
        /// What it does.
        heartbeat: Heartbeat,
    },
    /// A request was refused before it reached the core (bad form, identity mismatch).
    Denied {
        /// Who.
        peer: Peer,
        /// What was asked, by its subject.
        verb: String,
        /// Why it was refused.
        refusal: Refusal,
    },
    /// A worker's request was refused by a check of the shell that needs keys; the worker waits for
    /// the answer.
    Refused {
        /// Who.
        peer: Peer,
        /// What it asked.
        verb: Verb,
        /// Why not.
        refusal: Refusal,
        /// Where the answer goes.
        reply: ReplyId,
    },
    /// The queue delivered an offer. Nothing waits for it: the unit was granted, or could be,
    /// before.
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
        /// Why not, unless all are there and fit together.
        verdict: Result<(), Refusal>,
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
        /// Why not all of them are.
        outcome: Result<(), Refusal>,
    },
    /// Something came of an order to a run's foundry ([`crate::Effect::Foundry`]). A data manifest
    /// is not in the ledger, so it comes again after every start; no lease is granted before.
    Foundry {
        /// The run.
        run: RunId,
        /// What.
        answer: Answer,
    },
    /// The bytes of a checkpoint are in the store ([`crate::Effect::WriteCheckpoint`]).
    CheckpointWritten {
        /// Where they are, or why they are not.
        outcome: Result<Checkpoint, Refusal>,
    },
    /// Nothing but time passed.
    Tick,
}

impl Input {
    /// Its kind, as logs and numbers name it.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Request { .. } => "request",
            Self::Control { .. } => "control",
            Self::Heartbeat { .. } => "heartbeat",
            Self::Denied { .. } => "denied",
            Self::Refused { .. } => "refused",
            Self::Offered { .. } => "offered",
            Self::RunChecked { .. } => "run_checked",
            Self::UploadsChecked { .. } => "uploads_checked",
            Self::Promoted { .. } => "promoted",
            Self::Foundry { answer, .. } => answer.kind(),
            Self::CheckpointWritten { .. } => "checkpoint_written",
            Self::Tick => "tick",
        }
    }
}
