//! A new token for a worker whose key lies on its own machine: it is made of the record of the key,
//! and carried there in a file that holds no secret. A machine that was off for longer than its
//! token, or whose token was voided with its role's signing key, goes on with the keys that it has.

use std::path::{Path, PathBuf};

use schemas::permission::Role;
use schemas::{Code, Millis, PublicKey, UnixMillis, V};
use serde::{Deserialize, Serialize};

use crate::clients::{ClientFile, Holder};
use crate::credentials::{Credentials, CredentialsError};
use crate::domain::{Domain, DomainError, Issued, LIFETIME_MAX};
use crate::issued::Registration;
use crate::issuer::sign;
use crate::jwt::{JwtError, check_label};
use crate::layout::DomainLayout;
use crate::secret::{FileError, read_anchor, read_secret, replace_private, write_private};
use crate::tls::TlsError;

/// A new token, as it is carried to its holder. It opens nothing without the holder's key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenFile {
    /// Version.
    pub v: V<1>,
    /// The name of the worker.
    pub name: String,
    /// Its key.
    pub worker: PublicKey,
    /// The token.
    pub token: String,
    /// Its end.
    pub ends: UnixMillis,
    /// In a domain with mutual TLS, a certificate for the same key, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
}

/// Reasons why a token cannot be made or taken.
#[derive(Debug, thiserror::Error)]
pub enum ReissueError {
    /// Nobody has the name or key.
    #[error("no worker {0:?} in the list of issued credentials")]
    Missing(String),
    /// Several keys have the name.
    #[error("the name {name} has several keys: {}; name one of them", keys.join(", "))]
    Several {
        /// The name.
        name: String,
        /// The keys.
        keys: Vec<String>,
    },
    /// The key was revoked or blocked.
    #[error("{0} was revoked or blocked, and gets no token; enrol the machine with new keys")]
    Blocked(PublicKey),
    /// The file holds something else.
    #[error("{} is no token for a worker: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The fault.
        reason: String,
    },
    /// The certificate is another holder's, or missing.
    #[error("the certificate that comes with the token {0}")]
    Certificate(&'static str),
    /// The domain.
    #[error(transparent)]
    Domain(#[from] DomainError),
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The name.
    #[error(transparent)]
    Jwt(#[from] JwtError),
    /// The credentials that are there, or the new ones.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The certificate's file.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl ReissueError {
    /// The code of the page that says what to do.
    pub fn code(&self) -> Code {
        match self {
            Self::Missing(_) | Self::Several { .. } => Code::HolderMissing,
            Self::Blocked(_) => Code::HolderBlocked,
            Self::Invalid { .. } => Code::CredentialMalformed,
            Self::Certificate(_) => Code::ClientCertificateOther,
            Self::Domain(error) => error.code(),
            Self::File(error) => error.code(),
            Self::Jwt(error) => error.code(),
            Self::Credentials(error) => error.code(),
            Self::Tls(error) => error.code(),
        }
    }
}

schemas::coded!(ReissueError);

impl Domain {
    /// A new token for the recorded key of a worker, which is named by its name or key: for the
    /// same account and run, dated after a revocation that was lifted. Its audit key and seat stay.
    /// The caller holds the [`crate::DomainLock`].
    ///
    /// # Errors
    /// No such worker is recorded, its key is blocked or revoked, the name has several keys, the
    /// lifetime is out of bounds, or a file cannot be used.
    pub fn reissue(
        &self,
        name_or_key: &str,
        lifetime: Millis,
        now: UnixMillis,
    ) -> Result<TokenFile, ReissueError> {
        if lifetime < Millis::from_secs(1) || lifetime > LIFETIME_MAX {
            return Err(DomainError::Lifetime(lifetime).into());
        }
        let holder = self.one_worker(name_or_key)?;
        // The record may be a copy from before the revocation. One that was lifted covers less than
        // what was issued since.
        let revoked = self.revocation(&holder.account, &holder.public)?;
        if revoked.is_some_and(|revoked| revoked.covers(holder.issued)) {
            return Err(ReissueError::Blocked(holder.public));
        }
        let signer = self.role_key(Role::Worker)?;
        let issued = self.issue_time(&holder.account, &holder.public, now)?;
        let lifetime = self.life_of(Role::Worker, lifetime);
        // Tokens count whole seconds.
        let ends = UnixMillis((issued.after(lifetime).get() / 1000) * 1000);
        let holder = Registration {
            issued,
            ends,
            ..holder
        };
        let token = sign(&signer, &holder, ends, issued).map_err(DomainError::from)?;
        let certificate = self.certificate_of(&holder.public, Role::Worker, ends, now)?;
        let list = self.layout().issued();
        list.record(&holder).map_err(DomainError::from)?;
        Ok(TokenFile {
            v: V,
            name: holder.name,
            worker: holder.public,
            token,
            ends,
            certificate,
        })
    }

    /// The one worker of this name or key that may connect.
    fn one_worker(&self, name_or_key: &str) -> Result<Registration, ReissueError> {
        let mut known = self.holders_of(name_or_key)?;
        known.retain(|holder| holder.role == Role::Worker);
        let blocked = known.first().map(|holder| holder.public.clone());
        known.retain(|holder| holder.blocked.is_none());
        if known.len() > 1 {
            let keys = known.iter().map(|holder| holder.public.to_string());
            return Err(ReissueError::Several {
                name: name_or_key.to_owned(),
                keys: keys.collect(),
            });
        }
        known.pop().ok_or_else(|| match blocked {
            Some(key) => ReissueError::Blocked(key),
            None => ReissueError::Missing(name_or_key.to_owned()),
        })
    }
}

impl TokenFile {
    /// Reads the file.
    ///
    /// # Errors
    /// Others can write it, or it is no token.
    pub fn read(path: &Path) -> Result<Self, ReissueError> {
        let text = read_anchor(path)?;
        serde_json::from_str(&text).map_err(|error| ReissueError::Invalid {
            path: path.to_owned(),
            reason: error.to_string(),
        })
    }

    /// Writes the file.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), ReissueError> {
        let text = serde_json::to_string_pretty(self).expect("texts and numbers are JSON");
        Ok(write_private(path, format!("{text}\n").as_bytes())?)
    }

    /// Puts the token beside the key that lies in this folder, and its certificate beside both. The
    /// files from before stay, with `.before` at the end of their names.
    ///
    /// # Errors
    /// There are no credentials of this name, the token or the certificate is for another holder,
    /// the certificate is missing where there was one, the token is older than the present one or
    /// from the future, or a file cannot be written.
    pub fn take(&self, layout: &DomainLayout, now: UnixMillis) -> Result<Issued, ReissueError> {
        // The name becomes a part of paths.
        check_label(&self.name)?;
        let path = layout.credentials(&self.name);
        let held = Credentials::read(&path)?;
        let credentials = held.reissued(self.token.clone(), now)?;
        let shown = ClientFile::beside(&path);
        match &self.certificate {
            Some(certificate) => {
                let holder = Holder::of_pem(certificate).ok();
                let own = |holder: Holder| {
                    holder.key == *credentials.public() && holder.role == Role::Worker
                };
                if !holder.is_some_and(own) {
                    return Err(ReissueError::Certificate("is for another holder"));
                }
            }
            None if shown.exists() => return Err(ReissueError::Certificate("is missing")),
            None => {}
        }
        if credentials.jwt() != held.jwt() {
            keep(&path)?;
            if shown.exists() {
                keep(shown.path())?;
            }
        }
        if let Some(certificate) = &self.certificate {
            shown.write(&credentials, certificate)?;
        }
        credentials.write(&path)?;
        Ok(Issued {
            audit_key: Some(layout.audit_key(&self.name)),
            public: credentials.public().clone(),
            expires: credentials.token().expires.unwrap_or(self.ends),
            credentials: path,
        })
    }
}

/// Keeps a file beside the one that takes its place.
fn keep(path: &Path) -> Result<(), FileError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".before");
    let text = read_secret(path)?;
    replace_private(Path::new(&beside), text.as_bytes())
}

#[cfg(test)]
mod tests;
