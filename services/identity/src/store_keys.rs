//! The store's access keys, one pair for each purpose. The key that may write incoming objects
//! cannot read or change published ones, and only the admin key can do both. Workers hold none of
//! them.

use std::fmt;
use std::path::{Path, PathBuf};

use data_encoding::{BASE32_NOPAD, BASE64URL_NOPAD};
use schemas::{Code, V};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::secret::{FileError, Secret, random, read_secret, write_private};

/// The file `keys.json` of a store.
#[derive(Clone, Debug)]
pub struct StoreKeys {
    /// Creates buckets, promotes and deletes objects.
    pub admin: AccessKey,
    /// Signs URLs that upload into the incoming bucket.
    pub put: AccessKey,
    /// Signs URLs that read from the published bucket.
    pub get: AccessKey,
}

/// An S3 access key.
#[derive(Clone)]
pub struct AccessKey {
    id: String,
    secret: Secret,
}

/// Reasons why a store's keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreKeysError {
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
    /// Not JSON of this form. Only the position is reported, since the text there could be a
    /// secret.
    #[error("{} is no file of store keys (line {line}, column {column})", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The line at which the parser stopped.
        line: usize,
        /// The column at which the parser stopped.
        column: usize,
    },
    /// A part of a pair is empty.
    #[error("access key for {0} lacks its id or its secret")]
    Half(&'static str),
    /// Two purposes share a key.
    #[error("two purposes share the access key {0}; each needs its own")]
    Shared(String),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire<Text> {
    v: V<1>,
    admin: Pair<Text>,
    put: Pair<Text>,
    get: Pair<Text>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pair<Text> {
    id: Text,
    secret: Text,
}

impl StoreKeysError {
    /// The code of the page that says what to do.
    pub fn code(&self) -> Code {
        match self {
            Self::File(error) => error.code(),
            Self::Malformed { .. } | Self::Shared(_) => Code::CredentialMalformed,
            Self::Half(_) => Code::CredentialHalf,
        }
    }
}

schemas::coded!(StoreKeysError);

impl StoreKeys {
    /// Three new pairs.
    pub fn generate() -> Self {
        Self {
            admin: AccessKey::generate(),
            put: AccessKey::generate(),
            get: AccessKey::generate(),
        }
    }

    /// Reads the file.
    ///
    /// # Errors
    /// It cannot be used, others may read it, a pair is incomplete, or two are the same.
    pub fn read(path: &Path) -> Result<Self, StoreKeysError> {
        let text = read_secret(path)?;
        let wire: Wire<String> =
            serde_json::from_str(&text).map_err(|error| StoreKeysError::Malformed {
                path: path.to_owned(),
                line: error.line(),
                column: error.column(),
            })?;
        let key = |pair: Pair<String>| AccessKey {
            id: pair.id,
            secret: Secret::new(pair.secret),
        };
        let keys = Self {
            admin: key(wire.admin),
            put: key(wire.put),
            get: key(wire.get),
        };
        keys.check()?;
        Ok(keys)
    }

    /// Writes the file for its owner alone.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), StoreKeysError> {
        fn pair(key: &AccessKey) -> Pair<&str> {
            Pair {
                id: &key.id,
                secret: key.secret.expose(),
            }
        }
        let wire = Wire {
            v: V,
            admin: pair(&self.admin),
            put: pair(&self.put),
            get: pair(&self.get),
        };
        let text = Zeroizing::new(serde_json::to_string_pretty(&wire).expect("text is JSON"));
        Ok(write_private(path, text.as_bytes())?)
    }

    fn check(&self) -> Result<(), StoreKeysError> {
        for (name, key) in [
            ("admin", &self.admin),
            ("put", &self.put),
            ("get", &self.get),
        ] {
            if key.id.trim().is_empty() || key.secret.expose().trim().is_empty() {
                return Err(StoreKeysError::Half(name));
            }
        }
        for (a, b) in [
            (&self.admin, &self.put),
            (&self.admin, &self.get),
            (&self.put, &self.get),
        ] {
            if a.id == b.id || a.secret.same(&b.secret) {
                return Err(StoreKeysError::Shared(a.id.clone()));
            }
        }
        Ok(())
    }
}

impl AccessKey {
    /// A new pair: an id of 20 characters, a secret of 240 bits.
    pub fn generate() -> Self {
        let id = format!("DILO{}", BASE32_NOPAD.encode(random::<10>().as_slice()));
        Self {
            id,
            secret: Secret::new(BASE64URL_NOPAD.encode(random::<30>().as_slice())),
        }
    }

    /// The id: not secret.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The secret, for code that signs requests. Never for a log or an error.
    pub fn expose_secret(&self) -> &str {
        self.secret.expose()
    }
}

impl fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AccessKey({})", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_round_trip_and_print_no_secret() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let path = scratch.path().join("keys.json");
        let keys = StoreKeys::generate();
        keys.write(&path).expect("the folder takes files");
        let again = StoreKeys::read(&path).expect("just written");
        let printed = format!("{keys:?}");
        for (a, b) in [
            (&keys.admin, &again.admin),
            (&keys.put, &again.put),
            (&keys.get, &again.get),
        ] {
            assert_eq!((a.id(), a.expose_secret()), (b.id(), b.expose_secret()));
            assert_eq!((a.id().len(), a.expose_secret().len()), (20, 40));
            assert!(printed.contains(a.id()) && !printed.contains(a.expose_secret()));
        }
    }

    #[test]
    fn ls_09_half_pairs_shared_keys_and_odd_files_are_refused() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let path = scratch.path().join("keys.json");
        let mut keys = StoreKeys::generate();
        keys.put.secret = Secret::new(" ".into());
        keys.write(&path).expect("the folder takes files");
        assert_eq!(
            StoreKeys::read(&path).expect_err("half a pair").code(),
            Code::CredentialHalf
        );
        let mut keys = StoreKeys::generate();
        keys.get = keys.admin.clone();
        keys.write(&path).expect("the folder takes files");
        assert!(matches!(
            StoreKeys::read(&path),
            Err(StoreKeysError::Shared(_))
        ));
        let mut keys = StoreKeys::generate();
        keys.get.id = " ".into();
        keys.write(&path).expect("the folder takes files");
        assert_eq!(
            StoreKeys::read(&path).expect_err("half a pair").code(),
            Code::CredentialHalf
        );
        // Two names for one secret are one key.
        let shared: [fn(&mut StoreKeys); 2] = [
            |keys| keys.put.secret = Secret::new(keys.admin.expose_secret().into()),
            |keys| keys.get.secret = Secret::new(keys.put.expose_secret().into()),
        ];
        for share in shared {
            let mut keys = StoreKeys::generate();
            share(&mut keys);
            keys.write(&path).expect("the folder takes files");
            assert!(matches!(
                StoreKeys::read(&path),
                Err(StoreKeysError::Shared(_))
            ));
        }
        write_private(&path, br#"{"v":1,"admin":"hunter2"}"#).expect("the folder takes files");
        let error = StoreKeys::read(&path).expect_err("another form");
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }
}
