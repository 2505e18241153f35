//! The worker's shell: connects the pure core in `services/worker/core` with NATS, the store, the
//! disk and the training thread.
//!
//! | file | what |
//! | --- | --- |
//! | [`service`] | the loop: inputs to the core, effects to the world |
//! | `asker`, `commands` | the bus |
//! | `library`, `shelf`, `assets`, `unit` | objects, and a unit's way from fetch to upload |
//! | `engine` | the training thread, the only place with a trainer and with tensors |
//! | `verify` | what a signed document must pass before anything it names is touched |
//! | `time` | the coordinator's time, by which its documents are judged |
//! | `events`, `state` | what survives a restart |
//! | `ending` | what is waited for at the end |

mod asker;
mod assets;
mod at_hand;
mod commands;
pub mod config;
pub mod devices;
mod ending;
mod engine;
mod events;
pub mod launch;
mod library;
mod meter;
pub mod program;
mod sample;
pub mod service;
mod shelf;
mod state;
mod time;
mod trainers;
mod unit;
mod verify;
