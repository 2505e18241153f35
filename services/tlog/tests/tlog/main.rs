//! The writer against other implementations, and against the end of its process at any point.

mod crashes;
mod others;
mod support;
