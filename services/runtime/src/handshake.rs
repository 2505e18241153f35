//! A look at a server through one TLS handshake: the authority that has signed its certificate, and
//! its word on a client's certificate. Nothing is asked, and no credential is shown.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use identity::certificate::Facts;
use identity::{ClientFile, Own, TlsFault, tls};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::{clock, materials};

/// Longest look at one server.
const LOOK_MAX: Duration = Duration::from_secs(5);
/// Longest wait for the server's word on the client's certificate: one that takes it waits for the
/// client.
const VERDICT_MAX: Duration = Duration::from_secs(1);
/// Longest greeting of a broker that is read; the usual ones have some hundred bytes.
const GREETING_BYTES_MAX: u64 = 32 << 10;
/// The ports of bus and store when the address names none.
const BUS_PORT: u16 = 4222;
const STORE_PORT: u16 = 443;

/// What a server has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The identifier of the authority that has signed its certificate, by the certificate's own
    /// word; the certificate was verified.
    pub authority: Option<String>,
    /// The reason why it does not take the client's certificate; none if it does.
    pub refusal: Option<TlsFault>,
}

/// Looks at the server at this address (`tls://` or `https://`), which must have a certificate of
/// an authority in the file `authorities`.
///
/// # Errors
/// The reason why nothing was seen.
pub async fn look(
    address: &str,
    authorities: &Path,
    shown: Option<&ClientFile>,
) -> Result<Seen, String> {
    let seen = timeout(LOOK_MAX, handshake(address, authorities, shown)).await;
    seen.unwrap_or_else(|_| Err("it does not answer".to_owned()))
}

async fn handshake(
    address: &str,
    authorities: &Path,
    shown: Option<&ClientFile>,
) -> Result<Seen, String> {
    let pem = identity::secret::read_anchor(authorities).map_err(|error| error.to_string())?;
    let config = match shown {
        Some(shown) => tls::client_config_showing(pem.as_bytes(), shown),
        None => tls::client_config(pem.as_bytes()),
    };
    let mut config = config.map_err(|error| format!("{}: {error}", authorities.display()))?;
    config.alpn_protocols.clear();
    let (url, _) = materials::parse(address)?;
    let is_bus = url.scheme() == "tls";
    let host = url.host_str().unwrap_or_default();
    let host = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .to_owned();
    let port = url
        .port()
        .unwrap_or(if is_bus { BUS_PORT } else { STORE_PORT });
    let failed = |error: std::io::Error| error.to_string();
    let stream = TcpStream::connect((host.as_str(), port)).await;
    let mut stream = BufReader::new(stream.map_err(failed)?);
    if is_bus {
        // The broker greets in the clear before it speaks TLS.
        let mut greeting = Vec::new();
        let mut first = (&mut stream).take(GREETING_BYTES_MAX);
        first
            .read_until(b'\n', &mut greeting)
            .await
            .map_err(failed)?;
    }
    let name = ServerName::try_from(host).map_err(|error| error.to_string())?;
    let own = Own::look(shown);
    let refusal = |error: &std::io::Error| TlsFault::of(error, &own, clock::now());
    let connected = TlsConnector::from(Arc::new(config)).connect(name, stream);
    let mut stream = connected.await.map_err(|error| {
        let fault = refusal(&error);
        fault.map_or_else(|| error.to_string(), |fault| fault.to_string())
    })?;
    let certificates = stream.get_ref().1.peer_certificates();
    let first = certificates.and_then(|all| all.first());
    let authority = first.and_then(|der| Facts::of(der)?.authority);
    // By now the server is verified, and has not said yet what it thinks of the client's
    // certificate.
    let word = timeout(VERDICT_MAX, stream.read_u8()).await;
    let refusal = word
        .ok()
        .and_then(|word| word.err().as_ref().and_then(refusal));
    Ok(Seen { authority, refusal })
}
