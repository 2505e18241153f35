//! The worker's configuration, before and after it is checked.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use identity::{AuditKey, ClientFile, TrustBundle, TrustSource};
use objects::Trust;
use runtime::auth::AuthConfig;
use runtime::service::ServiceConfig;
use runtime::{BusConfig, ConfigBytes, ConfigDuration, Failure, Loaded, Material, Materials};
use schemas::member::{Layer, Posture};
use schemas::run::TrainerKind;
use schemas::{Code, RunId, UnixMillis};
use serde::{Deserialize, Serialize};

use crate::trainers;

/// All settings of the worker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorkerConfig {
    /// Authentication that peers must show.
    pub auth: AuthConfig,
    /// The bus.
    pub bus: BusConfig,
    /// This worker.
    pub worker: WorkerSection,
    /// The store; its address comes with every grant.
    pub store: StoreSection,
    /// Objects that are kept on disk.
    pub cache: CacheSection,
    /// Settings of the training.
    pub training: TrainingSection,
    /// Settings that every service has.
    pub service: ServiceConfig,
}

/// The section `worker`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorkerSection {
    /// The run to work for.
    pub run: String,
    /// Seed file of the key that signs this worker's events and results.
    pub audit_key: PathBuf,
    /// Trust bundle: the keys that leases and commands may be signed with.
    pub trust: PathBuf,
    /// Folder for state that must survive a restart: optimizer state and the end of the chain of
    /// events. Each worker needs a folder of its own.
    pub state: PathBuf,
    /// Longest time until a head of the log of all events covers an event that was recorded. After
    /// a fifth of it the event is sent again.
    pub receipt_within: ConfigDuration,
}

/// The section `store`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreSection {
    /// Certificate authority of the store, PEM.
    pub ca: PathBuf,
}

/// The section `cache`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CacheSection {
    /// The folder; several workers may share it.
    pub folder: PathBuf,
    /// Size of the cache, approximately.
    pub limit: ConfigBytes,
}

/// The section `training`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainingSection {
    /// `auto`, `cpu`, `cuda` or `cuda:<number>`.
    pub device: String,
    /// CPU threads. Workers times threads should not exceed the cores.
    pub threads: usize,
    /// Trainers to offer; if empty, all that this build has.
    pub trainers: Vec<TrainerKind>,
}

impl Default for WorkerSection {
    fn default() -> Self {
        Self {
            run: String::new(),
            audit_key: PathBuf::new(),
            trust: PathBuf::new(),
            state: PathBuf::from("worker-state"),
            receipt_within: ConfigDuration::from_secs(600),
        }
    }
}

impl Default for CacheSection {
    fn default() -> Self {
        Self {
            folder: PathBuf::from("worker-cache"),
            limit: ConfigBytes(4 << 30),
        }
    }
}

impl Default for TrainingSection {
    fn default() -> Self {
        Self {
            device: "auto".to_owned(),
            threads: 1,
            trainers: Vec::new(),
        }
    }
}

/// A checked configuration, with the keys that it names.
#[derive(Clone, Debug)]
pub struct Checked {
    /// The values.
    pub config: WorkerConfig,
    /// The layers of protection that this process relaxed.
    pub posture: Posture,
    /// The run.
    pub run: RunId,
    /// The trust bundle.
    pub trust: Arc<TrustBundle>,
    /// The same, as it is at the time when a document is checked.
    pub trust_source: TrustSource,
    /// The key for events and results.
    pub audit_key: Arc<AuditKey>,
    /// The authority that the store's certificate needs.
    pub store_trust: Trust,
    /// The trainers that it can use, sorted.
    pub trainers: Vec<TrainerKind>,
    /// The device that it computes on, for people.
    pub device: String,
    /// The credentials and certificates that it shows; some of them expire.
    pub materials: Materials,
}

/// Most threads that are accepted: more than any machine has cores.
const THREADS_MAX: usize = 1024;
/// Times that are accepted until a head covers an event. A head is signed ten seconds after an
/// event, and a worker asks for it some ten seconds later; after a day a broker's files are long
/// overwritten.
const RECEIPT_WITHIN: RangeInclusive<Duration> =
    Duration::from_secs(20)..=Duration::from_secs(86_400);

impl Checked {
    /// Checks everything that can be checked before anything is connected.
    ///
    /// # Errors
    /// All faults of the credentials, or the first fault of the other settings.
    pub fn new(loaded: Loaded<WorkerConfig>, now: UnixMillis) -> Result<Self, Failure> {
        let Loaded {
            value: config,
            origins,
        } = loaded;
        let materials = config.materials(now);
        let posture =
            runtime::validate(&config.auth, &materials, &origins).map_err(Failure::all)?;
        let invalid = |key: &str, detail: &dyn std::fmt::Display| {
            Failure::new(
                Code::ConfigInvalid,
                format!("{key} ({}): {detail}", origins.of(key)),
            )
        };
        if config.worker.run.is_empty() {
            return Err(invalid(
                "worker.run",
                &"names no run; set it, or give --run",
            ));
        }
        let run: RunId = config
            .worker
            .run
            .parse()
            .map_err(|error| invalid("worker.run", &error))?;
        if !(1..=THREADS_MAX).contains(&config.training.threads) {
            let detail = format!(
                "is {}, expected 1 to {THREADS_MAX}",
                config.training.threads
            );
            return Err(invalid("training.threads", &detail));
        }
        let within = config.worker.receipt_within;
        if !RECEIPT_WITHIN.contains(&within.0) {
            let (least, most) = (RECEIPT_WITHIN.start(), RECEIPT_WITHIN.end());
            let detail = format!(
                "is {within}, expected {} to {}",
                ConfigDuration(*least),
                ConfigDuration(*most)
            );
            return Err(invalid("worker.receipt_within", &detail));
        }
        let (trainers, device) = trainers::offered(&config.training)?;
        let (trust, audit_key) = keys(&config.worker)?;
        let open = posture.is_open(Layer::Bulk);
        let store_trust = store_trust(&config.store.ca, &config.bus.credentials, open)?;
        Ok(Self {
            posture,
            run,
            trust_source: TrustSource::of(&config.worker.trust, &trust),
            trust,
            audit_key,
            store_trust,
            trainers,
            device,
            config,
            materials,
        })
    }
}

impl WorkerConfig {
    fn materials(&self, now: UnixMillis) -> Materials {
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
            Material::Authority {
                key: "store.ca",
                path: self.store.ca.clone(),
                layer: Layer::Bulk,
            },
            Material::Trust {
                key: "worker.trust",
                path: self.worker.trust.clone(),
            },
            Material::AuditKey {
                key: "worker.audit_key",
                path: self.worker.audit_key.clone(),
            },
        ];
        Materials { items, now }
    }
}

/// Reads the keys. They are needed whatever the switches say: there is no result without a
/// signature, and no work on a lease that nobody checks.
fn keys(section: &WorkerSection) -> Result<(Arc<TrustBundle>, Arc<AuditKey>), Failure> {
    for (key, path) in [
        ("worker.trust", &section.trust),
        ("worker.audit_key", &section.audit_key),
    ] {
        if path.as_os_str().is_empty() {
            return Err(Failure::new(
                Code::CredentialMissing,
                format!("{key} is not set; a worker always needs it"),
            ));
        }
    }
    let trust = TrustBundle::read(&section.trust)
        .map_err(|error| Failure::new(error.code(), format!("worker.trust: {error}")))?;
    let audit_key = AuditKey::read(&section.audit_key)
        .map_err(|error| Failure::new(error.code(), format!("worker.audit_key: {error}")))?;
    Ok((Arc::new(trust), Arc::new(audit_key)))
}

fn store_trust(ca: &Path, credentials: &Path, open: bool) -> Result<Trust, Failure> {
    if ca.as_os_str().is_empty() && open {
        return Ok(Trust::PlainLoopback);
    }
    let unreadable = |error| {
        Failure::new(
            Code::CredentialUnreadable,
            format!("store.ca {}: {error}", ca.display()),
        )
    };
    std::fs::read(ca).map_err(unreadable)?;
    Ok(Trust::Shown(ca.to_owned(), ClientFile::beside(credentials)))
}
