//! The issuer of a trust domain: the scoped signing keys of the roles that the registrar renews.
//! Each makes credentials with the rights of one role and no others. The folder needs nothing of
//! the [`crate::Vault`], and can be replaced: new keys in it need a new broker configuration only.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use schemas::account::Account;
use schemas::permission::Role;
use schemas::renewal::Registration;
use schemas::{AccountId, Code, PublicKey, RunId, TenantName, UnixMillis, V};
use serde::{Deserialize, Serialize};

use crate::claims::UserClaims;
use crate::clients::ClientAuthority;
use crate::jwt::{JwtError, Subject, mint};
use crate::key::{KeyError, KeyKind, SigningKey};
use crate::secret::{FileError, read_anchor, write_private};
use crate::tenants::{self, TenantEntry, TenantFault};
use crate::tls::TlsError;
use crate::vault::role_key_name;

/// The signing keys of roles, read from their folder.
pub struct Issuer {
    names: AccountNames,
    keys: BTreeMap<Role, SigningKey>,
    tenants: BTreeMap<TenantName, TenantEntry>,
    /// None in a domain without mutual TLS.
    clients: Option<ClientAuthority>,
}

/// The public names of a domain's accounts: they are public keys, whose private halves lie in the
/// vault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccountNames {
    /// Version.
    pub v: V<1>,
    /// The trust domain.
    pub domain: PublicKey,
    /// The accounts, by [`Account::name`]; the tenant is the domain's own.
    pub accounts: BTreeMap<String, AccountId>,
}

/// Reasons why an issuer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IssuerError {
    /// A file is not what it should be.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The fault.
        reason: String,
    },
    /// The file with the accounts cannot be read.
    #[error("the issuer's accounts: {0}")]
    File(#[from] FileError),
    /// A role's key.
    #[error("the signing key of role {}: {source}", role.name())]
    Key {
        /// The role.
        role: Role,
        /// The fault.
        source: KeyError,
    },
    /// The role is not one that an issuer has a key of.
    #[error("credentials of role {} are not renewed", .0.name())]
    Role(Role),
    /// The record names another account than that of its role.
    #[error("{name} was issued in account {account}, and its role is in {expected} now")]
    Account {
        /// The name in the record.
        name: String,
        /// The account in the record.
        account: AccountId,
        /// The role's account.
        expected: AccountId,
    },
    /// A tenant.
    #[error(transparent)]
    Tenant(#[from] TenantFault),
    /// The token.
    #[error(transparent)]
    Jwt(#[from] JwtError),
    /// The authority of clients.
    #[error("the authority of clients: {0}")]
    Clients(#[from] TlsError),
}

impl IssuerError {
    /// The code of the page that says what to do.
    pub fn code(&self) -> Code {
        match self {
            Self::Invalid { .. } | Self::File(_) | Self::Key { .. } | Self::Clients(_) => {
                Code::IssuerInvalid
            }
            Self::Role(_) | Self::Account { .. } => Code::HolderMismatch,
            Self::Tenant(error) => error.code(),
            Self::Jwt(error) => error.code(),
        }
    }
}

schemas::coded!(IssuerError);

impl AccountNames {
    /// The file in an issuer's folder.
    pub fn file(folder: &Path) -> PathBuf {
        folder.join("accounts.json")
    }

    /// Reads the file.
    ///
    /// # Errors
    /// It cannot be read, or lacks an account.
    pub fn read(folder: &Path) -> Result<Self, IssuerError> {
        let path = Self::file(folder);
        let text = read_anchor(&path)?;
        let invalid = |reason: String| IssuerError::Invalid {
            path: path.clone(),
            reason,
        };
        let names: Self =
            serde_json::from_str(&text).map_err(|error| invalid(error.to_string()))?;
        let missing = Account::ALL
            .iter()
            .find(|account| !names.accounts.contains_key(account.name()));
        match missing {
            Some(account) => Err(invalid(format!("it names no account {}", account.name()))),
            None => Ok(names),
        }
    }

    /// Writes the file.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub(crate) fn write(&self, folder: &Path) -> Result<(), FileError> {
        let text = serde_json::to_string_pretty(self).expect("they are names");
        write_private(&Self::file(folder), format!("{text}\n").as_bytes())
    }

    /// An account.
    pub fn account(&self, account: Account) -> &AccountId {
        &self.accounts[account.name()]
    }
}

impl Issuer {
    /// Reads the accounts and all keys.
    ///
    /// # Errors
    /// A file is missing or cannot be used.
    pub fn open(folder: &Path) -> Result<Self, IssuerError> {
        let names = AccountNames::read(folder)?;
        let mut keys = BTreeMap::new();
        for role in Role::ALL.into_iter().filter(|role| role.is_renewable()) {
            let path = Self::key(folder, role);
            let key = SigningKey::read(KeyKind::Account, &path)
                .map_err(|source| IssuerError::Key { role, source })?;
            keys.insert(role, key);
        }
        let key = Self::clients_key(folder);
        let clients = key.exists().then(|| ClientAuthority::read(&key));
        Ok(Self {
            names,
            keys,
            tenants: tenants::entries(folder)?,
            clients: clients.transpose()?,
        })
    }

    /// The file of the private key of the authority of clients.
    pub fn clients_key(folder: &Path) -> PathBuf {
        folder.join("clients.key")
    }

    /// The seed file of a role's key.
    pub fn key(folder: &Path, role: Role) -> PathBuf {
        folder.join(format!("{}.nk", role_key_name(role)))
    }

    /// The trust domain.
    pub fn domain(&self) -> &PublicKey {
        &self.names.domain
    }

    /// The accounts.
    pub fn accounts(&self) -> &AccountNames {
        &self.names
    }

    /// The public half of a role's signing key; none for roles that are not renewed.
    pub fn public(&self, role: Role) -> Option<&PublicKey> {
        self.keys.get(&role).map(SigningKey::public)
    }

    /// The account of a holder with this role: that of the run's tenant, for a role that works for
    /// a run.
    ///
    /// # Errors
    /// The run's tenant is unknown or ended.
    pub fn account_for(&self, role: Role, run: Option<&RunId>) -> Result<&AccountId, IssuerError> {
        match run.and_then(RunId::tenant).filter(|_| role.is_tenant()) {
            Some(tenant) => Ok(tenants::account_of(&self.tenants, &tenant)?),
            None => Ok(self.names.account(role.account())),
        }
    }

    /// A token for the holder of a registered credential: its own key, name, role, account and run,
    /// with the rights of the role's template, until `ends`.
    ///
    /// # Errors
    /// The role is not renewed, the record names another account than that of its role or of its
    /// run's tenant, that tenant ended, or a name or run cannot stand in a token.
    pub fn sign(
        &self,
        holder: &Registration,
        ends: UnixMillis,
        now: UnixMillis,
    ) -> Result<String, IssuerError> {
        let signer = self
            .keys
            .get(&holder.role)
            .ok_or(IssuerError::Role(holder.role))?;
        let account = self.account_for(holder.role, holder.run.as_ref())?;
        if holder.account != *account {
            return Err(IssuerError::Account {
                name: holder.name.clone(),
                account: holder.account.clone(),
                expected: account.clone(),
            });
        }
        sign(signer, holder, ends, now).map_err(IssuerError::from)
    }

    /// True in a domain with mutual TLS: [`Issuer::certify`] gives certificates.
    pub const fn certifies(&self) -> bool {
        self.clients.is_some()
    }

    /// A certificate to show to servers, for the holder of a registered credential; none in a
    /// domain without mutual TLS. It ends with the token that it comes with, or after a day.
    ///
    /// # Errors
    /// The generator failed.
    pub fn certify(
        &self,
        holder: &Registration,
        ends: UnixMillis,
        now: UnixMillis,
    ) -> Result<Option<String>, IssuerError> {
        let certify =
            |clients: &ClientAuthority| clients.certify(&holder.public, holder.role, ends, now);
        Ok(self.clients.as_ref().map(certify).transpose()?)
    }
}

/// A token with the rights of the role whose key signs it.
pub(crate) fn sign(
    signer: &SigningKey,
    holder: &Registration,
    ends: UnixMillis,
    now: UnixMillis,
) -> Result<String, JwtError> {
    let tags = holder.run.iter().map(|run| format!("run:{run}")).collect();
    let subject = Subject {
        name: &holder.name,
        key: &holder.public,
        not_before: None,
        expires: Some(ends),
    };
    let claims = UserClaims::of_role(holder.account.clone(), tags);
    mint(&subject, claims, signer, now)
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issuer")
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}
