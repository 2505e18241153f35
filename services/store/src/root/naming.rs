//! How a file gets its name where the check of the name and the renaming are two steps.

use std::fs;
use std::io;
use std::path::Path;

use schemas::Digest;
use tempfile::{PathPersistError, TempPath};

use super::Root;
use crate::log_rules;

impl Root {
    /// Renames unless the name is taken. Only this process writes here, so nothing happens between
    /// the check and the rename. A name that cannot be checked cannot be given either.
    pub(super) fn rename_once(&self, file: TempPath, name: &Path) -> Result<(), PathPersistError> {
        let _alone = self.naming.lock().expect("no holder panics");
        let error = match fs::symlink_metadata(name) {
            Ok(_) => io::ErrorKind::AlreadyExists.into(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return file.persist(name),
            Err(error) => error,
        };
        Err(PathPersistError { error, path: file })
    }

    /// Replaces the file with this name, while nobody checks if there is one.
    pub(super) fn replace_alone(
        &self,
        file: TempPath,
        name: &Path,
    ) -> Result<(), PathPersistError> {
        let _alone = self.naming.lock().expect("no holder panics");
        file.persist(name)
    }

    /// Replaces the checkpoint if it has the bytes `before`, and the new one does not go back. Of
    /// two replacements of the same bytes, the second finds other bytes.
    pub(super) fn replace_known(
        &self,
        file: TempPath,
        name: &Path,
        before: Digest,
    ) -> Result<(), PathPersistError> {
        let _alone = self.naming.lock().expect("no holder panics");
        let goes_on = |known: &[u8]| {
            let after = fs::read(&file)?;
            log_rules::goes_on(known, &after).map_err(io::Error::other)
        };
        let error = match fs::read(name) {
            Ok(bytes) if Digest::of(&bytes) == before => match goes_on(&bytes) {
                Ok(()) => return file.persist(name),
                Err(error) => error,
            },
            Ok(_) => io::ErrorKind::AlreadyExists.into(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                io::ErrorKind::AlreadyExists.into()
            }
            Err(error) => error,
        };
        Err(PathPersistError { error, path: file })
    }
}
