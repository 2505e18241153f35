//! The simulator: the real cores of coordinator and workers on a simulated bus, queue, store and
//! clock. One seed decides everything: how long each message takes, which are lost or come twice,
//! and which processes crash and come back, and when.
//!
//! | file | stands for |
//! | --- | --- |
//! | `random` | all randomness, from the seed |
//! | `plan` | the run, the number of workers and the faults of a seed |
//! | `world` | time, the bus, and the order of what happens |
//! | `coordinator`, `worker` | the shells around the two cores, with their processes' crashes |
//! | `foundry` | the coordinator's orders about weights, each done after a while |
//! | `comparison` | the directions of contributions |
//! | `checkpoint` | the ledger's state as an object, and starts from it |
//! | `queue` | the JetStream work queue with its redeliveries and losses |
//! | `store` | objects by digest, and the merge as a reference model on digests |
//! | `keys` | the key that signs the ledger, and the next one beside it |
//! | `revocation` | an operator who revokes a key, and issues it anew |
//! | `masks` | a worker's part in secure aggregation |
//! | `monitor` | invariants after every event, from the ledger without the core's own fold |
//!
//! While faults last anything may fail; after that nothing does, and the run must end. [`simulate`]
//! panics when something does not hold; print the seed before calling it.

mod checkpoint;
mod collection;
mod comparison;
mod coordinator;
mod counts;
mod ending;
mod foundry;
mod keys;
mod masks;
mod monitor;
mod plan;
mod privacy;
mod provenance;
mod queue;
mod random;
mod revocation;
mod store;
mod worker;
mod world;

pub use counts::Counts;
pub use world::{
    Report, simulate, simulate_collections, simulate_lists, simulate_long_seal,
    simulate_lost_grants, simulate_masked, simulate_restores, simulate_rotations,
};
