//! The audit service as a program: its command line, and its part in the frame of all services.

use std::path::{Path, PathBuf};

use clap::Parser;
use identity::{IdentityFiles, TrustBundle};
use runtime::metrics::MetricsConfig;
use runtime::service::{self, Flag, Outdated, ServiceArgs, ServiceConfig};
use runtime::{Bus, Failure, Loaded, Materials, validate};
use schemas::UnixMillis;
use schemas::member::{Layer, Posture};
use tokio_util::sync::CancellationToken;

use crate::ledger_keys::LedgerKeys;
use crate::{Config, Service, mirror};

/// Checks every event on the bus against its emitter's key and chain, and keeps what it saw in
/// append-only files.
#[derive(Parser)]
#[command(name = "diloco-audit", version)]
pub struct CommandLine {
    #[command(flatten)]
    service: ServiceArgs,
    /// Folder of the trust domain.
    #[arg(long, value_name = "DIR")]
    domain: Option<PathBuf>,
    /// Folder of the append-only files.
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
}

impl service::CommandLine for CommandLine {
    fn service(&self) -> &ServiceArgs {
        &self.service
    }

    fn flags(&self) -> Vec<Flag> {
        let given = [
            ("domain", "--domain", &self.domain),
            ("audit.folder", "--folder", &self.folder),
        ];
        given
            .into_iter()
            .filter_map(|(key, flag, path)| Some((key, flag, path.as_ref()?.display().to_string())))
            .collect()
    }
}

/// An audit service whose configuration was checked.
pub struct Program {
    config: Config,
    posture: Posture,
    materials: Materials,
}

impl service::Service for Program {
    const NAME: &'static str = "audit";
    type Config = Config;
    type Running = Service;

    fn completed(config: Config) -> Config {
        config.completed()
    }

    fn section(config: &Config) -> &ServiceConfig {
        &config.service
    }

    fn metrics(config: &Config) -> Option<&MetricsConfig> {
        Some(&config.metrics)
    }

    fn domain(config: &Config) -> Option<&Path> {
        Some(&config.domain)
    }

    fn identities(config: &Config) -> Vec<IdentityFiles> {
        let files = [&config.bus.credentials, &config.recorder.credentials];
        files.map(|file| IdentityFiles::of(file)).into()
    }

    fn outdated(config: &Config) -> Option<Outdated> {
        let trust = TrustBundle::read(&config.audit.trust).ok()?;
        let keys = LedgerKeys::of(&config.audit.trust, &trust);
        Some(Box::new(move || {
            let others = keys.are_others();
            others.then_some(
                "the trust bundle names other keys of the ledger, or where one has ended",
            )
        }))
    }

    fn check(loaded: Loaded<Config>, now: UnixMillis) -> Result<Self, Failure> {
        let materials = loaded.value.materials(now);
        let config = loaded.value;
        let posture = validate(&config.auth, &materials, &loaded.origins).map_err(Failure::all)?;
        Ok(Self {
            config,
            posture,
            materials,
        })
    }

    fn materials(&self) -> Materials {
        self.materials.clone()
    }

    fn posture(&self) -> Posture {
        self.posture.clone()
    }

    async fn start(self) -> Result<Service, Failure> {
        if !self.posture.is_open(Layer::Bulk) {
            mirror::refuse_strangers(&self.config).await?;
        }
        Service::build(&self.config, self.posture).await
    }
}

impl service::Running for Service {
    fn connections(&self) -> Vec<Bus> {
        Self::connections(self)
    }

    async fn run(self, stop: CancellationToken) -> Result<(), Failure> {
        Box::pin(Self::run(self, stop)).await
    }
}
