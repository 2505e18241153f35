//! A nats-server with a configuration of the test's own, for tests of one service against the
//! broker alone.

use std::path::Path;

use tempfile::TempDir;

use crate::broker;
use crate::process::Process;

/// A nats-server. It ends when this is dropped.
#[derive(Debug)]
pub struct NatsServer {
    process: Process,
    address: String,
    // Last, so that nothing runs in the folder when it is removed.
    scratch: TempDir,
}

impl NatsServer {
    /// Starts it in a folder that holds what `config` includes. `config` says everything but where
    /// the server listens; the system chooses that.
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

    /// Starts it again where it was, and waits until it can be used.
    ///
    /// # Panics
    /// It does not become ready.
    pub async fn restart(&mut self) {
        self.process.restart().await;
    }
}
