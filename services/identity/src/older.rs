//! A domain of an earlier release is taken over. If auditors connected to the account of the copy
//! itself, it gets an account for readers, and its auditors get tokens for that account. If its
//! events had no tree, it gets a key that signs tree heads, which its trust bundle names.

use std::fs;
use std::path::{Path, PathBuf};

use schemas::account::Account;
use schemas::permission::Role;
use schemas::{AccountId, UnixMillis};

use crate::claims::UserClaims;
use crate::credentials::{Credentials, CredentialsError};
use crate::domain::{Domain, DomainError, account_key_name};
use crate::jwt::{Subject, mint};
use crate::key::{KeyKind, SigningKey};
use crate::purpose::HeadKey;
use crate::secret::FileError;
use crate::trust::TrustBundle;

impl Domain {
    /// Makes what a domain of an earlier release lacks: the key of the readers' account, and in the
    /// domain's folder auditors' tokens for it, with the same keys and the same end of validity; and
    /// the key that signs tree heads. It changes nothing in a domain that has all.
    ///
    /// # Errors
    /// A key, a credentials file or the trust bundle cannot be read or written.
    pub(crate) fn take_over(&self, now: UnixMillis) -> Result<(), DomainError> {
        let key = self.layout().key(account_key_name(Account::Readers));
        if !key.exists() {
            SigningKey::generate(KeyKind::Account).seed().write(&key)?;
        }
        let readers = self.account(Account::Readers)?;
        let signer = SigningKey::read(KeyKind::Account, &self.layout().role_key(Role::Auditor))?;
        for path in self.credentials_files()? {
            self.move_auditor(&path, &readers, &signer, now)?;
        }
        self.give_head_key()
    }

    /// Makes the key that signs tree heads. The bundle that is on the disk names it last, so that a
    /// bundle never names a key that is not there.
    fn give_head_key(&self) -> Result<(), DomainError> {
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
        let old = match Credentials::read(path) {
            // A file that cannot be read may be an auditor's, and would be refused by the broker.
            Err(CredentialsError::File(error)) => return Err(error.into()),
            Err(_) => return Ok(()),
            Ok(old) => old,
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
