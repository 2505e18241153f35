//! The audit service: its files, its reading of a real broker, and the program.

mod broker;
mod files;
mod program;
mod scribe;
mod signatures;
mod stream;
