//! The coordinator's configuration.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use identity::{DomainLayout, EventKeyFiles};
use runtime::config::fill;
use runtime::metrics::MetricsConfig;
use runtime::service::ServiceConfig;
use runtime::{AuthConfig, BusConfig, ConfigBytes, ConfigDuration, Failure, Material, Materials};
use schemas::member::Layer;
use schemas::permission::Role;
use schemas::{Code, UnixMillis};
use serde::{Deserialize, Serialize};

/// All settings of the coordinator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Folder of the trust domain; paths that are not set lie in it.
    pub domain: PathBuf,
    /// The bus.
    pub bus: BusConfig,
    /// The second connection, on which the ledger is written.
    pub ledger: LedgerConfig,
    /// The store.
    pub store: StoreConfig,
    /// Keys and the trust bundle.
    pub keys: KeysConfig,
    /// The authentication that peers must show.
    pub auth: AuthConfig,
    /// Bounds.
    pub limits: LimitsConfig,
    /// Settings that every service has.
    pub service: ServiceConfig,
    /// Metrics for a collector.
    pub metrics: MetricsConfig,
}

/// The ledger's own account at the same broker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LedgerConfig {
    /// Credentials file.
    pub credentials: PathBuf,
}

/// The store: where it is, with which keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreConfig {
    /// Address: `https://host:port`.
    pub url: String,
    /// Region that signatures name.
    pub region: String,
    /// The file with the store's access keys.
    pub keys: PathBuf,
    /// Certificate authority of the store, PEM.
    pub ca: PathBuf,
    /// Try at each start by some fifty requests that the store keeps the rules that uploads and
    /// URLs depend on. `up` turns this off for the store that it starts itself.
    pub check: bool,
}

/// Keys and the trust bundle.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KeysConfig {
    /// The trust bundle.
    pub trust: PathBuf,
    /// Seed file of the key that signs leases and commands.
    pub manifest: PathBuf,
    /// Seed file of the key that signs the ledger.
    pub audit: PathBuf,
    /// The file that notes how far the ledger has come, so that a lost ledger is not begun anew.
    /// Move it together with the key.
    pub mark: PathBuf,
    /// Folder of the list of issued credentials: it binds a worker's audit key and its seat in a
    /// group. A worker without a record there joins nothing. Without the folder the coordinator
    /// does not start, unless an exception opens layer `enrolment`: then any proven key is taken at
    /// a worker's first join, and nobody has a seat.
    pub issued: PathBuf,
}

impl KeysConfig {
    /// The files of the key that signs the ledger.
    pub(crate) fn events(&self) -> EventKeyFiles {
        EventKeyFiles {
            key: self.audit.clone(),
            trust: self.trust.clone(),
        }
    }
}

/// Bounds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Memory for contributions that were screened and wait for their merge; contributions that do
    /// not fit are fetched again.
    pub contributions_memory: ConfigBytes,
    /// Chunks that are fetched or stored at a time for checks of results, and as many again for
    /// merges, restores and saves. Each holds its bytes in memory.
    pub transfers: u32,
    /// The time for which an operation at the store is retried.
    pub store_patience: ConfigDuration,
    /// The time for which an append to the ledger is retried before the coordinator stands down.
    pub ledger_patience: ConfigDuration,
    /// The time between two heartbeats of a worker.
    pub heartbeat: ConfigDuration,
    /// Longest time until a verified head of the log covers an event of the ledger; then the
    /// coordinator says so. It never says so where it has not seen a head: a domain without an
    /// audit service has none.
    pub receipt_within: ConfigDuration,
}

/// Times that are accepted for that. A head is signed ten seconds after an event, and the
/// coordinator asks for it some ten seconds later.
const RECEIPT_WITHIN: RangeInclusive<Duration> =
    Duration::from_secs(20)..=Duration::from_secs(86_400);

impl Default for Config {
    fn default() -> Self {
        Self {
            domain: PathBuf::from(".diloco"),
            bus: BusConfig::default(),
            ledger: LedgerConfig::default(),
            store: StoreConfig::default(),
            keys: KeysConfig::default(),
            auth: AuthConfig::default(),
            limits: LimitsConfig::default(),
            service: ServiceConfig::default(),
            metrics: MetricsConfig::default(),
        }
    }
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            url: "https://127.0.0.1:9000".to_owned(),
            region: "us-east-1".to_owned(),
            keys: PathBuf::new(),
            ca: PathBuf::new(),
            check: true,
        }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            // With fp32 weights and momentum of 100M parameters (800 MB), and the chunks in
            // transfer, the process stays below 1.5 GB.
            contributions_memory: ConfigBytes::mebi(384),
            // While some transfers wait for the store's disk, others keep the cores busy.
            transfers: 8,
            store_patience: ConfigDuration::from_secs(30),
            ledger_patience: ConfigDuration::from_secs(120),
            heartbeat: ConfigDuration::from_secs(3),
            receipt_within: ConfigDuration::from_secs(600),
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
            layout.credentials(Role::Coordinator.name()),
        );
        fill(
            &mut self.ledger.credentials,
            layout.credentials(Role::LedgerWriter.name()),
        );
        fill(&mut self.bus.ca, layout.ca());
        fill(&mut self.store.keys, layout.coordinators_store_keys());
        fill(&mut self.store.ca, layout.ca());
        fill(&mut self.keys.trust, layout.trust());
        fill(&mut self.keys.manifest, layout.manifest_key());
        fill(&mut self.keys.audit, layout.coordinator_audit_key());
        fill(&mut self.keys.mark, layout.ledger_mark());
        fill(&mut self.keys.issued, layout.issued().folder().to_owned());
        self
    }

    /// Checks the bounds.
    ///
    /// # Errors
    /// One is out of the range that is accepted.
    pub fn check_limits(&self) -> Result<(), Failure> {
        let within = self.limits.receipt_within;
        if RECEIPT_WITHIN.contains(&within.0) {
            return Ok(());
        }
        let (least, most) = (RECEIPT_WITHIN.start(), RECEIPT_WITHIN.end());
        let text = format!(
            "limits.receipt_within is {within}, expected {} to {}",
            ConfigDuration(*least),
            ConfigDuration(*most)
        );
        Err(Failure::new(Code::ConfigInvalid, text))
    }

    /// The connection on which the ledger is written.
    pub fn ledger_bus(&self) -> BusConfig {
        BusConfig {
            credentials: self.ledger.credentials.clone(),
            ..self.bus.clone()
        }
    }

    /// The credentials and certificates that the coordinator shows; some of them expire.
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
            Material::Credentials {
                key: "ledger.credentials",
                path: self.ledger.credentials.clone(),
            },
            Material::Authority {
                key: "bus.ca",
                path: self.bus.ca.clone(),
                layer: Layer::Bus,
            },
            Material::StoreAddress {
                key: "store.url",
                url: self.store.url.clone(),
            },
            Material::StoreKeys {
                key: "store.keys",
                path: self.store.keys.clone(),
            },
            Material::Authority {
                key: "store.ca",
                path: self.store.ca.clone(),
                layer: Layer::Bulk,
            },
            Material::Trust {
                key: "keys.trust",
                path: self.keys.trust.clone(),
            },
            Material::ManifestKey {
                key: "keys.manifest",
                path: self.keys.manifest.clone(),
            },
            Material::AuditKey {
                key: "keys.audit",
                path: self.keys.audit.clone(),
            },
            Material::Records {
                key: "keys.issued",
                path: self.keys.issued.clone(),
            },
        ];
        Materials { items, now }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_to_a_head_that_no_head_can_keep_is_refused() {
        let checked = |seconds| {
            let mut config = Config::default();
            config.limits.receipt_within = ConfigDuration::from_secs(seconds);
            config.check_limits().map_err(|failure| failure.code())
        };
        let default = Config::default().check_limits();
        assert_eq!(
            (default.is_ok(), checked(20), checked(86_400)),
            (true, Ok(()), Ok(()))
        );
        assert_eq!(checked(19), Err(Code::ConfigInvalid));
        assert_eq!(checked(86_401), Err(Code::ConfigInvalid));
    }
}
