//! The worker's state machine, played by hand and at random.

mod answers;
mod claiming;
mod ends;
mod guards;
mod joining;
mod lease;
mod properties;
mod result;
mod scene;
mod silence;
mod unit;
