//! The trust bundle: the few public keys against which everything else is checked. A trusted person
//! or tool brings it to every machine once. A process that was given another bundle belongs to
//! another domain.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use schemas::limits::TENANTS_MAX;
use schemas::{AccountId, ChainSequence, Code, Digest, PublicKey, V};
use serde::{Deserialize, Serialize};

use crate::key::{KeyError, KeyKind, parse_public, public_bytes};
use crate::secret::{FileError, read_anchor, write_private};

/// Most keys of one purpose: the present one, the next one, and some that old documents still need.
pub const KEYS_MAX: usize = 16;

/// The file `trust.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustBundle {
    /// Version.
    pub v: V<3>,
    /// The domain: its operator's public key.
    pub domain: PublicKey,
    /// The accounts of tenants, first that of the domain's own: each has a stream for its workers'
    /// events.
    pub tenants: Vec<AccountId>,
    /// The keys that lease manifests may be signed with. Several, so that a key can be replaced
    /// while leases run.
    pub manifest_keys: Vec<PublicKey>,
    /// The keys that the coordinator's events may be signed with, oldest first.
    pub audit_keys: Vec<PublicKey>,
    /// Those of `audit_keys` that have ended, each with its last event. The others sign on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ended_audit_keys: Vec<EndedKey>,
    /// The keys that heads of the log may be signed with. None in a bundle of an earlier release,
    /// with which no head can be checked.
    pub head_keys: Vec<PublicKey>,
    /// The keys that security events may be signed with. None in a bundle of an earlier release.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sentry_keys: Vec<PublicKey>,
    /// The digest of the log manifest, the signed statement with which the log of this domain
    /// begins. None if an earlier build has begun the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_manifest: Option<Digest>,
    /// The certificate authority of bus and store; relative paths start at the bundle's folder.
    pub ca: PathBuf,
}

/// A key for the coordinator's events that has a successor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndedKey {
    /// The key.
    pub key: PublicKey,
    /// The number of its last event in the ledger, which names the next key.
    pub last: ChainSequence,
}

/// The trust bundle of a process that runs. The file is read again for each document that is
/// checked: a new manifest key is known without a restart, and a retired one is not any more.
#[derive(Clone, Debug)]
pub struct TrustSource {
    path: PathBuf,
    domain: PublicKey,
}

/// Reasons why a trust bundle cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
    /// Not JSON of this form.
    #[error("{} is no trust bundle: {source}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The parser's error.
        source: serde_json::Error,
    },
    /// The file holds the bundle of another domain than at the start of the process.
    #[error("{} is of trust domain {found} now, this process started in {expected}", path.display())]
    Other {
        /// The file.
        path: PathBuf,
        /// Its domain.
        found: PublicKey,
        /// The domain of this process.
        expected: PublicKey,
    },
    /// It is from a release in which the ledger had no account of its own.
    #[error(
        "{} belongs to a domain of an older release, whose ledger, events and readers share one account; make a new domain \
         (`diloctl auth init` in another folder, or after moving this one away), and begin its runs anew",
        .0.display()
    )]
    Older(PathBuf),
    /// A key is mistyped or of the wrong kind.
    #[error("key in trust bundle: {0}")]
    Key(#[from] KeyError),
    /// No tenant, or too many.
    #[error("trust bundle has {0} tenants, expected 1 to {TENANTS_MAX}")]
    Tenants(usize),
    /// A key ended that signed no events.
    #[error("trust bundle ends the audit key {0}, which is not in it")]
    Ended(PublicKey),
    /// A key for the ledger stands twice where it can stand once, so that its place says nothing.
    #[error("trust bundle has the audit key {0} twice in one list")]
    Twice(PublicKey),
    /// No key is left that goes on with the ledger.
    #[error("trust bundle ends its newest audit key, {0}, which none can have succeeded")]
    EndedNewest(PublicKey),
    /// A list is empty or too long.
    #[error("trust bundle has {count} {list}, expected 1 to {KEYS_MAX}")]
    Count {
        /// The list.
        list: &'static str,
        /// Its length.
        count: usize,
    },
}

impl TrustError {
    /// The code of the page that says what to do.
    pub fn code(&self) -> Code {
        match self {
            Self::File(error) => error.code(),
            Self::Older(_) => Code::DomainOlder,
            Self::Other { .. } => Code::RoleMismatch,
            Self::Malformed { .. }
            | Self::Key(_)
            | Self::Tenants(_)
            | Self::Ended(_)
            | Self::Twice(_)
            | Self::EndedNewest(_)
            | Self::Count { .. } => Code::CredentialMalformed,
        }
    }
}

schemas::coded!(TrustError);

impl TrustSource {
    /// The source of a bundle that was read from this file.
    pub fn of(path: &Path, bundle: &TrustBundle) -> Self {
        Self {
            path: path.to_owned(),
            domain: bundle.domain.clone(),
        }
    }

    /// The present bundle.
    ///
    /// # Errors
    /// It cannot be used, or is another domain's.
    pub fn read(&self) -> Result<TrustBundle, TrustError> {
        let bundle = TrustBundle::read(&self.path)?;
        match bundle.domain == self.domain {
            true => Ok(bundle),
            false => Err(TrustError::Other {
                path: self.path.clone(),
                found: bundle.domain,
                expected: self.domain.clone(),
            }),
        }
    }
}

impl TrustBundle {
    /// Reads a bundle and resolves the path of its certificate authority.
    ///
    /// # Errors
    /// The file cannot be used or could be changed by others, or a key in it is wrong.
    pub fn read(path: &Path) -> Result<Self, TrustError> {
        let text = read_anchor(path)?;
        let malformed = |source| TrustError::Malformed {
            path: path.to_owned(),
            source,
        };
        let mut value: serde_json::Value = serde_json::from_str(&text).map_err(malformed)?;
        match value.get("v").and_then(serde_json::Value::as_u64) {
            Some(1) => return Err(TrustError::Older(path.to_owned())),
            Some(2) => add_third_version(&mut value),
            _ => {}
        }
        let mut bundle: Self = serde_json::from_value(value).map_err(malformed)?;
        bundle.check()?;
        if let Some(folder) = path.parent() {
            bundle.ca = folder.join(&bundle.ca);
        }
        Ok(bundle)
    }

    /// Writes the bundle unchanged.
    ///
    /// # Errors
    /// A key in it is wrong, or the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), TrustError> {
        self.check()?;
        let mut text =
            serde_json::to_string_pretty(self).expect("keys and paths made of text are JSON");
        text.push('\n');
        Ok(write_private(path, text.as_bytes())?)
    }

    /// The account of the domain's own tenant.
    pub fn own_tenant(&self) -> &AccountId {
        self.tenants.first().expect("the bundle was checked")
    }

    /// The number of the last event of a coordinator's key that has ended.
    pub fn ended(&self, key: &PublicKey) -> Option<ChainSequence> {
        let ended = self.ended_audit_keys.iter().find(|ended| ended.key == *key);
        ended.map(|ended| ended.last)
    }

    /// The coordinator's keys that have ended, each with the number of its last event.
    pub fn ends(&self) -> BTreeMap<PublicKey, ChainSequence> {
        let ended = self.ended_audit_keys.iter();
        ended.map(|ended| (ended.key.clone(), ended.last)).collect()
    }

    /// True if the coordinator may sign with this key: it has not ended. The next key may be known
    /// before it goes on with the ledger, and one that was passed over is not told from it: only
    /// the ledger says whose turn it is.
    pub fn signs_events(&self, key: &PublicKey) -> bool {
        self.audit_keys.contains(key) && self.ended(key).is_none()
    }

    /// The keys that heads of the log may be signed with, as raw keys.
    pub fn raw_head_keys(&self) -> Vec<[u8; 32]> {
        let raw = |key| public_bytes(key).expect("the bundle was checked");
        self.head_keys.iter().map(raw).collect()
    }

    /// The manifest key of this text, if it is trusted.
    pub(crate) fn manifest_key(&self, key_id: &str) -> Option<&PublicKey> {
        self.manifest_keys.iter().find(|key| key.as_str() == key_id)
    }

    pub(crate) fn check(&self) -> Result<(), TrustError> {
        parse_public(self.domain.as_str(), KeyKind::Operator)?;
        if self.tenants.is_empty() || self.tenants.len() > TENANTS_MAX {
            return Err(TrustError::Tenants(self.tenants.len()));
        }
        for tenant in &self.tenants {
            parse_public(tenant.as_str(), KeyKind::Account)?;
        }
        let lists = [
            ("manifest keys", KeyKind::Account, &self.manifest_keys, 1),
            ("audit keys", KeyKind::User, &self.audit_keys, 1),
            ("head keys", KeyKind::Account, &self.head_keys, 0),
            ("sentry keys", KeyKind::User, &self.sentry_keys, 0),
        ];
        for (list, kind, keys, least) in lists {
            if keys.len() < least || keys.len() > KEYS_MAX {
                return Err(TrustError::Count {
                    list,
                    count: keys.len(),
                });
            }
            for key in keys {
                parse_public(key.as_str(), kind)?;
            }
        }
        if let Some(unknown) = self
            .ended_audit_keys
            .iter()
            .find(|ended| !self.audit_keys.contains(&ended.key))
        {
            return Err(TrustError::Ended(unknown.key.clone()));
        }
        let ended: Vec<&PublicKey> = self.ended_audit_keys.iter().map(|one| &one.key).collect();
        let keys: Vec<&PublicKey> = self.audit_keys.iter().collect();
        if let Some(twice) = twice(&keys).or_else(|| twice(&ended)) {
            return Err(TrustError::Twice(twice.clone()));
        }
        match keys.last().filter(|newest| ended.contains(newest)) {
            Some(newest) => Err(TrustError::EndedNewest((*newest).clone())),
            None => Ok(()),
        }
    }
}

/// The first key that stands in a list again.
fn twice<'a>(keys: &[&'a PublicKey]) -> Option<&'a PublicKey> {
    let mut places = keys.iter().enumerate();
    places.find_map(|(place, key)| keys[..place].contains(key).then_some(*key))
}

/// Bundles of the second version name no key for heads.
fn add_third_version(value: &mut serde_json::Value) {
    if let Some(fields) = value
        .as_object_mut()
        .filter(|fields| !fields.contains_key("head_keys"))
    {
        fields.insert("v".to_owned(), 3.into());
        fields.insert("head_keys".to_owned(), serde_json::json!([]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::SigningKey;
    use crate::purpose::{AuditKey, HeadKey, ManifestKey};

    fn bundle() -> TrustBundle {
        TrustBundle {
            v: V,
            domain: SigningKey::generate(KeyKind::Operator).public().clone(),
            tenants: vec![
                SigningKey::generate(KeyKind::Account)
                    .public()
                    .as_str()
                    .parse()
                    .expect("an account's id"),
            ],
            manifest_keys: vec![
                ManifestKey::generate().public().clone(),
                ManifestKey::generate().public().clone(),
            ],
            audit_keys: vec![AuditKey::generate().public().clone()],
            ended_audit_keys: vec![],
            head_keys: vec![HeadKey::generate().public().clone()],
            sentry_keys: vec![AuditKey::generate().public().clone()],
            log_manifest: Some(Digest::of(b"a manifest")),
            ca: "tls/ca.pem".into(),
        }
    }

    #[test]
    fn a_bundle_round_trips_and_its_ca_lies_beside_it() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let path = scratch.path().join("trust.json");
        let mut written = bundle();
        written.write(&path).expect("the folder takes files");
        written.ca = scratch.path().join("tls/ca.pem");
        assert_eq!(TrustBundle::read(&path).expect("just written"), written);
    }

    /// Bundles are copied to machines by hand, so those of the release before stay in use.
    #[test]
    fn tl_03_a_bundle_of_the_version_before_is_read_and_trusts_no_head() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let path = scratch.path().join("trust.json");
        let new = bundle();
        let mut value = serde_json::to_value(&new).expect("it is JSON");
        let write = |value: &serde_json::Value| {
            write_private(&path, value.to_string().as_bytes()).expect("the folder takes files");
        };
        value["v"] = 2.into();
        write(&value);
        assert!(
            TrustBundle::read(&path).is_err(),
            "that version had no such list"
        );
        let fields = value.as_object_mut().expect("an object");
        fields.remove("head_keys");
        write(&value);
        let old = TrustBundle::read(&path).expect("the version before");
        assert!(old.head_keys.is_empty() && old.raw_head_keys().is_empty());
        assert_eq!(old.audit_keys, new.audit_keys);
        old.write(&path).expect("the folder takes files");
        assert_eq!(
            TrustBundle::read(&path).expect("just written").head_keys,
            []
        );
        value["v"] = 3.into();
        write(&value);
        assert!(
            TrustBundle::read(&path).is_err(),
            "this version has the list"
        );
        assert_eq!(new.raw_head_keys().len(), 1);
    }

    /// A bundle without security events stays readable, and a program takes no other key for them.
    #[test]
    fn tl_29_a_bundle_without_a_sentry_names_none() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let path = scratch.path().join("trust.json");
        let old = TrustBundle {
            sentry_keys: vec![],
            log_manifest: None,
            ..bundle()
        };
        old.write(&path).expect("the folder takes files");
        let text = std::fs::read_to_string(&path).expect("just written");
        assert!(!text.contains("sentry"), "{text}");
        assert!(!text.contains("log_manifest"), "{text}");
        let read = TrustBundle::read(&path).expect("just written");
        assert_eq!(read.sentry_keys, []);
        let wrong = TrustBundle {
            sentry_keys: old.head_keys,
            ..bundle()
        };
        assert!(matches!(wrong.write(&path), Err(TrustError::Key(_))));
    }

    /// Which key comes after which, and where one ends, is read from places in these lists.
    #[test]
    fn tl_28_a_key_of_the_ledger_stands_once_and_the_newest_has_not_ended() {
        let key = || AuditKey::generate().public().clone();
        let (old, new) = (key(), key());
        let end = |key: &PublicKey, last| EndedKey {
            key: key.clone(),
            last: ChainSequence(last),
        };
        let verdict = |audit_keys: Vec<PublicKey>, ended_audit_keys| {
            let bundle = TrustBundle {
                audit_keys,
                ended_audit_keys,
                ..bundle()
            };
            bundle.check()
        };
        let both = || vec![old.clone(), new.clone()];
        assert!(verdict(both(), vec![end(&old, 7)]).is_ok());
        let again = verdict([both(), vec![old.clone()]].concat(), vec![]);
        assert!(matches!(again, Err(TrustError::Twice(key)) if key == old));
        let ends = verdict(both(), vec![end(&old, 7), end(&old, 9)]);
        assert!(matches!(ends, Err(TrustError::Twice(key)) if key == old));
        let newest = verdict(both(), vec![end(&old, 7), end(&new, 9)]);
        assert!(matches!(newest, Err(TrustError::EndedNewest(key)) if key == new));
        let unknown = verdict(vec![old.clone()], vec![end(&new, 7)]);
        assert!(matches!(unknown, Err(TrustError::Ended(key)) if key == new));
    }

    #[test]
    fn keys_of_another_kind_and_empty_lists_are_refused() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let path = scratch.path().join("trust.json");
        let swapped = TrustBundle {
            manifest_keys: bundle().audit_keys,
            ..bundle()
        };
        assert!(matches!(swapped.write(&path), Err(TrustError::Key(_))));
        let empty = TrustBundle {
            audit_keys: vec![],
            ..bundle()
        };
        assert!(matches!(
            empty.write(&path),
            Err(TrustError::Count {
                list: "audit keys",
                count: 0
            })
        ));
        let tenant = || bundle().tenants[0].clone();
        let tenants = |count| {
            TrustBundle {
                tenants: (0..count).map(|_| tenant()).collect(),
                ..bundle()
            }
            .write(&path)
        };
        assert!(tenants(TENANTS_MAX).is_ok());
        for count in [0, TENANTS_MAX + 1] {
            assert!(matches!(tenants(count), Err(TrustError::Tenants(found)) if found == count));
        }
        let key = || ManifestKey::generate().public().clone();
        let keys = |count| {
            TrustBundle {
                manifest_keys: (0..count).map(|_| key()).collect(),
                ..bundle()
            }
            .write(&path)
        };
        assert!(keys(KEYS_MAX).is_ok());
        assert!(matches!(
            keys(KEYS_MAX + 1),
            Err(TrustError::Count {
                list: "manifest keys",
                ..
            })
        ));
        let text = serde_json::to_string(&bundle())
            .expect("it is JSON")
            .replacen('{', r#"{"extra":1,"#, 1);
        write_private(&path, text.as_bytes()).expect("the folder takes files");
        assert!(matches!(
            TrustBundle::read(&path),
            Err(TrustError::Malformed { .. })
        ));
    }
}
