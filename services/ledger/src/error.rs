//! The reasons why a ledger gives no state.

use schemas::lease::LeaseRef;
use schemas::{ChainSequence, Refusal, RunId, WorkerId};

/// The reason why a ledger does not give a state.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// An event does not follow those before it.
    #[error("event {sequence} of the ledger does not fit: {source}")]
    Apply {
        /// Its position.
        sequence: ChainSequence,
        /// The fault.
        source: ApplyError,
    },
    /// The chain holds an event that is not the coordinator's.
    #[error("event {0} is no event of a ledger; replay the coordinator's chain only")]
    Foreign(ChainSequence),
}

/// The reason why an event cannot follow on the events before it. In a ledger that verifies this
/// means a defect or another release.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// The event must concern a run and names none.
    #[error("event {0} names no run")]
    RunMissing(&'static str),
    /// No event created the run.
    #[error("run {0} was never created")]
    RunUnknown(RunId),
    /// The run was created before.
    #[error("run {0} was created before")]
    RunExists(RunId),
    /// The settings are out of bounds.
    #[error("run {run} has settings that are not valid: {refusal}")]
    SpecInvalid {
        /// The run.
        run: RunId,
        /// The fault in them.
        refusal: Refusal,
    },
    /// The run is over, or is not yet.
    #[error("{what} does not fit a run that stands elsewhere: {event}")]
    OutOfPlace {
        /// The event's kind.
        event: &'static str,
        /// The part that does not fit, in words.
        what: String,
    },
    /// The lease is not the one that is held.
    #[error("{event}: {worker} does not hold lease {lease}")]
    NotHeld {
        /// The event's kind.
        event: &'static str,
        /// The lease.
        lease: LeaseRef,
        /// The worker that should hold it.
        worker: WorkerId,
    },
    /// The worker never joined.
    #[error("{worker} never joined run {run}")]
    WorkerUnknown {
        /// The run.
        run: RunId,
        /// The worker.
        worker: WorkerId,
    },
}

pub(crate) fn out_of_place(event: &'static str, what: String) -> ApplyError {
    ApplyError::OutOfPlace { event, what }
}
