//! Stages of a worker's life, and the requests that wait for an answer in them.

use schemas::lease::LeaseRef;
use schemas::{Millis, UnixMillis};

use crate::effect::{Exit, RequestId, WorkId};
use crate::held::HeldLease;

/// The stage that the worker is in.
#[derive(Clone, Debug)]
pub(crate) enum Stage {
    Joining,
    Claiming,
    Verifying(WorkId),
    Holding(Box<HeldLease>),
    /// Giving a lease back, and then going on with `next`.
    Releasing {
        lease: LeaseRef,
        reason: String,
        next: AfterRelease,
    },
    Leaving(Exit),
    Ended,
}

/// The step that follows a release.
#[derive(Clone, Debug)]
pub(crate) enum AfterRelease {
    Claim {
        pause: Millis,
    },
    /// Join again, to learn the coordinator's time.
    Join {
        pause: Millis,
    },
    Leave(Exit),
}

/// A request that waits for its answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PendingRequest {
    pub(crate) id: RequestId,
    pub(crate) sent_at: UnixMillis,
}

/// The worker was told to end.
#[derive(Clone, Debug)]
pub(crate) struct Ending {
    pub(crate) exit: Exit,
    /// The process ends at this time, answered or not; none while it finishes a unit first.
    pub(crate) deadline: Option<UnixMillis>,
}
