//! New signing keys for roles. The signing key of a role makes the tokens of all of its holders, so
//! the answer to a stolen one is a new one. For a time the account may know both, so that nobody is
//! cut off before it has a token of the new key.

use std::fs;

use schemas::account::Account;
use schemas::permission::Role;
use schemas::{PublicKey, UnixMillis, V};
use serde::{Deserialize, Serialize};

use crate::claims::{AccountClaims, AccountKey};
use crate::credentials::Credentials;
use crate::domain::{Domain, DomainError};
use crate::issued::Registration;
use crate::issuer::sign;
use crate::key::{KeyKind, SigningKey};
use crate::revocation::{read_entry, write_entry};
use crate::secret::FileError;

/// Earlier signing keys of a role that its account still knows.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Retiring {
    v: V<1>,
    keys: Vec<PublicKey>,
}

/// A role's new signing key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewKey {
    /// The public half of the key that it replaces.
    pub old: PublicKey,
    /// Its own public half.
    pub new: PublicKey,
}

/// The holders of a role after its key was replaced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resigned {
    /// Those whose credentials file in the domain's folder has a token of the new key now.
    pub renewed: Vec<Registration>,
    /// Those whose credentials file is not in the domain's folder: issue them again.
    pub elsewhere: Vec<Registration>,
}

impl Domain {
    /// Makes the next signing key of a role, beside the present one: the account knows both, and
    /// nothing is signed with the next one before [`Domain::adopt_role_key`]. One that was made
    /// before and not adopted is replaced. The caller holds the [`crate::DomainLock`].
    ///
    /// # Errors
    /// The vault is not here, without which no account can learn the key; or the file cannot be
    /// written.
    pub fn make_role_key(&self, role: Role) -> Result<(), DomainError> {
        self.layout().vault().check()?;
        let key = SigningKey::generate(KeyKind::Account);
        Ok(key.seed().write(&self.layout().next_role_key(role))?)
    }

    /// Puts a role's next signing key in the place of the present one. The account knows the old
    /// one as well, until [`Domain::retire`]. The broker must know the next one already, since the
    /// registrar signs with it from here on. The caller holds the [`crate::DomainLock`].
    ///
    /// # Errors
    /// There is no next key, a key cannot be read, or a file cannot be written.
    pub fn adopt_role_key(&self, role: Role) -> Result<NewKey, DomainError> {
        let old = self.role_key(role)?.public().clone();
        let next = self.layout().next_role_key(role);
        let key = SigningKey::read(KeyKind::Account, &next)?;
        let mut retiring = self.retiring(role)?;
        if !retiring.contains(&old) {
            retiring.push(old.clone());
        }
        // Before the key is gone: without an entry its holders would be cut off.
        let path = self.layout().retiring(role);
        let entry = Retiring {
            v: V,
            keys: retiring,
        };
        write_entry(&path, &entry)?;
        let path = self.layout().role_key(role);
        fs::rename(&next, &path).map_err(|source| FileError::Write { path, source })?;
        Ok(NewKey {
            old,
            new: key.public().clone(),
        })
    }

    /// Gives every holder of the role whose credentials lie in the domain's folder a token of the
    /// role's present key, with the same key, name, run and end. Revoked holders get none.
    ///
    /// # Errors
    /// The role's key or a record cannot be read, or a file cannot be written.
    pub fn resign_holders(&self, role: Role, now: UnixMillis) -> Result<Resigned, DomainError> {
        let signer = self.role_key(role)?;
        let list = self.layout().issued();
        let mut resigned = Resigned::default();
        let all = list.all()?.into_iter();
        for holder in all.filter(|holder| holder.role == role && holder.blocked.is_none()) {
            let path = self.layout().credentials(&holder.name);
            let held = path
                .exists()
                .then(|| Credentials::read(&path))
                .transpose()?;
            let own = held.filter(|held| *held.public() == holder.public);
            let ends = own.as_ref().and_then(|held| held.token().expires);
            let ends = ends.unwrap_or(holder.ends).max(holder.ends);
            let Some(held) = own else {
                // The record of one that is renewed knows nothing of its newest token.
                if ends > now || role.is_renewable() {
                    resigned.elsewhere.push(holder);
                }
                continue;
            };
            if ends <= now {
                continue;
            }
            let issued = self.issue_time(&holder.account, &holder.public, now)?;
            let holder = Registration {
                issued,
                ends,
                ..holder
            };
            let token = sign(&signer, &holder, ends, issued)?;
            let renewed = Credentials::new(token, held.key().clone())?;
            list.record(&holder)?;
            renewed.write(&path)?;
            resigned.renewed.push(holder);
        }
        Ok(resigned)
    }

    /// Ends the overlap: the account knows the role's present key only, as soon as the broker has
    /// the account's next token. Returns the keys that go.
    ///
    /// # Errors
    /// The entry cannot be read or removed.
    pub fn retire(&self, role: Role) -> Result<Vec<PublicKey>, DomainError> {
        let gone = self.retiring(role)?;
        let path = self.layout().retiring(role);
        if path.exists() {
            fs::remove_file(&path).map_err(|source| FileError::Write { path, source })?;
        }
        Ok(gone)
    }

    /// Earlier keys of the role that are still valid.
    ///
    /// # Errors
    /// The entry cannot be read.
    pub fn retiring(&self, role: Role) -> Result<Vec<PublicKey>, DomainError> {
        let entry: Option<Retiring> = read_entry(&self.layout().retiring(role))?;
        Ok(entry.map(|entry| entry.keys).unwrap_or_default())
    }

    /// The role's next key; none if none was made.
    fn next_key(&self, role: Role) -> Result<Option<PublicKey>, DomainError> {
        let path = self.layout().next_role_key(role);
        if !path.exists() {
            return Ok(None);
        }
        let key = SigningKey::read(KeyKind::Account, &path)?;
        Ok(Some(key.public().clone()))
    }

    /// Adds the earlier keys of an account's roles and the next ones to its claims, with the rights
    /// of the present ones.
    pub(crate) fn add_retiring(
        &self,
        account: Account,
        claims: &mut AccountClaims,
    ) -> Result<(), DomainError> {
        let mut earlier = Vec::new();
        for role in Role::ALL
            .into_iter()
            .filter(|role| role.account() == account)
        {
            let next = self.next_key(role)?;
            for key in self.retiring(role)?.into_iter().chain(next) {
                let scopes = claims.signing_keys.iter().filter_map(|known| match known {
                    AccountKey::Scoped(scope) if scope.role == role.name() => Some(scope),
                    _ => None,
                });
                earlier.extend(scopes.map(|scope| {
                    let mut scope = scope.clone();
                    scope.key = key.clone();
                    AccountKey::Scoped(scope)
                }));
            }
        }
        claims.signing_keys.extend(earlier);
        Ok(())
    }
}
