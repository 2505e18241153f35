//! The auditor's decisions: whether an event is its emitter's, whether the emitter's chain holds,
//! what the ledger came to. No I/O, no clock, no randomness: the same records give the same
//! verdicts on every machine.
//!
//! [`Auditor::observe`] takes the messages of stream `AUDIT` one by one, as [`Record`]s, and gives
//! a [`Checked`] for each. What is wrong with a record is a [`Finding`]; one bad record never stops
//! the others from being checked. The longest part of it, the signature, is [`Examiner::examine`],
//! which may run for many records side by side; [`Auditor::place`] takes what it comes to in order.
//!
//! | file | holds |
//! | --- | --- |
//! | `record` | one message of the stream |
//! | `examine` | a record by itself: who signed it, what it says, where it stands |
//! | `check` | the auditor: examined records in their order, and the fold of the ledger |
//! | `emitter` | one emitter's chain: what is wrong with it is a finding |
//! | `finding` | what can be wrong |
//! | `intake` | checks of workers' events before they are recorded |
//! | `rate` | what one worker may send, and have recorded |
//! | `verdict` | what a record came to |
//! | `timeline` | an event as a line for people |
//! | `summary` | what a whole replay came to |
//!
//! Chains show what is missing between two events of one emitter. They cannot show that the newest
//! events of an emitter were cut off; a tree over all events, with heads that others keep, is what
//! will.

mod check;
mod emitter;
mod examine;
mod finding;
mod intake;
mod rate;
mod record;
mod summary;
mod timeline;
mod verdict;

pub use check::{Auditor, CLOCK_SKEW_MAX, Checked, HELD_MAX};
pub use examine::{Examined, Examiner};
pub use finding::{Finding, Found};
pub use intake::{Candidate, Enrolment, Heard, Intake, Linked, Notice, Tail};
pub use rate::{
    BYTES_BURST, BYTES_PER_SECOND, EVENTS_BURST, EVENTS_PER_SECOND, RECORDED_BURST,
    RECORDED_PER_SECOND,
};
pub use record::{Payload, Record, StreamSequence};
pub use summary::{EmitterSummary, FaultyWorker, ForeignMessage, RunSummary, Summary};
pub use timeline::TimelineRow;
pub use verdict::Verdict;
