//! The credentials of a process. The file is read again at every reconnect, so that a renewed token
//! is used without a restart.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Auth, AuthError, ConnectOptions};
use backoff::Backoff;
use schemas::limits::REQUEST_TIMEOUT;
use schemas::{Code, PublicKey, UnixMillis};

use crate::clients::ClientFile;
use crate::credentials::{Credentials, CredentialsError};
use crate::key::KeyError;
use crate::tls::TlsError;

/// Least pause before a reconnect. A server that accepts and cuts at once (because a token has
/// expired) resets the client's own back-off; without a least pause it would be asked hundreds of
/// times a second.
pub const RECONNECT_DELAY_MIN: Duration = Duration::from_millis(100);
/// Longest pause before a reconnect.
pub const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(4);
/// Time between two probes of an idle connection.
pub const PING_INTERVAL: Duration = Duration::from_secs(20);
/// Most messages of one subscription that wait for this process; more are dropped. With the largest
/// message this limits its memory.
const SUBSCRIPTION_MESSAGES_MAX: usize = 4096;

/// A credentials file, with the key that it had when the process started.
#[derive(Clone, Debug)]
pub struct CredentialSource {
    path: PathBuf,
    public: PublicKey,
}

/// The protection of a connection to the bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BusTls {
    /// TLS, with servers of this certificate authority only.
    Required {
        /// The authority's certificate, PEM.
        ca: PathBuf,
    },
    /// Plaintext, for a layer that was opened on purpose.
    Off,
}

/// The client's proof to a server that sent a nonce.
#[derive(Clone)]
pub struct Proof {
    /// The token.
    pub jwt: String,
    /// The signature of the nonce, raw.
    pub signature: Vec<u8>,
}

/// Reasons not to answer a server's nonce.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// The file cannot be used at present.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The file holds other credentials than at the start of the process.
    #[error("{} now holds the key {found}, this process started as {expected}; restart it", path.display())]
    OtherKey {
        /// The file.
        path: PathBuf,
        /// Its key.
        found: PublicKey,
        /// The key of this process.
        expected: PublicKey,
    },
    /// The server sent something else than a nonce.
    #[error(transparent)]
    Nonce(#[from] KeyError),
    /// The certificate beside the file.
    #[error(transparent)]
    Certificate(#[from] TlsError),
}

impl ProofError {
    /// The code of the page that says what to do.
    pub fn code(&self) -> Code {
        match self {
            Self::Credentials(error) => error.code(),
            Self::OtherKey { .. } => Code::RoleMismatch,
            Self::Nonce(error) => error.code(),
            Self::Certificate(error) => error.code(),
        }
    }
}

schemas::coded!(ProofError);

impl std::fmt::Debug for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Proof(..)")
    }
}

impl CredentialSource {
    /// Reads and checks the file once, so that a fault in it stops the process at its start.
    ///
    /// # Errors
    /// It cannot be used, or its token is not valid now.
    pub fn open(path: &Path, now: UnixMillis) -> Result<Self, CredentialsError> {
        let credentials = Credentials::read(path)?;
        credentials.check(now)?;
        Ok(Self {
            path: path.to_owned(),
            public: credentials.public().clone(),
        })
    }

    /// The public key of the user who connects with them.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file with the certificate that belongs to them; it exists in domains with mutual TLS.
    pub fn certificate(&self) -> ClientFile {
        ClientFile::beside(&self.path)
    }

    /// Puts a new certificate beside the file.
    ///
    /// # Errors
    /// It is not for the key of these credentials, or the file cannot be written.
    pub fn certify(&self, certificate: &str) -> Result<(), ProofError> {
        let credentials = self.read()?;
        self.check_key(&credentials)?;
        Ok(self.certificate().replace(&credentials, certificate)?)
    }

    /// Reads the present content of the file.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn read(&self) -> Result<Credentials, CredentialsError> {
        Credentials::read(&self.path)
    }

    /// Puts renewed credentials into the file, in one step, and reads them back: a process that is
    /// started later has them too.
    ///
    /// # Errors
    /// The file cannot be written, or then holds something else.
    pub fn replace(&self, renewed: &Credentials) -> Result<(), ProofError> {
        renewed.replace(&self.path)?;
        let found = self.read()?;
        self.check_key(&found)?;
        if found.jwt() == renewed.jwt() {
            return Ok(());
        }
        Err(CredentialsError::Malformed("another process wrote the file meanwhile").into())
    }

    /// Inboxes, subjects and leases of this process belong to the key that it started with.
    fn check_key(&self, found: &Credentials) -> Result<(), ProofError> {
        if *found.public() == self.public {
            return Ok(());
        }
        Err(ProofError::OtherKey {
            path: self.path.clone(),
            found: found.public().clone(),
            expected: self.public.clone(),
        })
    }

    /// The inbox prefix that the role templates admit: `_INBOX.<key>`.
    pub fn inbox_prefix(&self) -> String {
        format!("_INBOX.{}", self.public)
    }

    /// Answers a server's nonce with the present credentials in the file. The server decides by its
    /// own clock if the token is still valid.
    ///
    /// # Errors
    /// The file cannot be used, holds another key than at the start, or the server did not send a
    /// nonce.
    pub fn prove(&self, nonce: &[u8]) -> Result<Proof, ProofError> {
        let credentials = self.read()?;
        self.check_key(&credentials)?;
        let signature = credentials.key().sign_nonce(nonce)?.to_vec();
        Ok(Proof {
            jwt: credentials.jwt().to_owned(),
            signature,
        })
    }

    fn answer(&self, nonce: &[u8]) -> Result<Auth, AuthError> {
        let proof = self.prove(nonce).map_err(AuthError::new)?;
        let mut auth = Auth::new();
        auth.signature = Some(proof.signature);
        auth.jwt = Some(proof.jwt);
        Ok(auth)
    }
}

/// Options for a connection with these credentials; the caller adds its name and callbacks.
pub fn connect_options(source: &CredentialSource, tls: &BusTls) -> ConnectOptions {
    let inbox = source.inbox_prefix();
    let certificate = source.certificate();
    let source = Arc::new(source.clone());
    let options = ConnectOptions::with_auth_callback(move |nonce| {
        let source = Arc::clone(&source);
        // A small local file is read without a thread: the connection can do nothing else
        // meanwhile.
        async move { source.answer(&nonce) }
    });
    let options = options
        .custom_inbox_prefix(inbox)
        .reconnect_delay_callback(reconnect_delay)
        .subscription_capacity(SUBSCRIPTION_MESSAGES_MAX)
        .ping_interval(PING_INTERVAL)
        .request_timeout(Some(REQUEST_TIMEOUT.as_duration()));
    match tls {
        BusTls::Required { ca } => {
            let options = options.require_tls(true).add_root_certificates(ca.clone());
            // The client reads the files at every connection.
            match certificate.exists() {
                true => {
                    let file = certificate.path().to_owned();
                    options.add_client_certificate(file.clone(), file)
                }
                false => options,
            }
        }
        BusTls::Off => options,
    }
}

/// The pause before a reconnect: it doubles from [`RECONNECT_DELAY_MIN`] to
/// [`RECONNECT_DELAY_MAX`].
pub fn reconnect_delay(attempts: usize) -> Duration {
    let failures = u32::try_from(attempts.saturating_sub(1)).unwrap_or(u32::MAX);
    Backoff::after((RECONNECT_DELAY_MIN, RECONNECT_DELAY_MAX), failures).peek()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A token with the signature of a nonce opens a connection, so neither is printed.
    #[test]
    fn a_proof_prints_nothing_of_what_it_holds() {
        let proof = Proof {
            jwt: "a.token.of".to_owned(),
            signature: vec![7; 3],
        };
        assert_eq!(format!("{proof:?} {proof:#?}"), "Proof(..) Proof(..)");
    }

    #[test]
    fn pauses_have_a_floor_and_a_ceiling() {
        let millis: Vec<_> = [0, 1, 2, 3, 6, 7, 8, usize::MAX]
            .map(|n| reconnect_delay(n).as_millis())
            .to_vec();
        assert_eq!(millis, [100, 100, 200, 400, 3200, 4000, 4000, 4000]);
    }
}
