//! Inputs: messages and events from the world to a worker.

use schemas::contribution::{Evaluation, SubmitReply};
use schemas::lease::{ClaimReply, Done, LeaseRef, Manifest, RenewReply};
use schemas::masking::CohortSeal;
use schemas::member::JoinReply;
use schemas::public::CommandVerb;
use schemas::{Chunks, Digest, Refusal, Steps, Tokens};

use crate::effect::{RequestId, WorkId};

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// A request was answered, refused, or not answered in time.
    Replied {
        /// The number of the request.
        id: RequestId,
        /// The verified, decoded reply.
        outcome: Result<Answer, Refusal>,
    },
    /// A manifest was checked.
    Verified {
        /// The work.
        work: WorkId,
        /// The manifest, or the reason for its refusal.
        outcome: Result<Box<Manifest>, NotVerified>,
    },
    /// Data and weights are there, or not.
    Fetched {
        /// The work.
        work: WorkId,
        /// When they are there, the cohort for which the contribution will be masked, if its run
        /// has masks; otherwise the reason.
        outcome: Result<Option<Box<Agreed>>, Refusal>,
    },
    /// The event of this work is recorded, or will not be.
    Recorded {
        /// The work.
        work: WorkId,
        /// The verified acknowledgement, or the reason why there is none.
        outcome: Result<(), Refusal>,
    },
    /// Training or evaluation goes on.
    Progress {
        /// The work.
        work: WorkId,
        /// Steps done so far.
        steps_done: Steps,
    },
    /// The inner steps are done, or failed.
    Trained {
        /// The work.
        work: WorkId,
        /// The outcome of the steps, or the reason why there is none.
        outcome: Result<Trained, Refusal>,
    },
    /// The evaluation is done, or failed.
    Evaluated {
        /// The work.
        work: WorkId,
        /// The held-out loss, or the reason why there is none.
        outcome: Result<Evaluation, Refusal>,
    },
    /// The contribution is at the store, or the upload failed.
    Uploaded {
        /// The work.
        work: WorkId,
        /// Its chunks, as the run names them.
        outcome: Result<Chunks, Refusal>,
    },
    /// A command of the coordinator, verified; or a signal to this process.
    Command(CommandVerb),
    /// A command that did not verify; it was ignored.
    CommandRefused(Refusal),
    /// This process has lost a part of itself and cannot work any more.
    Broken(Refusal),
    /// Only time has passed.
    Tick,
}

/// The answer to a [`Request`](crate::Request).
#[derive(Clone, Debug, PartialEq)]
#[expect(
    missing_docs,
    reason = "one variant for each type of answer on the bus"
)]
pub enum Answer {
    Join(Box<JoinReply>),
    Claim(ClaimReply),
    Renew(RenewReply),
    Done(Done),
    Submit(SubmitReply),
}

/// A cohort whose workers have agreed on masks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// Its digest.
    pub cohort: Digest,
    /// The coordinator's word that the ledger has it, verified.
    pub seal: CohortSeal,
}

/// The reason why a manifest is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotVerified {
    /// The failed check.
    pub refusal: Refusal,
    /// The lease to give back; known only if signature and audience were right.
    pub lease: Option<LeaseRef>,
}

/// The outcome of inner steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trained {
    /// Tokens trained on.
    pub tokens: Tokens,
    /// Steps done.
    pub steps: Steps,
    /// Mean loss over them, nats a token.
    pub loss: f64,
    /// Wall time, milliseconds.
    pub train_ms: u64,
}
