//! Only one command at a time changes a trust domain. The lock ends with its process, however that
//! ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use schemas::Code;

use crate::layout::DomainLayout;
use crate::secret::{FileError, create_private_folder};

/// Longest note of a holder that is read back.
const NOTE_BYTES_MAX: usize = 256;
/// Most looks for a note that is not written yet, with a pause before each.
const NOTE_LOOKS_MAX: u32 = 20;
const NOTE_PAUSE: Duration = Duration::from_millis(10);

/// The right to change a domain; dropping it gives the lock back.
#[derive(Debug)]
pub struct DomainLock {
    file: File,
}

/// Reasons why the lock cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds it.
    #[error("{} is being changed by {holder}", folder.display())]
    Busy {
        /// The domain's folder.
        folder: PathBuf,
        /// The holder's note: command and process.
        holder: String,
    },
    /// A file or folder.
    #[error(transparent)]
    File(#[from] FileError),
}

impl LockError {
    /// The code of the page that says what to do.
    pub fn code(&self) -> Code {
        match self {
            Self::Busy { .. } => Code::DomainBusy,
            Self::File(error) => error.code(),
        }
    }
}

schemas::coded!(LockError);

impl DomainLock {
    /// Takes the lock of the domain in `folder` for `command`, without waiting. Makes the folder if
    /// it is missing.
    ///
    /// # Errors
    /// Another process holds the lock, or the file cannot be used.
    pub fn take(folder: &Path, command: &str) -> Result<Self, LockError> {
        create_private_folder(folder)?;
        let path = DomainLayout::new(folder).lock();
        let failed = |source| FileError::Write {
            path: path.clone(),
            source,
        };
        let opened = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&path);
        let mut file = opened.map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(LockError::Busy {
                    folder: folder.to_owned(),
                    holder: holder(&file),
                });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source).into()),
        }
        let note = format!("`{command}`, process {}\n", std::process::id());
        file.set_len(0)
            .and_then(|()| file.write_all(note.as_bytes()))
            .map_err(failed)?;
        Ok(Self { file })
    }
}

impl Drop for DomainLock {
    fn drop(&mut self) {
        // The note must not be taken for that of the next holder. A note that stays after a crash
        // is overwritten.
        let _noted = self.file.set_len(0);
    }
}

/// Reads the holder's note. A holder that has just taken the lock writes it in a moment.
fn holder(file: &File) -> String {
    for _ in 0..NOTE_LOOKS_MAX {
        let mut note = [0; NOTE_BYTES_MAX];
        let length = file.read_at(&mut note, 0).unwrap_or(0);
        let note = String::from_utf8_lossy(&note[..length]);
        if note.ends_with('\n') {
            return note.trim().to_owned();
        }
        std::thread::sleep(NOTE_PAUSE);
    }
    "another process".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_one_is_told_who_has_it_and_gets_it_afterwards() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let folder = scratch.path().join("domain");
        let first = DomainLock::take(&folder, "diloctl up").expect("nobody has it");
        let error = DomainLock::take(&folder, "diloctl down").expect_err("it is taken");
        assert_eq!(error.code(), Code::DomainBusy);
        let text = error.to_string();
        assert!(
            text.contains("`diloctl up`") && text.contains(&std::process::id().to_string()),
            "{text}"
        );
        drop(first);
        let left = std::fs::read(DomainLayout::new(&folder).lock()).expect("the file stays");
        assert!(left.is_empty(), "a note goes with its holder");
        DomainLock::take(&folder, "diloctl down").expect("it was given back");
    }
}
