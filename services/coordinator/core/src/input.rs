//! What the world tells the coordinator. The shell decodes messages and checks their form;
//! everything that depends on state is decided in the core.

use schemas::blob::{GetRequest, PutRequest};
use schemas::contribution::{StageRequest, Statement};
use schemas::control::{OperatorObjects, RunNew, Shutdown, ViewRequest};
use schemas::foundry::Answer;
pub use schemas::foundry::{Merged, Screened, ScreeningId};
use schemas::lease::{ClaimRequest, ReleaseRequest, RenewRequest, UnitId};
use schemas::member::{JoinRequest, LeaveRequest};
use schemas::subject::{ControlVerb, Verb};
use schemas::telemetry::Heartbeat;
use schemas::{AccountId, ObjectRef, PublicKey, Refusal, RunId, WorkerId};

/// A request that waits for its answer; the shell knows where to send it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplyId(pub u64);

/// One delivery of an offer by the queue; the shell knows its ack subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeliveryId(pub u64);

/// Who sent a request, as the broker wrote it: never from the payload.
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
    /// The queue delivered an offer.
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
        /// Whether all are there and fit together.
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
    /// Something came of an order to a run's foundry ([`crate::Effect::Foundry`]). A data manifest is
    /// not in the ledger, so it comes again after every start; no lease is granted before.
    Foundry {
        /// The run.
        run: RunId,
        /// What.
        answer: Answer,
    },
    /// Nothing but time passed.
    Tick,
}

/// What a worker asks.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "one variant for each verb of the bus")]
pub enum WorkerRequest {
    Join(JoinRequest),
    Leave(LeaveRequest),
    Claim(ClaimRequest),
    Renew(RenewRequest),
    Release(ReleaseRequest),
    Put(PutRequest),
    Get(GetRequest),
    Stage(StageRequest),
    Submit(Submission),
}

impl WorkerRequest {
    /// The verb under which it came.
    pub const fn verb(&self) -> Verb {
        match self {
            Self::Join(_) => Verb::Join,
            Self::Leave(_) => Verb::Leave,
            Self::Claim(_) => Verb::LeaseClaim,
            Self::Renew(_) => Verb::LeaseRenew,
            Self::Release(_) => Verb::LeaseRelease,
            Self::Put(_) => Verb::BlobPut,
            Self::Get(_) => Verb::BlobGet,
            Self::Stage(_) => Verb::ContributionStage,
            Self::Submit(_) => Verb::ContributionSubmit,
        }
    }
}

/// A decoded `contribution.submit`; its signature is not yet checked, since the key is in the
/// core's state.
#[derive(Clone, Debug)]
pub struct Submission {
    /// What it states.
    pub statement: Statement,
    /// The statement's bytes as they were signed.
    pub bytes: Vec<u8>,
    /// The signature.
    pub signature: [u8; 64],
}

/// What an operator asks.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "one variant for each verb of the bus")]
pub enum ControlRequest {
    RunNew(Box<RunNew>),
    View(ViewRequest),
    BlobPut(OperatorObjects),
    BlobCommit(OperatorObjects),
    BlobGet(GetRequest),
    Shutdown(Shutdown),
}

impl ControlRequest {
    /// The verb under which it came.
    pub const fn verb(&self) -> ControlVerb {
        match self {
            Self::RunNew(_) => ControlVerb::RunNew,
            Self::View(_) => ControlVerb::View,
            Self::BlobPut(_) => ControlVerb::BlobPut,
            Self::BlobCommit(_) => ControlVerb::BlobCommit,
            Self::BlobGet(_) => ControlVerb::BlobGet,
            Self::Shutdown(_) => ControlVerb::Shutdown,
        }
    }
}
