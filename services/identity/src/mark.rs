//! The last known position of a ledger, in a small file beside the keys that sign it. The ledger is
//! the truth; the mark shows when it was lost, since an empty ledger looks like a new one.
//!
//! The file has two places of fixed length that are written in turn, so that a write that a power
//! cut tears leaves the other one. It is not synced: a mark that is a little old still shows a
//! ledger that was lost.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use schemas::{Code, Digest, PublicKey, V};
use serde::{Deserialize, Serialize};

use crate::secret::{FileError, write_private};

/// Length of one place: below a disk's sector, so that it is written whole or not at all.
const PLACE_BYTES: usize = 512;
/// Number of places, which are written in turn.
const PLACES: u64 = 2;

/// The newest event that a ledger is known to have held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mark {
    /// Version.
    pub v: V<1>,
    /// The domain whose ledger it marks.
    pub domain: PublicKey,
    /// Events in the chain.
    pub events: u64,
    /// Position of the last one in its stream.
    pub stream_sequence: u64,
    /// Digest of its body; none before the first.
    pub last: Option<Digest>,
}

/// The file, open for writing.
#[derive(Debug)]
pub struct MarkFile {
    path: PathBuf,
    file: File,
}

/// Reasons why the mark cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MarkError {
    /// The file.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
    /// No place can be read.
    #[error("{} holds no mark that can be read", .0.display())]
    Damaged(PathBuf),
    /// It was written for another domain.
    #[error("{} is the mark of domain {found}, expected {expected}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// The domain whose ledger it marks.
        found: PublicKey,
        /// The domain whose ledger it should mark.
        expected: PublicKey,
    },
}

/// A mark in its place, with a digest that shows that it is whole.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    mark: Mark,
    seal: Digest,
}

impl MarkError {
    /// The code of the page that says what to do.
    pub const fn code(&self) -> Code {
        Code::LedgerMarkInvalid
    }
}

schemas::coded!(MarkError);

impl Mark {
    /// The mark of a ledger without events.
    pub const fn empty(domain: PublicKey) -> Self {
        Self {
            v: V,
            domain,
            events: 0,
            stream_sequence: 0,
            last: None,
        }
    }

    /// Reads the file; none if it is missing.
    ///
    /// # Errors
    /// It cannot be read, or is the mark of another domain.
    pub fn read(path: &Path, domain: &PublicKey) -> Result<Option<Self>, MarkError> {
        match File::open(path) {
            Ok(file) => read(path, &file, domain).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(MarkError::Io {
                path: path.to_owned(),
                source,
            }),
        }
    }

    fn seal(&self) -> Digest {
        Digest::of(&serde_json::to_vec(self).expect("a mark is JSON"))
    }

    fn place(&self) -> Vec<u8> {
        let sealed = Sealed {
            mark: self.clone(),
            seal: self.seal(),
        };
        let mut bytes = serde_json::to_vec(&sealed).expect("a mark is JSON");
        bytes.resize(PLACE_BYTES - 1, b' ');
        bytes.push(b'\n');
        bytes
    }
}

impl MarkFile {
    /// Opens the file of this domain, makes it if it is missing, and returns its mark.
    ///
    /// # Errors
    /// It cannot be used, or is the mark of another domain.
    pub fn open(path: &Path, domain: &PublicKey) -> Result<(Self, Mark), MarkError> {
        if !path.exists() {
            write_private(
                path,
                &Mark::empty(domain.clone()).place().repeat(PLACES as usize),
            )?;
        }
        let io = |source| MarkError::Io {
            path: path.to_owned(),
            source,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(io)?;
        let mark = read(path, &file, domain)?;
        Ok((
            Self {
                path: path.to_owned(),
                file,
            },
            mark,
        ))
    }

    /// Writes a newer mark with one system call, without a sync.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, mark: &Mark) -> Result<(), MarkError> {
        // If two coordinators overlap, the one that is about to end writes an older mark, and never
        // a newer one.
        let at = (mark.events % PLACES) * PLACE_BYTES as u64;
        let written = self.file.write_all_at(&mark.place(), at);
        written.map_err(|source| MarkError::Io {
            path: self.path.clone(),
            source,
        })
    }
}

fn read(path: &Path, file: &File, domain: &PublicKey) -> Result<Mark, MarkError> {
    let mut newest: Option<Mark> = None;
    for place in 0..PLACES {
        let mut bytes = [0; PLACE_BYTES];
        match file.read_exact_at(&mut bytes, place * PLACE_BYTES as u64) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => continue,
            Err(source) => {
                return Err(MarkError::Io {
                    path: path.to_owned(),
                    source,
                });
            }
            Ok(()) => {}
        }
        let Ok(Sealed { mark, seal }) = serde_json::from_slice(&bytes) else {
            continue;
        };
        if mark.seal() == seal
            && newest
                .as_ref()
                .is_none_or(|newest| newest.events < mark.events)
        {
            newest = Some(mark);
        }
    }
    let mark = newest.ok_or_else(|| MarkError::Damaged(path.to_owned()))?;
    if mark.domain != *domain {
        return Err(MarkError::Foreign {
            path: path.to_owned(),
            found: mark.domain,
            expected: domain.clone(),
        });
    }
    Ok(mark)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{KeyKind, SigningKey};

    fn mark(domain: &PublicKey, events: u64) -> Mark {
        let last = Some(Digest::of(&events.to_be_bytes()));
        Mark {
            v: V,
            domain: domain.clone(),
            events,
            stream_sequence: 3 * events,
            last,
        }
    }

    fn domain() -> PublicKey {
        SigningKey::generate(KeyKind::Operator).public().clone()
    }

    #[test]
    fn the_newest_whole_mark_counts() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let (path, domain) = (scratch.path().join("ledger.mark"), domain());
        assert_eq!(Mark::read(&path, &domain).expect("none is no error"), None);
        let (file, first) = MarkFile::open(&path, &domain).expect("a fresh folder");
        assert_eq!(first, Mark::empty(domain.clone()));
        for events in 1..=5 {
            file.write(&mark(&domain, events)).expect("it is open");
        }
        assert_eq!(
            Mark::read(&path, &domain).expect("whole"),
            Some(mark(&domain, 5))
        );
        // A torn write of the newest leaves the one before.
        file.file
            .write_all_at(&[0; 100], PLACE_BYTES as u64)
            .expect("it is open");
        assert_eq!(
            Mark::read(&path, &domain).expect("whole"),
            Some(mark(&domain, 4))
        );
        // The same holds for a file that lost its end.
        let whole = std::fs::read(&path).expect("bytes");
        for (length, left) in [(whole.len() - 1, 4), (PLACE_BYTES, 4)] {
            std::fs::write(&path, &whole[..length]).expect("it is ours");
            assert_eq!(
                Mark::read(&path, &domain).expect("whole"),
                Some(mark(&domain, left)),
                "{length} bytes"
            );
        }
        std::fs::write(&path, &whole[..PLACE_BYTES - 1]).expect("it is ours");
        assert!(matches!(
            Mark::read(&path, &domain),
            Err(MarkError::Damaged(_))
        ));
        std::fs::write(&path, &whole).expect("it is ours");
        // A mark whose numbers were changed is not whole.
        let text = std::fs::read_to_string(&path)
            .expect("text")
            .replace("\"events\":4", "\"events\":9");
        std::fs::write(&path, text).expect("it is ours");
        assert!(matches!(
            Mark::read(&path, &domain),
            Err(MarkError::Damaged(_))
        ));
        assert!(matches!(
            MarkFile::open(&path, &domain),
            Err(MarkError::Damaged(_))
        ));
    }

    #[test]
    fn places_are_lines_of_fixed_length() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let (path, domain) = (scratch.path().join("ledger.mark"), domain());
        let (file, _) = MarkFile::open(&path, &domain).expect("a fresh folder");
        for events in [0, 7, 12_345_678_901] {
            file.write(&mark(&domain, events)).expect("it is open");
            let bytes = std::fs::read(&path).expect("it is ours");
            assert_eq!(bytes.len(), PLACES as usize * PLACE_BYTES);
            for place in bytes.chunks(PLACE_BYTES) {
                assert_eq!(
                    place.iter().position(|byte| *byte == b'\n'),
                    Some(PLACE_BYTES - 1)
                );
            }
        }
    }

    /// Only a missing file counts as absent: the loss of a ledger must not hide behind a bad disk.
    #[test]
    fn what_the_system_refuses_to_read_is_neither_absent_nor_damaged() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let domain = domain();
        let file = scratch.path().join("file");
        std::fs::write(&file, b"x").expect("it is ours");
        for path in [file.join("below-a-file"), scratch.path().to_owned()] {
            let read = Mark::read(&path, &domain);
            assert!(matches!(read, Err(MarkError::Io { .. })), "{read:?}");
        }
    }

    #[test]
    fn a_mark_of_another_domain_is_refused() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let path = scratch.path().join("ledger.mark");
        MarkFile::open(&path, &domain()).expect("a fresh folder");
        let error = MarkFile::open(&path, &domain()).expect_err("not ours");
        assert!(matches!(error, MarkError::Foreign { .. }), "{error}");
        assert_eq!(error.code(), Code::LedgerMarkInvalid);
    }
}
