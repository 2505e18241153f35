//! Finds out why a connection to the bus fails or does not come back. The client tries again and
//! again, and reports only that it has no connection. Reported here are reasons that do not pass by
//! themselves, each with the file or server that it concerns.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use identity::{Credentials, Own, TlsFault, tls};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use schemas::UnixMillis;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::bus::BusConfig;
use crate::{clock, materials};

/// Longest look at one server.
const LOOK_MAX: Duration = Duration::from_secs(3);
/// Longest wait for the server's word on the client's certificate, after the handshake.
const VERDICT_MAX: Duration = Duration::from_secs(1);
/// Longest greeting of a server that is read; the usual ones have some hundred bytes.
const GREETING_BYTES_MAX: u64 = 32 << 10;
/// Time without a connection after which its reason is sought: most connections come back at once.
const LOOK_AFTER: Duration = Duration::from_secs(2);
/// Time between two looks while the connection stays away.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// The port of the bus when its address names none.
const PORT: u16 = 4222;

/// The fault of TLS at one of the servers, with that server's address.
pub(crate) async fn fault(config: &BusConfig) -> Option<(String, TlsFault)> {
    let authority = std::fs::read(&config.ca).ok()?;
    let certificate = config.certificate();
    let mut tls = match &certificate {
        Some(certificate) => tls::client_config_showing(&authority, certificate).ok()?,
        None => tls::client_config(&authority).ok()?,
    };
    tls.alpn_protocols.clear();
    let tls = Arc::new(tls);
    let own = config.own();
    for address in config
        .addresses()
        .filter(|address| address.starts_with("tls://"))
    {
        let seen = tokio::time::timeout(LOOK_MAX, fault_at(address, Arc::clone(&tls), &own)).await;
        if let Ok(Some(fault)) = seen {
            return Some((address.to_owned(), fault));
        }
    }
    None
}

async fn fault_at(address: &str, tls: Arc<ClientConfig>, own: &Own) -> Option<TlsFault> {
    let (url, _) = materials::parse(address).ok()?;
    let host = url
        .host_str()?
        .trim_start_matches('[')
        .trim_end_matches(']')
        .to_owned();
    let stream = TcpStream::connect((host.as_str(), url.port().unwrap_or(PORT)))
        .await
        .ok()?;
    let mut stream = BufReader::new(stream);
    // The server greets in the clear before it speaks TLS.
    let mut greeting = Vec::new();
    (&mut stream)
        .take(GREETING_BYTES_MAX)
        .read_until(b'\n', &mut greeting)
        .await
        .ok()?;
    if !offers_tls(&greeting) {
        return Some(TlsFault::of_greeting(true));
    }
    let name = ServerName::try_from(host).ok()?;
    let fault = |error: &std::io::Error| TlsFault::of(error, own, clock::now());
    let mut stream = match TlsConnector::from(tls).connect(name, stream).await {
        Ok(stream) => stream,
        Err(error) => return fault(&error),
    };
    // By now the client has verified the server, and has not heard yet what the server says to its
    // certificate. A server that takes it waits for the client's first word.
    let first = tokio::time::timeout(VERDICT_MAX, stream.read_u8()).await;
    first.ok()?.err().as_ref().and_then(fault)
}

/// True if a greeting says that TLS can follow.
fn offers_tls(greeting: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct Info {
        #[serde(default)]
        tls_required: bool,
        #[serde(default)]
        tls_available: bool,
    }
    let Some(json) = greeting.strip_prefix(b"INFO ") else {
        // Not a NATS server; what follows shows what it is.
        return true;
    };
    serde_json::from_slice::<Info>(json).is_ok_and(|info| info.tls_required || info.tls_available)
}

/// The fault of the credentials file now; none when the file can be used.
fn credential(path: &Path, now: UnixMillis) -> Option<identity::credentials::CredentialsError> {
    if path.as_os_str().is_empty() {
        return None;
    }
    Credentials::read(path)
        .and_then(|credentials| credentials.check(now))
        .err()
}

/// Looks for the reason while a connection is away.
#[derive(Clone, Debug)]
pub(crate) struct OutageProbe {
    config: Arc<BusConfig>,
    away: Arc<AtomicBool>,
    watching: Arc<AtomicBool>,
}

impl OutageProbe {
    pub(crate) fn over(config: &BusConfig) -> Self {
        Self {
            config: Arc::new(config.clone()),
            away: Arc::default(),
            watching: Arc::default(),
        }
    }

    /// The connection is back, or no longer wanted.
    pub(crate) fn end(&self) {
        self.away.store(false, Ordering::Relaxed);
    }

    /// The connection was lost.
    pub(crate) fn begin(&self) {
        self.away.store(true, Ordering::Relaxed);
        if self.watching.swap(true, Ordering::Relaxed) {
            return;
        }
        let outage = self.clone();
        tokio::spawn(async move {
            let mut wait = LOOK_AFTER;
            loop {
                tokio::time::sleep(wait).await;
                if !outage.away.load(Ordering::Relaxed) {
                    break;
                }
                outage.tell().await;
                wait = LOOK_EVERY;
            }
            outage.watching.store(false, Ordering::Relaxed);
        });
    }

    async fn tell(&self) {
        if let Some(error) = credential(&self.config.credentials, clock::now()) {
            let code = error.code();
            tracing::warn!(%code, "no connection to the bus: {error}; a renewed file is taken up as soon as it is there");
        } else if let Some((address, fault)) = fault(&self.config).await {
            let code = fault.code();
            tracing::warn!(%code, address, next = code.next_step(), "no connection to the bus: {fault}");
        }
    }
}
