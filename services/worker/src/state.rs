//! The folder for state that must survive a restart. A lock keeps two workers from sharing it: they
//! would break each other's chain of events.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use runtime::Failure;
use schemas::{Code, Digest, RunId};

/// ```text
/// <folder>/lock                                held while the worker lives
/// <folder>/events.json                         the end of the worker's chain of events
/// <folder>/witness.nk                          the key that cosigns heads of the log
/// <folder>/log.head                            the newest head that this worker has seen
/// <folder>/log.refused                         a head that does not continue that one
/// <folder>/<run>-<settings>/inner.safetensors  state of the inner optimizer
/// <folder>/<run>-<settings>/residual.safetensors  what the codec took from contributions
/// ```
#[derive(Clone, Debug)]
pub(crate) struct StateFolder {
    folder: PathBuf,
    /// The system releases it when the process ends, however it ends.
    _lock: Arc<File>,
}

impl StateFolder {
    /// Opens or makes the folder, takes its lock, and removes files that a killed process had half
    /// written.
    ///
    /// # Errors
    /// The folder cannot be used, or another worker uses it.
    pub(crate) fn open(folder: &Path) -> Result<Self, Failure> {
        let failed = |error: &dyn std::fmt::Display| {
            Failure::new(
                Code::WorkerStateInvalid,
                format!("worker.state {}: {error}", folder.display()),
            )
        };
        identity::secret::create_private_folder(folder).map_err(|error| failed(&error))?;
        let lock = File::create(folder.join("lock")).map_err(|error| failed(&error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(failed(&"another worker uses it; give each its own"));
            }
            Err(TryLockError::Error(error)) => return Err(failed(&error)),
        }
        let state = Self {
            folder: folder.to_owned(),
            _lock: Arc::new(lock),
        };
        state.sweep().map_err(|error| failed(&error))?;
        Ok(state)
    }

    /// Removes unfinished files of killed workers: an inner state is twice as large as the model,
    /// so they would fill the disk in time.
    fn sweep(&self) -> std::io::Result<()> {
        for entry in std::fs::read_dir(&self.folder)? {
            let run = entry?.path();
            if !run.is_dir() {
                continue;
            }
            match model::remove_parts(&run) {
                Ok(0) => {}
                Ok(bytes) => {
                    tracing::info!(folder = %run.display(), bytes, "removed a half-written inner state")
                }
                // A file that stays costs space, and the next start tries again.
                Err(error) => {
                    tracing::warn!(code = %Code::WorkerStateInvalid, %error, "half-written state stays")
                }
            }
        }
        Ok(())
    }

    /// The file with the end of the chain of events.
    pub(crate) fn events(&self) -> PathBuf {
        self.folder.join("events.json")
    }

    /// The seed file of the key that cosigns heads. It lies beside the head that it cosigned last:
    /// one without the other would cosign what contradicts that.
    pub(crate) fn witness_key(&self) -> PathBuf {
        self.folder.join("witness.nk")
    }

    /// The file of the newest head that this worker has seen.
    pub(crate) fn log_head(&self) -> PathBuf {
        self.folder.join("log.head")
    }

    /// The file of the text that was refused last as a head.
    pub(crate) fn log_refused(&self) -> PathBuf {
        self.folder.join("log.refused")
    }

    /// The file with the inner state for a run under these settings: a run that is made anew under
    /// an old name has its own.
    pub(crate) fn inner(&self, run: &RunId, settings: Digest) -> PathBuf {
        self.folder
            .join(format!("{run}-{}", settings.short()))
            .join("inner.safetensors")
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

    #[test]
    fn what_a_killed_worker_had_half_written_is_removed() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let state = StateFolder::open(scratch.path()).expect("a fresh folder");
        let inner = state.inner(
            &"demo".parse().expect("a run name"),
            Digest::of(b"settings"),
        );
        let part = inner.with_file_name(".inner.safetensors.4711.part");
        std::fs::create_dir(inner.parent().expect("a run's folder")).expect("made");
        for path in [&inner, &part, &state.events()] {
            std::fs::write(path, b"state").expect("written");
        }
        // The lock shows that another worker may write: its folder is left alone.
        StateFolder::open(scratch.path()).expect_err("the lock is held");
        assert!(part.exists());
        drop(state);
        let state = StateFolder::open(scratch.path()).expect("free again");
        assert!(!part.exists());
        assert!(inner.exists() && state.events().exists());
    }
}
