//! The embedded store and the clients of crate `objects` against each other, over TLS with a CA of the test's own.

#![expect(clippy::unwrap_used, reason = "in tests a panic is the report")]

mod binary;
mod conformance;
mod connections;
mod support;
mod transfers;
mod uploads;
