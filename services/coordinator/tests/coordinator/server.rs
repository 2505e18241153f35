//! A real nats-server without accounts: these tests are about the ledger, and not about the
//! permission to write it.

use std::net::SocketAddr;
use std::time::Duration;

use async_nats::jetstream::{self, stream};
use harness::NatsServer;
use runtime::{Bus, BusConfig, clock};
use schemas::subject::{LEDGER_FILTER, LEDGER_STREAM};

pub(crate) struct Server {
    process: NatsServer,
}

impl Server {
    pub(crate) async fn start() -> Self {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let config = "jetstream { store_dir: \"data\", sync_interval: always }\n";
        let server = Self {
            process: NatsServer::start(scratch, config).await,
        };
        let bus = server.bus().await;
        let config = stream::Config {
            name: LEDGER_STREAM.into(),
            subjects: vec![LEDGER_FILTER.into()],
            deny_delete: true,
            deny_purge: true,
            duplicate_window: Duration::from_millis(100),
            allow_atomic_publish: true,
            ..stream::Config::default()
        };
        jetstream::new(bus.client().clone())
            .create_stream(config)
            .await
            .expect("a new server takes a stream");
        server
    }

    /// Ends it as a crash would.
    pub(crate) fn kill(&mut self) {
        self.process.kill9();
    }

    pub(crate) async fn restart(&mut self) {
        self.process.restart().await;
    }

    pub(crate) fn address(&self) -> SocketAddr {
        let address = self.process.address();
        address.parse().expect("an address")
    }

    pub(crate) async fn bus(&self) -> Bus {
        self.bus_at(self.address()).await
    }

    /// A connection over `address`, which leads to this server.
    pub(crate) async fn bus_at(&self, address: SocketAddr) -> Bus {
        let config = BusConfig {
            url: format!("nats://{address}"),
            ..BusConfig::default()
        };
        Bus::connect("test", &config, clock::now())
            .await
            .expect("a server without accounts takes everybody")
    }
}
