//! A real stream for a ledger, which syncs every write, and the keys of its writer.

use std::time::Duration;

use anyhow::{Context as _, Result};
use async_nats::jetstream::{self, stream};
use diloco_coordinator::Ledger;
use harness::NatsServer;
use identity::{AuditKey, ManifestKey, TrustBundle};
use runtime::{Bus, BusConfig, clock};
use schemas::subject::{LEDGER_FILTER, LEDGER_STREAM};

/// The longest wait for a broker that does not answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A stream for a ledger, on a server of its own.
pub(crate) struct LedgerStream {
    _server: NatsServer,
    pub(crate) bus: Bus,
    pub(crate) trust: TrustBundle,
    key: AuditKey,
}

impl LedgerStream {
    /// A new server with an empty stream.
    pub(crate) async fn open() -> Result<Self> {
        let scratch = tempfile::tempdir().context("no scratch folder")?;
        let config = "jetstream { store_dir: \"data\", sync_interval: always }\n";
        let server = NatsServer::start(scratch, config).await;
        let config = BusConfig {
            url: format!("nats://{}", server.address()),
            ..BusConfig::default()
        };
        let key = AuditKey::generate();
        let opened = Self {
            _server: server,
            bus: Bus::connect("bench", &config, clock::now()).await?,
            trust: kit::trust(ManifestKey::generate().public(), key.public()),
            key,
        };
        let stream = stream::Config {
            name: LEDGER_STREAM.into(),
            subjects: vec![LEDGER_FILTER.into()],
            allow_atomic_publish: true,
            ..stream::Config::default()
        };
        opened.create(stream).await?;
        Ok(opened)
    }

    /// Creates one more stream on the server.
    pub(crate) async fn create(&self, stream: stream::Config) -> Result<()> {
        let jetstream = jetstream::new(self.bus.client().clone());
        let made = jetstream.create_stream(stream).await;
        made.context("the server takes no stream")?;
        Ok(())
    }

    /// A ledger in the stream, of which nothing was read yet.
    pub(crate) fn ledger(&self) -> Ledger {
        let (key, trust) = (self.key.clone(), self.trust.clone());
        Ledger::new(self.bus.clone(), key, trust, PATIENCE)
    }
}
