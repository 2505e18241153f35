//! The arithmetic against published vectors, against naive loops, and in its properties.

#![expect(
    clippy::unwrap_used,
    reason = "clippy does not take helpers of tests for tests"
)]

mod combine;
mod e3m0;
mod encodings;
mod feedback;
mod golden;
mod naive;
mod properties;
mod reference;
