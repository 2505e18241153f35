//! The coordinator's decisions: membership, rounds, units, leases, fates. No I/O, no clock, no
//! randomness, no tensor.
//!
//! [`Coordinator::handle`] takes the time and an [`Input`] and pushes [`Effect`]s. Every change of
//! durable state is a [`LedgerEvent`](schemas::event::LedgerEvent). [`ledger::State::apply`] folds
//! it in, live and on replay alike, so a restart is a replay. The async shell is in
//! `services/coordinator`.
//!
//! | file | holds |
//! | --- | --- |
//! | `input`, `effect` | the seam to the shell |
//! | `coordinator` | the way of an input to its run's room, and decisions that concern all runs |
//! | `run` | a run's room: every decision about one run, one conversation a file |
//! | `turn` | the things that a room may use besides itself, and the ends of a request |
//! | `control`, `operator`, `order` | operators' changes, uploads and limits |
//! | `promotion` | pointers to full snapshots |
//! | `quarantine` | the workers that operators shut out of a run |
//! | `revocation` | keys that operators revoked |
//! | `ending` | the end of leases by an operator's order |
//! | `restore` | the way of a run back to a full snapshot |
//! | `collection` | the deletion of the objects of a run's old rounds |
//! | `tenant`, `quota` | tenants, and how much each may have |
//! | `join` | requirements for a join to any run |
//! | `checkpoint` | the moments at which the ledger's state is saved as an object |
//! | `receipts` | which events of the ledger a verified head of the log covers |
//! | `denial` | the choice of refusals that are recorded |
//! | `succession` | the key that goes on with the ledger |
//! | `view` | the views for operators |
//! | `deadline` | the time of the next call |

mod checkpoint;
mod collection;
mod control;
mod coordinator;
mod deadline;
mod denial;
mod effect;
mod ending;
#[cfg(test)]
mod fixture;
mod input;
mod join;
mod operator;
mod order;
mod promotion;
mod quarantine;
mod quota;
mod receipts;
mod restore;
mod revocation;
mod run;
mod succession;
mod tenant;
mod turn;
mod view;

#[cfg(test)]
mod tests;

pub use checkpoint::CHECKPOINT_EVERY;
pub use coordinator::{Coordinator, Settings};
pub use effect::{Answer, Collect, Effect, Purging, Quarantine, Stop, Stopping, Uploads};
pub use input::{
    ControlRequest, DeliveryId, Input, Merged, Peer, Recorded, ReplyId, Screened, ScreeningId,
    Submission, WorkerRequest,
};
pub use receipts::{Receipts, Say, Sent};
pub use run::results::check_norm;
pub use succession::Succession;
