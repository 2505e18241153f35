//! The folder for what must survive a restart. A lock keeps two workers from sharing it: they would break each other's
//! chain of events.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use runtime::Failure;
use schemas::{Code, Digest, RunId};

/// ```text
/// <folder>/lock                                held while the worker lives
/// <folder>/events.json                         the end of the worker's chain of events
/// <folder>/<run>-<settings>/inner.safetensors  state of the inner optimizer
/// ```
#[derive(Clone, Debug)]
pub(crate) struct StateFolder {
    folder: PathBuf,
    /// Released by the system when the process ends, however it ends.
    _lock: Arc<File>,
}

impl StateFolder {
    /// Opens or makes the folder and takes its lock.
    ///
    /// # Errors
    /// It cannot be used, or another worker uses it.
    pub(crate) fn open(folder: &Path) -> Result<Self, Failure> {
        let failed = |error: &dyn std::fmt::Display| {
            Failure::new(Code::WorkerStateInvalid, format!("worker.state {}: {error}", folder.display()))
        };
        identity::secret::create_private_folder(folder).map_err(|error| failed(&error))?;
        let lock = File::create(folder.join("lock")).map_err(|error| failed(&error))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { folder: folder.to_owned(), _lock: Arc::new(lock) }),
            Err(TryLockError::WouldBlock) => Err(failed(&"another worker uses it; give each its own")),
            Err(TryLockError::Error(error)) => Err(failed(&error)),
        }
    }

    /// The end of the chain of events.
    pub(crate) fn events(&self) -> PathBuf {
        self.folder.join("events.json")
    }

    /// The inner state for a run under these settings: a run made anew under an old name has its own.
    pub(crate) fn inner(&self, run: &RunId, settings: Digest) -> PathBuf {
        self.folder.join(format!("{run}-{}", settings.short())).join("inner.safetensors")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_worker_at_a_time() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let first = StateFolder::open(scratch.path()).expect("a fresh folder");
        let second = StateFolder::open(scratch.path()).expect_err("the lock is held");
        assert_eq!(second.code(), Code::WorkerStateInvalid);
        drop(first);
        StateFolder::open(scratch.path()).expect("free again");
    }
}
