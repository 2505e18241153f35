//! The store as a program: its command line, and its part in the frame of all services.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use runtime::metrics::MetricsConfig;
use runtime::service::{self, Flag, ServiceArgs, ServiceConfig};
use runtime::{Failure, Loaded, Materials};
use schemas::UnixMillis;
use schemas::member::Posture;
use tokio_util::sync::CancellationToken;

use crate::settings::Settings;
use crate::{Store, StoreConfig};

/// An S3 store for one machine: two buckets, three access keys, every object verified before it can
/// be seen.
#[derive(Parser)]
#[command(name = "diloco-store", version)]
pub struct CommandLine {
    #[command(flatten)]
    service: ServiceArgs,
    /// Address to listen on; port 0 takes any free one.
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<SocketAddr>,
    /// Folder of the objects.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// File of the access keys (JSON, mode 600).
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    /// Certificate chain (PEM).
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// Private key of the certificate (PEM).
    #[arg(long, value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Certificate of the authority of clients (PEM): only clients with a certificate of it are
    /// taken.
    #[arg(long, value_name = "FILE")]
    tls_clients: Option<PathBuf>,
    /// The crash that an answered upload survives: `always` (a power failure) or `kernel` (the end
    /// of the process).
    #[arg(long, value_name = "WHEN")]
    durability: Option<String>,
}

impl service::CommandLine for CommandLine {
    fn service(&self) -> &ServiceArgs {
        &self.service
    }

    fn flags(&self) -> Vec<Flag> {
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        let listen = self.listen.map(|listen| listen.to_string());
        let flags = [
            ("store_server.listen", "--listen", listen),
            ("store_server.root", "--root", path(&self.root)),
            ("store_server.keys", "--keys", path(&self.keys)),
            ("store_server.tls_cert", "--tls-cert", path(&self.tls_cert)),
            ("store_server.tls_key", "--tls-key", path(&self.tls_key)),
            (
                "store_server.tls_clients",
                "--tls-clients",
                path(&self.tls_clients),
            ),
            (
                "store_server.durability",
                "--durability",
                self.durability.clone(),
            ),
        ];
        flags
            .into_iter()
            .filter_map(|(key, flag, value)| Some((key, flag, value?)))
            .collect()
    }
}

/// A store whose configuration was checked.
pub struct Program {
    config: StoreConfig,
    posture: Posture,
    materials: Materials,
}

impl service::Service for Program {
    const NAME: &'static str = "store";
    /// The protocol layer logs requests with their signatures, so it is silent; our own lines show
    /// the path.
    const SILENT: &'static [&'static str] = &["s3s"];
    type Config = Settings;
    type Running = Store;

    fn section(config: &Settings) -> &ServiceConfig {
        &config.service
    }

    fn metrics(config: &Settings) -> Option<&MetricsConfig> {
        Some(&config.metrics)
    }

    fn check(loaded: Loaded<Settings>, now: UnixMillis) -> Result<Self, Failure> {
        let (config, posture) = loaded.value.resolve(&loaded.origins, now)?;
        Ok(Self {
            config,
            posture,
            materials: loaded.value.materials(now),
        })
    }

    fn materials(&self) -> Materials {
        self.materials.clone()
    }

    fn posture(&self) -> Posture {
        self.posture.clone()
    }

    async fn start(self) -> Result<Store, Failure> {
        tracing::info!(tls = ?self.config.tls, "opening the store");
        let store = Store::bind(self.config).await?;
        store.state(self.posture);
        Ok(store)
    }
}

impl service::Running for Store {
    fn addresses(&self) -> Vec<String> {
        vec![self.address().to_string()]
    }

    async fn run(self, stop: CancellationToken) -> Result<(), Failure> {
        Self::run(self, stop).await;
        Ok(())
    }
}
