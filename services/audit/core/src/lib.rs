//! The auditor's decisions: whether an event is its emitter's, whether the emitter's chain holds,
//! what the ledger came to. No I/O, no clock, no randomness: the same records give the same
//! verdicts on every machine.
//!
//! [`Auditor::observe`] takes the messages of stream `AUDIT` one by one, as [`Record`]s, and gives
//! a [`Checked`] for each. What is wrong with a record is a [`Finding`]; one bad record never stops
//! the others from being checked. The slowest part, the check of signatures, is in
//! [`Examiner::examine`], which may run for many records in parallel; [`Auditor::place`] takes the
//! results in order.
//!
//! | file | holds |
//! | --- | --- |
//! | `record` | one message of the stream |
//! | `examine` | a record by itself: its signer, its content and its position |
//! | `check` | the auditor: examined records in their order, and the fold of the ledger |
//! | `cohorts` | cohorts of masked rounds: those of the ledger, and those that workers were shown |
//! | `emitter` | one emitter's chain, whose faults become findings |
//! | `finding` | the faults that the auditor finds |
//! | `intake` | checks of workers' events before they are recorded |
//! | `rate` | the messages that one worker may send, and have recorded |
//! | `sentry` | what the broker tells of connections, refusals and changes of streams, as events |
//! | `verdict` | verdicts on single records |
//! | `places` | where in the log the newest events of each emitter are |
//! | `log` | the tree over all events: its heads, proofs, and the comparison with a stream |
//! | `recompute` | merges that are made again, and their comparison with the record |
//! | `lineage` | the rounds and snapshots that descend from an object |
//! | `ancestry` | what a snapshot or a contribution was made from |
//! | `sought` | an object that is looked for, by the beginning of its digest |
//! | `timeline` | an event as a line for people |
//! | `summary` | the outcome of a whole replay |
//!
//! Chains show what is missing between two events of one emitter. They cannot show that the newest
//! events of an emitter were cut off: [`log`] does, with a tree over all events whose heads others
//! keep.

pub mod ancestry;
mod check;
mod cohorts;
mod emitter;
mod examine;
mod finding;
mod intake;
pub mod lineage;
pub mod log;
mod places;
mod rate;
pub mod recompute;
mod record;
pub mod sentry;
mod sought;
mod summary;
mod timeline;
mod verdict;

pub use check::{Auditor, CLOCK_SKEW_MAX, Checked, HELD_MAX};
pub use examine::{Examined, Examiner};
pub use finding::{Finding, PlacedFinding};
pub use intake::{
    Candidate, ChainCheck, Enrolment, Intake, MessageCheck, Notice, Question, QuestionCheck, Tail,
};
pub use places::{Logged, PLACES_MAX, Places};
pub use rate::{
    BYTES_BURST, BYTES_PER_SECOND, EVENTS_BURST, EVENTS_PER_SECOND, RECORDED_BURST,
    RECORDED_PER_SECOND,
};
pub use record::{Payload, Record, StreamSequence};
pub use sought::{DIGITS_MIN, DigestPrefix, DigestPrefixError};
pub use summary::{EmitterSummary, FaultyWorker, ForeignMessage, RunSummary, Summary};
pub use timeline::{TimelineRow, UNREADABLE};
pub use verdict::Verdict;
