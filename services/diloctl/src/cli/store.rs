//! Words of `store`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(crate) enum Store {
    /// Try whether the store keeps the rules that uploads and presigned URLs depend on: wrong bytes
    /// are refused, a URL does what it was made for and nothing else, each key has its own rights.
    /// A few small objects are written and removed. Fails with DL0669 if the store breaks a rule
    /// that it may not break; what the others mean stands beside them. The coordinator does the
    /// same at its start, unless `store.check` is false.
    Check(StoreCheck),
}

#[derive(Debug, Args)]
pub(crate) struct StoreCheck {
    /// Address of the store, instead of the domain's. Without TLS only on this machine.
    #[arg(long, value_name = "URL")]
    pub(crate) url: Option<String>,
    /// File of the store's access keys, instead of the coordinator's.
    #[arg(long, value_name = "FILE")]
    pub(crate) keys: Option<PathBuf>,
    /// Certificate authority of the store, PEM, instead of the domain's.
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// Region that signatures name.
    #[arg(long, default_value = "us-east-1")]
    pub(crate) region: String,
}
