//! The chain from outside: written events read back, and no other bytes do.

mod histories;
mod reading;
mod signatures;
