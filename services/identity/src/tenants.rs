//! Tenants beside the domain's own. Each has an account, whose key lies in the vault, and an entry
//! in the issuer's folder, where the registrar finds it. Entries are kept for good: the account of
//! a tenant that ended stays in the broker's configuration, where it lets nobody in.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use schemas::account::Account;
use schemas::limits::TENANTS_MAX;
use schemas::permission::Role;
use schemas::tenant::Quota;
use schemas::{AccountId, Code, RunId, TenantName, UnixMillis, V};
use serde::{Deserialize, Serialize};

use crate::domain::{Domain, DomainError, account_id};
use crate::issued::Registration;
use crate::key::{KeyKind, SigningKey};
use crate::revocation::{read_entry, write_entry};

/// A tenant's entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantEntry {
    /// Version.
    pub v: V<1>,
    /// Its name.
    pub tenant: TenantName,
    /// The account of its workers.
    pub account: AccountId,
    /// Its quota.
    pub quota: Quota,
    /// The time at which it was made.
    pub since: UnixMillis,
    /// The time at which it was ended; none while it lasts.
    pub ended: Option<UnixMillis>,
}

/// Reasons why a tenant cannot be used or made.
#[derive(Debug, thiserror::Error)]
pub enum TenantFault {
    /// There is none of this name.
    #[error("tenant {0} is not in this domain")]
    Unknown(TenantName),
    /// It was ended.
    #[error("tenant {0} was ended")]
    Ended(TenantName),
    /// It has another quota.
    #[error("tenant {tenant} exists with another quota: {quota}")]
    Exists {
        /// The tenant.
        tenant: TenantName,
        /// Its quota.
        quota: Quota,
    },
    /// The trust bundle has no room for another.
    #[error("the domain has had its most tenants, {TENANTS_MAX}")]
    Most,
    /// An entry is not what it should be.
    #[error("{} is no entry of a tenant: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The fault.
        reason: String,
    },
}

impl TenantFault {
    /// The code of the page that says what to do.
    pub const fn code(&self) -> Code {
        match self {
            Self::Unknown(_) => Code::TenantUnknown,
            Self::Ended(_) => Code::TenantEnded,
            Self::Exists { .. } | Self::Most => Code::TenantExists,
            Self::Invalid { .. } => Code::IssuerInvalid,
        }
    }
}

schemas::coded!(TenantFault);

/// The entries in an issuer's folder, by name.
///
/// # Errors
/// One of them is not what it should be, or the folder cannot be read.
pub fn entries(issuer: &Path) -> Result<BTreeMap<TenantName, TenantEntry>, TenantFault> {
    let folder = issuer.join("tenants");
    let mut found = BTreeMap::new();
    if !folder.exists() {
        return Ok(found);
    }
    let invalid = |path: &Path, reason: &dyn std::fmt::Display| TenantFault::Invalid {
        path: path.to_owned(),
        reason: reason.to_string(),
    };
    for file in std::fs::read_dir(&folder).map_err(|error| invalid(&folder, &error))? {
        let path = file.map_err(|error| invalid(&folder, &error))?.path();
        let is_entry = path.extension().is_some_and(|ending| ending == "json");
        let name = path.file_stem().and_then(|stem| stem.to_str());
        // Temporary files, and others that nobody wrote as an entry.
        let Some(name) = name.filter(|_| is_entry).and_then(|name| name.parse().ok()) else {
            continue;
        };
        let entry = read_entry::<TenantEntry>(&path).map_err(|error| invalid(&path, &error))?;
        if let Some(entry) = entry {
            if entry.tenant != name {
                return Err(invalid(&path, &format!("it names {}", entry.tenant)));
            }
            found.insert(name, entry);
        }
    }
    Ok(found)
}

/// The account of a tenant that lasts.
pub(crate) fn account_of<'a>(
    entries: &'a BTreeMap<TenantName, TenantEntry>,
    tenant: &TenantName,
) -> Result<&'a AccountId, TenantFault> {
    match entries.get(tenant) {
        Some(entry) if entry.ended.is_none() => Ok(&entry.account),
        Some(_) => Err(TenantFault::Ended(tenant.clone())),
        None => Err(TenantFault::Unknown(tenant.clone())),
    }
}

impl Domain {
    /// The account of the domain's own tenant.
    ///
    /// # Errors
    /// As [`Domain::control`].
    pub fn tenant(&self) -> Result<AccountId, DomainError> {
        self.account(Account::Tenant)
    }

    /// The entries of all tenants beside the domain's own, by name.
    ///
    /// # Errors
    /// An entry cannot be used.
    pub fn tenants(&self) -> Result<BTreeMap<TenantName, TenantEntry>, DomainError> {
        Ok(entries(&self.layout.issuer())?)
    }

    /// The account in which a credential is issued: that of the run's tenant, for a role that works
    /// for a run.
    ///
    /// # Errors
    /// The run's tenant is unknown or ended; or as [`Domain::control`].
    pub fn account_for(&self, role: Role, run: Option<&RunId>) -> Result<AccountId, DomainError> {
        match run.and_then(RunId::tenant).filter(|_| role.is_tenant()) {
            Some(tenant) => Ok(account_of(&self.tenants()?, &tenant)?.clone()),
            None => self.account(role.account()),
        }
    }

    /// Makes a tenant: its key, its entry, and its place in the trust bundle, in this order, so
    /// that a call that broke off is completed by the next. Returns the domain as it is then. The
    /// caller holds the [`crate::DomainLock`].
    ///
    /// # Errors
    /// The vault is not here, the name stands for another tenant or one that ended, the domain has
    /// its most tenants, or a file cannot be written.
    pub fn make_tenant(
        &self,
        tenant: &TenantName,
        quota: Quota,
        now: UnixMillis,
    ) -> Result<(Self, TenantEntry), DomainError> {
        self.layout.vault().check()?;
        // Another command may have made a tenant since this domain was opened.
        let latest = Self::open(self.layout.folder())?;
        let entry = match self.tenants()?.remove(tenant) {
            Some(entry) if entry.ended.is_some() => {
                return Err(TenantFault::Ended(tenant.clone()).into());
            }
            Some(entry) if entry.quota != quota => {
                let (tenant, quota) = (entry.tenant, entry.quota);
                return Err(TenantFault::Exists { tenant, quota }.into());
            }
            Some(entry) => entry,
            None => {
                let entry = TenantEntry {
                    v: V,
                    account: latest.make_account(tenant)?,
                    tenant: tenant.clone(),
                    quota,
                    since: now,
                    ended: None,
                };
                self.write_tenant(&entry)?;
                entry
            }
        };
        let mut trust = latest.trust;
        if !trust.tenants.contains(&entry.account) {
            trust.tenants.push(entry.account.clone());
            trust.ca = self.layout.ca_relative();
            trust.write(&self.layout.trust())?;
        }
        Ok((Self::open(self.layout.folder())?, entry))
    }

    /// The account's key. One that an earlier call left is used again.
    fn make_account(&self, tenant: &TenantName) -> Result<AccountId, DomainError> {
        if self.trust.tenants.len() >= TENANTS_MAX {
            return Err(TenantFault::Most.into());
        }
        let path = self.layout.vault().key(&format!("tenant-{tenant}"));
        if !path.exists() {
            SigningKey::generate(KeyKind::Account).seed().write(&path)?;
        }
        Ok(account_id(&SigningKey::read(KeyKind::Account, &path)?))
    }

    /// Gives a tenant another quota. The broker learns its part when the accounts are pushed. The
    /// caller holds the [`crate::DomainLock`].
    ///
    /// # Errors
    /// The tenant is unknown or ended, or its entry cannot be written.
    pub fn set_quota(&self, tenant: &TenantName, quota: Quota) -> Result<TenantEntry, DomainError> {
        let mut known = self.tenants()?;
        account_of(&known, tenant)?;
        let entry = known.remove(tenant).expect("it was found above");
        let entry = TenantEntry { quota, ..entry };
        self.write_tenant(&entry)?;
        Ok(entry)
    }

    /// Ends a tenant: nothing is issued or renewed for it any more, and from the next push on the
    /// broker lets nobody into its account. Returns its entry, and the credentials that were issued
    /// for it. One that ended stays so since it did. The caller holds the [`crate::DomainLock`].
    ///
    /// # Errors
    /// The tenant is unknown, or a file cannot be read or written.
    pub fn end_tenant(
        &self,
        tenant: &TenantName,
        now: UnixMillis,
    ) -> Result<(TenantEntry, Vec<Registration>), DomainError> {
        let entry = self.tenants()?.remove(tenant);
        let mut entry = entry.ok_or_else(|| TenantFault::Unknown(tenant.clone()))?;
        if entry.ended.is_none() {
            entry.ended = Some(now);
            self.write_tenant(&entry)?;
        }
        let mut holders = self.layout.issued().all()?;
        holders.retain(|holder| holder.account == entry.account);
        Ok((entry, holders))
    }

    fn write_tenant(&self, entry: &TenantEntry) -> Result<(), DomainError> {
        let folder = self.layout.issuer().join("tenants");
        write_entry(&folder.join(format!("{}.json", entry.tenant)), entry)
    }
}
