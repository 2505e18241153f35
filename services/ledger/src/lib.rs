//! The ledger's meaning: the state that follows from the events of the coordinator's chain.
//!
//! [`State`] is the fold of these events, and [`State::apply`] is the only way to change it, live
//! and on replay alike. This crate writes no event and decides nothing: the coordinator decides,
//! and every reader of the chain (an auditor, a standby, a dashboard) comes to the same state. No
//! I/O, no clock, no randomness, no unordered map.
//!
//! | file | holds |
//! | --- | --- |
//! | `state` | the state, and the questions that it answers by itself |
//! | `apply` | the effect of each event on the state, and refusals of events that cannot follow |
//! | `members`, `leases`, `rounds` | the same by topic |
//! | `groups` | groups of workers, and which of them may be given units |
//! | `draw` | the data that a unit reads |
//! | `provenance` | what a contribution was made from |
//! | `holds` | what operators keep a run from doing |
//! | `quarantine` | the workers that operators shut out, and where their contributions are |
//! | `makers` | whose contributions the full snapshots have |
//! | `cohorts` | the workers of a masked round, and what takes the masks from their sum |
//! | `pointers` | pointers to full snapshots, which operators move |
//! | `restore` | the way of the weights through restores, and the rounds that these undid |
//! | `revocation` | the keys that operators revoked, and what that forbids |
//! | `given_up` | what collections gave up, and what they may give up |
//! | `mark` | the objects that a collection deletes, among all that the ledger names |
//! | `rule` | the limits of each closing rule, which a run's ledger must keep |
//! | `screening` | the contributions that a merge has to leave out |
//! | `tenants` | the tenants, and what their accounts and ends forbid |
//! | `spending` | what a private run has spent, and what ends its rounds |
//! | `checkpoint` | states that are kept as objects, and a state's knowledge of them |
//! | `form` | the bytes of such an object |
//! | `error` | the reasons why an event cannot follow |
//! | `check` | the invariants that hold after every event |
//! | `view` | the state as operators see it |

mod apply;
mod check;
mod checkpoint;
mod cohorts;
mod draw;
mod error;
mod form;
mod given_up;
mod groups;
mod holds;
mod leases;
mod makers;
mod mark;
mod members;
mod pointers;
mod provenance;
mod quarantine;
mod restore;
mod revocation;
mod rounds;
mod rule;
mod screening;
mod spending;
mod state;
mod tenants;
mod view;

pub use apply::RunFold;
pub use checkpoint::CHECKPOINTS_KEPT;
pub use cohorts::CohortRecord;
pub use draw::Draw;
pub use error::{ApplyError, ReplayError};
pub use form::{CheckpointError, FORMAT};
pub use given_up::GivenUp;
pub use holds::{StoppedHolders, UrlHolders};
pub use mark::{Going, Kind, Mark, Named, Needed, Old, Plan};
pub use members::KeyState;
pub use pointers::Unpromotable;
pub use quarantine::QuarantineRecord;
pub use screening::{Judged, Measured, minority, outliers, unlike};
pub use spending::{BudgetEnd, Spending};
pub use state::{
    Accepted, Fates, HoldRecord, Member, OpenSync, PointerRecord, RefusedResult, RestoreRecord,
    RoundRecord, Run, SnapshotRecord, Standing, State, Unit,
};
pub use tenants::TenantRecord;
