//! The configuration of the program `diloco-store`: sections `store_server` and `auth`, in the
//! layers of crate `runtime` (`DILOCO_STORE_SERVER__ROOT=…`, `--set store_server.root=…`).

use std::net::SocketAddr;
use std::path::PathBuf;

use identity::StoreKeys;
use runtime::metrics::MetricsConfig;
use runtime::service::ServiceConfig;
use runtime::{AuthConfig, ConfigBytes, ConfigDuration, Failure, Material, Materials, Origins};
use schemas::member::{Layer, Posture};
use schemas::{Code, UnixMillis};
use serde::{Deserialize, Serialize};

use crate::config::{Durability, StoreConfig, StoreLimits, Tls};

const KEYS: &str = "store_server.keys";
const CERTIFICATE: [&str; 2] = ["store_server.tls_cert", "store_server.tls_key"];

const CLIENTS: &str = "store_server.tls_clients";

/// All settings of the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The server.
    pub store_server: ServerSettings,
    /// The authentication that peers must show. An exception for the layer `bulk` allows plain http
    /// on loopback.
    pub auth: AuthConfig,
    /// The settings that every service has.
    pub service: ServiceConfig,
    /// Numbers for a collector.
    pub metrics: MetricsConfig,
}

/// The section `store_server`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerSettings {
    /// The address to listen on; port 0 takes any.
    pub listen: SocketAddr,
    /// The folder of the objects.
    pub root: PathBuf,
    /// The file of the access keys.
    pub keys: PathBuf,
    /// Certificate chain, PEM.
    pub tls_cert: PathBuf,
    /// Its private key, PEM.
    pub tls_key: PathBuf,
    /// The certificate of the authority of clients, PEM: `auth.mutual_tls` demands it.
    pub tls_clients: PathBuf,
    /// `always` or `kernel`.
    pub durability: Durability,
    /// Largest object.
    pub object_bytes_max: ConfigBytes,
    /// Free space on the disk below which uploads are refused.
    pub free_bytes_min: ConfigBytes,
    /// Connections served at a time.
    pub connections_max: usize,
    /// The share of these that a single address may hold, in percent.
    pub connections_peer_percent: u8,
    /// Longest silence of a peer.
    pub idle: ConfigDuration,
    /// Age at which uploads that were not promoted are removed.
    pub incoming_life: ConfigDuration,
    /// Time between two looks for such uploads.
    pub sweep_every: ConfigDuration,
    /// Time that requests in progress may take to end at shutdown.
    pub drain: ConfigDuration,
}

impl Default for ServerSettings {
    fn default() -> Self {
        let limits = StoreLimits::default();
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 9000)),
            root: PathBuf::from(".diloco/store"),
            keys: PathBuf::new(),
            tls_cert: PathBuf::new(),
            tls_key: PathBuf::new(),
            tls_clients: PathBuf::new(),
            durability: Durability::default(),
            object_bytes_max: ConfigBytes(limits.object_bytes_max.get()),
            free_bytes_min: ConfigBytes(limits.free_bytes_min.get()),
            connections_max: limits.connections_max,
            connections_peer_percent: limits.connections_peer_percent,
            idle: ConfigDuration(limits.idle),
            incoming_life: ConfigDuration(limits.incoming_life),
            sweep_every: ConfigDuration(limits.sweep_every),
            drain: ConfigDuration(limits.drain),
        }
    }
}

impl Settings {
    /// Checks the materials that the settings name against the demands of `auth`, and reads them.
    /// The posture names the layers that `auth` leaves open.
    ///
    /// # Errors
    /// Everything that is wrong, each with its code. Nothing was bound.
    pub fn resolve(
        &self,
        origins: &Origins,
        now: UnixMillis,
    ) -> Result<(StoreConfig, Posture), Failure> {
        let server = &self.store_server;
        let materials = self.materials(now);
        let posture = runtime::validate(&self.auth, &materials, origins).map_err(Failure::all)?;
        if server.keys.as_os_str().is_empty() {
            return Err(Failure::new(
                Code::CredentialMissing,
                format!("{KEYS} is not set; a store without keys serves nobody"),
            ));
        }
        if !server.tls_clients.as_os_str().is_empty() && server.tls_cert.as_os_str().is_empty() {
            let text = format!("{CLIENTS} is set, and {} is not", CERTIFICATE[0]);
            return Err(Failure::new(Code::CredentialHalf, text));
        }
        let keys = StoreKeys::read_to_derive(&server.keys)?;
        let config = StoreConfig {
            listen: server.listen,
            root: server.root.clone(),
            keys,
            tls: server.tls(),
            durability: server.durability,
            limits: server.limits()?,
        };
        Ok((config, posture))
    }

    /// The store's materials.
    pub fn materials(&self, now: UnixMillis) -> Materials {
        let server = &self.store_server;
        let items = vec![
            Material::StoreKeys {
                key: KEYS,
                path: server.keys.clone(),
            },
            Material::Certificate {
                keys: CERTIFICATE,
                certificate: server.tls_cert.clone(),
                private_key: server.tls_key.clone(),
                layer: Layer::Bulk,
            },
            Material::Clients {
                key: CLIENTS,
                path: server.tls_clients.clone(),
            },
        ];
        Materials { items, now }
    }
}

impl ServerSettings {
    /// The certificate and its key: the materials were checked, so that both are given or neither.
    fn tls(&self) -> Tls {
        match self.tls_cert.as_os_str().is_empty() {
            true => Tls::PlainLoopback,
            false => Tls::Files {
                certificate: self.tls_cert.clone(),
                key: self.tls_key.clone(),
                clients: Some(self.tls_clients.clone())
                    .filter(|clients| !clients.as_os_str().is_empty()),
            },
        }
    }

    fn limits(&self) -> Result<StoreLimits, Failure> {
        let spans = [
            ("idle", self.idle),
            ("incoming_life", self.incoming_life),
            ("sweep_every", self.sweep_every),
        ];
        let zero = spans
            .into_iter()
            .find(|(_, span)| span.0.is_zero())
            .map(|(name, _)| name);
        if let Some(name) = zero.or((self.connections_max == 0).then_some("connections_max")) {
            return Err(Failure::new(
                Code::ConfigInvalid,
                format!("store_server.{name} is zero; nothing would be served"),
            ));
        }
        if !(1..=100).contains(&self.connections_peer_percent) {
            let text = "store_server.connections_peer_percent lies between 1 and 100";
            return Err(Failure::new(Code::ConfigInvalid, text));
        }
        Ok(StoreLimits {
            connections_max: self.connections_max,
            connections_peer_percent: self.connections_peer_percent,
            idle: self.idle.0,
            object_bytes_max: self.object_bytes_max.bytes(),
            free_bytes_min: self.free_bytes_min.bytes(),
            incoming_life: self.incoming_life.0,
            sweep_every: self.sweep_every.0,
            drain: self.drain.0,
        })
    }
}

#[cfg(test)]
mod tests {
    use identity::{Domain, InitOptions};
    use runtime::auth::Exception;
    use runtime::clock;

    use super::*;

    #[test]
    fn fg_08_an_authority_of_clients_needs_a_certificate_of_the_store() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let options = InitOptions {
            mutual_tls: true,
            ..InitOptions::default()
        };
        let domain = Domain::init(&scratch.path().join("d"), &options, clock::now());
        let domain = domain.expect("a new domain");
        let layout = domain.layout();
        let settings = |tls_cert: PathBuf, tls_key: PathBuf| Settings {
            store_server: ServerSettings {
                keys: layout.store_keys(),
                tls_cert,
                tls_key,
                tls_clients: layout.clients(),
                ..ServerSettings::default()
            },
            auth: AuthConfig {
                exceptions: vec![Exception {
                    layer: Layer::Bulk,
                    reason: "a test".to_owned(),
                }],
                ..AuthConfig::default()
            },
            ..Settings::default()
        };
        let resolved = |settings: Settings| settings.resolve(&Origins::default(), clock::now());
        let plain = resolved(settings(PathBuf::new(), PathBuf::new()));
        let code = plain
            .map(|(config, _)| config.tls)
            .map_err(|failure| failure.code());
        assert!(matches!(code, Err(Code::CredentialHalf)), "{code:?}");
        let secure = resolved(settings(layout.server_certificate(), layout.server_key()));
        let (config, _) = secure.expect("its own files");
        assert!(
            matches!(&config.tls, Tls::Files { clients: Some(file), .. } if *file == layout.clients())
        );
    }
}
