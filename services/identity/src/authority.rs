//! New private authorities, while runs go on: that of servers, and in a domain with mutual TLS that
//! of clients. Both files of certificates hold old and new authority for a time, so nobody is
//! refused between the two. An authority is known by the identifier of its key, since all of one
//! kind have the same name.

mod behind;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use rcgen::KeyPair;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use schemas::permission::Role;
use schemas::{Millis, UnixMillis};
use zeroize::Zeroizing;

pub use behind::{LeftBehind, Until};

use crate::certificate::Facts;
use crate::clients::{self, ClientAuthority, ClientFile};
use crate::domain::{Domain, DomainError, write_server_certificate};
use crate::purpose::ConnectionKey;
use crate::secret::{FileError, read_anchor, read_secret, write_private};
use crate::tls::{self, Authority, TlsError, authority_certificate, key_identifier, lifetimes};

/// Life of the certificate with which servers are asked if they take an authority.
const TRIAL: Millis = Millis::from_secs(60);
const BEGIN: &str = "-----BEGIN CERTIFICATE-----";

/// The kind of certificates that an authority signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Of broker and store.
    Servers,
    /// Of those that connect, with mutual TLS.
    Clients,
}

/// The place of an authority in a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is trusted, and has signed nothing yet.
    Next,
    /// It signs.
    Present,
    /// It is trusted, and signs nothing any more.
    Former,
}

/// An authority of the domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// What it signs.
    pub side: Side,
    /// Its place.
    pub state: State,
    /// The identifier of its key, in hex.
    pub id: String,
}

/// The files of one kind of authority.
struct Files {
    side: Side,
    name: &'static str,
    key: PathBuf,
    next: PathBuf,
    certificates: PathBuf,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Servers => "servers",
            Self::Clients => "clients",
        })
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Next => "next",
            Self::Present => "present",
            Self::Former => "until retired",
        })
    }
}

impl Domain {
    /// Makes the next authorities and adds their certificates to those that are trusted. Nothing is
    /// signed with them before [`Domain::adopt_authorities`]. One that was made before and not
    /// adopted stays. The caller holds the [`crate::DomainLock`].
    ///
    /// # Errors
    /// A former authority is still trusted, the vault is not here, or a file cannot be used.
    pub fn prepare_authorities(&self, now: UnixMillis) -> Result<Vec<Known>, DomainError> {
        let files = self.authority_files()?;
        for one in &files {
            if let Some(former) = one.former()? {
                return Err(DomainError::AuthorityOverlap(former));
            }
        }
        self.prepare_all(&files, now)?;
        self.authorities()
    }

    /// Puts the next authorities in the place of the present ones: broker and store get a
    /// certificate of the new one, for these names, or for the names of their old one; the
    /// registrar signs with that of clients from here on. The old ones are trusted until
    /// [`Domain::retire_authorities`]. A command that broke off is repeated. The caller holds the
    /// [`crate::DomainLock`], and calls [`Domain::note_adopted`] afterwards.
    ///
    /// # Errors
    /// No next one was prepared, or a file cannot be used.
    pub fn adopt_authorities(
        &self,
        names: &[String],
        now: UnixMillis,
    ) -> Result<Vec<Known>, DomainError> {
        let mut waiting = self.authority_files()?;
        waiting.retain(|one| one.next.exists());
        if waiting.is_empty() {
            return Err(DomainError::AuthorityUnprepared);
        }
        // Again, in case that the command before this one broke off.
        self.prepare_all(&waiting, now)?;
        for one in waiting {
            if one.side == Side::Servers {
                let authority = Authority::from_key(&read_secret(&one.next)?, now)?;
                let names = match names.is_empty() {
                    true => self.server_names()?,
                    false => names.to_vec(),
                };
                write_server_certificate(self.layout(), &authority, &names, now)?;
            }
            fs::rename(&one.next, &one.key).map_err(|source| FileError::Write {
                path: one.key.clone(),
                source,
            })?;
        }
        self.authorities()
    }

    fn prepare_all(&self, files: &[Files], now: UnixMillis) -> Result<(), DomainError> {
        let mut is_new = false;
        for one in files {
            is_new |= one.prepare(now)?;
        }
        match is_new {
            true => self.note_prepared(now),
            false => Ok(()),
        }
    }

    /// Ends the overlap: the present authorities are trusted, and the next ones if there are some.
    /// Returns those that go. The caller holds the [`crate::DomainLock`].
    ///
    /// # Errors
    /// The vault is not here, or a file cannot be used.
    pub fn retire_authorities(&self) -> Result<Vec<Known>, DomainError> {
        let mut gone = Vec::new();
        for one in self.authority_files()? {
            let former = one.known()?.into_iter();
            let former: Vec<Known> = former
                .filter(|known| known.state == State::Former)
                .collect();
            if former.is_empty() {
                continue;
            }
            // The next rotation begins without the times of this one, also if this command breaks
            // off.
            self.forget_rotation()?;
            let ends =
                |id: &Option<String>| former.iter().any(|known| Some(&known.id) == id.as_ref());
            let text = read_anchor(&one.certificates)?;
            let mut kept = String::new();
            for block in blocks(&text) {
                if !ends(&one.facts(&block)?.id) {
                    kept.push_str(&block);
                }
            }
            write_private(&one.certificates, kept.as_bytes())?;
            gone.extend(former);
        }
        Ok(gone)
    }

    /// The authorities that are trusted.
    ///
    /// # Errors
    /// The vault is not here, or a file cannot be used.
    pub fn authorities(&self) -> Result<Vec<Known>, DomainError> {
        let mut known = Vec::new();
        for one in self.authority_files()? {
            known.extend(one.known()?);
        }
        Ok(known)
    }

    /// Writes a certificate that the next authority of clients has signed for a key that nobody
    /// else has: a server that takes it takes that authority. None without mutual TLS, or without a
    /// next one. The caller removes the file.
    ///
    /// # Errors
    /// A key cannot be read, or the file cannot be written.
    pub fn write_trial(&self, now: UnixMillis) -> Result<Option<ClientFile>, DomainError> {
        let next = self.layout().next_clients_key();
        if !self.is_mutual() || !next.exists() {
            return Ok(None);
        }
        let key = ConnectionKey::generate();
        let authority = ClientAuthority::read(&next)?;
        let ends = now.after(TRIAL);
        let certificate = authority.certify(key.public(), Role::Newcomer, ends, now)?;
        let file = ClientFile::beside(&self.layout().trial());
        file.write_for(&key, &certificate)?;
        Ok(Some(file))
    }

    /// The names of the present certificate of broker and store.
    fn server_names(&self) -> Result<Vec<String>, DomainError> {
        let mut all = lifetimes(&self.layout().server_certificate())?;
        Ok(all.swap_remove(0).names)
    }

    fn authority_files(&self) -> Result<Vec<Files>, DomainError> {
        let layout = self.layout();
        let mut files = vec![Files {
            side: Side::Servers,
            name: tls::AUTHORITY_NAME,
            key: self.authority_key()?,
            next: layout.vault().next_authority_key(),
            certificates: layout.ca(),
        }];
        if self.is_mutual() {
            files.push(Files {
                side: Side::Clients,
                name: clients::AUTHORITY_NAME,
                key: layout.clients_key(),
                next: layout.next_clients_key(),
                certificates: layout.clients(),
            });
        }
        Ok(files)
    }
}

impl Files {
    /// The next authority's key and its certificate among the trusted ones, where either is
    /// missing. Returns true if the certificate was.
    fn prepare(&self, now: UnixMillis) -> Result<bool, DomainError> {
        if !self.next.exists() {
            let key = KeyPair::generate().map_err(TlsError::from)?;
            let text = Zeroizing::new(key.serialize_pem());
            write_private(&self.next, text.as_bytes())?;
        }
        let key = key(&self.next)?;
        let id = key_identifier(&key);
        let known = lifetimes(&self.certificates)?;
        if known.iter().any(|facts| facts.id.as_ref() == Some(&id)) {
            return Ok(false);
        }
        let mut text = read_anchor(&self.certificates)?;
        text.push_str(&authority_certificate(self.name, &key, now)?);
        write_private(&self.certificates, text.as_bytes())?;
        Ok(true)
    }

    /// A former authority that is still trusted.
    fn former(&self) -> Result<Option<String>, DomainError> {
        let mut known = self.known()?.into_iter();
        let former = known.find(|known| known.state == State::Former);
        Ok(former.map(|known| known.id))
    }

    /// The authorities in the file of certificates, and the present one.
    fn known(&self) -> Result<Vec<Known>, DomainError> {
        let present = key_identifier(&key(&self.key)?);
        let next = match self.next.exists() {
            true => Some(key_identifier(&key(&self.next)?)),
            false => None,
        };
        let of = |id: String| {
            let state = match Some(&id) {
                Some(id) if *id == present => State::Present,
                id if id == next.as_ref() => State::Next,
                _ => State::Former,
            };
            Known {
                side: self.side,
                state,
                id,
            }
        };
        let trusted = lifetimes(&self.certificates)?.into_iter();
        Ok(trusted.filter_map(|facts| facts.id).map(of).collect())
    }

    fn facts(&self, block: &str) -> Result<Facts, TlsError> {
        let missing = || TlsError::Missing {
            path: self.certificates.clone(),
            what: "certificate",
        };
        let der = CertificateDer::from_pem_slice(block.as_bytes()).map_err(|_| missing())?;
        Facts::of(&der).ok_or_else(missing)
    }
}

fn key(path: &Path) -> Result<KeyPair, DomainError> {
    let text = read_secret(path)?;
    Ok(KeyPair::from_pem(&text).map_err(TlsError::from)?)
}

/// The certificates of a PEM text, each as text.
fn blocks(text: &str) -> Vec<String> {
    let found = text.split(BEGIN).skip(1);
    found
        .map(|rest| format!("{BEGIN}{}\n", rest.trim_end()))
        .collect()
}

#[cfg(test)]
mod tests;
