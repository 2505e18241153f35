//! Certificates of clients, for servers that ask for one. The certificate of a holder is for the
//! key of its credentials itself: the subject's common name is that key in nkey form, the
//! organizational unit is the role, and the certificate's public key is the same key. So it needs
//! no private key of its own, names its holder wherever it is seen, and can be renewed without a
//! question to the holder. The broker lists the subjects of its connections, but no alternative
//! names, so the role stands in the subject.
//!
//! The authority of clients is not that of servers: its key lies where credentials are renewed, and
//! no client trusts it. Somebody who steals it cannot play a server.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data_encoding::{BASE64, HEXLOWER};
use rcgen::{
    CertificateParams, DnType, DnValue, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ED25519, PublicKeyData, SignatureAlgorithm,
};
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::crypto::ring;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use schemas::permission::Role;
use schemas::{Millis, PublicKey, UnixMillis};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::certificate::Facts;
use crate::credentials::Credentials;
use crate::key::{KeyError, KeyKind, parse_public, public_bytes};
use crate::purpose::ConnectionKey;
use crate::secret::{read_secret, replace_private, write_private};
use crate::tls::{Certified, TlsError, authority_params, key_identifier, window};

/// Longest life of a client's certificate. It ends with the token that it came with, if that ends
/// sooner.
pub const CERTIFICATE_LIFE_MAX: Millis = Millis::from_secs(24 * 3600);

/// The name of the authority of clients.
pub(crate) const AUTHORITY_NAME: &str = "diloco authority of clients";
/// The bytes before an Ed25519 private key in PKCS #8 (RFC 8410, section 7).
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// The authority that signs certificates of clients.
pub struct ClientAuthority(Issuer<'static, KeyPair>);

/// The holder that a client's certificate names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The key of its credentials, which is the certificate's key too.
    pub key: PublicKey,
    /// Its role.
    pub role: Role,
    /// The end of the certificate, exclusive.
    pub ends: UnixMillis,
}

/// The file beside a credentials file that holds the holder's certificate and, for TLS libraries,
/// its key once more. It is read at every handshake, so that a renewed certificate is shown without
/// a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFile(PathBuf);

/// The reason why a certificate does not name a holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the subject of the certificate is not a key and its role, or the certificate is for another key than its subject names"
)]
pub struct NoHolder;

/// A public key as the generator asks for it.
struct Bare([u8; 32]);

impl PublicKeyData for Bare {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ED25519
    }
}

impl ClientAuthority {
    /// A new authority and its certificate and key.
    ///
    /// # Errors
    /// The generator failed.
    pub fn generate(now: UnixMillis) -> Result<(Self, Certified), TlsError> {
        let key = KeyPair::generate()?;
        let params = authority_params(AUTHORITY_NAME, now);
        let certified = Certified {
            certificate: params.self_signed(&key)?.pem(),
            key: Zeroizing::new(key.serialize_pem()),
        };
        Ok((Self(Issuer::new(params, key)), certified))
    }

    /// The authority of a private key, to make certificates.
    ///
    /// # Errors
    /// The file cannot be used, or holds no private key.
    pub fn read(key: &Path) -> Result<Self, TlsError> {
        let key = KeyPair::from_pem(&read_secret(key)?)?;
        // What it signs names it, and repeats nothing of its own certificate.
        let params = authority_params(AUTHORITY_NAME, UnixMillis(0));
        Ok(Self(Issuer::new(params, key)))
    }

    /// The identifier of its key, in hex.
    pub fn id(&self) -> String {
        key_identifier(self.0.key())
    }

    /// A certificate for the holder of `key` with this role, PEM. It ends at `ends`, or after
    /// [`CERTIFICATE_LIFE_MAX`] if that is sooner.
    ///
    /// # Errors
    /// The key's text has a wrong checksum, or the generator failed.
    pub fn certify(
        &self,
        key: &PublicKey,
        role: Role,
        ends: UnixMillis,
        now: UnixMillis,
    ) -> Result<String, TlsError> {
        let raw = public_bytes(key).map_err(|error| TlsError::Name(error.to_string()))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let text = |text: &str| DnValue::Utf8String(text.to_owned());
        params
            .distinguished_name
            .push(DnType::CommonName, text(key.as_str()));
        params
            .distinguished_name
            .push(DnType::OrganizationalUnitName, text(role.name()));
        // A broker lists subjects, and not who signed: so it shows which connections still need an
        // authority that is to end.
        params
            .distinguished_name
            .push(DnType::OrganizationName, text(&self.id()));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let ends = ends.min(now.after(CERTIFICATE_LIFE_MAX));
        (params.not_before, params.not_after) = window(now, ends);
        Ok(params.signed_by(&Bare(raw), &self.0)?.pem())
    }
}

/// The sha256 of a key as certificates hold it (`SubjectPublicKeyInfo`), in hex: brokers list it of
/// each client's certificate. None for a key with a wrong checksum.
pub fn key_fingerprint(key: &PublicKey) -> Option<String> {
    let info = Bare(public_bytes(key).ok()?).subject_public_key_info();
    Some(HEXLOWER.encode(&Sha256::digest(info)))
}

impl Holder {
    /// The holder that a certificate in DER names. Only a certificate that was verified proves
    /// anything.
    ///
    /// # Errors
    /// It names none.
    pub fn of(der: &[u8]) -> Result<Self, NoHolder> {
        Self::named(&Facts::of(der).ok_or(NoHolder)?)
    }

    /// The holder that a certificate in PEM names.
    ///
    /// # Errors
    /// As [`Holder::of`].
    pub fn of_pem(pem: &str) -> Result<Self, NoHolder> {
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| NoHolder)?;
        Self::of(&der)
    }

    fn named(facts: &Facts) -> Result<Self, NoHolder> {
        let name = facts.common_name.as_deref().ok_or(NoHolder)?;
        let key = parse_public(name, KeyKind::User).map_err(|_: KeyError| NoHolder)?;
        let unit = facts.unit.as_deref();
        let role = Role::ALL.into_iter().find(|role| Some(role.name()) == unit);
        let same = public_bytes(&key).ok() == facts.key;
        match role.filter(|_| same) {
            Some(role) => Ok(Self {
                key,
                role,
                ends: facts.ends,
            }),
            None => Err(NoHolder),
        }
    }
}

impl ClientFile {
    /// The file beside these credentials; it may not exist.
    pub fn beside(credentials: &Path) -> Self {
        Self(credentials.with_extension("pem"))
    }

    /// The path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// True if the file is there.
    pub fn exists(&self) -> bool {
        self.0.exists()
    }

    /// The facts of the certificate in it.
    ///
    /// # Errors
    /// The file cannot be read, or holds no certificate.
    pub fn facts(&self) -> Result<Facts, TlsError> {
        let pem = read_secret(&self.0)?;
        let missing = || TlsError::Missing {
            path: self.0.clone(),
            what: "certificate",
        };
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| missing())?;
        Facts::of(&der).ok_or_else(missing)
    }

    /// The holder that the certificate in it names.
    ///
    /// # Errors
    /// The file cannot be read, or its certificate names none.
    pub fn holder(&self) -> Result<Holder, TlsError> {
        Holder::named(&self.facts()?).map_err(|error| TlsError::Holder {
            path: self.0.clone(),
            error,
        })
    }

    /// True if the certificate in it names this authority as the one that has signed it.
    pub(crate) fn is_signed_by(&self, authority: &str) -> bool {
        self.authority().as_deref() == Some(authority)
    }

    /// The identifier of the authority that has signed the certificate, by its own word; none if
    /// the file cannot be read.
    pub(crate) fn authority(&self) -> Option<String> {
        self.facts().ok()?.authority
    }

    /// Writes the file for its owner alone: this certificate, and the key of these credentials.
    ///
    /// # Errors
    /// The certificate is not for the credentials' key, or the file cannot be written.
    pub fn write(&self, credentials: &Credentials, certificate: &str) -> Result<(), TlsError> {
        self.write_for(credentials.key(), certificate)
    }

    /// As [`ClientFile::write`], for a key without credentials.
    pub(crate) fn write_for(&self, key: &ConnectionKey, certificate: &str) -> Result<(), TlsError> {
        let text = self.text(key, certificate)?;
        Ok(write_private(&self.0, text.as_bytes())?)
    }

    /// As [`ClientFile::write`], but only into a folder that is there.
    ///
    /// # Errors
    /// As [`ClientFile::write`].
    pub fn replace(&self, credentials: &Credentials, certificate: &str) -> Result<(), TlsError> {
        let text = self.text(credentials.key(), certificate)?;
        Ok(replace_private(&self.0, text.as_bytes())?)
    }

    fn text(&self, key: &ConnectionKey, certificate: &str) -> Result<Zeroizing<String>, TlsError> {
        let refused = |error| TlsError::Holder {
            path: self.0.clone(),
            error,
        };
        let holder = Holder::of_pem(certificate).map_err(refused)?;
        if holder.key != *key.public() {
            return Err(TlsError::OtherHolder {
                path: self.0.clone(),
                found: holder.key,
                expected: key.public().clone(),
            });
        }
        let mut der = Zeroizing::new(PKCS8_PREFIX.to_vec());
        der.extend_from_slice(&*key.raw());
        let key = Zeroizing::new(BASE64.encode(&der));
        Ok(Zeroizing::new(format!(
            "{}\n-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
            certificate.trim_end(),
            *key
        )))
    }

    fn certified(&self) -> Option<CertifiedKey> {
        let pem = read_secret(&self.0).ok()?;
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).ok()?;
        CertifiedKey::from_der(chain.ok()?, key, &ring::default_provider()).ok()
    }
}

/// A small local file is read in the handshake: the connection can do nothing else meanwhile.
/// Without a usable file no certificate is shown, and the server says whether it needs one.
impl ResolvesClientCert for ClientFile {
    fn resolve(
        &self,
        _authorities: &[&[u8]],
        schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        let found = self.certified()?;
        found.key.choose_scheme(schemes)?;
        Some(Arc::new(found))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl fmt::Debug for ClientAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientAuthority(..)")
    }
}
