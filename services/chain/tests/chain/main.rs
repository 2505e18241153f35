//! The chain from outside: events that are written read back, and no other bytes do.

mod histories;
mod reading;
mod signatures;
