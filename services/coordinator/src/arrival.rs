//! Arrivals: everything that reaches the decision loop.

use async_nats::Subject;
use coordinator_core::{ControlRequest, Input, Peer, WorkerRequest};
use runtime::Failure;
use schemas::foundry::Answer;
use schemas::lease::UnitId;
use schemas::{PublicKey, RunId};

use crate::answer::ReplyTo;
use crate::foundry::FoundryNumber;

/// Most arrivals that wait for the loop. Above that they wait in the bus, which drops what it
/// cannot hold.
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
    /// A run's foundry answers an order.
    Foundry {
        run: RunId,
        foundry: FoundryNumber,
        answer: Answer,
    },
    Input(Input),
    /// A part that the process cannot do without has ended.
    Failed(Failure),
}
