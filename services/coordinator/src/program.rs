//! The coordinator as a program: its command line, and its part in the frame of all services.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use clap::Parser;
use identity::{IdentityFiles, NextEventKey};
use runtime::metrics::MetricsConfig;
use runtime::service::{self, Flag, Outdated, ServiceArgs, ServiceConfig};
use runtime::{Bus, Failure, Loaded, Materials, validate};
use schemas::UnixMillis;
use schemas::member::Posture;
use tokio_util::sync::CancellationToken;

use crate::shell::tell_unfit;
use crate::{Config, Service};

/// Leads DiLoCo runs: rounds, leases, merges, and the signed ledger of what happened.
#[derive(Parser)]
#[command(name = "diloco-coordinator", version)]
pub struct CommandLine {
    #[command(flatten)]
    service: ServiceArgs,
    /// Folder of the trust domain.
    #[arg(long, value_name = "DIR")]
    domain: Option<PathBuf>,
}

/// The last reason why a key that waits is not taken: each is told once.
#[derive(Default)]
struct LastReason(RefCell<Option<String>>);

impl LastReason {
    fn is_news(&self, reason: Option<&str>) -> bool {
        let before = self.0.replace(reason.map(str::to_owned));
        before.as_deref() != reason
    }
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

/// A coordinator whose configuration was checked.
pub struct Program {
    config: Config,
    posture: Posture,
    materials: Materials,
}

impl service::Service for Program {
    const NAME: &'static str = "coordinator";
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
        let files = [&config.bus.credentials, &config.ledger.credentials];
        files.map(|file| IdentityFiles::of(file)).into()
    }

    fn outdated(config: &Config) -> Option<Outdated> {
        let files = config.keys.events();
        let told = LastReason::default();
        Some(Box::new(move || match files.next() {
            NextEventKey::Ready(_) => Some("another key for events waits"),
            NextEventKey::Unfit(reason) => {
                if told.is_news(Some(&reason)) {
                    tell_unfit(&reason);
                }
                None
            }
            NextEventKey::None => {
                told.is_news(None);
                None
            }
        }))
    }

    fn check(loaded: Loaded<Config>, now: UnixMillis) -> Result<Self, Failure> {
        let Loaded {
            value: config,
            origins,
        } = loaded;
        config.check_limits()?;
        let materials = config.materials(now);
        let posture = validate(&config.auth, &materials, &origins).map_err(Failure::all)?;
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
        Box::pin(Service::build(&self.config, self.posture)).await
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_against_a_key_that_waits_is_told_once() {
        let told = LastReason::default();
        let said = [None, Some("a"), Some("a"), Some("b"), None, Some("b")];
        let news = said.map(|reason| told.is_news(reason));
        assert_eq!(news, [false, true, false, true, true, true]);
    }
}
