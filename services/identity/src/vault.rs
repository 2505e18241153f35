//! The vault of a trust domain: the keys that everything else comes from. No process that runs
//! needs it, so its folder may lie offline. It is needed to write the broker's configuration, to
//! make certificates, and to issue credentials of provisioners.

use std::path::{Path, PathBuf};

use schemas::account::Account;
use schemas::permission::Role;

use crate::domain::{DomainError, account_key_name};
use crate::key::{KeyKind, SigningKey};

/// The vault, in its folder.
#[derive(Clone, Debug)]
pub struct Vault {
    folder: PathBuf,
}

impl Vault {
    /// The vault in `folder`; nothing is touched.
    pub fn at(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
        }
    }

    /// True if it is on this machine.
    pub fn is_here(&self) -> bool {
        self.folder.is_dir()
    }

    /// The operator's identity: the trust domain is named after it.
    ///
    /// # Errors
    /// The vault is not here, or the key cannot be read.
    pub fn operator(&self) -> Result<SigningKey, DomainError> {
        self.read("operator", KeyKind::Operator)
    }

    /// The key with which the operator signs accounts.
    ///
    /// # Errors
    /// As [`Vault::operator`].
    pub fn operator_signing(&self) -> Result<SigningKey, DomainError> {
        self.read("operator-signing", KeyKind::Operator)
    }

    /// The key of an account. [`Account::Tenant`] gives that of the domain's own tenant.
    ///
    /// # Errors
    /// As [`Vault::operator`].
    pub fn account(&self, account: Account) -> Result<SigningKey, DomainError> {
        self.read(account_key_name(account), KeyKind::Account)
    }

    /// The signing key of a role that the registrar does not renew.
    ///
    /// # Errors
    /// As [`Vault::operator`].
    pub(crate) fn role(&self, role: Role) -> Result<SigningKey, DomainError> {
        self.read(&role_key_name(role), KeyKind::Account)
    }

    /// The file of the certificate authority's private key.
    pub fn authority_key(&self) -> PathBuf {
        self.folder.join("ca.key")
    }

    /// The file of the private key of the next certificate authority, which has signed nothing yet.
    pub fn next_authority_key(&self) -> PathBuf {
        self.folder.join("ca.next")
    }

    /// The seed file of a key.
    pub(crate) fn key(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.nk"))
    }

    /// Refuses to go on without the vault.
    ///
    /// # Errors
    /// [`DomainError::NoVault`].
    pub fn check(&self) -> Result<(), DomainError> {
        match self.is_here() {
            true => Ok(()),
            false => Err(DomainError::NoVault(self.folder.clone())),
        }
    }

    fn read(&self, name: &str, kind: KeyKind) -> Result<SigningKey, DomainError> {
        self.check()?;
        Ok(SigningKey::read(kind, &self.key(name))?)
    }
}

/// The file, without its ending, of a role's signing key.
pub(crate) fn role_key_name(role: Role) -> String {
    format!("role-{}", role.name())
}
