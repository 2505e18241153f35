//! The writer against other implementations, and against the end of its process at any point.

#![expect(
    clippy::unwrap_used,
    reason = "a test program: a failed step is a failed test"
)]

mod cosign;
mod crashes;
mod others;
mod support;
