//! A look at a server through one TLS handshake: the authority that has signed its certificate, and
//! its word on a client's certificate. In TLS 1.3 a client is through before the server has looked
//! at its certificate, and a server that takes it says nothing by itself. So the server is asked
//! for something that it refuses to everybody: only a server that has taken the certificate answers
//! that. No credential is shown.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use identity::certificate::Facts;
use identity::{ClientFile, Own, TlsFault, tls};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::{clock, materials, stranger};

/// Longest look at one server.
const LOOK_MAX: Duration = Duration::from_secs(5);
/// Longest wait for the server's word on the client's certificate.
const WORD_MAX: Duration = Duration::from_secs(3);
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
    /// Its word on the client's certificate.
    pub word: Word,
}

/// A server's word on a client's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// It takes it: it has answered over the connection.
    Taken,
    /// It does not, for this reason.
    Refused(TlsFault),
    /// It has said neither, as told here.
    Unknown(String),
}

/// Longest waits of one look.
#[derive(Clone, Copy)]
struct Limits {
    look: Duration,
    word: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            look: LOOK_MAX,
            word: WORD_MAX,
        }
    }
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
    look_within(Limits::default(), address, authorities, shown).await
}

async fn look_within(
    limits: Limits,
    address: &str,
    authorities: &Path,
    shown: Option<&ClientFile>,
) -> Result<Seen, String> {
    let seen = handshake(limits.word, address, authorities, shown);
    let seen = timeout(limits.look, seen).await;
    seen.unwrap_or_else(|_| Err("it does not answer".to_owned()))
}

async fn handshake(
    word_max: Duration,
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
    let question = question(is_bus, &host, port);
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
    let asked = async {
        // A server that refuses may have closed the connection: then its word waits to be read.
        let _sent = stream.write_all(question.as_bytes()).await;
        let _sent = stream.flush().await;
        stream.read_u8().await
    };
    let word = match timeout(word_max, asked).await {
        Ok(Ok(_)) => Word::Taken,
        Ok(Err(error)) => match refusal(&error) {
            Some(fault) => Word::Refused(fault),
            None => Word::Unknown(format!(
                "it ended the connection without a word on the certificate ({error})"
            )),
        },
        Err(_) => Word::Unknown(format!(
            "it said nothing within {} s",
            word_max.as_secs_f32()
        )),
    };
    Ok(Seen { authority, word })
}

/// Something that a server refuses to a client without credentials, and answers thereby.
fn question(is_bus: bool, host: &str, port: u16) -> String {
    match is_bus {
        // The broker's log shows it under the name of the tries of services at their start.
        true => {
            let options = serde_json::json!({
                "verbose": false,
                "pedantic": false,
                "name": stranger::NAME,
                "lang": "rust",
                "version": env!("CARGO_PKG_VERSION"),
            });
            format!("CONNECT {options}\r\nPING\r\n")
        }
        false => {
            let host = match host.contains(':') {
                true => format!("[{host}]"),
                false => host.to_owned(),
            };
            format!("HEAD / HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n")
        }
    }
}

#[cfg(test)]
mod tests;
