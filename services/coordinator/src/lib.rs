//! The coordinator's shell: it feeds the core from the bus, the queue, the store and the clock, and
//! carries out what the core asks for.
//!
//! | file | holds |
//! | --- | --- |
//! | `service` | building and running everything |
//! | `shell` | the decision loop: inputs in, effects out, in order |
//! | `incoming`, `serve`, `answer` | messages from the bus, with their senders, and the answers |
//! | `arrival` | inputs that wait for the loop |
//! | `allowance` | the requests that a worker may send |
//! | `guard` | turns a panic of awaited work into its outcome |
//! | `ledger` | the signed chain in stream `LEDGER`, fenced by its last sequence |
//! | `heads` | follows the log of all events: which events of the ledger a verified head covers |
//! | `mark` | the known end of the ledger, kept apart from the ledger |
//! | `queue` | offers: publish, pull, settle, hold |
//! | `store`, `grants` | the store, and URLs to it for others |
//! | `stopped`, `purge` | whose URLs the store refuses, and the deletion of their uploads |
//! | `leading` | this process still leads |
//! | `check` | a new run's objects |
//! | `checkpoint` | the ledger's state as an object: written now and then, read at a start |
//! | `sweep` | the deletion of uploads that nothing uses any more |
//! | `signer` | the key that signs leases and commands |
//! | `telemetry`, `workers` | traces and metrics, of this process and of workers |
//! | `program`, `config` | the command line and the configuration |
//! | `collection` | old objects: what the ledger names and nothing needs, and its deletion |
//! | `foundry` | a run's weights and the bytes of its results: check, merge, save, restore |

mod allowance;
mod answer;
mod arrival;
mod check;
mod checkpoint;
mod collection;
mod config;
mod foundry;
mod grants;
mod guard;
mod heads;
mod incoming;
mod leading;
mod ledger;
mod mark;
pub mod program;
mod purge;
mod queue;
mod serve;
mod service;
mod shell;
mod signer;
mod stopped;
mod store;
mod sweep;
mod telemetry;
mod workers;

pub use config::{Config, KeysConfig, LimitsConfig, StoreConfig};
pub use ledger::{Ledger, LedgerError, Marked, Named, NewEvent};
pub use mark::LedgerMark;
pub use service::Service;
