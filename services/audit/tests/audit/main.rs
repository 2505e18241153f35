//! The audit service: its reading from a real broker, and the program.

mod broker;
mod chain_writer;
mod program;
mod stream;
mod together;
