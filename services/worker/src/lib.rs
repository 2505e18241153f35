//! The worker's shell: connects the pure core in `services/worker/core` with NATS, the store, the
//! disk and the training thread.
//!
//! | file | holds |
//! | --- | --- |
//! | [`program`], [`config`], [`launch`] | the way from the command line to the loop, and variables that libraries read before `main` |
//! | [`service`] | the loop: inputs to the core, effects to the world |
//! | `asker`, `commands` | requests to the coordinator, and commands from it |
//! | `object_client`, `lease_urls`, `shard_cache`, `assets`, `unit` | objects, and a unit's way from fetch to upload |
//! | `engine` | the training thread, the only place with a trainer and with tensors |
//! | `trainers`, [`devices`], `sample` | the trainers of this build, their devices, and text from a model |
//! | `masking` | a worker's part in the masks of a round |
//! | `verify`, `replays` | the checks of a signed document, before anything that it names is used; each counts once |
//! | `time` | the coordinator's time, by which its documents are judged |
//! | `events`, `state` | the chain of events, and the files that survive a restart |
//! | `outbox`, `witness` | events that no verified head covers yet, and what this worker knows of the log |
//! | `meter` | what a heartbeat tells of the work |
//! | `ending` | the waits at the end |

mod asker;
mod assets;
mod commands;
pub mod config;
pub mod devices;
mod ending;
mod engine;
mod events;
pub mod launch;
mod lease_urls;
mod masking;
mod meter;
mod object_client;
mod outbox;
pub mod program;
mod replays;
mod sample;
pub mod service;
mod shard_cache;
mod state;
mod time;
mod trainers;
mod unit;
mod verify;
mod witness;
