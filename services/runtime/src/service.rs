//! The frame of every service: one order of start, one meaning of each common flag, one ready file,
//! one way to end. A service implements [`Service`], and its `main` is one call of [`main`].
//!
//! 1. Command line, log, configuration. `--print-config` ends here.
//! 2. [`Service::check`] reads and checks everything that the configuration names, and connects and
//!    binds nothing. `--check-config` ends here.
//! 3. Signals are heard from here on. The broker must refuse a stranger. [`Service::start`]
//!    connects or binds. A signal breaks either off.
//! 4. The ready file appears, and the service runs until it ends or a signal comes.
//! 5. It drains as long as its own settings say; what still runs then is dropped.

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use identity::{DomainLayout, IdentityFiles};
use schemas::member::Posture;
use schemas::{Code, Refusal, UnixMillis};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::metrics::{MetricsConfig, Served};
use crate::ready::{Ready, ReadyFile};
use crate::{
    Bus, ConfigArgs, Failure, Loaded, LogArgs, Materials, clock, config, exit, expiry, handles,
    log, memory, shutdown, stranger, successor,
};

/// Time that blocking work may take after the service has ended: enough for a file whose writing
/// has begun.
const LAST_WORK: Duration = Duration::from_secs(2);

/// Time that a service may take to end after its token has ended: a worker takes 8 seconds for its
/// goodbye and up to a minute to save its inner state.
const DRAIN_MAX: Duration = Duration::from_secs(75);

/// One flag that sets a configuration key: key, flag, value.
pub type Flag = (&'static str, &'static str, String);

/// Command line arguments that every service has.
#[derive(Args, Clone, Debug, Default)]
pub struct ServiceArgs {
    /// Configuration.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Logging.
    #[command(flatten)]
    pub log: LogArgs,
    /// File that appears when the service can be used, and goes when it ends.
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
}

/// The section `service`, which every service has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServiceConfig {
    /// File that appears when the service can be used; none when empty.
    pub ready_file: PathBuf,
}

/// Says why a process should begin anew, if it should.
pub type Outdated = Box<dyn Fn() -> Option<&'static str> + Send>;

/// A service, as its frame uses it.
pub trait Service: Sized {
    /// Its name in the ready file and in the log.
    const NAME: &'static str;
    /// Threads for asynchronous work; none stands for one for each core.
    const THREADS: Option<usize> = None;
    /// Log targets that are never shown.
    const SILENT: &'static [&'static str] = &[];
    /// Its configuration.
    type Config: Serialize + DeserializeOwned + Default;
    /// The service once it is connected or bound.
    type Running: Running;

    /// Fills in every path that was not set.
    #[must_use]
    fn completed(config: Self::Config) -> Self::Config {
        config
    }

    /// The section `service` of its configuration.
    fn section(config: &Self::Config) -> &ServiceConfig;

    /// The section `metrics` of its configuration; none for a service that serves no metrics.
    fn metrics(_config: &Self::Config) -> Option<&MetricsConfig> {
        None
    }

    /// Folder of the trust domain on this machine, if it is configured with one.
    fn domain(_config: &Self::Config) -> Option<&Path> {
        None
    }

    /// The identities with which it connects. At its start it takes the successors that wait beside
    /// them; while it runs, the frame looks for some.
    fn identities(_config: &Self::Config) -> Vec<IdentityFiles> {
        Vec::new()
    }

    /// A look at files that are read at the start only. The frame looks while the service runs,
    /// ends it in order when they ask for it, and begins anew in the same process.
    fn outdated(_config: &Self::Config) -> Option<Outdated> {
        None
    }

    /// Reads and checks everything that the configuration names. Connects and binds nothing.
    ///
    /// # Errors
    /// Everything that is wrong, each with its code.
    fn check(loaded: Loaded<Self::Config>, now: UnixMillis) -> Result<Self, Failure>;

    /// Its materials. The frame announces those that expire soon while the service runs.
    fn materials(&self) -> Materials;

    /// The layers that it relaxed. Unless the bus is one of them, each broker must refuse a client
    /// without credentials before the start.
    fn posture(&self) -> Posture;

    /// Connects or binds. The frame drops this future when a signal comes.
    ///
    /// # Errors
    /// The reason why the service cannot be used.
    fn start(self) -> impl Future<Output = Result<Self::Running, Failure>>;
}

/// A service that can be used.
pub trait Running {
    /// Addresses that it listens on.
    fn addresses(&self) -> Vec<String> {
        Vec::new()
    }

    /// Its connections to the bus. The service ends if one of them has a token that has ended.
    fn connections(&self) -> Vec<Bus> {
        Vec::new()
    }

    /// Serves until `stop`, and then drains; or serves until it cannot go on.
    ///
    /// # Errors
    /// The reason why it cannot go on.
    fn run(self, stop: CancellationToken) -> impl Future<Output = Result<(), Failure>>;

    /// Serves like [`Running::run`]. From `succeeded` on it finishes what it should not leave, and
    /// then ends: the process begins anew with another key.
    ///
    /// # Errors
    /// The reason why it cannot go on.
    fn run_until_succeeded(
        self,
        stop: CancellationToken,
        succeeded: CancellationToken,
    ) -> impl Future<Output = Result<Finished, Failure>>
    where
        Self: Sized,
    {
        async move {
            let ended = CancellationToken::new();
            let (cancelled, asked) = (ended.clone(), stop.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = asked.cancelled() => {}
                    () = succeeded.cancelled() => {}
                }
                cancelled.cancel();
            });
            self.run(ended.clone()).await?;
            Ok(Finished::told(ended.is_cancelled() && !stop.is_cancelled()))
        }
    }
}

/// The way in which a service has ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finished {
    /// It is over.
    Over,
    /// It left its place to its successor: this process, begun anew with another key.
    Succeeded,
}

impl Finished {
    /// The way in which a service has ended that made room for its successor, or did not.
    pub const fn told(succeeded: bool) -> Self {
        match succeeded {
            true => Self::Succeeded,
            false => Self::Over,
        }
    }
}

/// The command line of a service.
pub trait CommandLine: Parser {
    /// The arguments that all services have.
    fn service(&self) -> &ServiceArgs;

    /// The service's own flags that were given, with the keys that they set.
    fn flags(&self) -> Vec<Flag> {
        Vec::new()
    }
}

/// The whole `main` of a service without subcommands.
pub fn main<S: Service, C: CommandLine>() -> ExitCode {
    match exit::parse::<C>() {
        Ok(line) => exit::report_service(run::<S, C>(&line)),
        Err(status) => status,
    }
}

/// Runs the service to its end.
///
/// # Errors
/// The first thing that is wrong; see the top of this file for the order.
pub fn run<S: Service, C: CommandLine>(line: &C) -> Result<(), Failure> {
    memory::keep_freed();
    let args = line.service();
    log::init_without(&args.log, S::SILENT)
        .map_err(|error| Failure::new(Code::ConfigInvalid, error))?;
    let loaded = load::<S, C>(line)?;
    if args.config.print_config {
        return exit::print(&loaded.print());
    }
    let now = clock::now();
    let domain =
        S::domain(&loaded.value).map(|folder| DomainLayout::new(folder).server_certificate());
    let shown = Shown {
        ready_file: S::section(&loaded.value).ready_file.clone(),
        metrics: S::metrics(&loaded.value).map_or(Ok(None), MetricsConfig::address)?,
    };
    let identities = S::identities(&loaded.value);
    if !args.config.check_config {
        successor::take(&identities)?;
    }
    let outdated = S::outdated(&loaded.value);
    let service = S::check(loaded, now)?;
    ReadyFile::check(shown.ready_file()).map_err(unready)?;
    if args.config.check_config {
        if let Some(served) = domain {
            expiry::check_served("domain", &served, now)?;
        }
        return exit::print("configuration is valid\n");
    }
    prepare()?;
    let runtime = async_runtime(S::THREADS)?;
    let ended = runtime.block_on(serve(service, shown, identities, outdated));
    runtime.shutdown_timeout(LAST_WORK);
    match ended? {
        Finished::Over => Ok(()),
        Finished::Succeeded => Err(successor::begin_anew()),
    }
}

/// The frame of a program that ends by itself, such as a command. Its log, panics, TLS, limit of
/// open files, runtime and end are those of a service.
///
/// # Errors
/// The failure of `work`, or a failure to start it.
pub fn command(
    log: &LogArgs,
    work: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    log::init_command(log).map_err(|error| Failure::new(Code::ConfigInvalid, error))?;
    prepare()?;
    let runtime = async_runtime(None)?;
    let ended = runtime.block_on(work);
    runtime.shutdown_timeout(LAST_WORK);
    ended
}

/// Prepares the process before its first connection.
fn prepare() -> Result<(), Failure> {
    identity::tls::install_provider();
    handles::raise().map_err(|error| {
        Failure::new(Code::Internal, format!("the limit of open files: {error}"))
    })?;
    Ok(())
}

fn load<S: Service, C: CommandLine>(line: &C) -> Result<Loaded<S::Config>, Failure> {
    let args = line.service();
    let mut flags = line.flags();
    if let Some(path) = &args.ready_file {
        let path = path.display().to_string();
        flags.push(("service.ready_file", "--ready-file", path));
    }
    let Loaded { value, origins } = config::load::<S::Config>(&args.config, &flags)?;
    Ok(Loaded {
        value: S::completed(value),
        origins,
    })
}

fn async_runtime(threads: Option<usize>) -> Result<tokio::runtime::Runtime, Failure> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = threads {
        builder.worker_threads(threads);
    }
    builder
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Code::Internal, format!("no async runtime: {error}")))
}

/// The signs that the service can be used: the ready file and the metrics.
struct Shown {
    ready_file: PathBuf,
    metrics: Option<SocketAddr>,
}

impl Shown {
    fn ready_file(&self) -> Option<&Path> {
        Some(self.ready_file.as_path()).filter(|path| !path.as_os_str().is_empty())
    }

    /// Serves the metrics. They are a side door: a service whose port for them is taken works
    /// without it.
    async fn serve(&self) -> Option<Served> {
        match Served::start(self.metrics?).await {
            Ok(served) => Some(served),
            Err(failure) => {
                let Refusal { code, detail, .. } = failure.refusal();
                tracing::warn!(%code, next = code.next_step(), "no metrics are served: {detail}");
                None
            }
        }
    }
}

fn unready(error: std::io::Error) -> Failure {
    Failure::new(Code::ConfigInvalid, format!("service.ready_file: {error}"))
}

async fn start<S: Service>(service: S) -> Result<S::Running, Failure> {
    stranger::is_refused(&service.materials(), &service.posture()).await?;
    service.start().await
}

/// Waits until one of these connections has a token that has ended.
async fn lapsed(connections: Vec<Bus>) -> Failure {
    let mut waiting: FuturesUnordered<_> = connections.iter().map(Bus::lapsed).collect();
    match waiting.next().await {
        Some(failure) => failure,
        None => std::future::pending().await,
    }
}

/// Runs to the end. If the broker does not serve this process any more, it drains and then ends
/// with that failure, whatever came of the drain.
async fn until_lapsed(
    mut running: impl Future<Output = Result<Finished, Failure>> + Unpin,
    lapsed: impl Future<Output = Failure>,
    stop: &CancellationToken,
) -> Result<Finished, Failure> {
    let failure = tokio::select! {
        ended = &mut running => return ended,
        failure = lapsed => failure,
    };
    tracing::error!(code = %failure.code(), next = failure.code().next_step(), "{failure}; ending");
    stop.cancel();
    if tokio::time::timeout(DRAIN_MAX, running).await.is_err() {
        tracing::warn!("the service did not end in time");
    }
    Err(failure)
}

async fn serve<S: Service>(
    service: S,
    shown: Shown,
    identities: Vec<IdentityFiles>,
    outdated: Option<Outdated>,
) -> Result<Finished, Failure> {
    expiry::watch(service.materials());
    let stop = shutdown::on_signals().map_err(|error| Failure::new(Code::Internal, error))?;
    let served = shown.serve().await;
    let posture = service.posture();
    let running = tokio::select! {
        running = Box::pin(start(service)) => running?,
        () = stop.cancelled() => return Ok(Finished::Over),
    };
    let addresses = running.addresses();
    let metrics = served.as_ref().map(|served| served.address().to_string());
    if let Some(served) = &served {
        served.set_ready(true);
    }
    let path = shown.ready_file();
    let announced = Ready {
        service: S::NAME.to_owned(),
        pid: std::process::id(),
        addresses: addresses.clone(),
        metrics: metrics.clone(),
        posture,
    };
    let ready = ReadyFile::announce(path, &announced).map_err(unready)?;
    tracing::info!(
        service = S::NAME,
        ?addresses,
        metrics,
        "the service is ready"
    );
    let stopping = stop.clone();
    if let Some(served) = served.clone() {
        tokio::spawn(async move {
            stopping.cancelled().await;
            served.set_ready(false);
        });
    }
    let lapsed = lapsed(running.connections());
    let run = running.run_until_succeeded(stop.clone(), successor::watch(identities, outdated));
    let ended = until_lapsed(Box::pin(run), lapsed, &stop).await;
    if let Some(served) = &served {
        served.set_ready(false);
    }
    drop(ready);
    tracing::info!(service = S::NAME, "the service has ended");
    ended
}
