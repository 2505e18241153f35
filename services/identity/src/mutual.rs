//! Mutual TLS of a trust domain: the authority of clients, and the certificates that come with
//! credentials. A domain has it if it has that authority.

use std::path::Path;

use schemas::permission::Role;
use schemas::{Millis, PublicKey, UnixMillis};

use crate::clients::{CERTIFICATE_LIFE_MAX, ClientAuthority, ClientFile};
use crate::credentials::Credentials;
use crate::domain::{Domain, DomainError};
use crate::layout::DomainLayout;
use crate::secret::write_private;
use crate::tls::lifetimes;

impl Domain {
    /// True if broker and store take only clients that show a certificate.
    pub fn is_mutual(&self) -> bool {
        self.layout().clients().exists()
    }

    /// Makes the authority of clients, unless there is one. Returns true if it is new. Credentials
    /// that were issued before get no certificate: issue them again. The caller holds the
    /// [`crate::DomainLock`].
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn make_mutual(&self, now: UnixMillis) -> Result<bool, DomainError> {
        if self.is_mutual() {
            return Ok(false);
        }
        write_client_authority(self.layout(), now)?;
        Ok(true)
    }

    /// The life of a new token. With mutual TLS it ends no later than the longest certificate, so
    /// that both are renewed together. The registrar renews its own certificate, and nobody renews
    /// a provisioner's.
    pub(crate) fn life_of(&self, role: Role, asked: Millis) -> Millis {
        let together = role.is_renewable() && role != Role::Registrar;
        match self.is_mutual() && together {
            true => asked.min(CERTIFICATE_LIFE_MAX),
            false => asked,
        }
    }

    /// Writes the certificate of these credentials beside their file, in a domain with mutual TLS.
    pub(crate) fn certify(
        &self,
        credentials: &Credentials,
        file: &Path,
        role: Role,
        ends: UnixMillis,
        now: UnixMillis,
    ) -> Result<(), DomainError> {
        match self.certificate_of(credentials.public(), role, ends, now)? {
            Some(certificate) => Ok(ClientFile::beside(file).write(credentials, &certificate)?),
            None => Ok(()),
        }
    }

    /// A certificate for the holder of a key, PEM; none in a domain without mutual TLS.
    pub(crate) fn certificate_of(
        &self,
        key: &PublicKey,
        role: Role,
        ends: UnixMillis,
        now: UnixMillis,
    ) -> Result<Option<String>, DomainError> {
        if !self.is_mutual() {
            return Ok(None);
        }
        let authority = ClientAuthority::read(&self.layout().clients_key())?;
        Ok(Some(authority.certify(key, role, ends, now)?))
    }

    /// Makes a new certificate for registered credentials in this file, where that is needed and
    /// can be done here: the domain has mutual TLS, the key of the authority of clients is here,
    /// and the certificate beside the file is missing or has less than `left` of its life before
    /// it, or another authority than the present one has signed it. Commands that run now and then
    /// have nobody else who renews theirs. Returns true if it is new.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub fn refresh_certificate(
        &self,
        file: &Path,
        left: Millis,
        now: UnixMillis,
    ) -> Result<bool, DomainError> {
        if !self.is_mutual() || !self.layout().clients_key().exists() {
            return Ok(false);
        }
        let fresh = |holder: crate::Holder| now.until(holder.ends) >= left;
        let shown = ClientFile::beside(file);
        if shown.holder().is_ok_and(fresh) && !self.is_of_former_authority(&shown)? {
            return Ok(false);
        }
        let credentials = Credentials::read(file)?;
        let record = self.layout().issued().find(credentials.public())?;
        let Some(record) = record.filter(|record| record.blocked.is_none()) else {
            return Ok(false);
        };
        let ends = credentials.token().expires.unwrap_or(record.ends);
        if ends <= now {
            return Ok(false);
        }
        self.certify(&credentials, file, record.role, ends, now)?;
        Ok(true)
    }
}

impl Domain {
    /// True if the authority whose key is here is trusted and has signed nothing before that of
    /// this certificate was replaced by it. The issuer's folder may be a copy from before a
    /// rotation: its key makes no certificate in the place of a newer one.
    fn is_of_former_authority(&self, shown: &ClientFile) -> Result<bool, DomainError> {
        let own = ClientAuthority::read(&self.layout().clients_key())?.id();
        let trusted = lifetimes(&self.layout().clients())?;
        // The newest one stands last.
        let place = |id: Option<&str>| trusted.iter().position(|one| one.id.as_deref() == id);
        let shown = shown.authority();
        Ok(match (place(Some(&own)), place(shown.as_deref())) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(own), Some(shown)) => shown < own,
        })
    }
}

/// Makes the authority of clients. Its certificate is written last: with it the domain is mutual.
pub(crate) fn write_client_authority(
    layout: &DomainLayout,
    now: UnixMillis,
) -> Result<(), DomainError> {
    let (_, certified) = ClientAuthority::generate(now)?;
    write_private(&layout.clients_key(), certified.key.as_bytes())?;
    Ok(write_private(
        &layout.clients(),
        certified.certificate.as_bytes(),
    )?)
}
