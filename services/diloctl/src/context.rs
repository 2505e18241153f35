//! The tools that commands share: the trust domain on disk, connections, and requests to the
//! coordinator.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use identity::secret::write_private;
use identity::{ClientFile, Domain, DomainLock};
use objects::Trust;
use runtime::{Bus, BusConfig, Failure, clock};
use schemas::call::{Call, ControlVerb, control as call, control_subject};
use schemas::control::{Query, View, ViewRequest};
use schemas::permission::Role;
use schemas::view::WorkerView;
use schemas::{Code, Millis, PublicKey, RunId, V};
use serde::{Deserialize, Serialize};

use crate::cli::Global;
use crate::output::Printer;
use crate::stack::health::BrokerFault;
use crate::switches;

/// The addresses of broker and store; `up` writes them, every command reads them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Endpoints {
    /// Address of the NATS servers.
    pub(crate) bus: String,
    /// Address of the store.
    pub(crate) store: String,
}

/// A certificate with less than this left is made anew before a command uses it, if it can be.
const CERTIFICATE_LEFT_MIN: Millis = Millis::from_secs(3600);

/// The usual port of the broker.
pub(crate) const BUS_PORT: u16 = 4222;
/// The usual port of the store.
pub(crate) const STORE_PORT: u16 = 9000;

impl Default for Endpoints {
    fn default() -> Self {
        Self {
            bus: format!("tls://127.0.0.1:{BUS_PORT}"),
            store: format!("https://127.0.0.1:{STORE_PORT}"),
        }
    }
}

impl Endpoints {
    /// Reads the file under `folder`, or takes the usual addresses when there is none.
    pub(crate) fn read(folder: &Path) -> Result<Self, Failure> {
        let path = Self::path(folder);
        match std::fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).map_err(|error| {
                Failure::new(Code::ConfigInvalid, format!("{}: {error}", path.display()))
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(Failure::new(
                Code::ConfigInvalid,
                format!("{}: {error}", path.display()),
            )),
        }
    }

    pub(crate) fn write(&self, folder: &Path) -> Result<(), Failure> {
        let text = toml::to_string(self).map_err(|error| Failure::new(Code::Internal, error))?;
        write_private(&Self::path(folder), text.as_bytes()).map_err(Failure::from)
    }

    /// True if the address of the bus leads to the machine itself, whichever machine uses it.
    pub(crate) fn is_loopback(&self) -> bool {
        let rest = self
            .bus
            .split_once("://")
            .map_or(&*self.bus, |(_, rest)| rest);
        let host = match rest.strip_prefix('[') {
            Some(v6) => v6.split(']').next(),
            None => rest.split([':', '/']).next(),
        };
        let host = host.unwrap_or_default();
        let address = host.parse::<std::net::IpAddr>();
        host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    }

    fn path(folder: &Path) -> PathBuf {
        folder.join("endpoints.toml")
    }
}

/// Everything a command needs besides its own flags.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) folder: PathBuf,
    pub(crate) endpoints: Endpoints,
    /// The file that `--credentials` names, instead of the role's own.
    pub(crate) credentials: Option<PathBuf>,
    pub(crate) timeout: Duration,
    pub(crate) printer: Printer,
    /// Set once the warning about an open layer was printed: one warning for each command is
    /// enough. Clones share it.
    pub(crate) warned: Arc<AtomicBool>,
}

impl Context {
    pub(crate) fn new(global: &Global) -> Result<Self, Failure> {
        let mut endpoints = Endpoints::read(&global.domain)?;
        if let Some(bus) = &global.bus {
            endpoints.bus.clone_from(bus);
        }
        let printer = Printer::new(global.output);
        let (folder, credentials) = (global.domain.clone(), global.credentials.clone());
        Ok(Self {
            folder,
            endpoints,
            credentials,
            timeout: global.timeout.0,
            printer,
            warned: Arc::default(),
        })
    }

    pub(crate) fn domain(&self) -> Result<Domain, Failure> {
        Domain::open(&self.folder).map_err(Failure::from)
    }

    /// Locks the domain for changes by `command`. While another command holds the lock, this fails
    /// at once.
    pub(crate) fn lock(&self, command: &str) -> Result<DomainLock, Failure> {
        DomainLock::take(&self.folder, command).map_err(Failure::from)
    }

    /// Connects with the credentials that were chosen, or those of `role`, which `auth init` issued
    /// under the role's name.
    pub(crate) async fn bus(&self, role: Role) -> Result<Bus, Failure> {
        let layout = self.domain()?.layout().clone();
        let own = || layout.credentials(role.name());
        let credentials = self.credentials.clone().unwrap_or_else(own);
        if !credentials.exists() {
            let (file, role) = (credentials.display(), role.name());
            let text = format!(
                "{file} does not exist; `diloctl auth issue {role} {role}` makes the role's own"
            );
            return Err(Failure::new(Code::CredentialMissing, text));
        }
        let config = BusConfig {
            url: self.endpoints.bus.clone(),
            credentials,
            ca: layout.ca(),
        };
        self.check_bus(&config)?;
        self.certify(&config.credentials)?;
        Bus::connect("diloctl", &config, clock::now())
            .await
            .map_err(Failure::from)
    }

    /// The address of the broker whose accounts' tokens are replaced.
    pub(crate) fn accounts_url(&self) -> Result<String, Failure> {
        let config = BusConfig {
            url: self.endpoints.bus.clone(),
            ..BusConfig::default()
        };
        self.check_bus(&config)?;
        Ok(config.url)
    }

    /// Checks the address of the bus, and warns once of one without TLS. Without TLS nothing proves
    /// who the server is: a false one could pass our proof of identity on, and act in our name.
    pub(crate) fn check_bus(&self, config: &BusConfig) -> Result<(), Failure> {
        if let Some(warning) = switches::check_bus(config, std::env::vars_os())?
            && !self.warned.swap(true, Ordering::Relaxed)
        {
            self.printer.talk(&warning);
        }
        Ok(())
    }

    /// The protection that transfers need: TLS under the domain's authority, or none where the
    /// store's address and an open layer both say so.
    ///
    /// The client shows the certificate of the chosen credentials, or of `role`'s own.
    pub(crate) fn store_trust(
        &self,
        role: Role,
        environment: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<Trust, Failure> {
        if let Some(warning) = switches::check_store(&self.endpoints.store, environment)? {
            self.printer.talk(&warning);
            return Ok(Trust::PlainLoopback);
        }
        let layout = self.domain()?.layout().clone();
        let own = || layout.credentials(role.name());
        let credentials = self.credentials.clone().unwrap_or_else(own);
        self.certify(&credentials)?;
        let ca = layout.ca();
        std::fs::read(&ca).map_err(|error| {
            let text = format!("{}: {error}", ca.display());
            Failure::new(Code::CredentialMissing, text)
        })?;
        Ok(Trust::Shown(ca, ClientFile::beside(&credentials)))
    }

    /// Makes a new certificate for credentials whose own has ended or soon will, where the domain's
    /// keys are on this machine: no process of an operator runs long enough to have it renewed.
    fn certify(&self, credentials: &Path) -> Result<(), Failure> {
        if !credentials.exists() {
            return Ok(());
        }
        let made = self.domain()?;
        made.refresh_certificate(credentials, CERTIFICATE_LEFT_MIN, clock::now())?;
        Ok(())
    }

    /// Connects as the operator, ready to ask the coordinator.
    pub(crate) async fn operator(&self) -> Result<Operator, Failure> {
        let bus = self.bus(Role::Operator).await?;
        let public = bus.public().cloned().expect("connected with credentials");
        Ok(Operator {
            bus,
            public,
            timeout: self.timeout,
            folder: self.folder.clone(),
        })
    }
}

/// A connection on which an operator asks the coordinator.
#[derive(Clone, Debug)]
pub(crate) struct Operator {
    pub(crate) bus: Bus,
    public: PublicKey,
    timeout: Duration,
    /// The domain's folder. If a broker runs from there, its log may say why nobody answers.
    folder: PathBuf,
}

impl Operator {
    /// Sends one request and returns its answer.
    pub(crate) async fn ask<C: Call<Verb = ControlVerb>>(
        &self,
        question: &C::Request,
    ) -> Result<C::Reply, Failure> {
        let subject = control_subject(&self.public, C::VERB);
        self.bus
            .request(&subject, question, self.timeout)
            .await
            .map_err(|error| {
                // A coordinator that waits for the ledger does not answer.
                let trouble = Some(&error).filter(|error| error.code() == Code::NoAnswer);
                let trouble = trouble.and_then(|_| BrokerFault::of_broker(&self.folder));
                trouble.map_or_else(|| error.into(), |trouble| trouble.failure())
            })
    }

    /// Asks for one view.
    pub(crate) async fn view(&self, query: Query) -> Result<View, Failure> {
        let reply = self.ask::<call::View>(&ViewRequest { v: V, query }).await?;
        Ok(reply.view)
    }

    /// Asks for the workers of one run, present and past.
    pub(crate) async fn workers(&self, run: &RunId) -> Result<Vec<WorkerView>, Failure> {
        match self.view(Query::Workers(run.clone())).await? {
            View::Workers(all) => Ok(all),
            other => Err(unexpected(&other)),
        }
    }

    /// Asks for the full view of one run.
    pub(crate) async fn run(&self, run: &RunId) -> Result<schemas::view::RunDetail, Failure> {
        match self.view(Query::Run(run.clone())).await? {
            View::Run(detail) => Ok(*detail),
            other => Err(unexpected(&other)),
        }
    }
}

/// True for the path of a credentials file; certificates lie beside them.
pub(crate) fn is_credentials(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "creds")
}

/// The credentials files in the domain's folder.
pub(crate) fn credentials_files(domain: &Domain) -> Vec<PathBuf> {
    let any = domain.layout().credentials("any");
    let folder = any
        .parent()
        .and_then(|folder| std::fs::read_dir(folder).ok());
    let files = folder.into_iter().flatten().flatten();
    files
        .map(|file| file.path())
        .filter(|path| is_credentials(path))
        .collect()
}

/// The failure for an answer of another kind than the question, which is a defect of the
/// coordinator.
pub(crate) fn unexpected(view: &View) -> Failure {
    let kind = match view {
        View::Coordinator(_) => "the coordinator",
        View::Runs(_) => "runs",
        View::Run(_) => "a run",
        View::Workers(_) => "workers",
        View::Leases(_) => "leases",
        View::Rounds(_) => "rounds",
        View::Snapshots(_) => "snapshots",
        View::Tenants(_) => "tenants",
    };
    Failure::new(
        Code::MessageInvalid,
        format!("the coordinator answered another question, with {kind}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Format;

    #[test]
    fn an_address_of_the_machine_itself_is_known_in_each_form() {
        let loops = |bus: &str| {
            let endpoints = Endpoints {
                bus: bus.to_owned(),
                ..Endpoints::default()
            };
            endpoints.is_loopback()
        };
        for own in [
            "tls://127.0.0.1:4222",
            "tls://localhost:4222",
            "tls://[::1]:4222",
            "localhost",
        ] {
            assert!(loops(own), "{own}");
        }
        for other in [
            "tls://10.0.0.1:4222",
            "tls://broker:4222",
            "tls://[fd00::1]:4222",
        ] {
            assert!(!loops(other), "{other}");
        }
    }

    /// Only what the address and the switches both say opens the way to the store.
    #[test]
    fn transfers_are_protected_unless_the_address_and_the_switches_say_otherwise() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let context = |store: &str| Context {
            folder: scratch.path().to_owned(),
            endpoints: Endpoints {
                store: store.to_owned(),
                ..Endpoints::default()
            },
            credentials: None,
            timeout: Duration::from_secs(1),
            printer: Printer::new(Format::Table),
            warned: Arc::default(),
        };
        let opened: (OsString, OsString) = (
            "DILOCO_AUTH__EXCEPTIONS".into(),
            r#"[{ layer = "bulk", reason = "a test" }]"#.into(),
        );
        let (plain, own) = ("http://127.0.0.1:9000", "https://127.0.0.1:9000");
        let trust = context(plain).store_trust(Role::Operator, [opened.clone()].into_iter());
        assert!(matches!(trust, Ok(Trust::PlainLoopback)), "{trust:?}");
        let closed = context(plain).store_trust(Role::Operator, std::iter::empty());
        let code = closed.map_err(|refused| refused.code()).err();
        assert_eq!(code, Some(Code::PlaintextRefused));
        // Under TLS the authority of the domain is needed, and here is no domain.
        assert!(
            context(own)
                .store_trust(Role::Operator, [opened].into_iter())
                .is_err()
        );
    }
}
