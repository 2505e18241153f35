//! The trust bundle, signed with the key that the trust domain is named after, which lies in the
//! vault. A machine that was given an older bundle by a trusted person takes the newer one from any
//! sender: that key alone decides what is in it.

use std::fs;
use std::path::{Path, PathBuf};

use schemas::UnixMillis;
use serde::{Deserialize, Serialize};

use crate::domain::{Domain, DomainError};
use crate::jws::{self, JwsError};
use crate::secret::{FileError, read_anchor, write_private};
use crate::trust::TrustBundle;

/// The type of the document.
const TYPE: &str = "diloco-trust+jwt";

/// What is signed.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Endorsed {
    /// The time of the signature.
    at: UnixMillis,
    trust: TrustBundle,
    /// The certificates of the authorities, PEM; none in documents of earlier releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ca: Option<String>,
}

/// What a machine takes from a signed bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct News {
    /// The bundle.
    pub(crate) trust: TrustBundle,
    /// The certificates of the authorities, PEM; none if those of the invitation are as new.
    pub(crate) ca: Option<String>,
}

impl Domain {
    /// Signs the present trust bundle, where the vault is here. Returns false where it is not: then
    /// new machines get the bundle that their invitation has. The caller holds the
    /// [`crate::DomainLock`].
    ///
    /// # Errors
    /// The bundle or the key cannot be read, or the file cannot be written.
    pub fn endorse_trust(&self, now: UnixMillis) -> Result<bool, DomainError> {
        let path = self.layout().trust();
        if !self.layout().vault().is_here() {
            // What was signed before may name keys that are retired now.
            let old = endorsement(&path);
            if old.exists() {
                fs::remove_file(&old).map_err(|source| FileError::Write { path: old, source })?;
            }
            return Ok(false);
        }
        let endorsed = Endorsed {
            at: now,
            trust: TrustBundle {
                ca: self.layout().ca_relative(),
                ..TrustBundle::read(&path)?
            },
            ca: Some(read_anchor(&self.layout().ca())?),
        };
        let key = self.layout().vault().operator()?;
        let document = jws::sign(&key, TYPE, &endorsed)?;
        write_private(&endorsement(&path), document.as_bytes())?;
        Ok(true)
    }
}

/// The signed form of the bundle in the file `trust`, as it is handed to new machines; none if the
/// domain's bundle was never signed, or has other keys of leases or of the ledger now, or other
/// ends.
///
/// # Errors
/// A file cannot be read, others could change it, or the domain's own key has not signed it.
pub fn read_endorsed(trust: &Path) -> Result<Option<String>, DomainError> {
    let path = endorsement(trust);
    if !path.exists() {
        return Ok(None);
    }
    let document = read_anchor(&path)?;
    let present = TrustBundle::read(trust)?;
    let News { trust: signed, ca } = newer(&present, UnixMillis(0), &document)?;
    // A registrar need not have the authorities where the bundle says.
    let own = read_anchor(&present.ca).ok();
    let is_present = signed.manifest_keys == present.manifest_keys
        && signed.audit_keys == present.audit_keys
        && signed.ended_audit_keys == present.ended_audit_keys
        && (ca.is_none() || own.is_none() || ca == own);
    Ok(is_present.then_some(document))
}

/// The bundle of a signed document, if it is of the domain of `known` and was signed at `since` or
/// later; otherwise `known` itself is as new.
///
/// # Errors
/// Another key than that of the domain has signed it, or it holds no bundle of this domain.
pub(crate) fn newer(
    known: &TrustBundle,
    since: UnixMillis,
    document: &str,
) -> Result<News, DomainError> {
    let root = &known.domain;
    let key = |named: &str| (named == root.as_str()).then_some(root);
    let endorsed: Endorsed = jws::verify_by(document, TYPE, key)?;
    endorsed.trust.check()?;
    if endorsed.trust.domain != *root {
        return Err(JwsError::UnknownKey(endorsed.trust.domain.to_string()).into());
    }
    Ok(match endorsed.at < since {
        true => News {
            trust: known.clone(),
            ca: None,
        },
        // The place of the authorities came with the invitation.
        false => News {
            trust: TrustBundle {
                ca: known.ca.clone(),
                ..endorsed.trust
            },
            ca: endorsed.ca,
        },
    })
}

fn endorsement(trust: &Path) -> PathBuf {
    trust.with_extension("jws")
}

#[cfg(test)]
mod tests {
    use schemas::{ChainSequence, Code};

    use super::*;
    use crate::domain::InitOptions;

    const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

    #[test]
    fn tl_03_only_the_domains_own_key_makes_a_newer_bundle() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let made = |name: &str| {
            let folder = scratch.path().join(name);
            let made = Domain::init(&folder, &InitOptions::default(), NOW);
            made.expect("an empty folder")
        };
        let (domain, other) = (made("one"), made("other"));
        let signed = |domain: &Domain| {
            let trust = domain.layout().trust();
            let read = read_endorsed(&trust).expect("it reads");
            read.expect("it was signed")
        };
        let trust = domain.layout().trust();
        assert_eq!(read_endorsed(&trust).expect("it reads"), None);
        let known = TrustBundle::read(&trust).expect("it is ours");
        let next = domain.prepare_manifest_key().expect("it has room");
        for domain in [&domain, &other] {
            assert!(domain.endorse_trust(NOW).expect("the vault is here"));
        }
        let found = newer(&known, NOW, &signed(&domain)).expect("the root has signed it");
        let found = found.trust;
        assert!(found.manifest_keys.contains(&next));
        assert_eq!(found.ca, known.ca, "its place is the invitation's");
        let later = UnixMillis(NOW.get() + 1);
        let found = newer(&known, later, &signed(&domain)).expect("the root has signed it");
        assert_eq!(
            found.trust, known,
            "a thief of an older key plays an older bundle"
        );
        let code = |document: &str| {
            let refused = newer(&known, NOW, document).expect_err("nobody we know");
            refused.code()
        };
        assert_eq!(code(&signed(&other)), Code::SignatureInvalid);
        // A key of leases is no root.
        let leases = crate::ManifestKey::read(&domain.layout().manifest_key());
        let leases = leases.expect("it is ours");
        let claims = serde_json::json!({"at": NOW, "trust": known});
        let forged = leases.sign_document(TYPE, &claims).expect("it is JSON");
        assert_eq!(code(&forged), Code::SignatureInvalid);
        // The root of another domain names this one.
        let key = other.layout().vault().operator().expect("it is here");
        let forged = jws::sign(&key, TYPE, &claims).expect("it is JSON");
        assert_eq!(code(&forged), Code::SignatureInvalid);
        // The root signs for its own domain alone.
        let theirs = TrustBundle::read(&other.layout().trust()).expect("it is ours");
        let key = domain.layout().vault().operator().expect("it is here");
        let claims = serde_json::json!({"at": NOW, "trust": theirs});
        let odd = jws::sign(&key, TYPE, &claims).expect("it is JSON");
        assert_eq!(code(&odd), Code::SignatureInvalid);
        let altered = signed(&domain).replacen('.', ".A", 1);
        assert!(newer(&known, NOW, &altered).is_err());
    }

    /// A command that dies between the bundle and its signature hands no older keys to newcomers.
    #[test]
    fn tl_28_a_signed_bundle_without_the_present_keys_of_the_ledger_is_handed_to_nobody() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let folder = scratch.path().join("domain");
        let domain = Domain::init(&folder, &InitOptions::default(), NOW).expect("an empty folder");
        let trust = domain.layout().trust();
        let first = TrustBundle::read(&trust).expect("it is ours").audit_keys;
        let is_handed = || read_endorsed(&trust).expect("it reads").is_some();
        let sign = || assert!(domain.endorse_trust(NOW).expect("the vault is here"));
        sign();
        assert!(is_handed());
        domain.prepare_event_key().expect("it has room");
        assert!(!is_handed(), "it lacks a key");
        sign();
        assert!(is_handed());
        let ended = [(first[0].clone(), ChainSequence(7))].into();
        domain.end_event_keys(&ended).expect("it is ours");
        assert!(!is_handed(), "it lacks an end");
        sign();
        assert!(is_handed());
    }

    #[test]
    fn without_the_vault_nothing_is_signed() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let folder = scratch.path().join("domain");
        let domain = Domain::init(&folder, &InitOptions::default(), NOW).expect("an empty folder");
        let trust = domain.layout().trust();
        assert!(domain.endorse_trust(NOW).expect("the vault is here"));
        domain.prepare_manifest_key().expect("it has room");
        let read = read_endorsed(&trust).expect("it reads");
        assert_eq!(read, None, "it lacks a key");
        std::fs::rename(folder.join("vault"), scratch.path().join("vault")).expect("it is ours");
        assert!(!domain.endorse_trust(NOW).expect("that is no error"));
        assert!(!endorsement(&trust).exists());
    }

    /// The folders of the machine that signs are nobody's business.
    #[test]
    fn a_signed_bundle_names_the_authority_by_its_place_in_the_folder() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let folder = scratch.path().join("domain");
        let domain = Domain::init(&folder, &InitOptions::default(), NOW).expect("an empty folder");
        assert!(domain.endorse_trust(NOW).expect("the vault is here"));
        let document = read_endorsed(&domain.layout().trust()).expect("it reads");
        let document = document.expect("it was signed");
        let claims = document.split('.').nth(1).expect("three parts");
        let claims = data_encoding::BASE64URL_NOPAD.decode(claims.as_bytes());
        let claims: Endorsed =
            serde_json::from_slice(&claims.expect("base64")).expect("it is JSON");
        assert_eq!(claims.trust.ca, domain.layout().ca_relative());
        assert!(claims.trust.ca.is_relative());
    }
}
