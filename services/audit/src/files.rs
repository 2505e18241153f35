//! Append-only files of everything that the audit service saw: `<YYYYMMDD>.log` in one folder, JSON
//! lines, one writer. A batch is on disk before the next one is read, so a crash loses nothing that
//! the service has acted on.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use audit_core::{PlacedFinding, Record, StreamSequence};
use schemas::{Code, Digest, UnixMillis};

use crate::line::{LINE_BYTES_MAX, Line, is_older};

/// Reasons why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuditFilesError {
    /// Another process uses the folder.
    #[error("{} is in use by another process", .0.display())]
    Busy(PathBuf),
    /// A file or folder cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// An older release wrote the files.
    #[error("{} is in the form of an older release; start with a new folder, and keep this one", .0.display())]
    Older(PathBuf),
    /// A line was changed after it was written. An unfinished line at the end of the newest file
    /// comes from a crash, and does not count.
    #[error("{} line {number} is damaged; keep the folder as it is, start with a new one, and tell those who have pinned heads of the log in it", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        number: u64,
    },
}

impl AuditFilesError {
    /// The code of the page that says what to do.
    pub const fn code(&self) -> Code {
        match self {
            Self::Busy(_) => Code::AuditFolderBusy,
            Self::Older(_) => Code::AuditFilesOlder,
            Self::Io { .. } => Code::AuditFolderInvalid,
            Self::Damaged { .. } => Code::AuditFileAltered,
        }
    }
}

schemas::coded!(AuditFilesError);

/// The files, open for appending.
#[derive(Debug)]
pub struct AuditFiles {
    folder: PathBuf,
    /// The newest file; none before the first line.
    newest: Option<(String, File)>,
    known: BTreeMap<StreamSequence, Known>,
    // Released when the file is closed.
    _lock: File,
}

/// An entry of the files; entries come in the order in which they were written.
pub(crate) enum FileEntry {
    Record(Record),
    Finding(PlacedFinding),
}

/// The result of comparing a record with the one that was kept at its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// It is the same.
    Same,
    /// It is the same, except that the broker stored it at another time, as it does when it repairs
    /// a copy that lost its end.
    Again,
    /// It differs.
    Altered,
}

/// The facts that are remembered about a kept record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// [`Record::digest`].
    pub digest: Digest,
    /// The time at which the stream stored it.
    pub stored_at: UnixMillis,
}

impl Known {
    /// Compares a record with the one that was kept at its position.
    pub fn compare(&self, record: &Record) -> Comparison {
        if self.digest == record.digest() {
            return Comparison::Same;
        }
        let then = Record {
            stored_at: self.stored_at,
            ..record.clone()
        };
        if self.digest == then.digest() {
            Comparison::Again
        } else {
            Comparison::Altered
        }
    }
}

/// All records in the files of `folder`, by position, for a comparison with the stream. Takes no
/// lock and changes nothing, since the service may be writing. Empty if there is no folder.
///
/// # Errors
/// A file cannot be read, or a line was damaged.
pub fn kept(folder: &Path) -> Result<BTreeMap<StreamSequence, Known>, AuditFilesError> {
    if !folder.is_dir() {
        return Ok(BTreeMap::new());
    }
    read(folder, &mut |_| {}).map(|(known, _)| known)
}

/// Passes every entry in the files of `folder` to `each`. Takes no lock and changes nothing, since
/// the service may be writing. Returns the newest file as well if it ends inside a line: a service
/// is writing it, or died while it did, or somebody has cut it.
pub(crate) fn read(
    folder: &Path,
    each: &mut dyn FnMut(FileEntry),
) -> Result<(BTreeMap<StreamSequence, Known>, Option<PathBuf>), AuditFilesError> {
    let mut known = BTreeMap::new();
    let mut torn = None;
    let names = log_names(folder)?;
    for name in &names {
        let path = folder.join(name);
        let failed = |source| io_error(&path, source);
        let file = File::open(&path).map_err(failed)?;
        let is_last = names.last() == Some(name);
        // Before the lines are read: a service may add some meanwhile.
        let length = file.metadata().map_err(failed)?.len();
        let whole = scan(&path, &file, is_last, &mut known, each)?;
        if is_last && length > whole {
            torn = Some(path);
        }
    }
    Ok((known, torn))
}

/// The newest position in the files of `folder`; 0 for none. Reads only the newest file that has
/// records.
///
/// # Errors
/// As [`kept`].
pub fn last_kept(folder: &Path) -> Result<StreamSequence, AuditFilesError> {
    if !folder.is_dir() {
        return Ok(StreamSequence(0));
    }
    let names = log_names(folder)?;
    for name in names.iter().rev() {
        let path = folder.join(name);
        let file = File::open(&path).map_err(|source| io_error(&path, source))?;
        let mut known = BTreeMap::new();
        scan(
            &path,
            &file,
            names.last() == Some(name),
            &mut known,
            &mut |_| {},
        )?;
        if let Some((last, _)) = known.last_key_value() {
            return Ok(*last);
        }
    }
    Ok(StreamSequence(0))
}

impl AuditFiles {
    /// Opens the folder, makes it if it is missing, repairs an unfinished last line, and passes
    /// every entry to `each`.
    ///
    /// # Errors
    /// Another process uses the folder, it cannot be read or written, or a line was damaged.
    pub(crate) fn open(
        folder: &Path,
        each: &mut dyn FnMut(FileEntry),
    ) -> Result<Self, AuditFilesError> {
        fs::create_dir_all(folder).map_err(|source| io_error(folder, source))?;
        let lock = lock(folder)?;
        let mut keep = Self {
            folder: folder.to_owned(),
            newest: None,
            known: BTreeMap::new(),
            _lock: lock,
        };
        let names = log_names(folder)?;
        let last = names.last().cloned();
        for name in names {
            let is_last = last.as_ref() == Some(&name);
            let path = folder.join(&name);
            let mut file = open_for_append(&path)?;
            if is_last {
                // A process before this one may have died before its last lines were on the disk.
                // Nothing may be signed that a power failure can still take away.
                file.sync_all()
                    .map_err(|source| io_error(&path, source))
                    .and_then(|()| sync_folder(folder))?;
            }
            let whole = scan(&path, &file, is_last, &mut keep.known, each)?;
            if is_last {
                let length = file
                    .metadata()
                    .map_err(|source| io_error(&path, source))?
                    .len();
                if let Some(bytes) = length.checked_sub(whole).filter(|bytes| *bytes > 0) {
                    tracing::warn!(file = %path.display(), bytes, "the last line was cut off by a crash; removed");
                }
                file.set_len(whole)
                    .and_then(|()| file.seek(SeekFrom::End(0)))
                    .map_err(|e| io_error(&path, e))?;
                keep.newest = Some((name, file));
            }
        }
        Ok(keep)
    }

    /// The newest position that was kept; 0 for none.
    pub fn last(&self) -> StreamSequence {
        self.known
            .last_key_value()
            .map_or(StreamSequence(0), |(last, _)| *last)
    }

    /// The number of positions that were kept.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// True when nothing was kept yet.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// The oldest position that was kept.
    pub fn first(&self) -> Option<StreamSequence> {
        self.known.first_key_value().map(|(first, _)| *first)
    }

    /// The folder of the files.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Compares a record with the kept one; none if nothing was kept at its position.
    pub(crate) fn compare(&self, record: &Record) -> Option<Comparison> {
        self.known
            .get(&record.stream_sequence)
            .map(|known| known.compare(record))
    }

    pub(crate) fn know(&mut self, record: &Record, digest: Digest) {
        self.known.insert(
            record.stream_sequence,
            Known {
                digest,
                stored_at: record.stored_at,
            },
        );
    }

    /// Writes lines, and returns when they are on disk.
    pub(crate) fn append(
        &mut self,
        lines: &[Line],
        now: UnixMillis,
    ) -> Result<(), AuditFilesError> {
        if lines.is_empty() {
            return Ok(());
        }
        let mut bytes = Vec::new();
        lines.iter().for_each(|line| line.encode(&mut bytes));
        let (name, file) = self.file_of(now)?;
        let path = self.folder.join(&name);
        let written = (&file).write_all(&bytes).and_then(|()| file.sync_data());
        self.newest = Some((name, file));
        written.map_err(|source| io_error(&path, source))
    }

    /// The file of the day. Names never go back, so that their order is the order of writing.
    fn file_of(&mut self, now: UnixMillis) -> Result<(String, File), AuditFilesError> {
        let today = format!("{}.log", day(now));
        if let Some((name, file)) = self.newest.take_if(|(name, _)| *name >= today) {
            return Ok((name, file));
        }
        let path = self.folder.join(&today);
        let file = open_for_append(&path)?;
        // The file's name must be on disk before its lines count.
        sync_folder(&self.folder)?;
        Ok((today, file))
    }
}

/// Reads one file. Returns the length up to the end of its last whole line.
fn scan(
    path: &Path,
    file: &File,
    is_last: bool,
    known: &mut BTreeMap<StreamSequence, Known>,
    each: &mut dyn FnMut(FileEntry),
) -> Result<u64, AuditFilesError> {
    let mut reader = BufReader::new(file);
    let (mut whole, mut number) = (0, 0);
    loop {
        let mut text = Vec::new();
        let mut bounded = reader.by_ref().take(LINE_BYTES_MAX as u64);
        let length = bounded
            .read_until(b'\n', &mut text)
            .map_err(|source| io_error(path, source))?;
        if length == 0 {
            return Ok(whole);
        }
        number += 1;
        let damaged = || AuditFilesError::Damaged {
            path: path.to_owned(),
            number,
        };
        if text.last() != Some(&b'\n') {
            let torn = is_last && length < LINE_BYTES_MAX;
            return if torn { Ok(whole) } else { Err(damaged()) };
        }
        let line = serde_json::from_slice(&text).map_err(|_| match is_older(&text) {
            true => AuditFilesError::Older(path.to_owned()),
            false => damaged(),
        })?;
        match line {
            Line::Record(kept) => {
                let (record, digest) = kept.record().ok_or_else(damaged)?;
                known.insert(
                    record.stream_sequence,
                    Known {
                        digest,
                        stored_at: record.stored_at,
                    },
                );
                each(FileEntry::Record(record));
            }
            Line::Finding { found, .. } => each(FileEntry::Finding(found)),
            Line::Verdict { .. } => {}
        }
        whole += length as u64;
    }
}

/// Locks the folder until the file is closed.
fn lock(folder: &Path) -> Result<File, AuditFilesError> {
    let path = folder.join("lock");
    let opened = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path);
    let file = opened.map_err(|source| io_error(&path, source))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(AuditFilesError::Busy(folder.to_owned())),
        Err(TryLockError::Error(source)) => Err(io_error(&path, source)),
    }
}

/// The names of the files in the order in which they were written.
fn log_names(folder: &Path) -> Result<Vec<String>, AuditFilesError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(|source| io_error(folder, source))? {
        let name = entry
            .map_err(|source| io_error(folder, source))?
            .file_name();
        let name = name.to_string_lossy().into_owned();
        let date = name.strip_suffix(".log");
        if date.is_some_and(|date| date.len() == 8 && date.bytes().all(|b| b.is_ascii_digit())) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn open_for_append(path: &Path) -> Result<File, AuditFilesError> {
    let opened = OpenOptions::new()
        .create(true)
        .read(true)
        .append(true)
        .open(path);
    opened.map_err(|source| io_error(path, source))
}

fn sync_folder(folder: &Path) -> Result<(), AuditFilesError> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|source| io_error(folder, source))
}

fn io_error(path: &Path, source: io::Error) -> AuditFilesError {
    AuditFilesError::Io {
        path: path.to_owned(),
        source,
    }
}

/// `YYYYMMDD`, UTC.
fn day(now: UnixMillis) -> String {
    let millis = i64::try_from(now.get()).unwrap_or(i64::MAX);
    let time = jiff::Timestamp::from_millisecond(millis).unwrap_or(jiff::Timestamp::MAX);
    time.to_zoned(jiff::tz::TimeZone::UTC)
        .strftime("%Y%m%d")
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_utc() {
        assert_eq!(day(UnixMillis(0)), "19700101");
        assert_eq!(day(UnixMillis(1_700_000_000_000)), "20231114");
        assert_eq!(day(UnixMillis(u64::MAX)).len(), 8);
    }
}
