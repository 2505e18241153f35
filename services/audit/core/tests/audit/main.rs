//! The auditor on whole logs, with and without faults; and the checks before events are recorded.

mod ancestry;
mod checkpoints;
mod cohorts;
mod compare;
mod differ;
mod foreign;
mod intake;
mod known;
mod lineage;
mod log;
mod merges;
mod named;
mod properties;
mod questions;
mod readers;
mod security;
mod succession;
mod told;
mod tree;
mod verdicts;
