//! The registrar's configuration.

use std::path::PathBuf;

use identity::DomainLayout;
use identity::domain::{LIFETIME_MAX, LIFETIME_RENEWED};
use runtime::config::fill;
use runtime::metrics::MetricsConfig;
use runtime::service::ServiceConfig;
use runtime::{AuthConfig, BusConfig, ConfigDuration, Failure, Material, Materials};
use schemas::member::Layer;
use schemas::permission::Role;
use schemas::{Code, Millis, UnixMillis};
use serde::{Deserialize, Serialize};

/// Shortest life of a token: it counts whole seconds, and is renewed when half of it has passed.
pub const LIFETIME_MIN: Millis = Millis::from_secs(2);

/// All settings of the registrar.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Folder of the trust domain; paths that are not set lie in it.
    pub domain: PathBuf,
    /// The bus.
    pub bus: BusConfig,
    /// This service.
    pub registrar: RegistrarSection,
    /// The authentication that peers must show.
    pub auth: AuthConfig,
    /// The settings that every service has.
    pub service: ServiceConfig,
    /// Numbers for a collector.
    pub metrics: MetricsConfig,
}

/// The section `registrar`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistrarSection {
    /// Trust bundle.
    pub trust: PathBuf,
    /// Folder of the signing keys of roles.
    pub issuer: PathBuf,
    /// Folder of the list of issued credentials.
    pub issued: PathBuf,
    /// Folder of the invitations.
    pub invitations: PathBuf,
    /// Life of the tokens that it gives.
    pub lifetime: ConfigDuration,
}

impl Default for RegistrarSection {
    fn default() -> Self {
        Self {
            trust: PathBuf::new(),
            issuer: PathBuf::new(),
            issued: PathBuf::new(),
            invitations: PathBuf::new(),
            lifetime: ConfigDuration(LIFETIME_RENEWED.as_duration()),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            domain: PathBuf::from(".diloco"),
            bus: BusConfig::default(),
            registrar: RegistrarSection::default(),
            auth: AuthConfig::default(),
            service: ServiceConfig::default(),
            metrics: MetricsConfig::default(),
        }
    }
}

impl Config {
    /// The configuration with every path that was not set taken from the trust domain's folder.
    #[must_use]
    pub fn completed(mut self) -> Self {
        let layout = DomainLayout::new(&self.domain);
        fill(
            &mut self.bus.credentials,
            layout.credentials(Role::Registrar.name()),
        );
        fill(&mut self.bus.ca, layout.ca());
        fill(&mut self.registrar.trust, layout.trust());
        fill(&mut self.registrar.issuer, layout.issuer());
        fill(
            &mut self.registrar.issued,
            layout.issued().folder().to_owned(),
        );
        fill(
            &mut self.registrar.invitations,
            layout.invitations().folder().to_owned(),
        );
        self
    }

    /// The life of the tokens that it gives.
    ///
    /// # Errors
    /// It is out of bounds.
    pub fn lifetime(&self) -> Result<Millis, Failure> {
        let lifetime = self.registrar.lifetime.millis();
        if (LIFETIME_MIN..=LIFETIME_MAX).contains(&lifetime) {
            return Ok(lifetime);
        }
        let text = format!(
            "registrar.lifetime is {lifetime} ms, expected from {LIFETIME_MIN} to {LIFETIME_MAX}"
        );
        Err(Failure::new(Code::ConfigInvalid, text))
    }

    /// The service's materials.
    pub fn materials(&self, now: UnixMillis) -> Materials {
        let items = vec![
            Material::BusAddress {
                key: "bus.url",
                url: self.bus.url.clone(),
            },
            Material::Credentials {
                key: "bus.credentials",
                path: self.bus.credentials.clone(),
            },
            Material::Authority {
                key: "bus.ca",
                path: self.bus.ca.clone(),
                layer: Layer::Bus,
            },
            Material::Trust {
                key: "registrar.trust",
                path: self.registrar.trust.clone(),
            },
            Material::Records {
                key: "registrar.issued",
                path: self.registrar.issued.clone(),
            },
        ];
        Materials { items, now }
    }
}
