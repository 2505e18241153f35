//! A domain of an earlier release is taken over. It had every key in one folder; they go to the
//! vault and to the issuer. It had no registrar, and so no list of issued credentials; and no key
//! that signs tree heads, which its trust bundle names, and so no log, whose manifest is made with
//! that key. In one that is older still, auditors connected to the account of the copy itself; they
//! get tokens for an account of their own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use schemas::account::Account;
use schemas::permission::Role;
use schemas::renewal::Registration;
use schemas::{AccountId, UnixMillis, V};

use crate::claims::UserClaims;
use crate::credentials::{Credentials, CredentialsError};
use crate::domain::{Domain, DomainError, account_id, account_key_name};
use crate::issuer::AccountNames;
use crate::jwt::{Subject, mint};
use crate::key::{KeyKind, SigningKey};
use crate::log_manifest;
use crate::purpose::{AuditKey, HeadKey};
use crate::secret::{FileError, create_private_folder};
use crate::store_keys::{AccessKey, StoreKeys};
use crate::trust::TrustBundle;
use crate::vault::role_key_name;

impl Domain {
    /// Makes what a domain of an earlier release lacks, with the same keys and the same ends of
    /// validity. It changes nothing in a domain that has everything, or whose vault is elsewhere.
    ///
    /// # Errors
    /// A key or a credentials file cannot be read or written.
    pub fn take_over(&self, now: UnixMillis) -> Result<(), DomainError> {
        if !self.layout().vault().is_here() && !self.is_older() {
            return Ok(());
        }
        // An earlier release had no such list; it is made of the credentials that lie here.
        create_private_folder(self.layout().issued().folder())?;
        self.move_keys()?;
        self.add_keys()?;
        self.write_names()?;
        let readers = self.account(Account::Readers)?;
        let signer = SigningKey::read(KeyKind::Account, &self.layout().role_key(Role::Auditor))?;
        for path in self.credentials_files()? {
            self.move_auditor(&path, &readers, &signer, now)?;
            self.register(&path)?;
        }
        self.give_sentry_key()?;
        self.give_head_key(now)
    }

    /// Makes sure that auditors, the audit service and the coordinator have keys to the store, each
    /// in a file of its own: a domain of an earlier release has none. Returns true if the store
    /// must be started again to know a key. The caller holds the [`crate::DomainLock`].
    ///
    /// # Errors
    /// The store's keys cannot be read or written.
    pub fn give_auditors_store_key(&self) -> Result<bool, DomainError> {
        let (all, own) = (self.layout.store_keys(), self.layout.store_auditor_key());
        let mut keys = StoreKeys::read(&all)?;
        let new = [keys.audit.is_none(), keys.log.is_none()];
        let audit = keys.audit.get_or_insert_with(AccessKey::generate).clone();
        let log = keys.log.get_or_insert_with(AccessKey::generate).clone();
        let is_new = new.contains(&true);
        if is_new {
            keys.write(&all)?;
        }
        // If an earlier call broke off between the files, a later one is still missing.
        if new[0] || !own.exists() {
            audit.write_auditors(&own)?;
        }
        let log_file = self.layout.store_log_key();
        if new[1] || !log_file.exists() {
            log.write_log(&log_file)?;
        }
        let (file, coordinators) = (self.layout.store_coordinator_keys(), keys.of_coordinator());
        // Whose keys were exchanged has another file for the store.
        let is_same = |known: StoreKeys| known.same(&coordinators);
        if !file.exists() || !is_same(StoreKeys::read(&file)?) {
            coordinators.write(&file)?;
        }
        Ok(is_new)
    }

    /// True if the keys of the operator still lie beside those of the coordinator.
    pub(crate) fn is_older(&self) -> bool {
        self.layout().key("operator").exists()
    }

    /// Moves each key to its new place. The operator's is the last, so that a move that broke off
    /// is taken up again.
    fn move_keys(&self) -> Result<(), DomainError> {
        let (layout, vault) = (self.layout(), self.layout().vault());
        create_private_folder(vault.key("any").parent().expect("it lies in a folder"))?;
        create_private_folder(&layout.issuer())?;
        let mut moves = vec![(layout.older_ca_key(), vault.authority_key())];
        for role in Role::ALL {
            moves.push((layout.key(&role_key_name(role)), layout.role_key(role)));
        }
        let accounts = Account::ALL.map(account_key_name);
        for name in accounts.into_iter().chain(["operator-signing", "operator"]) {
            moves.push((layout.key(name), vault.key(name)));
        }
        for (from, to) in moves {
            if from.exists() && !to.exists() {
                fs::rename(&from, &to).map_err(|source| FileError::Write { path: to, source })?;
            }
        }
        Ok(())
    }

    /// Makes the keys of accounts and roles that the earlier release did not have.
    fn add_keys(&self) -> Result<(), DomainError> {
        let vault = self.layout().vault();
        let keys = [
            vault.key(account_key_name(Account::Readers)),
            vault.key(account_key_name(Account::Registrar)),
            vault.key(account_key_name(Account::Enrolment)),
            self.layout().role_key(Role::Registrar),
            self.layout().role_key(Role::AccountWriter),
            self.layout().role_key(Role::Newcomer),
        ];
        for key in keys.iter().filter(|key| !key.exists()) {
            SigningKey::generate(KeyKind::Account).seed().write(key)?;
        }
        Ok(())
    }

    /// Writes the public names of the accounts, unless they are there as they should be.
    fn write_names(&self) -> Result<(), DomainError> {
        let (vault, folder) = (self.layout().vault(), self.layout().issuer());
        let mut accounts = BTreeMap::new();
        for account in Account::ALL {
            let id = account_id(&vault.account(account)?);
            accounts.insert(account.name().to_owned(), id);
        }
        let names = AccountNames {
            v: V,
            domain: vault.operator()?.public().clone(),
            accounts,
        };
        if AccountNames::read(&folder).is_ok_and(|written| written == names) {
            return Ok(());
        }
        Ok(names.write(&folder)?)
    }

    /// Enters credentials into the list of issued ones, unless they are there or the domain has not
    /// issued them.
    fn register(&self, path: &Path) -> Result<(), DomainError> {
        let Some(found) = readable(path)? else {
            return Ok(());
        };
        let (token, list) = (found.token(), self.layout().issued());
        if list.find(&token.subject)?.is_some() {
            return Ok(());
        }
        for role in Role::ALL {
            let key = SigningKey::read(KeyKind::Account, &self.layout().role_key(role))?;
            let run = token.claims.run();
            let (Some(account), Some(ends)) = (&token.claims.issuer_account, token.expires) else {
                continue;
            };
            if token.issuer != *key.public() || role.is_tenant() != run.is_some() {
                continue;
            }
            // A key that nobody had recorded may have been revoked all the same.
            let revoked = self.revocation(account, &token.subject)?;
            let revoked = revoked.filter(|one| one.covers(token.issued));
            list.record(&Registration {
                v: V,
                name: token.name.clone(),
                role,
                run,
                account: account.clone(),
                public: token.subject.clone(),
                issued: token.issued,
                ends,
                blocked: revoked.map(|one| one.until),
                audit_key: self.known_audit_key(role, &token.name)?,
                seat: None,
                before: None,
                changes_until: None,
            })?;
        }
        Ok(())
    }

    /// Makes the key that signs tree heads, and the manifest of the log that it will sign: without
    /// a key no log was begun. The bundle that is on the disk names them last, so that a bundle
    /// never names what is not there.
    fn give_head_key(&self, now: UnixMillis) -> Result<(), DomainError> {
        let path = self.layout().trust();
        let mut trust = TrustBundle::read(&path)?;
        if !trust.head_keys.is_empty() {
            return Ok(());
        }
        let file = self.layout().head_key();
        if !file.exists() {
            HeadKey::generate().seed().write(&file)?;
        }
        trust.head_keys.push(HeadKey::read(&file)?.public().clone());
        let owner = self.layout().vault().operator()?;
        trust.log_manifest = Some(log_manifest::make(
            self.layout(),
            &owner,
            &trust,
            None,
            now,
        )?);
        trust.ca = self.layout().ca_relative();
        Ok(trust.write(&path)?)
    }

    /// Makes the key that signs security events, and names it in the bundle afterwards too.
    fn give_sentry_key(&self) -> Result<(), DomainError> {
        let path = self.layout().trust();
        let mut trust = TrustBundle::read(&path)?;
        if !trust.sentry_keys.is_empty() {
            return Ok(());
        }
        let file = self.layout().sentry_key();
        if !file.exists() {
            AuditKey::generate().seed().write(&file)?;
        }
        trust
            .sentry_keys
            .push(AuditKey::read(&file)?.public().clone());
        trust.ca = self.layout().ca_relative();
        Ok(trust.write(&path)?)
    }

    /// Gives an auditor with a token for another account one for the readers' account. Files of
    /// other roles, and files that hold no credentials, stay as they are.
    fn move_auditor(
        &self,
        path: &Path,
        readers: &AccountId,
        signer: &SigningKey,
        now: UnixMillis,
    ) -> Result<(), DomainError> {
        let Some(old) = readable(path)? else {
            return Ok(());
        };
        let token = old.token();
        let moved = token.claims.issuer_account.as_ref() == Some(readers);
        if token.issuer != *signer.public() || moved {
            return Ok(());
        }
        let subject = Subject {
            name: &token.name,
            key: &token.subject,
            not_before: token.not_before,
            expires: token.expires,
        };
        let claims = UserClaims::of_role(readers.clone(), token.claims.tags.clone());
        let jwt = mint(&subject, claims, signer, now)?;
        Ok(Credentials::new(jwt, old.key().clone())?.write(path)?)
    }

    fn credentials_files(&self) -> Result<Vec<PathBuf>, DomainError> {
        let folder = self.layout().credentials_folder();
        let failed = |source| FileError::Read {
            path: folder.clone(),
            source,
        };
        let mut files = Vec::new();
        // A folder that has moved elsewhere holds no file to renew.
        if !folder.exists() {
            return Ok(files);
        }
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|ending| ending == "creds") {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    }
}

/// The credentials in a file; none if it holds something else. A file that cannot be read may be an
/// auditor's, and would be refused by the broker.
fn readable(path: &Path) -> Result<Option<Credentials>, DomainError> {
    match Credentials::read(path) {
        Err(CredentialsError::File(error)) => Err(error.into()),
        read => Ok(read.ok()),
    }
}
