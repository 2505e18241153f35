//! The key that signs leases and commands. Its file may be replaced while the coordinator runs; the
//! next document is then signed with the new key.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use identity::{ManifestKey, TrustBundle};
use runtime::Failure;
use schemas::Code;

use crate::config::KeysConfig;

/// The key, and its file.
pub(crate) struct ManifestSigner {
    path: PathBuf,
    trust: PathBuf,
    /// The file that the key was read from.
    seen: Option<Seen>,
    key: ManifestKey,
}

/// What tells a file from the one that was there before: it is replaced by another, never written over.
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
        let seen = Seen::at(&keys.manifest).ok();
        Ok(Self {
            path: keys.manifest.clone(),
            trust: keys.trust.clone(),
            seen,
            key: ManifestKey::read(&keys.manifest)?,
        })
    }

    /// The present key. One look at the file shows that it is the same. A key that cannot be used, or
    /// that the trust bundle does not know, is not taken: workers would refuse its leases.
    pub(crate) fn key(&mut self) -> &ManifestKey {
        let now = Seen::at(&self.path).ok();
        if now.is_some() && now != self.seen {
            match self.read() {
                Ok(key) => {
                    if key.public() != self.key.public() {
                        tracing::info!(key = %key.public(), old = %self.key.public(), "leases are signed with a new key");
                    }
                    (self.key, self.seen) = (key, now);
                }
                Err(failure) => {
                    let code = failure.code();
                    tracing::warn!(%code, next = code.next_step(), "leases are signed with the key from before: {}", failure.refusal());
                }
            }
        }
        &self.key
    }

    fn read(&self) -> Result<ManifestKey, Failure> {
        let key = ManifestKey::read(&self.path)?;
        let known = TrustBundle::read(&self.trust)?.manifest_keys;
        match known.contains(key.public()) {
            true => Ok(key),
            false => {
                let text = format!(
                    "{} is not in {}; replace that file first",
                    key.public(),
                    self.trust.display()
                );
                Err(Failure::new(Code::SignatureInvalid, text))
            }
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
        let first = signer.key().public().clone();
        let next = domain.prepare_manifest_key().expect("it has room");
        assert_eq!(*signer.key().public(), first);
        // The key arrives before the bundle that knows it.
        let bundle = fs::read(layout.trust()).expect("it is there");
        domain.adopt_manifest_key().expect("it was prepared");
        let unknown = ManifestKey::generate();
        let kept = fs::read(layout.manifest_key()).expect("it is there");
        unknown
            .seed()
            .write(&layout.manifest_key())
            .expect("it is ours");
        assert_eq!(*signer.key().public(), first, "nobody trusts it");
        fs::remove_file(layout.manifest_key()).expect("it is ours");
        assert_eq!(*signer.key().public(), first, "there is none");
        identity::secret::write_private(&layout.manifest_key(), &kept).expect("it is ours");
        fs::write(layout.trust(), "{}").expect("it is ours");
        assert_eq!(*signer.key().public(), first, "the bundle cannot be read");
        fs::write(layout.trust(), bundle).expect("it is ours");
        assert_eq!(*signer.key().public(), next);
    }
}
