//! Revoked keys. Each revocation is a file in the domain's folder, and stands in the token of its
//! account from the next time on that the broker's configuration is written. The broker then
//! refuses every token of the key that was issued up to the revocation, and accepts newer ones.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use schemas::hold::Reason;
use schemas::permission::Role;
use schemas::{AccountId, Millis, PublicKey, UnixMillis, V};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::claims::UserClaims;
use crate::credentials::Credentials;
use crate::domain::{Domain, DomainError, LIFETIME_MAX};
use crate::jwt::{Subject, check_label, mint, next_second};
use crate::key::{KeyKind, parse_public};
use crate::purpose::ConnectionKey;
use crate::secret::{FileError, read_secret, write_private};

/// Most revocations of one account. Each takes some 90 bytes of the account's token, which must
/// stay below the broker's largest message.
pub const REVOKED_MAX: usize = 8192;
/// The name in the token of credentials that are made for one command: the broker reports it with a
/// key that is nowhere listed. Nobody else may have it.
pub const MOMENTARY_NAME: &str = "diloctl-accounts";
/// Life of credentials that are made for one command: enough for clocks that differ by minutes.
const MOMENT: Millis = Millis::from_secs(300);

/// Time after a revocation up to which tokens of its key are void. The registrar may have read the
/// key's record just before, and may have signed with a clock that is ahead by minutes. A token
/// that is issued anew is dated after it.
pub const MARGIN: Millis = Millis::from_secs(300);

/// A revoked key of an account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revocation {
    /// Version.
    pub v: V<1>,
    /// The account.
    pub account: AccountId,
    /// The key.
    pub key: PublicKey,
    /// The reason, if somebody gave one.
    pub reason: Option<Reason>,
    /// Tokens that were issued up to this second are void.
    pub until: UnixMillis,
    /// The time at which every such token has ended by itself, so that the revocation can be
    /// forgotten.
    pub ends: UnixMillis,
    /// True until a broker has confirmed it. A broker that runs still serves the key.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pending: bool,
    /// True until the ledger has it. Revocations of an earlier release count as recorded: nobody
    /// can say any more who gave the order.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unrecorded: bool,
}

impl Revocation {
    /// True if a token that was issued at this time is void. Tokens count whole seconds.
    pub const fn covers(&self, issued: UnixMillis) -> bool {
        issued.get() / 1000 <= self.until.get() / 1000
    }
}

/// Credentials for one command, in a file that is removed with this value.
#[derive(Debug)]
pub struct Momentary {
    folder: TempDir,
}

impl Domain {
    /// Keeps a revocation of all tokens of a key that were issued so far, and of those of the next
    /// [`MARGIN`]. A revocation that is repeated covers what was issued since, and keeps its reason
    /// unless another is given or the key was issued anew. The broker learns it when the accounts'
    /// tokens are pushed. The caller holds the [`crate::DomainLock`].
    ///
    /// # Errors
    /// The key is no user's, the account has too many revocations, or the folder cannot be used.
    pub fn revoke(
        &self,
        account: &AccountId,
        key: &PublicKey,
        reason: Option<&Reason>,
        now: UnixMillis,
    ) -> Result<Revocation, DomainError> {
        parse_public(key.as_str(), KeyKind::User)?;
        let folder = self.layout().revoked_folder();
        let path = entry(&folder, account, key);
        // From here on the registrar renews it no more.
        let record = self.layout().issued().block(key, now)?;
        let issued = record.map(|record| record.issued);
        self.forget_ended(&folder, now)?;
        let stands: Option<Revocation> = read_entry(&path)?;
        if others(&self.revocations()?, account, key) >= REVOKED_MAX {
            return Err(DomainError::Revocations(account.clone()));
        }
        // A token that was issued right after an earlier revocation is dated ahead of the clock.
        let until = issued.map_or(now, |issued| issued.max(now));
        let until = UnixMillis(until.after(MARGIN).get() / 1000 * 1000);
        // A clock that was put back makes no void token valid.
        let until = stands.as_ref().map_or(until, |one| one.until.max(until));
        let same = stands.filter(|one| issued.is_none_or(|issued| one.covers(issued)));
        let reason = reason.cloned().or_else(|| same.and_then(|one| one.reason));
        let revocation = Revocation {
            v: V,
            account: account.clone(),
            key: key.clone(),
            reason,
            until,
            ends: until.after(LIFETIME_MAX).after(Millis::from_secs(1)),
            pending: true,
            unrecorded: true,
        };
        write_entry(&path, &revocation)?;
        Ok(revocation)
    }

    /// Notes that a broker has confirmed a revocation. The caller holds the [`crate::DomainLock`].
    ///
    /// # Errors
    /// The folder takes no file.
    pub fn confirm(&self, revocation: &Revocation) -> Result<Revocation, DomainError> {
        self.amend(revocation, |kept| kept.pending = false)
    }

    /// Notes that the ledger has a revocation. The caller holds the [`crate::DomainLock`].
    ///
    /// # Errors
    /// The folder takes no file.
    pub fn note_recorded(&self, revocation: &Revocation) -> Result<Revocation, DomainError> {
        self.amend(revocation, |kept| kept.unrecorded = false)
    }

    /// Changes the entry of a revocation, as it is kept now.
    fn amend(
        &self,
        revocation: &Revocation,
        change: impl FnOnce(&mut Revocation),
    ) -> Result<Revocation, DomainError> {
        let folder = self.layout().revoked_folder();
        let path = entry(&folder, &revocation.account, &revocation.key);
        let mut kept = read_entry(&path)?.unwrap_or_else(|| revocation.clone());
        change(&mut kept);
        write_entry(&path, &kept)?;
        Ok(kept)
    }

    /// The revocation of a key; none if there is none.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn revocation(
        &self,
        account: &AccountId,
        key: &PublicKey,
    ) -> Result<Option<Revocation>, DomainError> {
        read_entry(&entry(&self.layout().revoked_folder(), account, key))
    }

    /// All revocations, the oldest first.
    ///
    /// # Errors
    /// One of them cannot be read.
    pub fn revocations(&self) -> Result<Vec<Revocation>, DomainError> {
        let mut all: Vec<Revocation> = read_entries(&self.layout().revoked_folder())?;
        all.sort_by(|a, b| (a.until, &a.account, &a.key).cmp(&(b.until, &b.account, &b.key)));
        Ok(all)
    }

    /// The revocations of an account in the form of its token.
    pub(crate) fn revocations_of(
        &self,
        account: &AccountId,
        now: UnixMillis,
    ) -> Result<BTreeMap<String, u64>, DomainError> {
        let all = self.revocations()?.into_iter();
        let own = all.filter(|one| one.account == *account && now < one.ends);
        Ok(own
            .map(|one| (one.key.to_string(), one.until.get() / 1000))
            .collect())
    }

    /// The time of issue of a new token for this key: the broker accepts it only if it is later
    /// than the key's revocation, by at least a second.
    pub(crate) fn issue_time(
        &self,
        account: &AccountId,
        key: &PublicKey,
        now: UnixMillis,
    ) -> Result<UnixMillis, DomainError> {
        let revoked = self.revocation(account, key)?;
        Ok(revoked.map_or(now, |revoked| now.max(next_second(revoked.until))))
    }

    /// Makes credentials with which a command may replace accounts' tokens.
    ///
    /// # Errors
    /// The role's key cannot be read, or the domain's folder takes no file.
    pub fn account_writer(&self, now: UnixMillis) -> Result<Momentary, DomainError> {
        let role = Role::AccountWriter;
        let signer = self.role_key(role)?;
        let key = ConnectionKey::generate();
        let subject = Subject {
            name: MOMENTARY_NAME,
            key: key.public(),
            not_before: None,
            expires: Some(now.after(MOMENT)),
        };
        let claims = UserClaims::of_role(self.account(role.account())?, vec![]);
        let credentials = Credentials::new(mint(&subject, claims, &signer, now)?, key)?;
        let place = self.layout().folder();
        let folder = tempfile::Builder::new()
            .prefix(".moment-")
            .tempdir_in(place)
            .map_err(|source| FileError::Write {
                path: place.to_owned(),
                source,
            })?;
        let file = file_in(&folder);
        self.certify(&credentials, &file, role, now.after(MOMENT), now)?;
        credentials.write(&file)?;
        Ok(Momentary { folder })
    }

    fn forget_ended(&self, folder: &Path, now: UnixMillis) -> Result<(), DomainError> {
        for ended in self.revocations()?.iter().filter(|one| one.ends <= now) {
            let path = entry(folder, &ended.account, &ended.key);
            fs::remove_file(&path).map_err(|source| FileError::Write { path, source })?;
        }
        Ok(())
    }
}

impl Momentary {
    /// The credentials file.
    pub fn credentials(&self) -> PathBuf {
        file_in(&self.folder)
    }
}

/// Refuses a name that no holder can have.
pub(crate) fn check_name(name: &str) -> Result<(), DomainError> {
    check_label(name)?;
    match name == MOMENTARY_NAME {
        true => Err(DomainError::Reserved(name.to_owned())),
        false => Ok(()),
    }
}

fn file_in(folder: &TempDir) -> PathBuf {
    folder
        .path()
        .join(format!("{}.creds", Role::AccountWriter.name()))
}

/// The number of other keys of the account that are revoked.
fn others(all: &[Revocation], account: &AccountId, key: &PublicKey) -> usize {
    let others = all
        .iter()
        .filter(|one| one.account == *account && one.key != *key);
    others.count()
}

/// The file in `folder` for a key of an account.
fn entry(folder: &Path, account: &AccountId, key: &PublicKey) -> PathBuf {
    folder.join(format!("{account}.{key}.json"))
}

pub(crate) fn write_entry<T: Serialize>(path: &Path, value: &T) -> Result<(), DomainError> {
    let text = serde_json::to_vec(value).expect("names, keys and times can be written");
    Ok(write_private(path, &text)?)
}

/// The content of a file; none if there is no such file.
pub(crate) fn read_entry<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, DomainError> {
    if !path.exists() {
        return Ok(None);
    }
    let text = read_secret(path)?;
    let parsed = serde_json::from_str(&text).map_err(|error| DomainError::Record {
        path: path.to_owned(),
        reason: error.to_string(),
    });
    parsed.map(Some)
}

/// The content of all files of a folder, which may be missing.
fn read_entries<T: DeserializeOwned>(folder: &Path) -> Result<Vec<T>, DomainError> {
    let failed = |source| FileError::Read {
        path: folder.to_owned(),
        source,
    };
    let mut all = Vec::new();
    if !folder.exists() {
        return Ok(all);
    }
    for found in fs::read_dir(folder).map_err(failed)? {
        let path = found.map_err(failed)?.path();
        // A file that is being written has another ending.
        if path.extension().is_some_and(|ending| ending == "json") {
            all.extend(read_entry(&path)?);
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ConnectionKey, SigningKey};

    #[test]
    fn tl_07_only_other_keys_of_the_same_account_take_up_its_room() {
        let account = || {
            let key = SigningKey::generate(KeyKind::Account).public().to_string();
            key.parse::<AccountId>().expect("an account's key")
        };
        let key = || ConnectionKey::generate().public().clone();
        let revocation = |account: &AccountId, key: &PublicKey| Revocation {
            v: V,
            account: account.clone(),
            key: key.clone(),
            reason: None,
            until: UnixMillis(0),
            ends: UnixMillis(1),
            pending: false,
            unrecorded: false,
        };
        let (tenant, control, first) = (account(), account(), key());
        let all = [
            revocation(&tenant, &first),
            revocation(&tenant, &key()),
            revocation(&tenant, &key()),
            revocation(&control, &key()),
        ];
        assert_eq!(others(&all, &tenant, &first), 2, "it has its place already");
        assert_eq!(others(&all, &tenant, &key()), 3);
        assert_eq!(others(&all, &control, &first), 1);
    }
}
