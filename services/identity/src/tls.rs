//! TLS material: a private certificate authority, certificates for servers, and rustls
//! configurations that trust that authority and no other. The provider is ring.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use data_encoding::HEXLOWER;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::client::Resumption;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig,
    SignatureScheme,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use schemas::text::Time;
use schemas::{Code, PublicKey, UnixMillis};
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use crate::certificate::{Facts, Outside};
use crate::clients::{ClientFile, NoHolder};
use crate::fault::TlsFault;
use crate::secret::{FileError, read_anchor, read_secret};
use crate::verifier::Explaining;

/// Life of the authority.
pub const AUTHORITY_DAYS: i64 = 3652;
/// Life of a server's certificate. Open connections outlive it; only new handshakes fail.
pub const LEAF_DAYS: i64 = 30;

/// Time by which a certificate is valid before it was made, for machines whose clock is slow.
const CLOCK_SKEW: Duration = Duration::hours(1);
/// The authority's name. It is fixed, so that the authority can be made again from its key alone.
pub(crate) const AUTHORITY_NAME: &str = "diloco private authority";
const ALWAYS: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
/// The protocol of the bulk plane.
const ALPN: &[u8] = b"http/1.1";

/// A private certificate authority.
pub struct Authority(Issuer<'static, KeyPair>);

/// A certificate and its private key, PEM.
pub struct Certified {
    /// The certificate.
    pub certificate: String,
    /// The key.
    pub key: Zeroizing<String>,
}

/// Reasons why TLS material cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file without the PEM blocks that it should have.
    #[error("{} holds no {what}", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The expected content.
        what: &'static str,
    },
    /// Certificate and key do not fit, or are of a kind that is not spoken.
    #[error("{} cannot be used: {source}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// The error of rustls.
        source: rustls::Error,
    },
    /// Not a name under which a server can be reached.
    #[error("{0:?} is neither a host name nor an address")]
    Name(String),
    /// A certificate that has expired, or is not valid yet.
    #[error("{} holds a certificate of {names} that {outside}; it is {} now", path.display(), Time(*now))]
    Outside {
        /// The file.
        path: PathBuf,
        /// The names it is for.
        names: String,
        /// The side on which the time lies.
        outside: Outside,
        /// The clock.
        now: UnixMillis,
    },
    /// A client's certificate that names no holder.
    #[error("{}: {error}", path.display())]
    Holder {
        /// The file.
        path: PathBuf,
        /// The fault.
        error: NoHolder,
    },
    /// A client's certificate of another holder.
    #[error("{}: the certificate is of {found}, and the credentials beside it are of {expected}", path.display())]
    OtherHolder {
        /// The file.
        path: PathBuf,
        /// The key that the certificate names.
        found: PublicKey,
        /// The key of the credentials.
        expected: PublicKey,
    },
    /// A name that the generator refuses, or a broken key of the authority.
    #[error("cannot make a certificate: {0}")]
    Making(#[from] rcgen::Error),
}

/// Reasons why a client cannot trust an authority.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The PEM text has no certificate, or a broken one.
    #[error("the PEM text holds no certificate")]
    Missing,
    /// The file of the authorities.
    #[error(transparent)]
    File(#[from] FileError),
    /// A certificate that rustls does not take.
    #[error(transparent)]
    Unusable(#[from] rustls::Error),
    /// No authority that rustls can build on.
    #[error(transparent)]
    Builder(#[from] rustls::client::VerifierBuilderError),
}

impl TlsError {
    /// The code of the page that says what to do.
    pub fn code(&self) -> Code {
        match self {
            Self::File(error) => error.code(),
            Self::Name(_) => Code::ConfigInvalid,
            Self::Outside { .. } => Code::CertificateExpired,
            Self::Holder { .. } | Self::OtherHolder { .. } => Code::ClientCertificateOther,
            Self::Missing { .. } | Self::Unusable { .. } | Self::Making(_) => {
                Code::CertificateInvalid
            }
        }
    }
}

schemas::coded!(TlsError);

/// Makes ring the provider of this process. To be called first in every `main`; more calls do
/// nothing.
pub fn install_provider() {
    // An error says that a provider is installed already.
    let _ = ring::default_provider().install_default();
}

/// Checks that a certificate can be made for this name: a host name, one with a `*` for its first
/// label, or an address without a port.
///
/// # Errors
/// It is something else.
pub fn check_server_name(name: &str) -> Result<(), TlsError> {
    let host = name
        .strip_prefix("*.")
        .filter(|rest| rest.contains('.'))
        .unwrap_or(name);
    // A name with a final dot is the same host for a resolver, but no client compares it as equal.
    match ServerName::try_from(host) {
        Ok(_) if !host.ends_with('.') => Ok(()),
        _ => Err(TlsError::Name(name.to_owned())),
    }
}

/// A client's configuration that trusts the authorities in this PEM text alone, and explains in
/// words why a server's certificate is refused: see [`CertificateRefused::of`]. The bulk plane
/// speaks HTTP/1.1 only: uploads over HTTP/2 are several times slower.
///
/// [`CertificateRefused::of`]: crate::CertificateRefused::of
///
/// # Errors
/// The text holds no usable certificate.
pub fn client_config(authorities: &[u8]) -> Result<ClientConfig, AuthorityError> {
    trusting(Explaining::of(authorities)?)
}

/// As [`client_config`], for a client that shows the certificate in `shown` to a server that asks
/// for one.
///
/// # Errors
/// As [`client_config`].
pub fn client_config_showing(
    authorities: &[u8],
    shown: &ClientFile,
) -> Result<ClientConfig, AuthorityError> {
    let mut config = client_config(authorities)?;
    config.client_auth_cert_resolver = Arc::new(shown.clone());
    Ok(config)
}

/// As [`client_config_showing`], for a client that lives long: the file of the authorities is read
/// at every handshake, so that an authority that was added or taken out counts without a restart.
///
/// # Errors
/// As [`client_config`]; or the file cannot be used.
pub fn client_config_reading(
    authorities: &Path,
    shown: &ClientFile,
) -> Result<ClientConfig, AuthorityError> {
    let mut config = trusting(Explaining::reading(authorities)?)?;
    config.client_auth_cert_resolver = Arc::new(shown.clone());
    Ok(config)
}

/// rustls calls a verifier of one's own dangerous. This one decides nothing; it adds words to a
/// refusal.
fn trusting(verifier: Explaining) -> Result<ClientConfig, AuthorityError> {
    let builder =
        ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = builder
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A session that is taken up again shows no certificate: an authority that has ended would
    // count for as long as somebody hands out tickets.
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Checks that [`client_config`] takes the authorities in this file.
///
/// # Errors
/// The file cannot be used, or holds no usable certificate.
pub fn check_authority(ca: &Path) -> Result<(), TlsError> {
    let made = client_config(read_anchor(ca)?.as_bytes());
    made.map(drop).map_err(|error| match error {
        AuthorityError::File(error) => error.into(),
        AuthorityError::Missing => TlsError::Missing {
            path: ca.to_owned(),
            what: "certificate",
        },
        AuthorityError::Unusable(source) => TlsError::Unusable {
            path: ca.to_owned(),
            source,
        },
        AuthorityError::Builder(error) => TlsError::Unusable {
            path: ca.to_owned(),
            source: rustls::Error::General(error.to_string()),
        },
    })
}

/// Checks that every certificate in a file is valid at `now`.
///
/// # Errors
/// A certificate is not valid, or the file cannot be used.
pub fn check_lifetime(path: &Path, now: UnixMillis) -> Result<(), TlsError> {
    let outside = lifetimes(path)?
        .into_iter()
        .find_map(|facts| Some((facts.outside(now)?, facts.shown_names())));
    outside.map_or(Ok(()), |(outside, names)| {
        Err(TlsError::Outside {
            path: path.to_owned(),
            names,
            outside,
            now,
        })
    })
}

/// The facts of the certificates in a file.
///
/// # Errors
/// The file cannot be used, or holds something else.
pub fn lifetimes(path: &Path) -> Result<Vec<Facts>, TlsError> {
    let missing = || TlsError::Missing {
        path: path.to_owned(),
        what: "certificate",
    };
    let found = certificates(read_anchor(path)?.as_bytes()).ok_or_else(missing)?;
    found
        .iter()
        .map(|certificate| Facts::of(certificate).ok_or_else(missing))
        .collect()
}

/// A server's configuration: TLS 1.3 only, HTTP/1.1 only.
///
/// # Errors
/// A file cannot be used, others may read the key, or the two do not fit.
pub fn server_config(certificate: &Path, key: &Path) -> Result<ServerConfig, TlsError> {
    server(certificate, key, None)
}

/// As [`server_config`], for a server that takes only clients with a certificate of this authority.
/// Each refusal of a certificate is told to `tell`.
///
/// # Errors
/// As [`server_config`]; or the file of the authority cannot be used.
pub fn mutual_config(
    certificate: &Path,
    key: &Path,
    clients: &Path,
    tell: fn(&TlsFault),
) -> Result<ServerConfig, TlsError> {
    let unusable = |source| TlsError::Unusable {
        path: clients.to_owned(),
        source,
    };
    let found = certificates(read_anchor(clients)?.as_bytes());
    let found = found.ok_or_else(|| TlsError::Missing {
        path: clients.to_owned(),
        what: "certificate",
    })?;
    let mut roots = RootCertStore::empty();
    for certificate in found {
        roots.add(certificate).map_err(unusable)?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build();
    let verifier = verifier.map_err(|error| unusable(rustls::Error::General(error.to_string())))?;
    let telling = Telling { verifier, tell };
    server(certificate, key, Some(Arc::new(telling)))
}

fn server(
    certificate: &Path,
    key: &Path,
    clients: Option<Arc<dyn ClientCertVerifier>>,
) -> Result<ServerConfig, TlsError> {
    let unusable = |source| TlsError::Unusable {
        path: certificate.to_owned(),
        source,
    };
    let chain =
        certificates(read_anchor(certificate)?.as_bytes()).ok_or_else(|| TlsError::Missing {
            path: certificate.to_owned(),
            what: "certificate",
        })?;
    let pem = read_secret(key)?;
    let secret = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| TlsError::Missing {
        path: key.to_owned(),
        what: "private key",
    })?;
    let builder = ServerConfig::builder_with_provider(provider());
    let builder = builder
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?;
    let builder = match clients {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, secret).map_err(unusable)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // For the same reason as a client's: each connection shows a certificate that is valid now.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The usual verifier of clients. It also tells the server which certificate it refused, and why;
/// the client learns the kind of the fault only.
#[derive(Debug)]
struct Telling {
    verifier: Arc<dyn ClientCertVerifier>,
    tell: fn(&TlsFault),
}

impl ClientCertVerifier for Telling {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.verifier.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self
            .verifier
            .verify_client_cert(end_entity, intermediates, now);
        verified.inspect_err(|error| {
            let now = UnixMillis(now.as_secs().saturating_mul(1000));
            (self.tell)(&TlsFault::of_client(error, end_entity, now));
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

impl Authority {
    /// A new authority and its certificate and key.
    ///
    /// # Errors
    /// The generator failed.
    pub fn generate(now: UnixMillis) -> Result<(Self, Certified), TlsError> {
        let key = KeyPair::generate()?;
        let params = authority_params(AUTHORITY_NAME, now);
        let certificate = params.self_signed(&key)?.pem();
        let certified = Certified {
            certificate,
            key: Zeroizing::new(key.serialize_pem()),
        };
        Ok((Self(Issuer::new(params, key)), certified))
    }

    /// The authority of a private key, to make more certificates.
    ///
    /// # Errors
    /// The text is no private key.
    pub fn from_key(pem: &str, now: UnixMillis) -> Result<Self, TlsError> {
        Ok(Self(Issuer::new(
            authority_params(AUTHORITY_NAME, now),
            KeyPair::from_pem(pem)?,
        )))
    }

    /// A certificate for a server on this machine and under `names` (host names and addresses). It
    /// may be used by both ends of a connection, as the routes between brokers need.
    ///
    /// # Errors
    /// A name that no certificate can carry.
    pub fn certify(&self, names: &[String], now: UnixMillis) -> Result<Certified, TlsError> {
        names.iter().try_for_each(|name| check_server_name(name))?;
        let mut all: Vec<String> = ALWAYS.map(str::to_owned).to_vec();
        all.extend(
            names
                .iter()
                .filter(|name| !ALWAYS.contains(&name.as_str()))
                .cloned(),
        );
        let mut params = CertificateParams::new(all)?;
        params
            .distinguished_name
            .push(DnType::CommonName, "diloco server");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = life(now, LEAF_DAYS);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.0)?.pem();
        Ok(Certified {
            certificate,
            key: Zeroizing::new(key.serialize_pem()),
        })
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority(..)")
    }
}

impl std::fmt::Debug for Certified {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Certified(..)")
    }
}

/// The parameters of an authority: the same for the same name, so that it can be made again from
/// its key alone.
pub(crate) fn authority_params(name: &str, now: UnixMillis) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    // It signs certificates of servers or of clients, and never another authority.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = life(now, AUTHORITY_DAYS);
    params
}

/// The identifier of an authority's key, in hex: its own certificate carries it, and so does every
/// certificate that it has signed.
pub(crate) fn key_identifier(key: &KeyPair) -> String {
    let params = authority_params(AUTHORITY_NAME, UnixMillis(0));
    HEXLOWER.encode(&params.key_identifier(key))
}

/// The certificate of the authority with this key and name, PEM. It can be made again from both.
pub(crate) fn authority_certificate(
    name: &str,
    key: &KeyPair,
    now: UnixMillis,
) -> Result<String, TlsError> {
    Ok(authority_params(name, now).self_signed(key)?.pem())
}

fn life(now: UnixMillis, days: i64) -> (OffsetDateTime, OffsetDateTime) {
    let now = date(now);
    (now - CLOCK_SKEW, now + Duration::days(days))
}

/// The validity of a certificate that is made now, and ends at `ends`.
pub(crate) fn window(now: UnixMillis, ends: UnixMillis) -> (OffsetDateTime, OffsetDateTime) {
    (date(now) - CLOCK_SKEW, date(ends))
}

fn date(at: UnixMillis) -> OffsetDateTime {
    let seconds = i64::try_from(at.get() / 1000).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// The certificates of a PEM text; none when one is broken or there is none.
pub(crate) fn certificates(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    found.ok().filter(|found| !found.is_empty())
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}
