//! The fold by itself, event by event, without a coordinator.

mod checkpoints;
mod kit;
mod places;
mod rounds;
