//! The auditor on whole logs: logs that verify, and logs that do not; and the events that are
//! recorded at all.

mod checkpoints;
mod foreign;
mod intake;
mod log;
mod properties;
mod told;
mod verdicts;
