//! The fold by itself, event by event, without a coordinator.

mod kit;
mod rounds;
