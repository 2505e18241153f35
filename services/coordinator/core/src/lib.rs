//! The coordinator's decisions: membership, rounds, units, leases, fates. No I/O, no clock, no randomness, no tensor.
//!
//! [`Coordinator::handle`] takes the time and an [`Input`] and pushes [`Effect`]s. Whatever changes durable state is a
//! [`LedgerEvent`](schemas::event::LedgerEvent) that [`State::apply`] folds in, live and on replay alike, so a restart is a
//! replay. The async shell around it lives in `services/coordinator`.

mod effect;
mod input;

pub use effect::{Answer, Effect, Quarantine};
pub use input::{
    ControlRequest, DeliveryId, Input, Merged, Peer, ReplyId, Screened, ScreeningId, Submission, WorkerRequest,
};
