//! A real broker with a domain of its own; it keeps its port and its files when it is restarted.

use std::path::PathBuf;

use async_nats::HeaderMap;
use async_nats::jetstream::{self, stream};
use harness::{NatsServer, PATIENCE};
use identity::domain::LIFETIME_DEFAULT;
use identity::{AuditKey, Domain, InitOptions};
use runtime::{Bus, BusConfig, StreamReader, clock};
use schemas::account::{Account, Copied};
use schemas::permission::Role;
use schemas::subject::{AUDIT_STREAM, Lane, SECURITY_STREAM};
use schemas::{Message as _, WorkerId};

use crate::chain_writer::{ChainWriter, WrittenEvent, run};

/// The pause between two checks for new messages in the copy.
const LOOK_EVERY: std::time::Duration = std::time::Duration::from_millis(20);

pub(crate) struct Broker {
    server: NatsServer,
    pub(crate) url: String,
    pub(crate) domain: Domain,
}

/// The connected writers of events.
pub(crate) struct Cast {
    ledger_bus: Bus,
    pub(crate) ledger: ChainWriter,
    recorder_bus: Bus,
    /// The readers' stream, and the position up to which it was read.
    copies: StreamReader,
    copied: u64,
    pub(crate) worker: WorkerId,
    pub(crate) worker_key: AuditKey,
    pub(crate) account_chain: ChainWriter,
}

impl Broker {
    pub(crate) async fn start() -> Self {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let now = clock::now();
        let domain = Domain::init(
            &scratch.path().join(".diloco"),
            &InitOptions::default(),
            now,
        )
        .expect("a fresh name");
        domain
            .write_server_config(&scratch.path().join("generated"), now)
            .expect("a fresh name");
        for role in Role::ALL.into_iter().filter(|role| !role.is_tenant()) {
            domain
                .issue(role, role.name(), None, LIFETIME_DEFAULT, now)
                .expect("a fresh name");
        }
        let config = "include \"generated/auth.conf\"\ninclude \"generated/resolver.conf\"\ninclude \"generated/tls.conf\"\n\
                      jetstream { store_dir: \"js\", sync_interval: always }\n";
        let server = NatsServer::start(scratch, config).await;
        Self {
            url: format!("tls://{}", server.address()),
            server,
            domain,
        }
    }

    /// Kills the broker, and starts it again at the same place.
    pub(crate) async fn crash(&mut self) {
        self.server.restart().await;
    }

    /// A path in the domain's folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.server.folder().join(name)
    }

    pub(crate) async fn bus(&self, name: &str) -> Bus {
        let layout = self.domain.layout();
        let config = BusConfig {
            url: self.url.clone(),
            credentials: layout.credentials(name),
            ca: layout.ca(),
        };
        Bus::connect(name, &config, clock::now())
            .await
            .expect("its own domain")
    }

    /// Creates the streams of events, with less protection than in production, so that tests can
    /// tamper with them. Returns the account of the readers' stream.
    pub(crate) async fn create_streams(&self) -> jetstream::Context {
        let mut sources = Vec::new();
        for copied in Copied::all(&self.domain.trust().tenants) {
            let lane = match (copied.home, copied.stream.as_str()) {
                (Account::Ledger, _) => Lane::Ledger,
                (_, SECURITY_STREAM) => Lane::Security,
                _ => Lane::Record,
            };
            let config = stream::Config {
                name: copied.stream.clone(),
                subjects: vec![format!("{}.>", lane.prefix())],
                ..stream::Config::default()
            };
            self.provision(copied.home)
                .await
                .create_stream(config)
                .await
                .expect("the provisioner may");
            let external = stream::External {
                api_prefix: copied.api(),
                delivery_prefix: Some(copied.delivery()),
            };
            sources.push(stream::Source {
                name: copied.stream,
                external: Some(external),
                ..stream::Source::default()
            });
        }
        let context = self.provision(Account::Audit).await;
        let sources = Some(sources);
        let config = stream::Config {
            name: AUDIT_STREAM.to_owned(),
            sources,
            allow_direct: true,
            ..stream::Config::default()
        };
        context
            .create_stream(config)
            .await
            .expect("the provisioner may");
        context
    }

    async fn provision(&self, account: Account) -> jetstream::Context {
        let role = Role::provisioner(account).expect("it has streams");
        jetstream::new(self.bus(role.name()).await.client().clone())
    }

    async fn copies(&self) -> StreamReader {
        StreamReader::new(self.bus(Role::AuditProvisioner.name()).await, AUDIT_STREAM)
    }

    pub(crate) async fn cast(&self) -> Cast {
        let issued = self
            .domain
            .issue(
                Role::Worker,
                "w1",
                Some(&run()),
                LIFETIME_DEFAULT,
                clock::now(),
            )
            .expect("a fresh name");
        let worker_key =
            AuditKey::read(&issued.audit_key.expect("workers sign events")).expect("just issued");
        let ledger_key =
            AuditKey::read(&self.domain.layout().coordinator_audit_key()).expect("a fresh name");
        let domain = self.domain.trust().domain.as_str();
        Cast {
            ledger_bus: self.bus(Role::LedgerWriter.name()).await,
            copies: self.copies().await,
            copied: 0,
            ledger: ChainWriter::new(domain, ledger_key),
            recorder_bus: self.bus(Role::Recorder.name()).await,
            worker: issued.public.as_str().parse().expect("a name or key"),
            account_chain: ChainWriter::new(domain, worker_key.clone()),
            worker_key,
        }
    }
}

impl Cast {
    /// Publishes an event, and waits until readers have it.
    pub(crate) async fn publish(&mut self, said: &WrittenEvent) {
        let bus = if said.subject.starts_with(Lane::Ledger.prefix()) {
            &self.ledger_bus
        } else {
            &self.recorder_bus
        };
        let payload = said.event.encode().into();
        let answer = bus
            .request_raw(&said.subject, HeaderMap::new(), payload, PATIENCE)
            .await;
        let answer: serde_json::Value =
            serde_json::from_slice(&answer.expect("a PubAck")).expect("it is JSON");
        assert!(answer["seq"].as_u64().is_some(), "{answer}");
        // Events are published one after another, so the next one in the copy is this one. The
        // broker may be away for a while.
        let copied = async {
            loop {
                match self.copies.next(self.copied + 1).await {
                    Ok(Some(message)) => return message,
                    _ => tokio::time::sleep(LOOK_EVERY).await,
                }
            }
        };
        let copy = tokio::time::timeout(PATIENCE, copied)
            .await
            .expect("it is copied");
        assert_eq!(copy.subject, said.subject);
        self.copied = copy.sequence;
    }

    /// Publishes an event that the coordinator may emit at any time.
    pub(crate) async fn remark(&mut self) {
        let said = self.ledger.remark();
        self.publish(&said).await;
    }
}
