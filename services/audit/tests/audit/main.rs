//! The audit service: its reading of a real broker, and the program.

mod broker;
mod program;
mod scribe;
mod stream;
