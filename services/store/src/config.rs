//! The configuration of a store, as valid values.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use identity::StoreKeys;
use schemas::Bytes;
use schemas::limits::OBJECT_BYTES_MAX;
use serde::{Deserialize, Serialize};

/// A store: its address, the folder of its objects, and its access keys.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The address to listen on; port 0 takes any free port.
    pub listen: SocketAddr,
    /// The folder of the objects; it is made if it is missing.
    pub root: PathBuf,
    /// The three access keys.
    pub keys: StoreKeys,
    /// The certificate.
    pub tls: Tls,
    /// The crash that an answered upload survives.
    pub durability: Durability,
    /// Bounds.
    pub limits: StoreLimits,
}

/// The protection of connections.
#[derive(Clone, Debug)]
pub enum Tls {
    /// TLS 1.3, with a certificate chain and its private key, both PEM.
    Files {
        /// The chain, own certificate first.
        certificate: PathBuf,
        /// The private key, for nobody else to read.
        key: PathBuf,
        /// The certificate of the authority of clients. With it the store takes only clients that
        /// show a certificate of that authority, and a URL only from the holder that it names.
        clients: Option<PathBuf>,
    },
    /// No TLS; the store then listens on loopback only.
    PlainLoopback,
}

/// The crash that an upload survives once it was answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// A power failure: file and folder are synced before the answer. An upload into `incoming` is
    /// synced before it is promoted.
    #[default]
    Always,
    /// The end of the process, but not that of the machine: the kernel decides when it writes.
    Kernel,
}

/// Bounds of a store.
#[derive(Clone, Debug)]
pub struct StoreLimits {
    /// Connections that are served at a time; others wait in the kernel's queue.
    pub connections_max: usize,
    /// The share of these that a single peer may hold, in percent; further ones are closed at once.
    /// If other peers hold connections, the share is taken of the rest.
    pub connections_peer_percent: u8,
    /// Longest silence of a peer during a request, and longest wait for the next request.
    pub idle: Duration,
    /// Largest object.
    pub object_bytes_max: Bytes,
    /// Free space on the disk below which uploads are refused.
    pub free_bytes_min: Bytes,
    /// Age at which objects of `incoming` are swept.
    pub incoming_life: Duration,
    /// Time between sweeps.
    pub sweep_every: Duration,
    /// Time that requests in progress may take to end at shutdown.
    pub drain: Duration,
}

impl Default for StoreLimits {
    fn default() -> Self {
        Self {
            // A worker holds about 16 connections at most; each costs some 100 KiB.
            connections_max: 512,
            // Many workers may share one address, and even then another address finds a place.
            connections_peer_percent: 50,
            // Longer than the 25 s of the clients' pooled connections, so that the clients close
            // first.
            idle: Duration::from_secs(40),
            object_bytes_max: OBJECT_BYTES_MAX,
            free_bytes_min: Bytes::mebi(256),
            incoming_life: Duration::from_secs(3 * 24 * 3600),
            sweep_every: Duration::from_secs(600),
            drain: Duration::from_secs(10),
        }
    }
}
