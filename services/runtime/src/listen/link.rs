//! One connection of a listener: the broker's greeting, TLS, the proof of the key, the
//! subscriptions, and then the words of the protocol.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use identity::source::{Proof, ProofError};
use identity::{BusTls, ClientFile, CredentialSource, Own, TlsFault};
use rustls_pki_types::ServerName;
use schemas::Code;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use url::Url;

use super::protocol::{self, Connect, Info, Parser, ProtocolError, Word};
use crate::bus::{BusError, Direction, causes};
use crate::{clock, denial};

/// Longest wait until a server accepts, greets and ends its handshake, and again until it accepts
/// the credentials: it may take two seconds to look an account up.
const GREETING_MAX: Duration = Duration::from_secs(5);
/// Longest wait until a few bytes are sent. A server that takes none is as good as gone.
const WRITE_MAX: Duration = Duration::from_secs(10);
/// Room for one read.
const READ_BYTES: usize = 64 << 10;
const PORT: u16 = 4222;

/// Servers, credentials and subscriptions of a listener: all that each new connection needs.
#[derive(Debug)]
pub(crate) struct Dialer {
    pub(crate) name: String,
    pub(crate) addresses: Vec<Address>,
    pub(crate) ca: Option<PathBuf>,
    /// The file with the certificate that is shown to a server that asks for one.
    pub(crate) certificate: Option<ClientFile>,
    pub(crate) source: Option<CredentialSource>,
    pub(crate) filters: Vec<String>,
    /// A name that no other process has: if a connection replaces another, both are there for a
    /// moment, and each message goes to one of them.
    pub(crate) group: String,
}

/// One server.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Address {
    text: String,
    host: String,
    port: u16,
    encrypted: bool,
}

/// A connection whose server has taken the credentials and the subscriptions.
pub(crate) struct Link {
    socket: Box<dyn Socket>,
    parser: Parser,
}

/// Reasons why a connection was lost.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Lost {
    #[error("the server closed it")]
    Closed,
    #[error("the server does not answer")]
    Silent,
    #[error(transparent)]
    Socket(#[from] std::io::Error),
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
}

/// A TCP stream or one inside TLS.
trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Socket for S {}

impl Address {
    /// Parses `tls://host:port`; an address without a scheme stands for plaintext.
    pub(crate) fn parse(text: &str) -> Result<Self, BusError> {
        let unusable = || {
            unreachable(
                text,
                "not an address such as tls://127.0.0.1:4222".to_owned(),
            )
        };
        let whole = if text.contains("://") {
            text.to_owned()
        } else {
            format!("nats://{text}")
        };
        let url = Url::parse(&whole).map_err(|_| unusable())?;
        let encrypted = match url.scheme() {
            "tls" => true,
            "nats" => false,
            _ => return Err(unusable()),
        };
        let host = url
            .host_str()
            .filter(|host| !host.is_empty())
            .ok_or_else(unusable)?;
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        Ok(Self {
            text: text.to_owned(),
            host,
            port: url.port().unwrap_or(PORT),
            encrypted,
        })
    }
}

impl Dialer {
    /// The certificate authority of encrypted servers.
    pub(crate) fn authority(tls: BusTls) -> Option<PathBuf> {
        match tls {
            BusTls::Required { ca } => Some(ca),
            BusTls::Off => None,
        }
    }

    /// Tries every server once, in order. Messages that arrive before the last subscription stands
    /// are passed to `heard`.
    ///
    /// # Errors
    /// The reason why the last server failed, or a subscription that a server refuses.
    pub(crate) async fn dial(
        &self,
        heard: &mut (dyn FnMut(Word) + Send),
    ) -> Result<Link, BusError> {
        let mut last = None;
        for address in &self.addresses {
            match self.dial_one(address, heard).await {
                Ok(link) => return Ok(link),
                Err(denied @ BusError::Denied { .. }) => return Err(denied),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| unreachable("", "no address is configured".to_owned())))
    }

    async fn dial_one(
        &self,
        address: &Address,
        heard: &mut (dyn FnMut(Word) + Send),
    ) -> Result<Link, BusError> {
        let late = |_| {
            unreachable(
                &address.text,
                format!("no greeting within {} ms", GREETING_MAX.as_millis()),
            )
        };
        let (mut link, info) = timeout(GREETING_MAX, self.meet(address))
            .await
            .map_err(late)??;
        let late = |_| {
            unreachable(
                &address.text,
                format!("no answer within {} ms", GREETING_MAX.as_millis()),
            )
        };
        timeout(GREETING_MAX, self.present(address, &mut link, &info, heard))
            .await
            .map_err(late)??;
        Ok(link)
    }

    /// Connects, reads the greeting and starts TLS.
    async fn meet(&self, address: &Address) -> Result<(Link, Info), BusError> {
        let failed = |error: std::io::Error| unreachable(&address.text, causes(&error));
        let mut stream = TcpStream::connect((address.host.as_str(), address.port))
            .await
            .map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let mut parser = Parser::default();
        let greeting = word(&mut stream, &mut parser).await;
        let info = match greeting.map_err(|lost| unreachable(&address.text, lost.to_string()))? {
            Word::Info(info) => info,
            other => {
                return Err(unreachable(
                    &address.text,
                    format!("not a NATS server: it begins with {other:?}"),
                ));
            }
        };
        if !address.encrypted {
            if info.tls_required {
                return Err(BusError::Tls {
                    url: address.text.clone(),
                    fault: TlsFault::of_greeting(false),
                });
            }
            return Ok((
                Link {
                    socket: Box::new(stream),
                    parser,
                },
                info,
            ));
        }
        if !info.tls_required && !info.tls_available {
            return Err(BusError::Tls {
                url: address.text.clone(),
                fault: TlsFault::of_greeting(true),
            });
        }
        // Bytes from before TLS could be anybody's, and must not count as the server's words.
        if !parser.is_empty() {
            return Err(unreachable(
                &address.text,
                "bytes follow the greeting before TLS begins".to_owned(),
            ));
        }
        let name = ServerName::try_from(address.host.clone());
        let name = name.map_err(|error| unreachable(&address.text, error.to_string()))?;
        let connected = self
            .connector(address)?
            .connect(name, stream)
            .await
            .map_err(|error| self.broken(address, Lost::Socket(error)))?;
        Ok((
            Link {
                socket: Box::new(connected),
                parser,
            },
            info,
        ))
    }

    /// The error for a connection that was lost before it stood. A server that does not take the
    /// client's certificate says so after the handshake, in answer to the first words.
    fn broken(&self, address: &Address, lost: Lost) -> BusError {
        let fault = match &lost {
            Lost::Socket(error) => {
                let own = Own::look(self.certificate.as_ref());
                TlsFault::of(error, &own, clock::now())
            }
            Lost::Closed | Lost::Silent | Lost::Protocol(_) => None,
        };
        match (fault, lost) {
            (Some(fault), _) => BusError::Tls {
                url: address.text.clone(),
                fault,
            },
            (None, Lost::Socket(error)) => unreachable(&address.text, causes(&error)),
            (None, lost) => unreachable(&address.text, lost.to_string()),
        }
    }

    /// The authority is read again each time: it may have been renewed.
    fn connector(&self, address: &Address) -> Result<TlsConnector, BusError> {
        let invalid = |reason: String, code| BusError::Credential {
            url: address.text.clone(),
            reason,
            code,
        };
        let ca = self.ca.as_ref().ok_or_else(|| {
            let reason =
                "the address is encrypted but bus.ca names no certificate authority".to_owned();
            invalid(reason, Code::CredentialMissing)
        })?;
        let pem = identity::secret::read_anchor(ca)
            .map_err(|error| invalid(error.to_string(), error.code()))?;
        let config = match &self.certificate {
            Some(shown) => identity::tls::client_config_showing(pem.as_bytes(), shown),
            None => identity::tls::client_config(pem.as_bytes()),
        };
        let mut config = config.map_err(|error| {
            invalid(
                format!("{}: {error}", ca.display()),
                Code::CertificateInvalid,
            )
        })?;
        // This is not the bulk plane.
        config.alpn_protocols.clear();
        Ok(TlsConnector::from(Arc::new(config)))
    }

    /// Sends the credentials and subscribes, and waits until the server has handled both.
    async fn present(
        &self,
        address: &Address,
        link: &mut Link,
        info: &Info,
        heard: &mut (dyn FnMut(Word) + Send),
    ) -> Result<(), BusError> {
        let proof = self.prove(info).map_err(|error| BusError::Credential {
            url: address.text.clone(),
            reason: error.to_string(),
            code: error.code(),
        })?;
        let signature = proof
            .as_ref()
            .map(|proof| BASE64URL_NOPAD.encode(&proof.signature));
        let own = Connect {
            name: &self.name,
            tls_required: address.encrypted,
            jwt: proof.as_ref().map(|proof| proof.jwt.as_str()),
            sig: signature.as_deref(),
        };
        let mut words = protocol::connect(&own);
        for (filter, subscription) in self.filters.iter().zip(0..) {
            words.push_str(&protocol::subscribe(filter, &self.group, subscription));
        }
        let lost = |lost: Lost| self.broken(address, lost);
        link.say(&[words.as_bytes(), protocol::PING].concat())
            .await
            .map_err(lost)?;
        loop {
            match link.word().await.map_err(lost)? {
                Word::Pong => return Ok(()),
                Word::Ping => link.say(protocol::PONG).await.map_err(lost)?,
                Word::Error(text) => return Err(refused(&address.text, text)),
                other => heard(other),
            }
        }
    }

    fn prove(&self, info: &Info) -> Result<Option<Proof>, ProofError> {
        let Some(source) = &self.source else {
            return Ok(None);
        };
        source
            .prove(info.nonce.as_deref().unwrap_or_default().as_bytes())
            .map(Some)
    }
}

impl Link {
    /// Waits for the next word. If the caller stops waiting, nothing is lost.
    pub(crate) async fn word(&mut self) -> Result<Word, Lost> {
        word(&mut self.socket, &mut self.parser).await
    }

    /// The next word, if it has arrived completely.
    pub(crate) fn buffered(&mut self) -> Result<Option<Word>, Lost> {
        Ok(self.parser.next()?)
    }

    /// Ends the subscriptions, and passes what still comes in for them to `heard`.
    ///
    /// # Errors
    /// The server does not confirm it.
    pub(crate) async fn leave(
        &mut self,
        subscriptions: u64,
        heard: &mut (dyn FnMut(Word) + Send),
    ) -> Result<(), Lost> {
        let words: String = (0..subscriptions).map(protocol::unsubscribe).collect();
        let left = async {
            self.say(&[words.as_bytes(), protocol::PING].concat())
                .await?;
            loop {
                match self.word().await? {
                    Word::Pong => return Ok(()),
                    Word::Ping => self.say(protocol::PONG).await?,
                    other => heard(other),
                }
            }
        };
        timeout(GREETING_MAX, left)
            .await
            .unwrap_or(Err(Lost::Silent))
    }

    pub(crate) async fn say(&mut self, words: &[u8]) -> Result<(), Lost> {
        let written = async {
            self.socket.write_all(words).await?;
            self.socket.flush().await
        };
        Ok(timeout(WRITE_MAX, written)
            .await
            .map_err(|_| Lost::Silent)??)
    }
}

async fn word(
    socket: &mut (impl AsyncRead + Unpin + ?Sized),
    parser: &mut Parser,
) -> Result<Word, Lost> {
    loop {
        if let Some(word) = parser.next()? {
            return Ok(word);
        }
        let buffer = parser.buffer();
        buffer.reserve(READ_BYTES);
        if socket.read_buf(buffer).await? == 0 {
            return Err(Lost::Closed);
        }
    }
}

/// A server's refusal as an error.
fn refused(address: &str, text: String) -> BusError {
    if let Some((Direction::Subscribe, subject)) = denial::parse(&text) {
        return BusError::Denied {
            direction: Direction::Subscribe,
            subject: subject.to_owned(),
        };
    }
    let lower = text.to_ascii_lowercase();
    if lower.contains("authorization") || lower.contains("authentication") {
        return BusError::Credential {
            url: address.to_owned(),
            reason: text,
            code: Code::BusRefused,
        };
    }
    unreachable(address, format!("the server says {text:?}"))
}

fn unreachable(address: &str, reason: String) -> BusError {
    BusError::Unreachable {
        url: address.to_owned(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_host_a_port_and_a_scheme_that_is_spoken() {
        let parts = |text: &str| {
            Address::parse(text)
                .map(|one| (one.host, one.port, one.encrypted))
                .ok()
        };
        let host = |host: &str| host.to_owned();
        assert_eq!(
            parts("tls://bus.example:4333"),
            Some((host("bus.example"), 4333, true))
        );
        assert_eq!(
            parts("nats://127.0.0.1"),
            Some((host("127.0.0.1"), 4222, false))
        );
        assert_eq!(
            parts("127.0.0.1:4333"),
            Some((host("127.0.0.1"), 4333, false))
        );
        assert_eq!(parts("tls://[::1]:4222"), Some((host("::1"), 4222, true)));
        for other in ["wss://a:1", "http://a", "tls://", "tls://a:70000", ""] {
            assert_eq!(parts(other), None, "{other}");
        }
    }

    #[test]
    fn refusals_are_told_apart() {
        let code = |text: &str| refused("a", text.to_owned()).code();
        assert_eq!(code("Authorization Violation"), Code::BusRefused);
        assert_eq!(code("User Authentication Expired"), Code::BusRefused);
        assert_eq!(
            code("Permissions Violation for Subscription to \"diloco.request.>\""),
            Code::BusDenied
        );
        assert_eq!(code("maximum connections exceeded"), Code::BusUnreachable);
    }
}
