//! A new key for lease manifests and commands, while runs go on. The trust bundle knows old and new
//! key for a time: a worker takes documents of both, so no lease is lost between the two.

use std::fs;

use schemas::PublicKey;

use crate::domain::{Domain, DomainError};
use crate::purpose::ManifestKey;
use crate::rotation::NewKey;
use crate::secret::FileError;

impl Domain {
    /// Makes the next manifest key and lets the trust bundle know it, beside the present one.
    /// Nothing is signed with it before [`Domain::adopt_manifest_key`]. One that was made before
    /// and not adopted stays. The caller holds the [`crate::DomainLock`].
    ///
    /// # Errors
    /// The bundle has as many manifest keys as it can, or a file cannot be read or written.
    pub fn prepare_manifest_key(&self) -> Result<PublicKey, DomainError> {
        let path = self.layout().next_manifest_key();
        // The bundle is written first: it may have no room, and a key that nobody has is no harm.
        let next = match path.exists() {
            true => ManifestKey::read(&path)?,
            false => ManifestKey::generate(),
        };
        self.trust_manifest_keys(|keys| {
            if !keys.contains(next.public()) {
                keys.push(next.public().clone());
            }
        })?;
        next.seed().write(&path)?;
        Ok(next.public().clone())
    }

    /// Puts the next manifest key in the place of the present one: the coordinator signs with it
    /// from its next lease on. The old one is trusted until [`Domain::retire_manifest_keys`]. The
    /// caller holds the [`crate::DomainLock`].
    ///
    /// # Errors
    /// There is no next key, or a file cannot be read or written.
    pub fn adopt_manifest_key(&self) -> Result<NewKey, DomainError> {
        let (path, next) = (
            self.layout().manifest_key(),
            self.layout().next_manifest_key(),
        );
        let old = ManifestKey::read(&path)?.public().clone();
        let new = ManifestKey::read(&next)?.public().clone();
        fs::rename(&next, &path).map_err(|source| FileError::Write { path, source })?;
        Ok(NewKey { old, new })
    }

    /// Ends the overlap: the trust bundle knows the present manifest key, and the next one if there
    /// is one. Returns the keys that go. The caller holds the [`crate::DomainLock`].
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub fn retire_manifest_keys(&self) -> Result<Vec<PublicKey>, DomainError> {
        let mut kept = vec![
            ManifestKey::read(&self.layout().manifest_key())?
                .public()
                .clone(),
        ];
        let next = self.layout().next_manifest_key();
        if next.exists() {
            kept.push(ManifestKey::read(&next)?.public().clone());
        }
        let mut gone = Vec::new();
        self.trust_manifest_keys(|keys| {
            gone = keys.extract_if(.., |key| !kept.contains(key)).collect();
        })?;
        Ok(gone)
    }

    fn trust_manifest_keys(
        &self,
        change: impl FnOnce(&mut Vec<PublicKey>),
    ) -> Result<(), DomainError> {
        self.change_trust(|bundle| change(&mut bundle.manifest_keys))
    }
}

#[cfg(test)]
mod tests {
    use schemas::{Code, UnixMillis};
    use serde_json::json;

    use super::*;
    use crate::domain::InitOptions;
    use crate::jws;
    use crate::trust::{KEYS_MAX, TrustSource};

    const TYPE: &str = "test+jwt";

    #[test]
    fn tl_28_tl_13_old_and_new_manifest_keys_are_trusted_until_the_overlap_ends() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let options = InitOptions::default();
        let folder = scratch.path().join("domain");
        let domain = Domain::init(&folder, &options, UnixMillis(1)).expect("an empty folder");
        let layout = domain.layout();
        let source = TrustSource::of(&layout.trust(), domain.trust());
        let present = || ManifestKey::read(&layout.manifest_key()).expect("it is there");
        let trusted = |key: &ManifestKey| {
            let document = key.sign_document(TYPE, &json!({"a": 1})).expect("JSON");
            let bundle = source.read().expect("it is there");
            assert!(bundle.ca.exists(), "{}", bundle.ca.display());
            jws::verify::<serde_json::Value>(&document, TYPE, &bundle).is_ok()
        };
        let old = present();
        assert!(domain.adopt_manifest_key().is_err(), "there is no next one");
        let next = domain.prepare_manifest_key().expect("it has room");
        // A command that broke off is repeated, and makes no other key.
        assert_eq!(domain.prepare_manifest_key().expect("again"), next);
        assert_eq!(present().public(), old.public(), "it is not adopted yet");
        assert_eq!(domain.retire_manifest_keys().expect("it is ours"), []);
        let adopted = domain.adopt_manifest_key().expect("it was prepared");
        assert_eq!((&adopted.old, &adopted.new), (old.public(), &next));
        let new = present();
        assert_eq!(*new.public(), next);
        assert!(trusted(&old) && trusted(&new));
        let gone = domain.retire_manifest_keys().expect("it is ours");
        assert_eq!(gone, [old.public().clone()]);
        assert!(!trusted(&old) && trusted(&new));
    }

    #[test]
    fn a_full_bundle_gets_no_key_and_another_domains_bundle_is_not_taken() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let made = |name: &str| {
            let folder = scratch.path().join(name);
            let made = Domain::init(&folder, &InitOptions::default(), UnixMillis(1));
            made.expect("an empty folder")
        };
        let (domain, other) = (made("one"), made("other"));
        for _ in 1..KEYS_MAX {
            domain.prepare_manifest_key().expect("it has room");
            domain.adopt_manifest_key().expect("it was prepared");
        }
        let refused = domain.prepare_manifest_key().expect_err("it is full");
        assert_eq!(refused.code(), Code::CredentialMalformed);
        assert!(!domain.layout().next_manifest_key().exists());
        domain.retire_manifest_keys().expect("it is ours");
        domain.prepare_manifest_key().expect("it has room now");
        let source = TrustSource::of(&domain.layout().trust(), other.trust());
        let refused = source.read().expect_err("it is another's");
        assert_eq!(refused.code(), Code::RoleMismatch);
    }
}
