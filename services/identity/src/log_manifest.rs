//! The log manifest: entry 0 of the log of all events, signed with the key that the trust domain is
//! named after, which lies in the vault. It names the log, and the keys whose words count in it, so
//! that trust in them does not rest on the log itself.
//!
//! It is made together with the key for heads, once, before any log is begun, and the trust bundle
//! names its digest. So a log that begins otherwise is not the owner's, and a domain whose log an
//! earlier build has begun has none.

use std::path::Path;

use schemas::log_manifest::{EmitterRole, LogManifest, NamedEmitter, origin};
use schemas::{Code, Digest, UnixMillis, V};

use crate::domain::DomainError;
use crate::jws::{self, JwsError};
use crate::key::{SigningKey, public_bytes};
use crate::layout::DomainLayout;
use crate::secret::{FileError, read_anchor, write_private};
use crate::trust::TrustBundle;

/// The type of the document.
const TYPE: &str = "diloco-log-manifest+jwt";

/// The reason why a log manifest does not count.
#[derive(Debug, thiserror::Error)]
pub enum ManifestFault {
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is no document that the domain's own key has signed.
    #[error("log manifest: {0}")]
    Document(#[from] JwsError),
    /// It is about another log.
    #[error("the log manifest is about log {0:?}")]
    Origin(String),
    /// The owner has signed it, and the trust bundle names another one.
    #[error("the log manifest has digest {found}, and the trust bundle names {expected}")]
    Other {
        /// Its digest.
        found: Digest,
        /// That in the trust bundle.
        expected: Digest,
    },
    /// The log begins with an event.
    #[error(
        "the log begins with no manifest, and the trust bundle names one with digest {expected}"
    )]
    Missing {
        /// The digest in the trust bundle.
        expected: Digest,
    },
}

impl ManifestFault {
    /// The code of the page that says what to do.
    pub fn code(&self) -> Code {
        match self {
            Self::File(error) => error.code(),
            // The owner has signed something that this build cannot read; a newer one may.
            Self::Document(JwsError::Claims(_)) => Code::LogUnproven,
            Self::Document(_) | Self::Origin(_) | Self::Other { .. } | Self::Missing { .. } => {
                Code::LogManifestFalse
            }
        }
    }
}

schemas::coded!(ManifestFault);

/// Signs a manifest.
///
/// # Errors
/// It is longer than any document.
pub fn sign(owner: &SigningKey, manifest: &LogManifest) -> Result<String, JwsError> {
    jws::sign(owner, TYPE, manifest)
}

/// Signs the manifest of the log of this domain, writes it beside the trust bundle, and returns its
/// digest.
pub(crate) fn make(
    layout: &DomainLayout,
    owner: &SigningKey,
    trust: &TrustBundle,
    witnesses: Option<String>,
    now: UnixMillis,
) -> Result<Digest, DomainError> {
    let emitter = |role| {
        move |key: &schemas::PublicKey| NamedEmitter {
            key: key.clone(),
            role,
        }
    };
    let coordinators = trust
        .audit_keys
        .iter()
        .map(emitter(EmitterRole::Coordinator));
    let sentries = trust.sentry_keys.iter().map(emitter(EmitterRole::Sentry));
    let manifest = LogManifest {
        v: V,
        at: now,
        origin: origin(trust.domain.as_str()),
        heads: trust.head_keys.clone(),
        emitters: coordinators.chain(sentries).collect(),
        enrolment: trust.audit_keys.clone(),
        witnesses,
    };
    let document = sign(owner, &manifest)?;
    write_private(&layout.log_manifest(), document.as_bytes())?;
    Ok(Digest::of(document.as_bytes()))
}

/// Reads a manifest from its file, and checks it as [`open`] does.
///
/// # Errors
/// As [`open`]; or the file cannot be read, or others could change it.
pub fn read(path: &Path, trust: &TrustBundle) -> Result<String, ManifestFault> {
    let document = read_anchor(path)?;
    open(&document, trust)?;
    Ok(document)
}

/// Checks a signed manifest, and returns what the owner of the domain says.
///
/// # Errors
/// Another key than the domain's own has signed it, or it is about another log, or the trust bundle
/// names another one.
pub fn open(document: &str, trust: &TrustBundle) -> Result<LogManifest, ManifestFault> {
    let owner = &trust.domain;
    let key = |named: &str| (named == owner.as_str()).then_some(owner);
    let manifest: LogManifest = jws::verify_by(document, TYPE, key)?;
    if manifest.origin != origin(owner.as_str()) {
        return Err(ManifestFault::Origin(manifest.origin));
    }
    let found = Digest::of(document.as_bytes());
    match trust.log_manifest {
        Some(expected) if expected != found => Err(ManifestFault::Other { found, expected }),
        _ => Ok(manifest),
    }
}

/// Checks how a log begins: with the signed document `first`, or with an event. Returns what the
/// owner says; none in a domain whose log an earlier build has begun.
///
/// # Errors
/// As [`open`]; or there is no manifest although the trust bundle names one.
pub fn of_log(
    first: Option<&str>,
    trust: &TrustBundle,
) -> Result<Option<LogManifest>, ManifestFault> {
    match (first, trust.log_manifest) {
        (Some(document), _) => open(document, trust).map(Some),
        (None, Some(expected)) => Err(ManifestFault::Missing { expected }),
        (None, None) => Ok(None),
    }
}

/// The keys for heads that a manifest names, as raw keys; what is none is left out.
pub fn raw_heads(manifest: &LogManifest) -> Vec<[u8; 32]> {
    let keys = manifest.heads.iter();
    keys.filter_map(|key| public_bytes(key).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Domain, InitOptions};
    use crate::purpose::{AuditKey, HeadKey};

    const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

    fn made(folder: &Path) -> Domain {
        Domain::init(folder, &InitOptions::default(), NOW).expect("an empty folder")
    }

    fn code(checked: Result<LogManifest, ManifestFault>) -> Code {
        checked.expect_err("it is not the owner's").code()
    }

    #[test]
    fn tl_03_a_new_domain_has_a_manifest_of_its_log_that_names_its_keys() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let domain = made(&scratch.path().join("domain"));
        let (layout, trust) = (domain.layout(), domain.trust());
        let document = read(&layout.log_manifest(), trust).expect("it was made");
        assert_eq!(trust.log_manifest, Some(Digest::of(document.as_bytes())));
        let manifest = open(&document, trust).expect("the owner has signed it");
        let head = HeadKey::read(&layout.head_key()).expect("it was made");
        let sentry = AuditKey::read(&layout.sentry_key()).expect("it was made");
        let coordinator = AuditKey::read(&layout.coordinator_audit_key()).expect("it was made");
        assert_eq!(manifest.at, NOW);
        assert_eq!(manifest.heads, [head.public().clone()]);
        assert_eq!(raw_heads(&manifest), trust.raw_head_keys());
        assert_eq!(manifest.enrolment, [coordinator.public().clone()]);
        assert_eq!(manifest.emitters.len(), 2);
        for (key, own, other) in [
            (&coordinator, EmitterRole::Coordinator, EmitterRole::Sentry),
            (&sentry, EmitterRole::Sentry, EmitterRole::Coordinator),
        ] {
            assert!(manifest.names(key.public(), own));
            assert!(!manifest.names(key.public(), other), "no other role");
        }
    }

    #[test]
    fn tl_03_only_the_owner_of_the_domain_signs_the_manifest_of_its_log() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let (domain, other) = (
            made(&scratch.path().join("one")),
            made(&scratch.path().join("other")),
        );
        let trust = TrustBundle {
            log_manifest: None,
            ..domain.trust().clone()
        };
        let of = |domain: &Domain| {
            let read = read_anchor(&domain.layout().log_manifest());
            read.expect("it was made")
        };
        let manifest = open(&of(&domain), &trust).expect("it is the owner's");
        let owner = domain.layout().vault().operator().expect("it is here");
        let stranger = other.layout().vault().operator().expect("it is here");
        assert_eq!(code(open(&of(&other), &trust)), Code::LogManifestFalse);
        let forged = sign(&stranger, &manifest).expect("it is short");
        assert_eq!(code(open(&forged, &trust)), Code::LogManifestFalse);
        // A key of leases is no owner, and the signed bundle is no manifest.
        let leases = crate::ManifestKey::read(&domain.layout().manifest_key());
        let leases = leases.expect("it was made").sign_document(TYPE, &manifest);
        let forged = leases.expect("it is short");
        assert_eq!(code(open(&forged, &trust)), Code::LogManifestFalse);
        let typed = jws::sign(&owner, "diloco-trust+jwt", &manifest).expect("it is short");
        assert_eq!(code(open(&typed, &trust)), Code::LogManifestFalse);
        let altered = of(&domain).replacen('.', ".A", 1);
        assert_eq!(code(open(&altered, &trust)), Code::LogManifestFalse);
        let elsewhere = LogManifest {
            origin: origin("another"),
            ..manifest
        };
        let elsewhere = sign(&owner, &elsewhere).expect("it is short");
        let fault = open(&elsewhere, &trust);
        assert!(matches!(fault, Err(ManifestFault::Origin(_))), "{fault:?}");
        // What a newer build may know is no evidence.
        let newer = serde_json::json!({"v": 2});
        let newer = jws::sign(&owner, TYPE, &newer).expect("it is short");
        assert_eq!(code(open(&newer, &trust)), Code::LogUnproven);
    }

    #[test]
    fn fg_07_a_log_begins_with_the_manifest_that_the_trust_bundle_names() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let domain = made(&scratch.path().join("domain"));
        let trust = domain.trust();
        let document = read(&domain.layout().log_manifest(), trust).expect("it was made");
        let manifest = open(&document, trust).expect("it is the owner's");
        let begins = |first: Option<&str>, trust: &TrustBundle| of_log(first, trust);
        let found = begins(Some(&document), trust).expect("it is the owner's");
        assert_eq!(found.as_ref(), Some(&manifest));
        let missing = begins(None, trust).expect_err("it was left out");
        assert!(matches!(missing, ManifestFault::Missing { .. }));
        assert_eq!(missing.code(), Code::LogManifestFalse);
        // Another one of the same owner is not that of this log.
        let later = LogManifest {
            at: UnixMillis(NOW.get() + 1),
            ..manifest.clone()
        };
        let owner = domain.layout().vault().operator().expect("it is here");
        let later = sign(&owner, &later).expect("it is short");
        let other = begins(Some(&later), trust).expect_err("the bundle names another");
        assert!(matches!(other, ManifestFault::Other { .. }));
        assert_eq!(other.code(), Code::LogManifestFalse);
        // A bundle of an earlier build names none.
        let older = TrustBundle {
            log_manifest: None,
            ..trust.clone()
        };
        assert_eq!(begins(None, &older).expect("an older log"), None);
        let found = begins(Some(&document), &older).expect("it is the owner's");
        assert_eq!(found, Some(manifest));
    }
}
