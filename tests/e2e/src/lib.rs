//! End-to-end tests: one module per promise under `tests/promises/`. The tests share this crate:
//! the recipe of a small run, the search for secrets, and the search for sockets that listen.

pub mod machine;
pub mod recipe;
pub mod secrets;
pub mod sockets;

pub use harness::scripted::{self, Scripted};
pub use machine::{Machine, nats_config};
pub use recipe::Recipe;

/// Prints that a test did not run, and why.
#[expect(
    clippy::print_stderr,
    reason = "people who read the tests' output shall see that this one did not run"
)]
pub fn skipped(why: &str) {
    eprintln!("SKIPPED: {why}");
}
