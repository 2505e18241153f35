//! The coordinator with a real broker: its ledger alone, and the whole coordinator as a process.

mod batches;
mod checkpoints;
mod heads;
mod ledger;
mod lists;
mod provenance;
mod reading;
mod run;
mod scene;
mod server;
mod succession;
