//! The audit service: its reading from a real broker, and the program.

mod broker;
mod program;
mod scribe;
mod stream;
mod together;
