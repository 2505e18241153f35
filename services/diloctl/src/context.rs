//! The tools that commands share: the trust domain on disk, connections, and requests to the
//! coordinator.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use identity::lock::LockError;
use identity::secret::write_private;
use identity::{ClientFile, Credentials, Domain, DomainLock};
use objects::Trust;
use runtime::{Bus, BusConfig, Failure, clock};
use schemas::call::{Call, ControlVerb, control as call, control_subject};
use schemas::control::{Query, View, ViewReply, ViewRequest};
use schemas::permission::Role;
use schemas::view::WorkerView;
use schemas::{Code, Millis, PublicKey, RunId};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use crate::cli::Global;
use crate::output::Printer;
use crate::pages;
use crate::stack::health::BrokerFault;
use crate::switches;
use crate::table::time;

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

/// Pause between two tries to take the domain's lock.
const LOCK_EVERY: Duration = Duration::from_millis(100);

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
    /// What the command has done so far.
    pub(crate) history: Arc<Mutex<Done>>,
}

/// What a command has done so far: told if it is interrupted, or is refused.
#[derive(Debug, Default)]
pub(crate) struct Done {
    /// Steps that are finished.
    steps: Vec<String>,
    /// Credentials files that it connected with, each with the role that it needs.
    connected: Vec<(PathBuf, Role)>,
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
            history: Arc::default(),
        })
    }

    pub(crate) fn domain(&self) -> Result<Domain, Failure> {
        Domain::open(&self.folder).map_err(Failure::from)
    }

    /// Locks the domain for changes by `command`. While another command holds the lock, this waits,
    /// at most as long as for an answer.
    pub(crate) async fn lock(&self, command: &str) -> Result<DomainLock, Failure> {
        let deadline = Instant::now() + self.timeout;
        let mut told = false;
        loop {
            match DomainLock::take(&self.folder, command) {
                Err(busy @ LockError::Busy { .. }) if Instant::now() < deadline => {
                    if !told {
                        self.printer.talk(&format!("{busy}, and is waited for"));
                        told = true;
                    }
                    sleep(LOCK_EVERY).await;
                }
                taken => return taken.map_err(Failure::from),
            }
        }
    }

    /// The domain as it is once `command` has it for itself: another command may have changed it
    /// meanwhile.
    pub(crate) async fn locked(&self, command: &str) -> Result<(Domain, DomainLock), Failure> {
        // Without a domain there is no folder for the lock.
        self.domain()?;
        let lock = self.lock(command).await?;
        Ok((self.domain()?, lock))
    }

    /// The lock without waiting.
    pub(crate) fn try_lock(&self, command: &str) -> Result<DomainLock, Failure> {
        DomainLock::take(&self.folder, command).map_err(Failure::from)
    }

    /// Notes that a step is finished, for a person who interrupts the command.
    pub(crate) fn finished(&self, step: impl ToString) {
        self.done().steps.push(step.to_string());
    }

    /// The failure of a command that was stopped by a signal.
    pub(crate) fn interrupted(&self, signal: &str) -> Failure {
        let steps = self.done().steps.join("; ");
        let text = match steps.is_empty() {
            true => format!("stopped by {signal}"),
            false => format!("stopped by {signal}; finished before: {steps}"),
        };
        Failure::new(Code::Interrupted, text)
    }

    /// The same failure. If the broker did not permit something, it names the credentials that the
    /// command connected with, and the role that it needs.
    pub(crate) fn explained(&self, failure: Failure) -> Failure {
        if failure.code() != Code::BusDenied {
            return failure;
        }
        let connected = self.done().connected.clone();
        let holders = connected
            .iter()
            .map(|(file, needed)| (self.holder_of(file), *needed));
        let holders: Vec<_> = holders.collect();
        let other = |(holder, needed): &&(Holder, Role)| holder.role != Some(*needed);
        // If one of several connections is of another role, that is the one.
        let told = holders.iter().find(other).or(holders.first());
        match told {
            None => failure,
            Some((holder, needed)) => {
                let role = needed.name();
                failure.with_more(format!("{holder}; this needs role {role}"))
            }
        }
    }

    /// What the trust domain's folder knows about a credentials file.
    fn holder_of(&self, file: &Path) -> Holder {
        let mut holder = Holder {
            file: file.to_owned(),
            name: None,
            role: None,
            ended: None,
        };
        let read = Credentials::read(file).ok().zip(self.domain().ok());
        let Some((read, domain)) = read else {
            return holder;
        };
        let (key, token) = (read.public(), read.token());
        let known = domain.holders_of(key.as_str()).unwrap_or_default();
        if token.expires.is_some_and(|ends| ends <= clock::now()) {
            let ends = token.expires.map(time).unwrap_or_default();
            holder.ended = Some(format!("its token ended at {ends}"));
        }
        if let Some(record) = known.first() {
            (holder.name, holder.role) = (Some(record.name.clone()), Some(record.role));
            let revocation = domain.revocation(&record.account, key).ok().flatten();
            if let Some(one) = revocation.filter(|one| one.covers(token.issued)) {
                let reason = one.reason.map(|reason| format!(" ({})", reason.as_str()));
                holder.ended = Some(format!("it was revoked{}", reason.unwrap_or_default()));
            }
        }
        holder
    }

    fn done(&self) -> MutexGuard<'_, Done> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
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
        let file = config.credentials.clone();
        self.done().connected.push((file, role));
        let connected = Bus::connect("diloctl", &config, clock::now()).await;
        connected.map_err(|error| self.why_refused(error.into(), &config.credentials))
    }

    /// The same failure. If the broker refuses credentials that this folder knows as revoked or
    /// ended, it says so.
    fn why_refused(&self, failure: Failure, file: &Path) -> Failure {
        if failure.code() != Code::BusRefused {
            return failure;
        }
        let holder = self.holder_of(file);
        match (&holder.ended, &holder.name, holder.role) {
            (Some(_), Some(name), Some(role)) => {
                let role = role.name();
                failure.with_more(format!(
                    "{holder}; if its holder may come back, `diloctl auth issue {role} {name}` where the vault is \
                     makes a new token for the same key; a worker's command takes --run too"
                ))
            }
            _ => failure.with_more(holder),
        }
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
            store: self.endpoints.store.clone(),
        })
    }
}

/// The holder of a credentials file, as far as the trust domain's folder knows it.
#[derive(Debug)]
struct Holder {
    file: PathBuf,
    name: Option<String>,
    role: Option<Role>,
    /// The reason why nobody connects with it any more.
    ended: Option<String>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display();
        match (&self.name, self.role) {
            (Some(name), Some(role)) => {
                write!(f, "{file} is of {name}, role {}", role.name())?;
            }
            _ => write!(f, "{file} is of a holder that this folder does not know")?,
        }
        match &self.ended {
            Some(ended) => write!(f, "; {ended}"),
            None => Ok(()),
        }
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
    /// The address of the store, as this machine knows it.
    store: String,
}

/// Longest time for finding out who does not answer, once something did not.
const FIND_OUT_MAX: Duration = Duration::from_secs(2);

impl Operator {
    /// The key with which the operator connects.
    pub(crate) const fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Sends one request and returns its answer.
    pub(crate) async fn ask<C: Call<Verb = ControlVerb>>(
        &self,
        question: &C::Request,
    ) -> Result<C::Reply, Failure> {
        let subject = control_subject(&self.public, C::VERB);
        let asked = self.bus.request(&subject, question, self.timeout).await;
        match asked {
            Ok(answer) => Ok(answer),
            Err(error) if error.code() == Code::NoAnswer => {
                // A coordinator that waits for the ledger does not answer.
                let trouble = BrokerFault::of_broker(&self.folder);
                let trouble = trouble.map(|trouble| trouble.failure());
                match trouble {
                    None => Err(self.store_away(C::VERB).await.unwrap_or(error.into())),
                    Some(trouble) => Err(trouble),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The failure of a question that needs the store, where the coordinator answers others and
    /// nothing answers at the store's address. Only a machine on which `up` wrote that address
    /// knows it.
    async fn store_away(&self, verb: ControlVerb) -> Option<Failure> {
        if !needs_store(verb) || !Endpoints::path(&self.folder).exists() {
            return None;
        }
        let reason = unreachable_at(&self.store).await?;
        let subject = control_subject(&self.public, ControlVerb::View);
        let query = Query::Runs;
        let view = ViewRequest::of(query);
        let answered: Result<ViewReply, _> = self.bus.request(&subject, &view, FIND_OUT_MAX).await;
        answered.ok()?;
        let detail = format!(
            "{}: {reason}; the coordinator answers, and needs the store for {verb}",
            self.store
        );
        Some(Failure::new(Code::StoreUnreachable, detail))
    }

    /// Asks for one view, in several answers where a list is longer than one.
    pub(crate) async fn view(&self, query: Query) -> Result<View, Failure> {
        pages::whole(query, async |request| {
            self.ask::<call::View>(&request).await
        })
        .await
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

/// True for questions that the coordinator answers only once the store has answered it.
const fn needs_store(verb: ControlVerb) -> bool {
    match verb {
        ControlVerb::RunNew
        | ControlVerb::RunGc
        | ControlVerb::SnapshotRestore
        | ControlVerb::BlobPut
        | ControlVerb::BlobCommit
        | ControlVerb::BlobGet => true,
        ControlVerb::RunHold
        | ControlVerb::WorkerQuarantine
        | ControlVerb::LeasesEnd
        | ControlVerb::SnapshotPromote
        | ControlVerb::TenantSet
        | ControlVerb::TenantEnd
        | ControlVerb::CredentialRevoke
        | ControlVerb::View
        | ControlVerb::Keys
        | ControlVerb::Shutdown => false,
    }
}

/// The reason why no connection is made to the host of a URL; none if one is made.
async fn unreachable_at(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://").unwrap_or(("https", url));
    let host = rest.split('/').next().unwrap_or(rest);
    let has_port = host
        .rsplit_once(':')
        .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let host = match has_port {
        true => host.to_owned(),
        false => format!("{host}:{}", if scheme == "http" { 80 } else { 443 }),
    };
    match tokio::time::timeout(FIND_OUT_MAX, TcpStream::connect(&host)).await {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some("no connection was made".to_owned()),
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
mod tests;
