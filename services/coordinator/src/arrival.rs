//! What reaches the decision loop.

use async_nats::Subject;
use coordinator_core::{ControlRequest, Input, Peer, Screened, ScreeningId, WorkerRequest};
use runtime::Failure;
use schemas::lease::{LeaseRef, UnitId};
use schemas::{PublicKey, Refusal, RunId};

use crate::answer::ReplyTo;
use crate::screen::KeptChunks;

/// Arrivals that wait for the loop. Beyond it the bus keeps them, and drops what it cannot keep.
pub(crate) const ARRIVALS_MAX: usize = 1024;

/// Something for the loop; most of it becomes an input of the core.
#[derive(Debug)]
pub(crate) enum Arrival {
    Worker {
        peer: Peer,
        request: WorkerRequest,
        reply: ReplyTo,
    },
    Operator {
        operator: PublicKey,
        request: ControlRequest,
        reply: ReplyTo,
    },
    /// The queue delivered an offer; it is settled through this subject.
    Offer {
        run: RunId,
        unit: UnitId,
        stream_sequence: u64,
        ack: Subject,
    },
    /// A result was checked.
    Screened {
        screening: ScreeningId,
        run: RunId,
        lease: LeaseRef,
        verdict: Result<(Screened, KeptChunks), Refusal>,
    },
    Input(Input),
    /// Something that the process cannot go on without has ended.
    Failed(Failure),
}
