//! A nats-server with a test's own configuration, for tests that need a broker but no other
//! process.

use std::path::Path;

use tempfile::TempDir;

use crate::broker;
use crate::process::Process;

/// A nats-server. Dropping it ends the server.
#[derive(Debug)]
pub struct NatsServer {
    process: Process,
    address: String,
    // The last field: fields are dropped in their order, so the server ends before its folder is
    // removed.
    scratch: TempDir,
}

impl NatsServer {
    /// Starts a server in the folder `scratch`, which holds the files that `config` includes.
    /// `config` says everything but the address: the server listens on 127.0.0.1, on a port that
    /// the system chooses.
    ///
    /// # Panics
    /// A file cannot be written, or the server does not become ready.
    pub async fn start(scratch: TempDir, config: &str) -> Self {
        broker::write(
            &scratch.path().join("server.conf"),
            &format!("include \"listen.conf\"\n{config}"),
        );
        let (process, port) = broker::launch(scratch.path(), "server.conf", scratch.path()).await;
        Self {
            process,
            address: format!("127.0.0.1:{port}"),
            scratch,
        }
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.scratch.path()
    }

    /// Host and port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Ends it as a crash does.
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// Kills the server if it runs, starts it again in its folder and at its address, and waits
    /// until it can be used.
    ///
    /// # Panics
    /// It does not become ready.
    pub async fn restart(&mut self) {
        self.process.restart().await;
    }
}
