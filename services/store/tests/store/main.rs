//! The embedded store and the clients of crate `objects` against each other, over TLS with a CA of
//! the test's own, except in `altered`.

#![expect(clippy::unwrap_used, reason = "in tests a panic is the report")]

mod altered;
mod answers;
mod binary;
mod conformance;
mod connections;
mod faulty;
mod headers;
mod hostile;
mod log;
mod misbehaving;
mod refusals;
mod rights;
mod running;
mod runs;
mod slow;
mod support;
mod time;
mod told;
mod transfers;
mod uploads;
