//! A new key for a holder of credentials. Its new credentials lie beside the present ones until the
//! process that holds them takes them: at its start, before it reads anything else. A process that
//! runs ends in order when it sees them, and begins anew. The old key is revoked after that, so
//! there is no moment at which neither key works.
//!
//! A worker's name is its key, so a worker with another key is another worker to its run. It
//! changes between two units, and its record says which key it had before. It gets a new key for
//! its events as well, since such a key belongs to one worker.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use schemas::permission::Role;
use schemas::{Code, PublicKey, UnixMillis, V};
use serde::{Deserialize, Serialize};

use crate::clients::ClientFile;
use crate::credentials::{Credentials, CredentialsError};
use crate::domain::{Domain, DomainError, LIFETIME_DEFAULT};
use crate::issued::{Registration, RegistrationError};
use crate::issuer::sign;
use crate::jwt::check_label;
use crate::key::KeyError;
use crate::purpose::{AuditKey, ConnectionKey};
use crate::refresh::is_due;
use crate::revocation::{read_entry, write_entry};
use crate::secret::FileError;

/// The ending of a file that waits to take the place of the one that has the rest of its name.
const WAITING: &str = ".next";

/// The files of an identity: a process may hold several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityFiles {
    /// The credentials file.
    pub credentials: PathBuf,
    /// The seed file of the key that signs the holder's events, if that changes with its
    /// credentials.
    pub audit_key: Option<PathBuf>,
}

/// The change of a holder's key, as the trust domain knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Succession {
    /// The record of the old key.
    pub old: Registration,
    /// The record of the new key.
    pub new: Registration,
    /// True if the credentials file holds the new key.
    pub taken: bool,
}

/// [`Succession`] as it is kept until the old key is revoked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    v: V<1>,
    old: PublicKey,
    new: PublicKey,
}

/// Reasons why a holder gets no new key.
#[derive(Debug, thiserror::Error)]
pub enum SuccessorError {
    /// Nobody has the name.
    #[error("no credentials of {0:?} are recorded")]
    Missing(String),
    /// The key lies on its holder's machine.
    #[error("the credentials of {name} ({key}, {}) are not in this trust domain's folder", role.name())]
    Elsewhere {
        /// The name.
        name: String,
        /// The key.
        key: PublicKey,
        /// Its role.
        role: Role,
    },
    /// The credentials that wait are for somebody else.
    #[error("{} holds no successor of the credentials beside it: {reason}", path.display())]
    Other {
        /// The file.
        path: PathBuf,
        /// The difference.
        reason: &'static str,
    },
    /// A credentials file.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The audit key that waits.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A record.
    #[error(transparent)]
    Registration(#[from] RegistrationError),
    /// The domain.
    #[error(transparent)]
    Domain(#[from] DomainError),
}

impl SuccessorError {
    /// The code of the page that says what to do.
    pub fn code(&self) -> Code {
        match self {
            Self::Missing(_) => Code::HolderMissing,
            Self::Elsewhere { .. } => Code::HolderElsewhere,
            Self::Other { .. } => Code::SuccessorOther,
            Self::Credentials(error) => error.code(),
            Self::File(error) => error.code(),
            Self::Key(error) => error.code(),
            Self::Registration(error) => error.code(),
            Self::Domain(error) => error.code(),
        }
    }
}

schemas::coded!(SuccessorError);

impl IdentityFiles {
    /// The files of a holder that signs no events.
    pub fn of(credentials: &Path) -> Self {
        Self {
            credentials: credentials.to_owned(),
            audit_key: None,
        }
    }

    /// True if there are credentials that wait to be taken, and whose token has not ended. What
    /// cannot be read is for [`IdentityFiles::take_successor`] to say.
    pub fn has_successor(&self, now: UnixMillis) -> bool {
        self.waits() && !self.waits_in_vain(now)
    }

    /// True if the token of the credentials that wait has ended: they stay where they are, since
    /// the present ones may work still.
    pub fn waits_in_vain(&self, now: UnixMillis) -> bool {
        let ends = |new: Credentials| new.token().expires.is_some_and(|ends| ends <= now);
        self.waits() && Credentials::read(&waiting(&self.credentials)).is_ok_and(ends)
    }

    fn waits(&self) -> bool {
        !self.credentials.as_os_str().is_empty() && waiting(&self.credentials).exists()
    }

    /// Puts the credentials that wait, and what belongs to them, in the place of the present ones;
    /// the credentials go last, so that a process that dies meanwhile takes them at its next start.
    /// Returns the new key; none if nothing waits, or its token has ended.
    ///
    /// # Errors
    /// What waits is for another holder, or a file cannot be read or moved.
    pub fn take_successor(&self, now: UnixMillis) -> Result<Option<PublicKey>, SuccessorError> {
        if !self.has_successor(now) {
            return Ok(None);
        }
        let path = waiting(&self.credentials);
        let new = Credentials::read(&path)?;
        if let Some(reason) = Credentials::read(&self.credentials)?.unlike(&new) {
            return Err(SuccessorError::Other { path, reason });
        }
        if let Some(present) = &self.audit_key {
            let next = waiting(present);
            if next.exists() {
                // What cannot be read must not take the place of what can.
                AuditKey::read(&next)?;
                put(&next, present)?;
            }
        }
        let shown = ClientFile::beside(&path);
        if shown.exists() {
            put(shown.path(), ClientFile::beside(&self.credentials).path())?;
        }
        put(&path, &self.credentials)?;
        Ok(Some(new.public().clone()))
    }
}

impl Domain {
    /// Makes a new key for the holder of this name, or goes on with one that was made and not
    /// finished. Nothing that the holder has stops working. The caller holds the
    /// [`crate::DomainLock`].
    ///
    /// # Errors
    /// There are no such credentials here, their key is blocked, or a file cannot be read or
    /// written.
    pub fn begin_succession(
        &self,
        name: &str,
        now: UnixMillis,
    ) -> Result<Succession, SuccessorError> {
        check_label(name).map_err(DomainError::from)?;
        let path = self.layout().credentials(name);
        if let Some(begun) = self.succession(name)? {
            // Nobody takes a key that was blocked, nor one instead of a key that was.
            if begun.taken && begun.new.blocked.is_none() {
                return Ok(begun);
            }
            if begun.new.blocked.is_none() && begun.old.blocked.is_none() {
                return self.sign_again(begun, &waiting(&path), now);
            }
        }
        if !path.exists() {
            return Err(self.not_here(name)?);
        }
        let (list, note) = (self.layout().issued(), self.layout().succession(name));
        // One that broke off before it was complete: nobody has that key.
        if let Some(broken) = read_entry::<Note>(&note)? {
            list.block(&broken.new, now)?;
        }
        let held = Credentials::read(&path)?;
        let old = list.find(held.public())?;
        let old = old.ok_or_else(|| SuccessorError::Missing(name.to_owned()))?;
        if old.blocked.is_some() {
            return Err(DomainError::Blocked(old.name).into());
        }
        let key = ConnectionKey::generate();
        let audit = (old.role == Role::Worker).then(AuditKey::generate);
        let token = held.token();
        let life = token.expires.map(|ends| token.issued.until(ends));
        let life = self.life_of(old.role, life.unwrap_or(LIFETIME_DEFAULT));
        let ends = whole_seconds(now.after(life));
        let new = Registration {
            public: key.public().clone(),
            issued: now,
            ends,
            audit_key: audit
                .as_ref()
                .map_or(old.audit_key.clone(), |key| Some(key.public().clone())),
            before: Some(old.public.clone()),
            changes_until: None,
            ..old.clone()
        };
        let signer = self.role_key(old.role)?;
        let token = sign(&signer, &new, ends, now).map_err(DomainError::from)?;
        let credentials = Credentials::new(token, key)?;
        let kept = Note {
            v: V,
            old: old.public.clone(),
            new: new.public.clone(),
        };
        write_entry(&note, &kept)?;
        list.record(&new)?;
        if let Some(audit) = &audit {
            audit
                .seed()
                .write(&waiting(&self.layout().audit_key(name)))?;
        }
        let next = waiting(&path);
        self.certify(&credentials, &next, old.role, ends, now)?;
        credentials.write(&next)?;
        let taken = false;
        Ok(Succession { old, new, taken })
    }

    /// Gives the key that waits a new token for the same life, if the one that it has ends soon or
    /// has ended: its holder may have been away.
    fn sign_again(
        &self,
        begun: Succession,
        next: &Path,
        now: UnixMillis,
    ) -> Result<Succession, SuccessorError> {
        let Succession { old, new, taken } = begun;
        if !is_due(new.issued, new.ends, now) {
            return Ok(Succession { old, new, taken });
        }
        let ends = whole_seconds(now.after(new.issued.until(new.ends)));
        let new = Registration {
            issued: now,
            ends,
            ..new
        };
        let signer = self.role_key(new.role)?;
        let token = sign(&signer, &new, ends, now).map_err(DomainError::from)?;
        let credentials = Credentials::new(token, Credentials::read(next)?.key().clone())?;
        self.layout().issued().record(&new)?;
        self.certify(&credentials, next, new.role, ends, now)?;
        credentials.write(next)?;
        Ok(Succession { old, new, taken })
    }

    /// The change of this holder's key, if one was begun and has not ended; none also if it broke
    /// off before anybody could take the new key.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn succession(&self, name: &str) -> Result<Option<Succession>, SuccessorError> {
        check_label(name).map_err(DomainError::from)?;
        let Some(note) = read_entry::<Note>(&self.layout().succession(name))? else {
            return Ok(None);
        };
        let list = self.layout().issued();
        let (Some(old), Some(new)) = (list.find(&note.old)?, list.find(&note.new)?) else {
            return Ok(None);
        };
        let path = self.layout().credentials(name);
        let holds = |path: &Path, key: &PublicKey| -> Result<bool, SuccessorError> {
            Ok(path.exists() && Credentials::read(path)?.public() == key)
        };
        let taken = holds(&path, &note.new)?;
        let waits = holds(&waiting(&path), &note.new)?;
        Ok((taken || waits).then_some(Succession { old, new, taken }))
    }

    /// Forgets the change of a holder's key, once the old one is revoked.
    ///
    /// # Errors
    /// The note cannot be removed.
    pub fn end_succession(&self, name: &str) -> Result<(), SuccessorError> {
        let path = self.layout().succession(name);
        if path.exists() {
            fs::remove_file(&path).map_err(|source| FileError::Write { path, source })?;
        }
        Ok(())
    }

    /// Lets the holder of this name, whose keys lie on its own machine, ask for another key until a
    /// time. Returns the record of the key that it has. The caller holds the [`crate::DomainLock`].
    ///
    /// # Errors
    /// No worker, or more than one key, has the name; or a record cannot be read or written.
    pub fn allow_succession(
        &self,
        name: &str,
        until: UnixMillis,
    ) -> Result<Registration, SuccessorError> {
        let list = self.layout().issued();
        let all = list.all()?;
        let of_name = |one: &&Registration| {
            one.name == name && one.role == Role::Worker && one.blocked.is_none()
        };
        let succeeds = |one: &Registration| {
            let key = one.before.as_ref();
            key.is_some_and(|key| {
                all.iter()
                    .any(|other| of_name(&other) && other.public == *key)
            })
        };
        // One that was made already is not the one that changes.
        let mut present = all.iter().filter(of_name).filter(|one| !succeeds(one));
        let (Some(held), None) = (present.next(), present.next()) else {
            return Err(SuccessorError::Missing(name.to_owned()));
        };
        let record = Registration {
            changes_until: Some(until),
            ..held.clone()
        };
        list.record(&record)?;
        Ok(record)
    }

    /// The record of the key that succeeds this one; none if there is none yet.
    ///
    /// # Errors
    /// A record cannot be read.
    pub fn successor_of(&self, old: &PublicKey) -> Result<Option<Registration>, SuccessorError> {
        Ok(self.layout().issued().successor_of(old)?)
    }

    fn not_here(&self, name: &str) -> Result<SuccessorError, SuccessorError> {
        let mut known = self.layout().issued().all()?.into_iter();
        let known = known.find(|holder| holder.name == name && holder.blocked.is_none());
        Ok(match known {
            None => SuccessorError::Missing(name.to_owned()),
            Some(holder) => SuccessorError::Elsewhere {
                name: holder.name,
                key: holder.public,
                role: holder.role,
            },
        })
    }
}

/// Tokens count whole seconds.
fn whole_seconds(time: UnixMillis) -> UnixMillis {
    UnixMillis(time.get().div_ceil(1000) * 1000)
}

/// The file that waits to take the place of this one.
pub(crate) fn waiting(present: &Path) -> PathBuf {
    beside(present, WAITING)
}

/// The file whose name is that of another and this.
pub(crate) fn beside(present: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(present.as_os_str());
    name.push(ending);
    PathBuf::from(name)
}

fn put(from: &Path, to: &Path) -> Result<(), FileError> {
    fs::rename(from, to).map_err(|source| FileError::Write {
        path: to.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests;
