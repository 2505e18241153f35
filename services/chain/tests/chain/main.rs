//! The chain from outside: what is written reads back, and no other bytes do.

mod histories;
mod reading;
mod signatures;
