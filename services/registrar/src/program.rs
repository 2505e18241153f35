//! The registrar as a program: its command line, and its part in the frame of all services.

use std::path::{Path, PathBuf};

use clap::Parser;
use identity::clients::CERTIFICATE_LIFE_MAX;
use identity::{IdentityFiles, Issuer, TrustBundle};
use registrar_core::Registrar;
use runtime::metrics::MetricsConfig;
use runtime::service::{self, Flag, ServiceArgs, ServiceConfig};
use runtime::{Bus, Failure, Loaded, Materials, validate};
use schemas::member::Posture;
use schemas::{Code, UnixMillis};
use tokio_util::sync::CancellationToken;

use crate::{Config, Service};

/// Gives the holders of credentials new tokens before theirs end.
#[derive(Parser)]
#[command(name = "diloco-registrar", version)]
pub struct CommandLine {
    #[command(flatten)]
    service: ServiceArgs,
    /// Folder of the trust domain.
    #[arg(long, value_name = "DIR")]
    domain: Option<PathBuf>,
}

impl service::CommandLine for CommandLine {
    fn service(&self) -> &ServiceArgs {
        &self.service
    }

    fn flags(&self) -> Vec<Flag> {
        let domain = self.domain.iter();
        domain
            .map(|path| ("domain", "--domain", path.display().to_string()))
            .collect()
    }
}

/// A registrar whose configuration was checked.
pub struct Program {
    config: Config,
    issuer: Issuer,
    core: Registrar,
    posture: Posture,
    materials: Materials,
}

impl service::Service for Program {
    const NAME: &'static str = "registrar";
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
        vec![IdentityFiles::of(&config.bus.credentials)]
    }

    fn check(loaded: Loaded<Config>, now: UnixMillis) -> Result<Self, Failure> {
        let materials = loaded.value.materials(now);
        let config = loaded.value;
        let posture = validate(&config.auth, &materials, &loaded.origins).map_err(Failure::all)?;
        let trust = TrustBundle::read(&config.registrar.trust)?;
        let issuer = Issuer::open(&config.registrar.issuer)?;
        if *issuer.domain() != trust.domain {
            let text = format!(
                "{} is of trust domain {}, and the trust bundle of {}",
                config.registrar.issuer.display(),
                issuer.domain(),
                trust.domain
            );
            return Err(Failure::new(Code::IssuerInvalid, text));
        }
        // A token and its certificate end together.
        let lifetime = match issuer.certifies() {
            true => config.lifetime()?.min(CERTIFICATE_LIFE_MAX),
            false => config.lifetime()?,
        };
        let core = Registrar::new(lifetime, posture.clone());
        Ok(Self {
            config,
            issuer,
            core,
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
        Service::build(&self.config, self.issuer, self.core, self.posture).await
    }
}

impl service::Running for Service {
    fn connections(&self) -> Vec<Bus> {
        vec![self.bus().clone()]
    }

    async fn run(self, stop: CancellationToken) -> Result<(), Failure> {
        Self::run(self, stop).await
    }
}
