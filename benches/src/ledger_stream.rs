//! The streams of a trust domain with its real accounts, on a broker that syncs every write: the
//! ledger, and the copy that readers ask. Connections are plain, as the measurements were from the
//! start.

use std::time::Duration;

use anyhow::{Context as _, Result};
use async_nats::jetstream::{self, stream};
use diloco_coordinator::Ledger;
use harness::NatsServer;
use identity::domain::LIFETIME_DEFAULT;
use identity::{AuditKey, Domain, InitOptions, TrustBundle};
use runtime::{Bus, BusConfig, clock};
use schemas::account::Copied;
use schemas::permission::Role;
use schemas::subject::{AUDIT_STREAM, LEDGER_FILTER, LEDGER_STREAM};

/// The longest wait for a broker that does not answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A stream for a ledger, on a server of its own.
pub(crate) struct LedgerStream {
    server: NatsServer,
    domain: Domain,
    writer: Bus,
    pub(crate) trust: TrustBundle,
    key: AuditKey,
}

impl LedgerStream {
    /// A new server with an empty stream.
    pub(crate) async fn open() -> Result<Self> {
        let scratch = tempfile::tempdir().context("no scratch folder")?;
        let (folder, now) = (scratch.path().join(".diloco"), clock::now());
        let domain = Domain::init(&folder, &InitOptions::default(), now)?;
        domain.write_server_config(&scratch.path().join("generated"), now)?;
        let config = "include \"generated/auth.conf\"\ninclude \"generated/resolver.conf\"\n\
                      jetstream { store_dir: \"data\", sync_interval: always }\n";
        let server = NatsServer::start(scratch, config).await;
        let key = AuditKey::read(&domain.layout().coordinator_audit_key())?;
        let opened = Self {
            writer: connect(&server, &domain, Role::LedgerWriter).await?,
            trust: domain.trust().clone(),
            server,
            domain,
            key,
        };
        let stream = stream::Config {
            name: LEDGER_STREAM.into(),
            subjects: vec![LEDGER_FILTER.into()],
            allow_atomic_publish: true,
            ..stream::Config::default()
        };
        opened.create(Role::LedgerProvisioner, stream).await?;
        Ok(opened)
    }

    /// Makes the readers' copy of the ledger, and a connection on which an auditor reads it.
    pub(crate) async fn copy(&self) -> Result<Bus> {
        let copied = Copied::all(&[]).into_iter();
        let copied = copied.filter(|one| one.stream == LEDGER_STREAM);
        let source = copied.map(|copied| stream::Source {
            external: Some(stream::External {
                api_prefix: copied.api(),
                delivery_prefix: Some(copied.delivery()),
            }),
            name: copied.stream,
            ..stream::Source::default()
        });
        let copy = stream::Config {
            name: AUDIT_STREAM.into(),
            sources: Some(source.collect()),
            allow_direct: true,
            ..stream::Config::default()
        };
        self.create(Role::AuditProvisioner, copy).await?;
        connect(&self.server, &self.domain, Role::Auditor).await
    }

    async fn create(&self, role: Role, stream: stream::Config) -> Result<()> {
        let bus = connect(&self.server, &self.domain, role).await?;
        let jetstream = jetstream::new(bus.client().clone());
        let made = jetstream.create_stream(stream).await;
        made.context("the server takes no stream")?;
        Ok(())
    }

    /// A ledger in the stream, of which nothing was read yet.
    pub(crate) fn ledger(&self) -> Ledger {
        let (key, trust) = (self.key.clone(), self.trust.clone());
        Ledger::new(self.writer.clone(), key, trust, PATIENCE)
    }
}

/// Connects with credentials that are issued for this.
async fn connect(server: &NatsServer, domain: &Domain, role: Role) -> Result<Bus> {
    let now = clock::now();
    let issued = domain.issue(role, role.name(), None, LIFETIME_DEFAULT, now)?;
    let config = BusConfig {
        url: format!("nats://{}", server.address()),
        credentials: issued.credentials,
        ..BusConfig::default()
    };
    Ok(Bus::connect("bench", &config, now).await?)
}
