//! A real nats-server in a scratch folder, without accounts: what is tested here is the ledger, not who may write it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, stream};
use runtime::{Bus, BusConfig, clock};
use schemas::subject::AUDIT_STREAM;

pub(crate) struct Server {
    scratch: tempfile::TempDir,
    child: Child,
    port: u16,
}

fn binary() -> PathBuf {
    let pinned = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.deps/nats/nats-server");
    std::env::var_os("NATS_SERVER_BIN").map_or(pinned, PathBuf::from)
}

impl Server {
    pub(crate) async fn start() -> Self {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        // Asked of the system and given back at once: the server has to come back on the same port.
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = free.local_addr().expect("it is bound").port();
        drop(free);
        let config = format!(
            "listen: 127.0.0.1:{port}\njetstream {{ store_dir: {:?}, sync_interval: always }}\n",
            scratch.path().join("data")
        );
        std::fs::write(scratch.path().join("nats.conf"), config).expect("the scratch folder takes files");
        let child = spawn(scratch.path());
        let server = Self { scratch, child, port };
        let bus = server.bus().await;
        let config = stream::Config {
            name: AUDIT_STREAM.into(),
            subjects: vec!["diloco.event.>".into()],
            deny_delete: true,
            deny_purge: true,
            duplicate_window: Duration::from_millis(100),
            ..stream::Config::default()
        };
        jetstream::new(bus.client().clone()).create_stream(config).await.expect("a new server takes a stream");
        server
    }

    /// Ends it as a crash would.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it was killed");
    }

    pub(crate) fn restart(&mut self) {
        self.child = spawn(self.scratch.path());
    }

    pub(crate) async fn bus(&self) -> Bus {
        let config = BusConfig { url: format!("nats://127.0.0.1:{}", self.port), ..BusConfig::default() };
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match Bus::connect("test", &config, clock::now()).await {
                Ok(bus) => return bus,
                Err(error) if Instant::now() > deadline => panic!("nats-server does not answer: {error}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }
}

fn spawn(folder: &Path) -> Child {
    let log = std::fs::File::create(folder.join("nats.log")).expect("the scratch folder takes files");
    Command::new(binary())
        .arg("-c")
        .arg(folder.join("nats.conf"))
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("nats-server starts; run `cargo xtask deps` or set NATS_SERVER_BIN")
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
