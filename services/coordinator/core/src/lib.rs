//! The coordinator's decisions: membership, rounds, units, leases, fates. No I/O, no clock, no
//! randomness, no tensor.
//!
//! [`Coordinator::handle`] takes the time and an [`Input`] and pushes [`Effect`]s. Whatever changes
//! durable state is a [`LedgerEvent`](schemas::event::LedgerEvent) that [`ledger::State::apply`] folds
//! in, live and on replay alike, so a restart is a replay. The async shell around it lives in
//! `services/coordinator`.
//!
//! | file | holds |
//! | --- | --- |
//! | `input`, `effect` | the seam to the shell |
//! | `live` | what is known only while this process lives |
//! | `coordinator` | the way of an input to the topic below that decides it |
//! | `membership`, `offer`, `lease`, `submit`, `round`, `object`, `control`, `denial`, `view` | one topic each |
//! | `failure` | units that fail again and again, and when that halts a run |
//! | `spare` | who may evaluate while others train |
//! | `spending` | what a worker may have written to the ledger without a result |
//! | `order` | what an operator may have written to the ledger |
//! | `draw` | which data a unit reads |
//! | `deadline` | when to be called again |

mod control;
mod coordinator;
mod deadline;
mod denial;
mod draw;
mod effect;
mod failure;
#[cfg(test)]
mod fixture;
mod input;
mod lease;
mod live;
mod membership;
mod object;
mod offer;
mod order;
mod round;
mod spare;
mod spending;
mod submit;
mod view;

#[cfg(test)]
mod tests;

pub use coordinator::{Coordinator, Settings};
pub use effect::{Answer, Effect, Quarantine};
pub use input::{
    ControlRequest, DeliveryId, Input, Merged, Peer, ReplyId, Screened, ScreeningId, Submission,
    WorkerRequest,
};
pub use submit::check_norm;
