//! The store's access keys, one pair for each purpose. The key that may write incoming objects
//! cannot read or change published ones, and only the admin key can do both. Workers hold none of
//! them. An auditor holds the one that reads published objects, in a file of its own.

use std::fmt;
use std::path::{Path, PathBuf};

use data_encoding::{BASE32_NOPAD, BASE64URL_NOPAD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use schemas::id::OPERATOR;
use schemas::{Code, RunId, V};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::secret::{FileError, Secret, random, read_secret, write_private};

/// Tells this use of a secret from all others.
const DERIVED: &[u8] = b"diloco: access key that signs urls, v1\n";
/// Stands between the id of a pair and the name of what was derived from it. No name has it.
const JOINT: char = '.';

/// The file `keys.json` of a store; and `coordinator.json`, which has the first three pairs only.
#[derive(Clone, Debug)]
pub struct StoreKeys {
    /// Creates buckets, promotes and deletes objects.
    pub admin: AccessKey,
    /// Signs URLs that upload into the incoming bucket.
    pub put: AccessKey,
    /// Signs URLs that read from the published bucket.
    pub get: AccessKey,
    /// Reads from the published bucket, in the hands of an auditor. None in a file of an earlier
    /// release.
    pub audit: Option<AccessKey>,
    /// Writes the log of all events, in the hands of the audit service. None in a file of an
    /// earlier release.
    pub log: Option<AccessKey>,
}

/// An S3 access key.
#[derive(Clone)]
pub struct AccessKey {
    id: String,
    secret: Secret,
}

/// What URLs are for. Each has a pair of its own, which the embedded store derives from those in
/// its file as the coordinator does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UrlsOf {
    /// What operators upload and read, for no run or for any.
    Operators,
    /// The work of one run's workers.
    Run(RunId),
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
    /// The id of a pair has the character that ids of derived pairs have.
    #[error("access key id {0:?} has a {JOINT:?}, which stands in the ids of derived pairs alone")]
    Joint(String),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire<Text> {
    v: V<1>,
    admin: Pair<Text>,
    put: Pair<Text>,
    get: Pair<Text>,
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    audit: Option<Pair<Text>>,
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    log: Option<Pair<Text>>,
}

/// The file `auditor.json`: what an auditor gets of a store's keys.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AuditorWire<Text> {
    v: V<1>,
    audit: Pair<Text>,
}

/// The file `log.json`: what the audit service gets of a store's keys.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LogWire<Text> {
    v: V<1>,
    log: Pair<Text>,
}

fn none<Text>() -> Option<Pair<Text>> {
    None
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
            Self::Malformed { .. } | Self::Shared(_) | Self::Joint(_) => Code::CredentialMalformed,
            Self::Half(_) => Code::CredentialHalf,
        }
    }
}

schemas::coded!(StoreKeysError);

impl StoreKeys {
    /// New pairs.
    pub fn generate() -> Self {
        Self {
            admin: AccessKey::generate(),
            put: AccessKey::generate(),
            get: AccessKey::generate(),
            audit: Some(AccessKey::generate()),
            log: Some(AccessKey::generate()),
        }
    }

    /// Reads the file.
    ///
    /// # Errors
    /// It cannot be used, others may read it, a pair is incomplete, or two are the same.
    pub fn read(path: &Path) -> Result<Self, StoreKeysError> {
        let wire: Wire<String> = read(path)?;
        let keys = Self {
            admin: wire.admin.into(),
            put: wire.put.into(),
            get: wire.get.into(),
            audit: wire.audit.map(AccessKey::from),
            log: wire.log.map(AccessKey::from),
        };
        keys.check()?;
        Ok(keys)
    }

    /// Reads the file for a store that derives further pairs from those in it, so that each id says
    /// which pair it is.
    ///
    /// # Errors
    /// As [`StoreKeys::read`], or an id in it could be that of a derived pair.
    pub fn read_to_derive(path: &Path) -> Result<Self, StoreKeysError> {
        let keys = Self::read(path)?;
        let three = [&keys.admin, &keys.put, &keys.get];
        let mut all = three.into_iter().chain(&keys.audit).chain(&keys.log);
        if let Some(key) = all.find(|key| key.id.contains(JOINT)) {
            return Err(StoreKeysError::Joint(key.id.clone()));
        }
        drop(all);
        Ok(keys)
    }

    /// Writes the file for its owner alone.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), StoreKeysError> {
        let wire = Wire {
            v: V,
            admin: self.admin.pair(),
            put: self.put.pair(),
            get: self.get.pair(),
            audit: self.audit.as_ref().map(AccessKey::pair),
            log: self.log.as_ref().map(AccessKey::pair),
        };
        write(path, &wire)
    }

    /// What the coordinator gets of them. It writes no log, so that its own record of a run cannot
    /// be changed with what it holds.
    pub fn of_coordinator(&self) -> Self {
        Self {
            audit: None,
            log: None,
            ..self.clone()
        }
    }

    /// True if both have the same pairs.
    pub(crate) fn same(&self, other: &Self) -> bool {
        let three = |keys: &Self| [&keys.admin, &keys.put, &keys.get].map(AccessKey::clone);
        let all = |keys: &Self| {
            let three = three(keys).map(Some).into_iter();
            three.chain([keys.audit.clone(), keys.log.clone()])
        };
        let mut pairs = all(self).zip(all(other));
        pairs.all(|pair| match pair {
            (Some(one), Some(other)) => one.id == other.id && one.secret.same(&other.secret),
            (one, other) => one.is_none() && other.is_none(),
        })
    }

    fn check(&self) -> Result<(), StoreKeysError> {
        let three = [
            ("admin", &self.admin),
            ("put", &self.put),
            ("get", &self.get),
        ];
        let audit = self.audit.iter().map(|key| ("audit", key));
        let log = self.log.iter().map(|key| ("log", key));
        let keys: Vec<_> = three.into_iter().chain(audit).chain(log).collect();
        for (at, (name, key)) in keys.iter().enumerate() {
            key.check(name)?;
            let before = keys[..at].iter().map(|(_, other)| other);
            let mut shared =
                before.filter(|other| other.id == key.id || other.secret.same(&key.secret));
            if shared.next().is_some() {
                return Err(StoreKeysError::Shared(key.id.clone()));
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

    /// Reads the file of an auditor.
    ///
    /// # Errors
    /// It cannot be used, others may read it, or the pair is incomplete.
    pub fn read_auditors(path: &Path) -> Result<Self, StoreKeysError> {
        let wire: AuditorWire<String> = read(path)?;
        let key = Self::from(wire.audit);
        key.check("audit")?;
        Ok(key)
    }

    /// Writes the file of an auditor, for its owner alone.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_auditors(&self, path: &Path) -> Result<(), StoreKeysError> {
        let audit = self.pair();
        write(path, &AuditorWire { v: V, audit })
    }

    /// Reads the audit service's file.
    ///
    /// # Errors
    /// It cannot be used, others may read it, or the pair is incomplete.
    pub fn read_log(path: &Path) -> Result<Self, StoreKeysError> {
        let wire: LogWire<String> = read(path)?;
        let key = Self::from(wire.log);
        key.check("log")?;
        Ok(key)
    }

    /// Writes the audit service's file, for its owner alone.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_log(&self, path: &Path) -> Result<(), StoreKeysError> {
        let log = self.pair();
        write(path, &LogWire { v: V, log })
    }

    fn check(&self, name: &'static str) -> Result<(), StoreKeysError> {
        match self.id.trim().is_empty() || self.secret.expose().trim().is_empty() {
            true => Err(StoreKeysError::Half(name)),
            false => Ok(()),
        }
    }

    fn pair(&self) -> Pair<&str> {
        Pair {
            id: &self.id,
            secret: self.secret.expose(),
        }
    }

    /// The pair that signs URLs of this kind, derived from this one. Its id names both; its secret
    /// is the HMAC-SHA256 of the id under this secret. Nobody can come from it to this secret, or
    /// to that of another pair.
    pub fn derived(&self, urls: &UrlsOf) -> Self {
        let id = format!("{}{JOINT}{urls}", self.id);
        let mac = Hmac::<Sha256>::new_from_slice(self.secret.expose().as_bytes());
        let mut mac = mac.expect("a key of HMAC has any length");
        mac.update(DERIVED);
        mac.update(id.as_bytes());
        let bytes = Zeroizing::new(<[u8; 32]>::from(mac.finalize().into_bytes()));
        Self {
            id,
            secret: Secret::new(BASE64URL_NOPAD.encode(bytes.as_slice())),
        }
    }

    /// What the derived pair with this id signs URLs for; none if the id is not of a pair that is
    /// derived from this one.
    pub fn derives(&self, id: &str) -> Option<UrlsOf> {
        let name = id.strip_prefix(self.id.as_str())?.strip_prefix(JOINT)?;
        match name {
            OPERATOR => Some(UrlsOf::Operators),
            run => Some(UrlsOf::Run(run.parse().ok()?)),
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

impl fmt::Display for UrlsOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operators => f.write_str(OPERATOR),
            Self::Run(run) => run.fmt(f),
        }
    }
}

impl From<Pair<String>> for AccessKey {
    fn from(pair: Pair<String>) -> Self {
        Self {
            id: pair.id,
            secret: Secret::new(pair.secret),
        }
    }
}

fn read<Wire: DeserializeOwned>(path: &Path) -> Result<Wire, StoreKeysError> {
    let text = read_secret(path)?;
    serde_json::from_str(&text).map_err(|error| StoreKeysError::Malformed {
        path: path.to_owned(),
        line: error.line(),
        column: error.column(),
    })
}

fn write(path: &Path, wire: &impl Serialize) -> Result<(), StoreKeysError> {
    let text = Zeroizing::new(serde_json::to_string_pretty(wire).expect("text is JSON"));
    Ok(write_private(path, text.as_bytes())?)
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
    fn fg_07_the_coordinators_file_has_neither_the_logs_pair_nor_the_auditors() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let path = scratch.path().join("coordinator.json");
        let all = StoreKeys::generate();
        let own = all.of_coordinator();
        own.write(&path).expect("the folder takes files");
        let text = std::fs::read_to_string(&path).expect("it was written");
        for foreign in [&all.audit, &all.log] {
            let foreign = foreign.as_ref().expect("it was generated");
            assert!(!text.contains(foreign.id()) && !text.contains(foreign.expose_secret()));
        }
        let again = StoreKeys::read(&path).expect("just written");
        assert!(again.same(&own) && !again.same(&all));
        let changes: [fn(&mut StoreKeys); 5] = [
            |keys| keys.admin = AccessKey::generate(),
            |keys| keys.put.id.push('X'),
            |keys| keys.get.secret = Secret::new("another".to_owned()),
            |keys| keys.audit = Some(AccessKey::generate()),
            |keys| keys.log = None,
        ];
        for change in changes {
            let mut other = all.clone();
            change(&mut other);
            assert!(!other.same(&all) && !all.same(&other));
        }
    }

    #[test]
    fn tl_04_an_auditor_gets_one_pair_in_a_file_of_its_own() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let [all, own] = ["keys.json", "auditor.json"].map(|name| scratch.path().join(name));
        let mut keys = StoreKeys::generate();
        keys.write(&all).expect("the folder takes files");
        let audit = keys.audit.clone().expect("it was generated");
        audit.write_auditors(&own).expect("the folder takes files");
        let text = std::fs::read_to_string(&own).expect("it was written");
        for key in [&keys.admin, &keys.put, &keys.get] {
            assert!(!text.contains(key.id()) && !text.contains(key.expose_secret()));
        }
        let again = AccessKey::read_auditors(&own).expect("just written");
        let kept = StoreKeys::read(&all).expect("just written").audit;
        let kept = kept.expect("it was written");
        for read in [again, kept] {
            assert_eq!(read.id(), audit.id());
            assert_eq!(read.expose_secret(), audit.expose_secret());
        }
        // Neither file passes for the other: an auditor does not get all keys by mistake.
        assert!(AccessKey::read_auditors(&all).is_err());
        assert!(StoreKeys::read(&own).is_err());
        // A file of an earlier release has no such pair.
        keys.audit = None;
        keys.write(&all).expect("the folder takes files");
        assert!(StoreKeys::read(&all).expect("just written").audit.is_none());
        keys.audit = Some(keys.get.clone());
        keys.write(&all).expect("the folder takes files");
        assert!(matches!(
            StoreKeys::read(&all),
            Err(StoreKeysError::Shared(_))
        ));
    }

    /// The secret is what another program computes, so that a store and a coordinator of two
    /// releases agree.
    #[test]
    fn tl_20_each_run_has_a_pair_of_its_own_that_both_ends_derive() {
        let pair = |id: &str, secret: &str| AccessKey {
            id: id.to_owned(),
            secret: Secret::new(secret.to_owned()),
        };
        let run = |name: &str| UrlsOf::Run(name.parse().expect("a name"));
        let base = pair("DILOBASE", "a secret");
        let demo = base.derived(&run("demo"));
        assert_eq!(demo.id(), "DILOBASE.demo");
        assert_eq!(
            demo.expose_secret(),
            "M6TIdolq6yz9lnbGdboHvyMYXKJlDRoyAabjAytkcPw"
        );
        let again = pair("DILOBASE", "a secret").derived(&run("demo"));
        assert_eq!(again.expose_secret(), demo.expose_secret());
        let others = [
            base.derived(&run("demo2")),
            base.derived(&run("acme_demo")),
            base.derived(&UrlsOf::Operators),
            pair("DILOBASE", "a secres").derived(&run("demo")),
            pair("DILOBASF", "a secret").derived(&run("demo")),
            base.clone(),
        ];
        for (at, other) in others.iter().enumerate() {
            let before = others[..at].iter().chain([&demo]);
            for known in before {
                assert_ne!(other.expose_secret(), known.expose_secret(), "{other:?}");
            }
        }
        for urls in [run("demo"), run("acme_demo"), UrlsOf::Operators] {
            let id = base.derived(&urls).id;
            assert_eq!(base.derives(&id), Some(urls));
        }
        for id in [
            "DILOBASE",
            "DILOBASE.",
            "DILOBASEdemo",
            "DILOBAS.demo",
            "DILOBASE.A",
            "demo",
        ] {
            assert_eq!(base.derives(id), None, "{id}");
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
        // An id that a derived pair could have.
        let keys = StoreKeys::generate();
        StoreKeys::read_to_derive(&path).expect_err("two names for one secret");
        keys.write(&path).expect("the folder takes files");
        StoreKeys::read_to_derive(&path).expect("its ids say which pair it is");
        let joints: [fn(&mut StoreKeys) -> &mut AccessKey; 5] = [
            |keys| &mut keys.admin,
            |keys| &mut keys.put,
            |keys| &mut keys.get,
            |keys| keys.audit.as_mut().expect("it was generated"),
            |keys| keys.log.as_mut().expect("it was generated"),
        ];
        for joint in joints {
            let mut keys = keys.clone();
            joint(&mut keys).id.push_str(".demo");
            keys.write(&path).expect("the folder takes files");
            StoreKeys::read(&path).expect("a store of others may give such ids");
            assert!(matches!(
                StoreKeys::read_to_derive(&path),
                Err(StoreKeysError::Joint(_))
            ));
        }
        write_private(&path, br#"{"v":1,"admin":"hunter2"}"#).expect("the folder takes files");
        let error = StoreKeys::read(&path).expect_err("another form");
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }
}
