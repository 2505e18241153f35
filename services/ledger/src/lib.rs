//! The ledger's meaning: the state that follows from the events of the coordinator's chain.
//!
//! [`State`] is the fold of them and [`State::apply`] the only way to change one, live and on
//! replay alike. No event is written here and nothing is decided: the coordinator decides, and
//! every reader of the chain (an auditor, a standby, a dashboard) comes to the same state. No I/O,
//! no clock, no randomness, no unordered map.
//!
//! | file | holds |
//! | --- | --- |
//! | `state` | what is known, and the questions that it answers by itself |
//! | `apply` | what each event does to it, and which events cannot follow |
//! | `members`, `leases`, `rounds` | the same by topic |
//! | `rule` | the limits of each closing rule, which a run's ledger must keep |
//! | `checkpoint` | states that are kept as objects, and what a state knows of them |
//! | `form` | the bytes of such an object |
//! | `error` | why an event cannot follow |
//! | `check` | what holds after every event |
//! | `view` | the state as operators see it |

mod apply;
mod check;
mod checkpoint;
mod error;
mod form;
mod leases;
mod members;
mod rounds;
mod rule;
mod state;
mod view;

pub use apply::RunFold;
pub use checkpoint::CHECKPOINTS_KEPT;
pub use error::{ApplyError, ReplayError};
pub use form::{CheckpointError, FORMAT};
pub use state::{
    Accepted, Fates, Member, OpenSync, RefusedResult, RoundRecord, Run, SnapshotRecord, Standing,
    State, Unit,
};
