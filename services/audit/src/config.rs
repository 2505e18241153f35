//! The audit service's configuration.

use std::path::PathBuf;

use identity::DomainLayout;
use runtime::config::fill;
use runtime::metrics::MetricsConfig;
use runtime::service::ServiceConfig;
use runtime::{AuthConfig, BusConfig, Material, Materials};
use schemas::UnixMillis;
use schemas::member::Layer;
use schemas::permission::Role;
use serde::{Deserialize, Serialize};

/// All settings of the audit service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Folder of the trust domain; paths that are not set lie in it.
    pub domain: PathBuf,
    /// The bus.
    pub bus: BusConfig,
    /// The second connection, on which the service receives and records workers' events.
    pub recorder: RecorderSection,
    /// This service.
    pub audit: AuditSection,
    /// The store, which has a copy of the log of all events.
    pub store: StoreSection,
    /// The authentication that peers must show.
    pub auth: AuthConfig,
    /// The settings that every service has.
    pub service: ServiceConfig,
    /// Numbers for a collector.
    pub metrics: MetricsConfig,
}

/// The section `recorder`: another account at the same broker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RecorderSection {
    /// Credentials file.
    pub credentials: PathBuf,
}

/// The section `audit`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuditSection {
    /// Trust bundle: the keys that ledger events may be signed with.
    pub trust: PathBuf,
    /// Folder of the append-only files; each service needs its own.
    pub folder: PathBuf,
    /// Seed file of the key that signs heads of the log of all events. Not used in a domain of an
    /// earlier release, whose trust bundle names no such key.
    pub head_key: PathBuf,
    /// Seed file of the key that signs security events. Not used in a domain whose trust bundle
    /// names no such key.
    pub sentry_key: PathBuf,
    /// The log manifest: the statement of the domain's owner with which the log begins. Not used in
    /// a domain whose trust bundle names none.
    pub log_manifest: PathBuf,
    /// Log of the broker on this machine: only there does it say which messages and subscriptions
    /// it refused. Empty reads none.
    pub broker_log: PathBuf,
}

/// The section `store`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreSection {
    /// Address: `https://host:port`. Empty keeps the log in this service's folder only.
    pub url: String,
    /// Region that signatures name.
    pub region: String,
    /// The file with the audit service's own access key.
    pub keys: PathBuf,
    /// Certificate authority of the store, PEM.
    pub ca: PathBuf,
}

impl Default for StoreSection {
    fn default() -> Self {
        Self {
            url: String::new(),
            region: "us-east-1".to_owned(),
            keys: PathBuf::new(),
            ca: PathBuf::new(),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            domain: PathBuf::from(".diloco"),
            bus: BusConfig::default(),
            recorder: RecorderSection::default(),
            audit: AuditSection::default(),
            store: StoreSection::default(),
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
            layout.credentials(Role::Auditor.name()),
        );
        fill(
            &mut self.recorder.credentials,
            layout.credentials(Role::Recorder.name()),
        );
        fill(&mut self.bus.ca, layout.ca());
        fill(&mut self.audit.trust, layout.trust());
        fill(&mut self.audit.folder, layout.audit_files());
        fill(&mut self.audit.head_key, layout.head_key());
        fill(&mut self.audit.sentry_key, layout.sentry_key());
        fill(&mut self.audit.log_manifest, layout.log_manifest());
        fill(&mut self.store.keys, layout.store_log_key());
        fill(&mut self.store.ca, layout.ca());
        self
    }

    /// The connection on which the service receives and records workers' events.
    pub fn recorder_bus(&self) -> BusConfig {
        BusConfig {
            credentials: self.recorder.credentials.clone(),
            ..self.bus.clone()
        }
    }

    /// The service's materials.
    pub fn materials(&self, now: UnixMillis) -> Materials {
        let mut items = vec![
            Material::BusAddress {
                key: "bus.url",
                url: self.bus.url.clone(),
            },
            Material::Credentials {
                key: "bus.credentials",
                path: self.bus.credentials.clone(),
            },
            Material::Credentials {
                key: "recorder.credentials",
                path: self.recorder.credentials.clone(),
            },
            Material::Authority {
                key: "bus.ca",
                path: self.bus.ca.clone(),
                layer: Layer::Bus,
            },
            Material::Trust {
                key: "audit.trust",
                path: self.audit.trust.clone(),
            },
        ];
        if !self.store.url.is_empty() {
            items.push(Material::StoreAddress {
                key: "store.url",
                url: self.store.url.clone(),
            });
            // In a domain of an earlier release nothing signs heads, so nothing is copied.
            items.push(Material::StoreLogKey {
                key: "store.keys",
                path: self.store.keys.clone(),
            });
            items.push(Material::Authority {
                key: "store.ca",
                path: self.store.ca.clone(),
                layer: Layer::Bulk,
            });
        }
        Materials { items, now }
    }
}
