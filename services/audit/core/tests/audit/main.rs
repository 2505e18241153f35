//! The auditor on whole logs: what verifies, and what does not; and what is recorded at all.

mod checkpoints;
mod foreign;
mod intake;
mod log;
mod properties;
mod told;
mod verdicts;
