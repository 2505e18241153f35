//! The audit service: its reading from a real broker, and the program.

#![expect(
    clippy::unwrap_used,
    reason = "a test program: a failed step is a failed test"
)]

mod broker;
mod chain_writer;
mod merging;
mod program;
mod stream;
mod together;
