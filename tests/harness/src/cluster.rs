//! The cluster: its processes, and the operations on them.

mod issue;
mod kept;
mod recipe;
mod store;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use identity::{BusTls, CredentialSource, Domain, InitOptions};
use runtime::{Bus, BusConfig, StreamReader, clock};
use schemas::account::Copied;
use schemas::permission::Role;
use schemas::{Millis, RunId, WorkerId};
use tempfile::TempDir;

use self::kept::files;
use crate::binary::program;
use crate::broker::{self, BROKER};
use crate::process::{self, Output, Process, Recipe};
use crate::{Evidence, Operator, PATIENCE, Tenant};

/// The store's name among a cluster's processes.
const STORE: &str = "store";

/// The options of a cluster.
#[derive(Clone, Debug)]
pub struct Options {
    /// The run that workers get credentials for.
    pub run: RunId,
    /// True when there is a second tenant.
    pub second_tenant: bool,
    /// The log filter of services (tracing's syntax).
    pub log: String,
    /// The address on which each service serves its metrics.
    pub metrics: String,
    /// Life of the tokens of services and workers, which a registrar renews. Without one there is
    /// no registrar, and tokens live longer than any test.
    pub token_lifetime: Option<Millis>,
    /// True for a domain with mutual TLS.
    pub mutual_tls: bool,
    /// True if the audit service records security events. They come in any number, so tests that
    /// count what a stream holds go without: their audit service has no key for them.
    pub sentry: bool,
    /// The policy of witnesses that the owner signs into the log's manifest.
    pub witnesses: Option<String>,
    /// Further settings of coordinators, each with its value.
    pub coordinator: &'static [(&'static str, &'static str)],
    /// True for a broker and a store without TLS, which every process takes by an exception: this
    /// measures what TLS costs.
    pub plaintext: bool,
}

/// A domain, a broker, and the processes that were started. Dropping it stops them all.
#[derive(Debug)]
pub struct Cluster {
    options: Options,
    domain: Domain,
    second: Option<Tenant>,
    bus_url: String,
    processes: BTreeMap<String, Process>,
    /// The address at which services reach the store, if it is not the one on which the store
    /// listens.
    store_address: Option<SocketAddr>,
    // The last field, so that nothing runs in the folder when it is removed.
    scratch: TempDir,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            run: "demo".parse().expect("a name"),
            second_tenant: false,
            log: "info".to_owned(),
            metrics: "127.0.0.1:0".to_owned(),
            token_lifetime: None,
            mutual_tls: false,
            sentry: false,
            witnesses: None,
            coordinator: &[],
            plaintext: false,
        }
    }
}

impl Cluster {
    /// A new domain and its broker, with streams.
    ///
    /// # Panics
    /// A step fails.
    pub async fn broker(options: Options) -> Self {
        let cluster = Self::bare(options).await;
        cluster.diloctl_ok(&["cluster", "init"]).await;
        cluster
    }

    /// Starts everything: broker, store, coordinator, audit service, and workers named `worker-0`
    /// and so on.
    ///
    /// # Panics
    /// A step fails.
    pub async fn start(options: Options, workers: usize) -> Self {
        let mut cluster = Self::broker(options).await;
        if cluster.options.token_lifetime.is_some() {
            cluster.start_registrar().await;
        }
        cluster.start_store().await;
        cluster.start_coordinator("coordinator").await;
        cluster.start_audit().await;
        for index in 0..workers {
            cluster.start_worker(&format!("worker-{index}"), &[]).await;
        }
        cluster
    }

    /// A new domain and its broker, without streams.
    ///
    /// # Panics
    /// A step fails.
    pub async fn bare(options: Options) -> Self {
        let scratch = tempfile::Builder::new().prefix("diloco-").tempdir();
        let scratch = scratch.unwrap_or_else(|error| panic!("a scratch folder: {error}"));
        for folder in ["logs", "ready", "work"] {
            let path = scratch.path().join(folder);
            fs::create_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
        let domain = Domain::init(
            &scratch.path().join(".diloco"),
            &InitOptions {
                mutual_tls: options.mutual_tls,
                witnesses: options.witnesses.clone(),
                ..InitOptions::default()
            },
            clock::now(),
        );
        let domain = domain.unwrap_or_else(|error| panic!("a trust domain: {error}"));
        let (domain, second) = match options.second_tenant {
            true => {
                let (domain, second) = Tenant::make(&domain);
                (domain, Some(second))
            }
            false => (domain, None),
        };
        let (process, bus_url) = broker::start(scratch.path(), &domain, options.plaintext).await;
        let processes = BTreeMap::from([(BROKER.to_owned(), process)]);
        let cluster = Self {
            options,
            domain,
            second,
            bus_url,
            processes,
            store_address: None,
            scratch,
        };
        cluster.write_endpoints("https://127.0.0.1:1");
        for role in Role::ALL.into_iter().filter(|role| !role.is_tenant()) {
            cluster.issue(role, role.name());
        }
        cluster
    }

    /// The trust domain.
    pub const fn domain(&self) -> &Domain {
        &self.domain
    }

    /// The run that workers work for.
    pub const fn run(&self) -> &RunId {
        &self.options.run
    }

    /// The second tenant.
    ///
    /// # Panics
    /// The cluster was made without.
    pub fn second_tenant(&self) -> &Tenant {
        self.second
            .as_ref()
            .expect("Options::second_tenant was set")
    }

    /// The broker's address.
    pub fn bus_url(&self) -> &str {
        &self.bus_url
    }

    /// Waits until no file lies below a folder.
    ///
    /// # Panics
    /// A file is still there after [`PATIENCE`].
    pub async fn until_empty(&self, folder: &Path) {
        let left = || files(folder);
        let empty = crate::look(PATIENCE, || left().is_empty().then_some(()));
        empty
            .await
            .unwrap_or_else(|| panic!("left in {}: {:?}", folder.display(), left()));
    }

    /// A path in the cluster's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Connects with the credentials that were issued under `name`, issuing them where they are
    /// missing.
    ///
    /// # Panics
    /// The broker does not take them.
    pub async fn connect(&self, role: Role, name: &str) -> Bus {
        let credentials = self
            .domain
            .layout()
            .folder()
            .join("credentials")
            .join(format!("{name}.creds"));
        if !credentials.exists() {
            self.issue(role, name);
        }
        let connected = Bus::connect(name, &self.bus_config(&credentials), clock::now()).await;
        connected.unwrap_or_else(|error| panic!("{name} connects: {error}"))
    }

    /// The section `bus` for these credentials.
    pub fn bus_config(&self, credentials: &Path) -> BusConfig {
        BusConfig {
            url: self.bus_url.clone(),
            credentials: credentials.to_owned(),
            ca: self.domain.layout().ca(),
        }
    }

    /// The protection of connections to the broker.
    pub fn tls(&self) -> BusTls {
        BusTls::Required {
            ca: self.domain.layout().ca(),
        }
    }

    /// Credentials on disk, as connections read them.
    ///
    /// # Panics
    /// The file cannot be used.
    pub fn source(&self, credentials: &Path) -> CredentialSource {
        let source = CredentialSource::open(credentials, clock::now());
        source.unwrap_or_else(|error| panic!("{}: {error}", credentials.display()))
    }

    /// Connects as the operator.
    ///
    /// # Panics
    /// The broker does not take the operator's credentials.
    pub async fn operator(&self) -> Operator {
        Operator::new(self.connect(Role::Operator, Role::Operator.name()).await)
    }

    /// Connects as an auditor and reads stream `AUDIT`.
    ///
    /// # Panics
    /// The stream cannot be read.
    pub async fn evidence(&self) -> Evidence {
        Evidence::open(
            self.connect(Role::Auditor, Role::Auditor.name()).await,
            self.sources().await,
        )
    }

    /// Waits until stream `AUDIT` has everything that was stored up to now.
    ///
    /// # Panics
    /// It does not get there in time.
    pub async fn copied(&self) {
        self.evidence().await.copied().await;
    }

    /// The streams of which `AUDIT` is a copy.
    async fn sources(&self) -> Vec<StreamReader> {
        let mut sources = Vec::new();
        // Commands may have made tenants since the cluster began.
        let domain = Domain::open(self.domain.layout().folder());
        let domain = domain.unwrap_or_else(|error| panic!("the trust domain: {error}"));
        for copied in Copied::all(&domain.trust().tenants) {
            let role = Role::provisioner(copied.home).expect("it has streams");
            sources.push(StreamReader::new(
                self.connect(role, role.name()).await,
                copied.stream,
            ));
        }
        sources
    }

    /// Starts a coordinator.
    ///
    /// # Panics
    /// It does not become ready.
    pub async fn start_coordinator(&mut self, name: &str) {
        self.issue_anew(&[Role::Coordinator, Role::LedgerWriter]);
        self.launch(self.coordinator_recipe(name)).await;
    }

    /// Starts a coordinator and does not wait for it: it may be meant to stand by or to fail.
    pub fn spawn_coordinator(&mut self, name: &str) {
        let recipe = self.coordinator_recipe(name);
        self.processes
            .insert(name.to_owned(), Process::spawn(recipe));
    }

    /// Starts the registrar.
    ///
    /// # Panics
    /// It does not become ready.
    pub async fn start_registrar(&mut self) {
        self.launch(self.registrar_recipe()).await;
    }

    /// Starts the audit service.
    ///
    /// # Panics
    /// It does not become ready.
    pub async fn start_audit(&mut self) {
        self.issue_anew(&[Role::Auditor, Role::Recorder]);
        self.launch(self.audit_recipe()).await;
    }

    /// Starts a worker; `settings` are further `key=value`.
    ///
    /// # Panics
    /// It does not become ready.
    pub async fn start_worker(&mut self, name: &str, settings: &[&str]) {
        self.launch(self.worker_recipe(name, settings)).await;
    }

    /// Starts a worker of a machine that was enrolled in this folder, as its configuration there
    /// says.
    ///
    /// # Panics
    /// It does not become ready.
    pub async fn start_worker_of(&mut self, folder: &Path, name: &str) {
        self.launch(self.enrolled_recipe(folder, name)).await;
    }

    /// As [`Cluster::start_worker`], with these variables.
    ///
    /// # Panics
    /// It does not become ready.
    pub async fn start_worker_with(&mut self, name: &str, environment: &[(&str, &str)]) {
        let mut recipe = self.worker_recipe(name, &[]);
        recipe.environment = environment
            .iter()
            .map(|(n, value)| ((*n).to_owned(), (*value).to_owned()))
            .collect();
        self.launch(recipe).await;
    }

    /// Starts a worker and does not wait for it: it may be meant to fail.
    pub fn spawn_worker(&mut self, name: &str, settings: &[&str]) {
        let recipe = self.worker_recipe(name, settings);
        self.processes
            .insert(name.to_owned(), Process::spawn(recipe));
    }

    /// A process by its name: `broker`, `store`, `coordinator`, `audit`, `worker-0` and so on.
    ///
    /// # Panics
    /// There is none.
    pub fn process(&mut self, name: &str) -> &mut Process {
        self.processes
            .get_mut(name)
            .unwrap_or_else(|| panic!("no process {name} in this cluster"))
    }

    /// The name under which the worker with this key was started.
    ///
    /// # Panics
    /// None was.
    pub fn worker_named(&self, worker: &WorkerId) -> String {
        let key = |name: &String| {
            let path = self
                .domain
                .layout()
                .folder()
                .join("credentials")
                .join(format!("{name}.creds"));
            path.exists()
                .then(|| self.source(&path).public().to_string())
        };
        let found = self
            .processes
            .keys()
            .find(|name| key(name).as_deref() == Some(worker.as_str()));
        found
            .unwrap_or_else(|| panic!("no worker of this cluster has the key {worker}"))
            .clone()
    }

    /// The names of all processes that were started.
    pub fn names(&self) -> Vec<String> {
        self.processes.keys().cloned().collect()
    }

    /// Ends a process as a crash does.
    ///
    /// # Panics
    /// There is none of this name.
    pub fn kill9(&mut self, name: &str) {
        self.process(name).kill9();
    }

    /// Starts a process again.
    ///
    /// # Panics
    /// It does not become ready.
    pub async fn restart(&mut self, name: &str) {
        self.process(name).restart().await;
    }

    /// Ends a process in order and says how it ended.
    ///
    /// # Panics
    /// It does not end.
    pub async fn stop(&mut self, name: &str) -> ExitStatus {
        let process = self.process(name);
        process.terminate();
        process.exit(PATIENCE).await
    }

    /// Waits until these have ended by themselves.
    ///
    /// # Panics
    /// One runs on after [`PATIENCE`], or does not end with status 0.
    pub async fn end_well(&mut self, names: &[&str]) {
        for name in names {
            let status = self.process(name).exit(PATIENCE).await;
            assert!(status.success(), "{name}: {status}");
        }
    }

    /// Ends these processes in order.
    ///
    /// # Panics
    /// As [`Cluster::end_well`].
    pub async fn stop_well(&mut self, names: &[&str]) {
        for name in names {
            let status = self.stop(name).await;
            assert!(status.success(), "{name}: {status}");
        }
    }

    /// Has the coordinator drain for at most `within`, and waits until these processes, itself
    /// among them, have ended.
    ///
    /// # Panics
    /// `diloctl` fails, or as [`Cluster::end_well`].
    pub async fn drain(&mut self, within: &str, names: &[&str]) {
        self.diloctl_ok(&["control", "shutdown", "--yes", "--drain", within])
            .await;
        self.end_well(names).await;
    }

    /// Replays the run, in which every event must verify. Returns the output.
    ///
    /// # Panics
    /// It does not verify.
    pub async fn record_verifies(&self) -> String {
        self.diloctl_ok(&[
            "audit",
            "replay",
            "--run",
            &self.options.run.to_string(),
            "--summary",
        ])
        .await
    }

    /// Runs `diloctl` in the cluster's folder to its end.
    ///
    /// # Panics
    /// It does not end within [`PATIENCE`].
    pub async fn diloctl(&self, arguments: &[&str]) -> Output {
        self.run_program("diloctl", arguments, PATIENCE).await
    }

    /// As [`Cluster::diloctl`], for commands that must succeed. Returns the output.
    ///
    /// # Panics
    /// It fails.
    pub async fn diloctl_ok(&self, arguments: &[&str]) -> String {
        let output = self.diloctl(arguments).await;
        let shown = arguments.join(" ");
        assert!(
            output.status.success(),
            "diloctl {shown}: {}\n{}{}",
            output.status,
            output.stdout,
            output.stderr
        );
        output.stdout
    }

    /// Runs a program of the workspace to its end in the cluster's folder.
    ///
    /// # Panics
    /// The program still runs after `within`.
    pub async fn run_program(&self, name: &str, arguments: &[&str], within: Duration) -> Output {
        let program = program(name);
        let plaintext = [("DILOCO_AUTH__EXCEPTIONS", recipe::PLAINTEXT)];
        let environment = match self.options.plaintext {
            true => &plaintext[..],
            false => &[],
        };
        process::run(
            &program,
            self.scratch.path(),
            arguments,
            environment,
            within,
        )
        .await
    }

    /// The arguments with which this cluster starts a worker, for tests that alter them.
    pub fn worker_arguments(&self, name: &str) -> Vec<String> {
        self.worker_recipe(name, &[]).arguments
    }

    /// The arguments with which this cluster starts its store, for tests that alter them.
    pub fn store_arguments(&self) -> Vec<String> {
        self.store_recipe("127.0.0.1:0").arguments
    }

    /// The arguments with which this cluster starts a coordinator, for tests that alter them.
    pub fn coordinator_arguments(&self, name: &str) -> Vec<String> {
        self.coordinator_recipe(name).arguments
    }

    /// The arguments with which this cluster starts the audit service, for tests that alter them.
    pub fn audit_arguments(&self) -> Vec<String> {
        self.audit_recipe().arguments
    }

    /// The arguments with which this cluster starts the registrar, for tests that alter them.
    pub fn registrar_arguments(&self) -> Vec<String> {
        self.registrar_recipe().arguments
    }

    pub(super) async fn launch(&mut self, recipe: Recipe) {
        let name = recipe.name.clone();
        assert!(
            !self.processes.contains_key(&name),
            "there is a process {name}"
        );
        // The process is registered first, so that its log is shown if it does not become ready.
        self.processes.insert(name.clone(), Process::spawn(recipe));
        self.process(&name).wait_ready().await;
    }

    /// Tells `diloctl` where broker and store are, as `diloctl up` does.
    fn write_endpoints(&self, store: &str) {
        let endpoints = format!("bus = \"{}\"\nstore = \"{store}\"\n", self.bus_url);
        broker::write(
            &self.domain.layout().folder().join("endpoints.toml"),
            &endpoints,
        );
    }
}

impl Drop for Cluster {
    #[expect(clippy::print_stderr, reason = "what a failed test shows")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            for process in self.processes.values() {
                eprintln!(
                    "\n--- {} ({})\n{}",
                    process.name(),
                    process.log_file().display(),
                    process.tail()
                );
            }
        }
        // The broker ends last: services without it would fill their logs.
        let broker = self.processes.remove(BROKER);
        self.processes.clear();
        drop(broker);
    }
}

fn shown(path: &Path) -> String {
    path.to_str()
        .unwrap_or_else(|| panic!("{} is not text", path.display()))
        .to_owned()
}
