//! The worker as a program: its command line with the other subcommands, and its part in the frame
//! that all services share.

use clap::{Parser, Subcommand};
use identity::IdentityFiles;
use runtime::service::{self, Finished, Flag, ServiceArgs, ServiceConfig};
use runtime::{Bus, Failure, Loaded, Materials, log};
use schemas::member::Posture;
use schemas::{Code, UnixMillis};
use tokio_util::sync::CancellationToken;

use crate::config::{Checked, WorkerConfig};
use crate::devices;
use crate::sample::{self, SampleArgs};
use crate::service::Service;

/// Trains for a run: asks the coordinator for work over NATS, fetches weights and data, hands in
/// results.
#[derive(Debug, Parser)]
#[command(name = "diloco-worker", version)]
pub struct CommandLine {
    /// The subcommand; without one the worker works for the run.
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    service: ServiceArgs,
    /// Run to work for; the same as `--set worker.run=…`.
    #[arg(long, value_name = "RUN")]
    run: Option<String>,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
enum Command {
    /// Print text from a model folder.
    Sample(SampleArgs),
    /// Print the trainers and devices that this build can use on this machine.
    Devices,
}

impl service::CommandLine for CommandLine {
    fn service(&self) -> &ServiceArgs {
        &self.service
    }

    fn flags(&self) -> Vec<Flag> {
        let run = self.run.iter();
        run.map(|run| ("worker.run", "--run", run.clone()))
            .collect()
    }
}

/// Works for a run, or carries out the subcommand.
///
/// # Errors
/// The reason for the failure.
pub fn run(line: &CommandLine) -> Result<(), Failure> {
    let Some(command) = &line.command else {
        return service::run::<Checked, CommandLine>(line);
    };
    runtime::memory::keep_freed();
    log::init(&line.service.log).map_err(|error| Failure::new(Code::ConfigInvalid, error))?;
    match command {
        Command::Sample(args) => sample::sample(args),
        Command::Devices => devices::devices(),
    }
}

impl service::Service for Checked {
    const NAME: &'static str = "worker";
    /// Two threads for asynchronous work: training has a thread of its own, and needs the other
    /// cores.
    const THREADS: Option<usize> = Some(2);
    type Config = WorkerConfig;
    type Running = Service;

    fn section(config: &WorkerConfig) -> &ServiceConfig {
        &config.service
    }

    fn identities(config: &WorkerConfig) -> Vec<IdentityFiles> {
        let audit_key = Some(&config.worker.audit_key);
        let audit_key = audit_key.filter(|path| !path.as_os_str().is_empty());
        vec![IdentityFiles {
            credentials: config.bus.credentials.clone(),
            audit_key: audit_key.cloned(),
        }]
    }

    fn check(loaded: Loaded<WorkerConfig>, now: UnixMillis) -> Result<Self, Failure> {
        Self::new(loaded, now)
    }

    fn materials(&self) -> Materials {
        self.materials.clone()
    }

    fn posture(&self) -> Posture {
        self.posture.clone()
    }

    async fn start(self) -> Result<Service, Failure> {
        Box::pin(Service::build(self)).await
    }
}

impl service::Running for Service {
    fn connections(&self) -> Vec<Bus> {
        vec![self.bus().clone()]
    }

    async fn run(self, stop: CancellationToken) -> Result<(), Failure> {
        // Nobody succeeds this worker.
        let never = CancellationToken::new();
        Box::pin(Self::run(self, stop, never)).await.map(drop)
    }

    async fn run_until_succeeded(
        self,
        stop: CancellationToken,
        succeeded: CancellationToken,
    ) -> Result<Finished, Failure> {
        Box::pin(Self::run(self, stop, succeeded)).await
    }
}
