//! A real broker with a domain of its own, which keeps its port and its files when it is started again.

use std::path::PathBuf;

use async_nats::HeaderMap;
use async_nats::jetstream::{self, stream};
use harness::{NatsServer, PATIENCE};
use identity::domain::LIFETIME_DEFAULT;
use identity::{AuditKey, Domain, InitOptions};
use runtime::{Bus, BusConfig, clock};
use schemas::WorkerId;
use schemas::event::{KEY_HEADER, SIGNATURE_HEADER};
use schemas::permission::Role;
use schemas::subject::AUDIT_STREAM;

use crate::scribe::{Said, Scribe, run};

pub(crate) struct Broker {
    server: NatsServer,
    pub(crate) url: String,
    pub(crate) domain: Domain,
}

/// Who writes events, connected.
pub(crate) struct Cast {
    pub(crate) coordinator: Bus,
    pub(crate) ledger: Scribe,
    pub(crate) worker_bus: Bus,
    pub(crate) worker: WorkerId,
    pub(crate) worker_key: AuditKey,
    pub(crate) account_chain: Scribe,
}

impl Broker {
    pub(crate) async fn start() -> Self {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let now = clock::now();
        let domain = Domain::init(&scratch.path().join(".diloco"), &InitOptions::default(), now).expect("a fresh name");
        domain.write_server_config(&scratch.path().join("generated"), now).expect("a fresh name");
        for role in [Role::Coordinator, Role::Auditor, Role::Provisioner] {
            domain.issue(role, role.name(), None, LIFETIME_DEFAULT, now).expect("a fresh name");
        }
        let config = "include \"generated/auth.conf\"\ninclude \"generated/tls.conf\"\n\
                      jetstream { store_dir: \"js\", sync_interval: always }\n";
        let server = NatsServer::start(scratch, config).await;
        Self { url: format!("tls://{}", server.address()), server, domain }
    }

    /// Kills it, and starts it again where it was.
    pub(crate) async fn crash(&mut self) {
        self.server.restart().await;
    }

    /// A path in its folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.server.folder().join(name)
    }

    pub(crate) async fn bus(&self, name: &str) -> Bus {
        let layout = self.domain.layout();
        let config = BusConfig { url: self.url.clone(), credentials: layout.credentials(name), ca: layout.ca() };
        Bus::connect(name, &config, clock::now()).await.expect("its own domain")
    }

    /// Creates stream `AUDIT`, with less protection than in production so that tests can tamper with it.
    pub(crate) async fn create_stream(&self) -> jetstream::Context {
        let context = jetstream::new(self.bus(Role::Provisioner.name()).await.client().clone());
        let config = stream::Config {
            name: AUDIT_STREAM.to_owned(),
            subjects: vec!["diloco.event.>".to_owned()],
            ..stream::Config::default()
        };
        context.create_stream(config).await.expect("the provisioner may");
        context
    }

    pub(crate) async fn cast(&self) -> Cast {
        let issued =
            self.domain.issue(Role::Worker, "w1", Some(&run()), LIFETIME_DEFAULT, clock::now()).expect("a fresh name");
        let worker_key = AuditKey::read(&issued.audit_key.expect("workers sign events")).expect("just issued");
        let ledger_key = AuditKey::read(&self.domain.layout().coordinator_audit_key()).expect("a fresh name");
        let domain = self.domain.trust().domain.as_str();
        Cast {
            coordinator: self.bus(Role::Coordinator.name()).await,
            ledger: Scribe::new(domain, ledger_key),
            worker_bus: self.bus("w1").await,
            worker: issued.public.as_str().parse().expect("a name or key"),
            account_chain: Scribe::new(domain, worker_key.clone()),
            worker_key,
        }
    }
}

/// Publishes an event and waits until the stream has it.
pub(crate) async fn publish(bus: &Bus, said: &Said) {
    let mut headers = HeaderMap::new();
    headers.insert(KEY_HEADER, said.key.as_str());
    headers.insert(SIGNATURE_HEADER, said.signature.as_str());
    let answer = bus.request_raw(&said.subject, headers, said.body.clone().into(), PATIENCE).await.expect("a PubAck");
    let answer: serde_json::Value = serde_json::from_slice(&answer).expect("it is JSON");
    assert_eq!(answer["stream"], AUDIT_STREAM, "{answer}");
}
