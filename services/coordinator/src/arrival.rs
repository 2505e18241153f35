//! Arrivals: everything that reaches the decision loop.

use async_nats::Subject;
use coordinator_core::{ControlRequest, Input, Peer, WorkerRequest};
use runtime::Failure;
use schemas::foundry::Answer;
use schemas::lease::UnitId;
use schemas::{PublicKey, RunId};

use crate::answer::ReplyTo;
use crate::foundry::FoundryNumber;

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
    /// Something came of an order to a run's foundry.
    Foundry {
        run: RunId,
        foundry: FoundryNumber,
        answer: Answer,
    },
    Input(Input),
    /// Something that the process cannot go on without has ended.
    Failed(Failure),
}
