//! The key that signs leases and commands. Its file may be replaced while the coordinator runs; the
//! next document is then signed with the new key.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use coordinator_core::Answer;
use identity::{ManifestKey, TrustBundle};
use runtime::Failure;
use schemas::keys::KeysReply;
use schemas::{Code, PublicKey, Refusal, V};

use crate::config::KeysConfig;

/// The key, and its file.
pub(crate) struct ManifestSigner {
    path: PathBuf,
    trust: PathBuf,
    /// The files that the key was read from.
    seen: Option<Stamp>,
    /// The files of which it was told that they give no key.
    told: Option<Stamp>,
    key: ManifestKey,
    /// The trust bundle knows the key.
    known: bool,
}

/// The files of key and trust bundle; none for one that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    key: Option<Seen>,
    trust: Option<Seen>,
}

/// What tells a file from the one that was there before: it is replaced by another, never written
/// over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    inode: u64,
    seconds: i64,
    nanoseconds: i64,
}

impl Seen {
    fn at(path: &Path) -> io::Result<Self> {
        let found = fs::metadata(path)?;
        Ok(Self {
            inode: found.ino(),
            seconds: found.mtime(),
            nanoseconds: found.mtime_nsec(),
        })
    }
}

impl ManifestSigner {
    /// # Errors
    /// The key cannot be read.
    pub(crate) fn open(keys: &KeysConfig) -> Result<Self, Failure> {
        let mut signer = Self {
            path: keys.manifest.clone(),
            trust: keys.trust.clone(),
            seen: None,
            told: None,
            key: ManifestKey::read(&keys.manifest)?,
            known: false,
        };
        // Says at once if the bundle does not know it. A later bundle may.
        let _ = signer.key();
        Ok(signer)
    }

    /// The present key. One look at its file and at the trust bundle shows that both are the same.
    /// A key that cannot be used, or that the bundle does not know, is not taken: workers would
    /// refuse its leases.
    ///
    /// # Errors
    /// The bundle does not know the key from before either.
    pub(crate) fn key(&mut self) -> Result<&ManifestKey, Refusal> {
        let now = Stamp {
            key: Seen::at(&self.path).ok(),
            trust: Seen::at(&self.trust).ok(),
        };
        if self.seen != Some(now) {
            match self.read() {
                Ok(key) => {
                    if key.public() != self.key.public() {
                        tracing::info!(key = %key.public(), old = %self.key.public(), "leases are signed with a new key");
                    }
                    (self.key, self.known, self.seen) = (key, true, Some(now));
                }
                Err(failure) => {
                    // A bundle that cannot be read says nothing about the key from before.
                    if let Ok(bundle) = TrustBundle::read(&self.trust) {
                        self.known = bundle.manifest_keys.contains(self.key.public());
                    }
                    if self.told.replace(now) != Some(now) {
                        self.tell(&failure);
                    }
                }
            }
        }
        match self.known {
            true => Ok(&self.key),
            false => Err(self.unknown(self.key.public()).refusal().clone()),
        }
    }

    /// The keys that the trust bundle has now, for readers in other languages.
    ///
    /// # Errors
    /// The bundle cannot be read.
    pub(crate) fn published(&self) -> Result<Answer, Refusal> {
        let read = || {
            let trust = TrustBundle::read(&self.trust).map_err(Failure::from)?;
            identity::jwks::of(&trust).map_err(Failure::from)
        };
        let jwks = read().map_err(|failure: Failure| failure.refusal().clone())?;
        Ok(Answer::Keys(Box::new(KeysReply { v: V, jwks })))
    }

    fn tell(&self, failure: &Failure) {
        let code = failure.code();
        let signs = match self.known {
            true => "leases are signed with the key from before",
            false => "no lease and no command is signed",
        };
        tracing::error!(%code, next = code.next_step(), "{signs}: {}", failure.refusal());
    }

    fn unknown(&self, key: &PublicKey) -> Failure {
        let text = format!(
            "{key} is not in {}; replace that file first",
            self.trust.display()
        );
        Failure::new(Code::SignatureInvalid, text)
    }

    fn read(&self) -> Result<ManifestKey, Failure> {
        let key = ManifestKey::read(&self.path)?;
        let known = TrustBundle::read(&self.trust)?.manifest_keys;
        match known.contains(key.public()) {
            true => Ok(key),
            false => Err(self.unknown(key.public())),
        }
    }
}

#[cfg(test)]
mod tests {
    use identity::{Domain, InitOptions};
    use schemas::UnixMillis;

    use super::*;

    #[test]
    fn tl_28_the_next_lease_is_signed_with_a_new_key_once_it_is_trusted() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let options = InitOptions::default();
        let domain = Domain::init(&scratch.path().join("domain"), &options, UnixMillis(1));
        let domain = domain.expect("an empty folder");
        let layout = domain.layout();
        let keys = KeysConfig {
            trust: layout.trust(),
            manifest: layout.manifest_key(),
            ..KeysConfig::default()
        };
        let mut signer = ManifestSigner::open(&keys).expect("it is there");
        let present = |signer: &mut ManifestSigner| signer.key().map(|key| key.public().clone());
        let first = present(&mut signer).expect("it is known");
        let next = domain.prepare_manifest_key().expect("it has room");
        assert_eq!(present(&mut signer), Ok(first.clone()));
        // The key arrives before the bundle that knows it.
        let bundle = fs::read(layout.trust()).expect("it is there");
        domain.adopt_manifest_key().expect("it was prepared");
        let unknown = ManifestKey::generate();
        let kept = fs::read(layout.manifest_key()).expect("it is there");
        unknown
            .seed()
            .write(&layout.manifest_key())
            .expect("it is ours");
        assert_eq!(present(&mut signer), Ok(first.clone()), "nobody trusts it");
        fs::remove_file(layout.manifest_key()).expect("it is ours");
        assert_eq!(present(&mut signer), Ok(first.clone()), "there is none");
        identity::secret::write_private(&layout.manifest_key(), &kept).expect("it is ours");
        fs::write(layout.trust(), "{}").expect("it is ours");
        assert_eq!(present(&mut signer), Ok(first), "the bundle cannot be read");
        fs::write(layout.trust(), bundle).expect("it is ours");
        assert_eq!(present(&mut signer), Ok(next));
    }

    #[test]
    fn tl_28_nothing_is_signed_with_a_key_that_the_bundle_does_not_know() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let options = InitOptions::default();
        let domain = Domain::init(&scratch.path().join("domain"), &options, UnixMillis(1));
        let layout = domain.expect("an empty folder").layout().clone();
        let keys = KeysConfig {
            trust: layout.trust(),
            manifest: layout.manifest_key(),
            ..KeysConfig::default()
        };
        let own = TrustBundle::read(&layout.trust()).expect("it is there");
        let ca = own.ca.strip_prefix(layout.folder()).expect("it is ours");
        let with = |keys: &[&PublicKey]| {
            let bundle = TrustBundle {
                ca: ca.to_owned(),
                manifest_keys: keys.iter().copied().cloned().collect(),
                ..own.clone()
            };
            bundle.write(&layout.trust()).expect("it is ours");
        };
        let key = own.manifest_keys[0].clone();
        let other = ManifestKey::generate();
        let present = |signer: &mut ManifestSigner| {
            let key = signer.key().map(|key| key.public().clone());
            key.map_err(|refusal| refusal.code)
        };
        let mut signer = ManifestSigner::open(&keys).expect("it is there");
        assert_eq!(present(&mut signer), Ok(key.clone()));
        // The bundle changes, and the key's file does not.
        with(&[other.public()]);
        assert_eq!(present(&mut signer), Err(Code::SignatureInvalid));
        // It is not taken at the start either.
        let mut late = ManifestSigner::open(&keys).expect("it is there");
        assert_eq!(present(&mut late), Err(Code::SignatureInvalid));
        with(&[other.public(), &key]);
        assert_eq!(present(&mut signer), Ok(key.clone()));
        assert_eq!(present(&mut late), Ok(key));
    }

    #[test]
    fn tl_13_the_published_keys_are_those_of_the_present_bundle() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let options = InitOptions::default();
        let domain = Domain::init(&scratch.path().join("domain"), &options, UnixMillis(1));
        let domain = domain.expect("an empty folder");
        let layout = domain.layout();
        let keys = KeysConfig {
            trust: layout.trust(),
            manifest: layout.manifest_key(),
            ..KeysConfig::default()
        };
        let signer = ManifestSigner::open(&keys).expect("it is there");
        let published = || match signer.published() {
            Ok(Answer::Keys(reply)) => Ok(reply.jwks.keys.into_iter().map(|key| key.kid).collect()),
            Ok(other) => panic!("another answer: {other:?}"),
            Err(refusal) => Err(refusal.code),
        };
        let own = signer.key.public().clone();
        assert_eq!(published(), Ok(vec![own.clone()]));
        let next = domain.prepare_manifest_key().expect("it has room");
        assert_eq!(published(), Ok(vec![own, next]));
        fs::write(layout.trust(), "{}").expect("it is ours");
        let broken = TrustBundle::read(&layout.trust()).expect_err("it is no bundle");
        assert_eq!(
            published(),
            Err(broken.code()),
            "no older keys in their place"
        );
    }
}
