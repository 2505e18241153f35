//! Effects: requests of a worker to its shell, to be carried out in order.

use std::sync::Arc;

use schemas::event::WorkerEvent;
use schemas::lease::{ClaimRequest, LeaseRef, Manifest, ReleaseRequest, RenewRequest};
use schemas::member::{JoinReply, JoinRequest, LeaveRequest, Session};
use schemas::telemetry::Phase;
use schemas::{Code, Millis, Refusal, Steps};

use crate::result::ResultEnd;

/// One request; its answer comes back as [`Input::Replied`](crate::Input::Replied) with the same
/// number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// The work on one granted lease. Inputs about other work than the present have no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkId(pub u64);

/// Something to do.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Send a request and report the answer. Every request can be repeated without harm.
    Send {
        /// The number that the answer will carry.
        id: RequestId,
        /// The request.
        request: Request,
        /// Report [`schemas::Code::NoAnswer`] after this time.
        patience: Millis,
    },
    /// The run accepted this worker under these settings; leases that name other settings are not
    /// valid.
    Joined(Box<JoinReply>),
    /// The coordinator's clock is at most this many milliseconds ahead of the time that the core is
    /// given; negative when it is behind. The windows of documents that it signed are judged by its
    /// time.
    Clock {
        /// The difference in milliseconds.
        ahead_ms: i64,
    },
    /// Check a lease's signed manifest before anything that it names is used.
    Verify {
        /// The work it would be.
        work: WorkId,
        /// The compact JWS.
        document: String,
    },
    /// Fetch the objects that the work needs: data, and base weights straight into the trainer.
    Fetch {
        /// The work.
        work: WorkId,
        /// Its verified manifest.
        manifest: Arc<Manifest>,
    },
    /// Do the inner steps.
    Train {
        /// The work.
        work: WorkId,
    },
    /// Sum the held-out loss.
    Evaluate {
        /// The work.
        work: WorkId,
    },
    /// Encode the difference from the base and upload it.
    Upload {
        /// The work.
        work: WorkId,
    },
    /// Stop this work, at the next end of a step at the latest. The trainer keeps its inner state.
    Stop {
        /// The work.
        work: WorkId,
    },
    /// Keep a copy of the trainer's inner state after a training unit, to be written to disk while
    /// the worker goes on. A result that counts proves the state good. A result that is refused for
    /// its numbers puts a state that came from a file in doubt; then the state is dropped instead.
    KeepInner {
        /// The work that ended.
        work: WorkId,
        /// The outcome of its contribution.
        end: ResultEnd,
    },
    /// Sign an event, add it to the chain, and publish it until it is in the stream.
    Emit(WorkerEvent),
    /// The same, and report when the event is in the stream, or that it will not be. What this work
    /// makes does not leave the worker before.
    Record {
        /// The work.
        work: WorkId,
        /// The event.
        event: WorkerEvent,
    },
    /// Send a heartbeat; the shell adds its own counts.
    Heartbeat(Pulse),
    /// Something makes this worker wait: show it.
    Waiting {
        /// The refusal that makes it wait.
        refusal: Refusal,
        /// The time until the next try.
        pause: Millis,
    },
    /// End the process, after all events and inner states so far are delivered and written.
    Exit(Exit),
}

/// A worker's request to the coordinator about its life. Requests for objects and for staging are
/// made by the shell.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "one variant for each verb of the bus")]
pub enum Request {
    Join(JoinRequest),
    Leave(LeaveRequest),
    Claim(ClaimRequest),
    Renew(RenewRequest),
    Release(ReleaseRequest),
    Submit(HandIn),
}

/// A result, in the bytes that the shell signs as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandIn {
    /// The encoding of a `Statement`.
    pub statement: Vec<u8>,
    /// The `Provenance` of a contribution; none for an evaluation. Its signature alone is sent.
    pub provenance: Option<Vec<u8>>,
}

/// The core's part of a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pulse {
    /// The life of the worker that speaks.
    pub session: Session,
    /// The phase that it is in.
    pub phase: Phase,
    /// The lease it holds.
    pub lease: Option<LeaseRef>,
    /// Inner steps done on it.
    pub steps_done: Steps,
}

/// The way in which a worker's life ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The run is complete.
    Complete,
    /// It was told to drain, and has done so.
    Drained,
    /// It was told to stop.
    Stopped,
    /// It cannot work.
    Failed(Refusal),
}

impl Exit {
    /// The refusal that stands for a unit that this end breaks off.
    pub(crate) fn refusal(&self) -> Refusal {
        match self {
            Self::Failed(refusal) => refusal.clone(),
            Self::Complete | Self::Drained | Self::Stopped => {
                Refusal::new(Code::Interrupted, self.reason())
            }
        }
    }

    /// The reason in words, for the coordinator and the audit log.
    pub fn reason(&self) -> String {
        match self {
            Self::Complete => "run complete".to_owned(),
            Self::Drained => "drained".to_owned(),
            Self::Stopped => "stopped".to_owned(),
            Self::Failed(refusal) => refusal.to_string(),
        }
    }
}
