//! The public list of issued credentials: one file for each key, so that a look-up reads one small
//! file, and writing one record can damage no other. `diloctl auth issue` writes it; the registrar
//! renews nothing else.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub use schemas::renewal::Registration;
use schemas::{Code, PublicKey, UnixMillis};

use crate::secret::{FileError, read_anchor, write_private};

/// The ending of the files.
const ENDING: &str = "json";

/// The list, in its folder.
#[derive(Clone, Debug)]
pub struct IssuedList {
    folder: PathBuf,
}

/// Reasons why a record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RegistrationError {
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The folder is not there.
    #[error("{} does not exist", .0.display())]
    Absent(PathBuf),
    /// The file holds no record, or that of another key.
    #[error("{} is not the record of an issued credential: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The fault.
        reason: String,
    },
}

impl RegistrationError {
    /// The code of the page that says what to do.
    pub fn code(&self) -> Code {
        match self {
            Self::File(error) => error.code(),
            Self::Absent(_) => Code::RecordsMissing,
            Self::Invalid { .. } => Code::RegistrationInvalid,
        }
    }
}

schemas::coded!(RegistrationError);

impl IssuedList {
    /// The list in `folder`; nothing is touched.
    pub fn at(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
        }
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// True if there is no folder, and nothing else in its place. What cannot be looked at is not
    /// absent.
    ///
    /// # Errors
    /// Nobody can tell.
    pub fn is_absent(&self) -> Result<bool, RegistrationError> {
        match fs::read_dir(&self.folder) {
            Ok(_) => Ok(false),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(source) => Err(RegistrationError::File(FileError::Read {
                path: self.folder.clone(),
                source,
            })),
        }
    }

    /// The record of a key; none if nothing was issued for it.
    ///
    /// # Errors
    /// There is a file, but it cannot be used.
    pub fn find(&self, public: &PublicKey) -> Result<Option<Registration>, RegistrationError> {
        let path = self.path(public);
        let text = match read_anchor(&path) {
            Err(FileError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(None);
            }
            text => text?,
        };
        let invalid = |reason: String| RegistrationError::Invalid {
            path: path.clone(),
            reason,
        };
        let record: Registration =
            serde_json::from_str(&text).map_err(|error| invalid(error.to_string()))?;
        if record.public != *public {
            return Err(invalid(format!("it names the key {}", record.public)));
        }
        Ok(Some(record))
    }

    /// All records, in the order of their names. A domain has the folder since it was made, so one
    /// that is missing was moved away or is not mounted, and says nothing about anybody.
    ///
    /// # Errors
    /// The folder is missing, or one of the records cannot be used.
    pub fn all(&self) -> Result<Vec<Registration>, RegistrationError> {
        let failed = |source| FileError::Read {
            path: self.folder.clone(),
            source,
        };
        let mut records = Vec::new();
        if self.is_absent()? {
            return Err(RegistrationError::Absent(self.folder.clone()));
        }
        for entry in fs::read_dir(&self.folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let named = path.extension().is_some_and(|ending| ending == ENDING);
            let key = path.file_stem().and_then(|stem| stem.to_str());
            let key = key.filter(|_| named).and_then(|stem| stem.parse().ok());
            // Temporary files, and others that nobody wrote for the list.
            let Some(key) = key else { continue };
            // One that was removed meanwhile has no record.
            records.extend(self.find(&key)?);
        }
        records.sort_by(|a: &Registration, b| (&a.name, &a.public).cmp(&(&b.name, &b.public)));
        Ok(records)
    }

    /// The record of the key that succeeds this one, unless it is blocked.
    ///
    /// # Errors
    /// As [`IssuedList::all`].
    pub fn successor_of(&self, old: &PublicKey) -> Result<Option<Registration>, RegistrationError> {
        let succeeds = |one: &Registration| one.before.as_ref() == Some(old);
        let mut all = self.all()?.into_iter();
        Ok(all.find(|one| succeeds(one) && one.blocked.is_none()))
    }

    /// Writes the record of a key; an earlier one of the same key is replaced.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn record(&self, record: &Registration) -> Result<(), RegistrationError> {
        let text = serde_json::to_string_pretty(record).expect("a record is names and numbers");
        let path = self.path(&record.public);
        Ok(write_private(&path, format!("{text}\n").as_bytes())?)
    }

    /// Blocks a key: it is not renewed any more, and its token ends by itself. Returns its record;
    /// none if nothing was issued for it. A key that is blocked stays blocked since it was.
    ///
    /// # Errors
    /// The record cannot be read or written.
    pub fn block(
        &self,
        public: &PublicKey,
        now: UnixMillis,
    ) -> Result<Option<Registration>, RegistrationError> {
        let Some(mut record) = self.find(public)? else {
            return Ok(None);
        };
        if record.blocked.is_none() {
            record.blocked = Some(now);
            self.record(&record)?;
        }
        Ok(Some(record))
    }

    fn path(&self, public: &PublicKey) -> PathBuf {
        self.folder.join(format!("{public}.{ENDING}"))
    }
}

#[cfg(test)]
mod tests {
    use schemas::V;
    use schemas::permission::Role;

    use super::*;
    use crate::key::{KeyKind, SigningKey};

    const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

    fn record(name: &str) -> Registration {
        let key = |kind| SigningKey::generate(kind).public().clone();
        let account = key(KeyKind::Account);
        Registration {
            v: V,
            name: name.to_owned(),
            role: Role::Worker,
            run: Some("demo".parse().expect("a name")),
            account: account.as_str().parse().expect("an account's key"),
            public: key(KeyKind::User),
            issued: NOW,
            ends: UnixMillis(NOW.get() + 1000),
            blocked: None,
            audit_key: None,
            seat: None,
            before: None,
            changes_until: None,
        }
    }

    fn list(scratch: &tempfile::TempDir) -> IssuedList {
        IssuedList::at(&scratch.path().join("issued"))
    }

    #[test]
    fn a_record_is_found_by_its_key_and_by_no_other() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let list = list(&scratch);
        let missing = list.all().expect_err("no folder, so nothing is known");
        assert_eq!(missing.code(), Code::RecordsMissing);
        fs::create_dir(list.folder()).expect("it is ours");
        assert_eq!(list.all().expect("nobody has credentials"), []);
        let (a, b) = (record("a"), record("b"));
        for record in [&b, &a] {
            list.record(record).expect("a fresh folder takes files");
        }
        fs::write(list.folder().join("notes.txt"), "x").expect("it is ours");
        assert_eq!(list.find(&a.public).expect("it is there"), Some(a.clone()));
        let stranger = record("c").public;
        assert_eq!(list.find(&stranger).expect("none is no error"), None);
        assert_eq!(list.all().expect("both"), [a, b]);
    }

    #[test]
    fn a_key_that_is_blocked_stays_blocked_since_it_was() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let list = list(&scratch);
        let mut expected = record("a");
        assert_eq!(list.block(&expected.public, NOW).expect("no file"), None);
        list.record(&expected).expect("a fresh folder takes files");
        expected.blocked = Some(NOW);
        for now in [NOW, UnixMillis(NOW.get() + 5000)] {
            let blocked = list.block(&expected.public, now).expect("it is ours");
            assert_eq!(blocked, Some(expected.clone()));
            let kept = list.find(&expected.public).expect("it is ours");
            assert_eq!(kept, Some(expected.clone()));
        }
    }

    #[test]
    fn a_record_of_another_key_or_of_none_is_refused() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let list = list(&scratch);
        let (a, b) = (record("a"), record("b"));
        list.record(&a).expect("a fresh folder takes files");
        fs::copy(list.path(&a.public), list.path(&b.public)).expect("it is ours");
        let error = list.find(&b.public).expect_err("it is a's");
        assert_eq!(error.code(), Code::RegistrationInvalid);
        write_private(&list.path(&b.public), b"{}").expect("it is ours");
        let error = list.find(&b.public).expect_err("it is nobody's");
        assert_eq!(error.code(), Code::RegistrationInvalid);
        assert!(list.all().is_err(), "a list with a hole is no list");
    }

    /// What cannot be read is not the same as what is not there.
    #[test]
    fn a_list_or_a_record_that_cannot_be_read_is_an_error() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let list = list(&scratch);
        assert!(list.is_absent().expect("nothing is there"));
        fs::write(list.folder(), "x").expect("the folder takes files");
        assert!(list.is_absent().is_err() && list.all().is_err());
        let a = record("a");
        assert!(list.find(&a.public).is_err());
        fs::remove_file(list.folder()).expect("it is ours");
        fs::create_dir_all(list.path(&a.public)).expect("it takes folders");
        assert!(!list.is_absent().expect("it is there"));
        assert!(list.find(&a.public).is_err() && list.all().is_err());
    }

    #[test]
    fn tl_28_the_successor_of_a_key_is_one_that_names_it_and_is_not_blocked() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let list = list(&scratch);
        let (old, other) = (record("a"), record("b"));
        let mut new = record("a");
        new.before = Some(old.public.clone());
        for record in [&old, &other, &new] {
            list.record(record).expect("a fresh folder takes files");
        }
        let of = |key: &PublicKey| list.successor_of(key).expect("they read");
        assert_eq!(of(&old.public), Some(new.clone()));
        assert_eq!((of(&other.public), of(&new.public)), (None, None));
        list.block(&new.public, NOW).expect("it is ours");
        assert_eq!(of(&old.public), None);
    }
}
