//! A client's check of a server's certificate: the usual verifier, with refusals in words for
//! people, over authorities that may be read again at every handshake.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use schemas::UnixMillis;

use crate::certificate::{CertificateRefused, Facts, Why};
use crate::secret::read_anchor;
use crate::tls::{AuthorityError, certificates, provider};

/// The usual verifier, with refusals in words for people.
#[derive(Debug)]
pub(crate) struct Explaining {
    verifier: Arc<WebPkiServerVerifier>,
    /// The file that is read at every handshake; none where the authorities never change.
    file: Option<PathBuf>,
}

impl Explaining {
    /// Trusts the authorities in this PEM text.
    pub(crate) fn of(authorities: &[u8]) -> Result<Self, AuthorityError> {
        Ok(Self {
            verifier: over(authorities)?,
            file: None,
        })
    }

    /// Trusts the authorities that the file holds at the time of each handshake.
    pub(crate) fn reading(authorities: &Path) -> Result<Self, AuthorityError> {
        Ok(Self {
            verifier: over(read_anchor(authorities)?.as_bytes())?,
            file: Some(authorities.to_owned()),
        })
    }

    /// The verifier of now. A file that cannot be used trusts nobody: an authority that was taken
    /// out must not come back.
    fn present(&self) -> Result<Arc<WebPkiServerVerifier>, rustls::Error> {
        let Some(file) = &self.file else {
            return Ok(Arc::clone(&self.verifier));
        };
        let read = read_anchor(file).map_err(AuthorityError::from);
        let made = read.and_then(|text| over(text.as_bytes()));
        made.map_err(|error| rustls::Error::General(format!("{}: {error}", file.display())))
    }
}

fn over(authorities: &[u8]) -> Result<Arc<WebPkiServerVerifier>, AuthorityError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(authorities).ok_or(AuthorityError::Missing)? {
        roots.add(certificate)?;
    }
    Ok(WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build()?)
}

impl ServerCertVerifier for Explaining {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.present()?.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        verified.map_err(|error| match error {
            rustls::Error::InvalidCertificate(error) => {
                let refused = explain(
                    &error,
                    end_entity,
                    server_name,
                    UnixMillis(now.as_secs().saturating_mul(1000)),
                );
                rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(
                    refused,
                ))))
            }
            other => other,
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

fn explain(
    error: &CertificateError,
    certificate: &CertificateDer<'_>,
    server_name: &ServerName<'_>,
    now: UnixMillis,
) -> CertificateRefused {
    let facts = Facts::of(certificate);
    let names = facts
        .as_ref()
        .map_or_else(|| "nobody that can be read".to_owned(), Facts::shown_names);
    let authority = facts.as_ref().and_then(|facts| facts.authority.clone());
    let why = match (error, facts.and_then(|facts| facts.outside(now))) {
        (
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
            Some(outside),
        ) => Why::Outside(outside, now),
        (CertificateError::UnknownIssuer | CertificateError::BadSignature, _) => {
            Why::Stranger(authority)
        }
        (
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            _,
        ) => Why::OtherName(server_name.to_str().into_owned()),
        (CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. }, _) => {
            Why::Purpose
        }
        (error, _) => Why::Other(error.to_string()),
    };
    CertificateRefused { names, why }
}
