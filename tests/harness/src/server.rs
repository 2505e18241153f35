//! A nats-server with a test's own configuration, for tests of one service against the broker
//! alone.

use std::path::Path;

use tempfile::TempDir;

use crate::broker;
use crate::process::Process;

/// A nats-server. Dropping it ends the server.
#[derive(Debug)]
pub struct NatsServer {
    process: Process,
    address: String,
    // The last field, so that nothing runs in the folder when it is removed.
    scratch: TempDir,
}

impl NatsServer {
    /// Starts a server in a folder that holds the files that `config` includes. `config` says
    /// everything but the address to listen on, which the system chooses.
    ///
    /// # Panics
    /// It does not become ready.
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

    /// Starts the server again in its folder and at its address, and waits until it can be used.
    ///
    /// # Panics
    /// It does not become ready.
    pub async fn restart(&mut self) {
        self.process.restart().await;
    }
}
