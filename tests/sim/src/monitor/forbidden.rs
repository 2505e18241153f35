//! Events that a run must not have while it is frozen, or once it is complete.

use schemas::WorkerId;
use schemas::event::LedgerEvent;

/// True for an event that a frozen run must not have.
pub(super) const fn is_merge(event: &LedgerEvent) -> bool {
    matches!(
        event,
        LedgerEvent::RunCompleted
            | LedgerEvent::RoundSealed { .. }
            | LedgerEvent::RoundClosed { .. }
            | LedgerEvent::RoundUnmasked { .. }
            | LedgerEvent::CohortDissolved { .. }
            | LedgerEvent::SnapshotPromoted { .. }
            | LedgerEvent::ObjectsGivenUp { .. }
    )
}

/// True for an event that a complete run must not have.
pub(super) const fn is_work(event: &LedgerEvent) -> bool {
    matches!(
        event,
        LedgerEvent::RunCompleted
            | LedgerEvent::RoundOpened { .. }
            | LedgerEvent::RoundSealed { .. }
            | LedgerEvent::RoundClosed { .. }
            | LedgerEvent::LeaseGranted { .. }
            | LedgerEvent::ContributionAccepted { .. }
            | LedgerEvent::EvaluationAccepted { .. }
            | LedgerEvent::SnapshotSaved { .. }
    )
}

/// The worker that an event gives something to, or takes something from.
pub(super) fn author(event: &LedgerEvent) -> Option<&WorkerId> {
    match event {
        LedgerEvent::WorkerJoined { worker, .. }
        | LedgerEvent::WorkerLeft { worker, .. }
        | LedgerEvent::LeaseGranted { worker, .. }
        | LedgerEvent::LeaseEnded { worker, .. }
        | LedgerEvent::ContributionAccepted { worker, .. }
        | LedgerEvent::ContributionRejected { worker, .. }
        | LedgerEvent::EvaluationAccepted { worker, .. } => Some(worker),
        _ => None,
    }
}
