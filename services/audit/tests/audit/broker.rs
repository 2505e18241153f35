//! A real broker with a domain of its own, which keeps its port and its files when it is started again.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::{self, stream};
use identity::domain::LIFETIME_DEFAULT;
use identity::{AuditKey, Domain, InitOptions};
use runtime::{Bus, BusConfig, clock};
use schemas::WorkerId;
use schemas::event::{KEY_HEADER, SIGNATURE_HEADER};
use schemas::permission::Role;
use schemas::subject::AUDIT_STREAM;

use crate::scribe::{Said, Scribe, run};

/// Longer than anything here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Broker {
    child: Child,
    config: PathBuf,
    pub(crate) url: String,
    pub(crate) domain: Domain,
    pub(crate) scratch: tempfile::TempDir,
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

fn binary() -> PathBuf {
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.deps/nats/nats-server");
    let path = std::env::var_os("NATS_SERVER_BIN").map_or(bundled, PathBuf::from);
    assert!(path.exists(), "no nats-server at {}; run `cargo xtask deps`, or set NATS_SERVER_BIN", path.display());
    path
}

impl Broker {
    pub(crate) fn start() -> Self {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let now = clock::now();
        let domain = Domain::init(&scratch.path().join(".diloco"), &InitOptions::default(), now).expect("a fresh name");
        domain.write_server_config(&scratch.path().join("generated"), now).expect("a fresh name");
        for role in [Role::Coordinator, Role::Auditor, Role::Provisioner] {
            domain.issue(role, role.name(), None, LIFETIME_DEFAULT, now).expect("a fresh name");
        }
        let config = scratch.path().join("server.conf");
        let (child, port) = launch(&config, scratch.path(), "-1");
        Self { child, config, url: format!("tls://127.0.0.1:{port}"), domain, scratch }
    }

    /// Kills it, and starts it again where it was.
    pub(crate) fn crash(&mut self) {
        self.child.kill().expect("the process is ours");
        self.child.wait().expect("the process is ours");
        let port = self.url.rsplit(':').next().expect("splitting gives a part").to_owned();
        (self.child, _) = launch(&self.config, self.scratch.path(), &port);
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

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
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

/// Starts the server and waits until it can be used; gives its port.
fn launch(config: &Path, scratch: &Path, port: &str) -> (Child, String) {
    let text = format!(
        "listen: \"127.0.0.1:{port}\"\ninclude \"generated/auth.conf\"\ninclude \"generated/tls.conf\"\n\
         jetstream {{ store_dir: \"{}/js\", sync_interval: always }}\n",
        scratch.display()
    );
    fs::write(config, text).expect("the folder is ours");
    let mut child =
        Command::new(binary()).arg("-c").arg(config).stderr(Stdio::piped()).spawn().expect("the process is ours");
    let mut log = BufReader::new(child.stderr.take().expect("it is piped"));
    let (mut port, mut seen) = (None, String::new());
    loop {
        let mut line = String::new();
        let bytes = log.read_line(&mut line).expect("the broker logs text");
        assert!(bytes > 0, "the broker ended:\n{seen}");
        if let Some((_, rest)) = line.split_once("Listening for client connections on 127.0.0.1:") {
            port = Some(rest.trim().to_owned());
        }
        if line.contains("Server is ready") {
            break;
        }
        seen.push_str(&line);
    }
    // A full pipe would stop the broker.
    std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
    (child, port.expect("it said where it listens"))
}
