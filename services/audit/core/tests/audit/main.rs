//! The auditor on whole logs: what verifies, and what does not.

mod log;
mod properties;
mod verdicts;
