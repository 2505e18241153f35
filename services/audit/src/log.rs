//! The log of all events, in a folder: the files that crate `tlog` asks for, in its order, each on
//! the disk before the next.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use audit_core::{Examined, Examiner, Payload, Record};
use identity::secret::{FileError, create_private_subfolder, replace_private};
use identity::{HeadKey, TrustBundle};
use schemas::event::SignedEvent;
use schemas::{Code, Digest, Message as _, UnixMillis};
use tlog::layout::{self, CHECKPOINT, HEADS};
use tlog::{Batch, Head, HeadError, Write, Writer, WriterError};

/// Longest file of a log that is read: a full bundle of the longest entries.
const FILE_BYTES_MAX: u64 = 32 << 20;

/// What a service writes the log with.
#[derive(Clone, Debug)]
pub struct LogSigner {
    /// The key that signs heads.
    pub key: HeadKey,
    /// The log manifest, a signed document: the first entry of the log. None in a domain whose log
    /// an earlier build has begun.
    pub manifest: Option<String>,
}

/// The log, open for appending. The caller holds the lock of the folder around it.
#[derive(Debug)]
pub(crate) struct Log {
    files: LogFiles,
    key: HeadKey,
    writer: Writer,
    /// Files under the newest head that are gone.
    missing: Vec<Write>,
    /// A signed head that a process before this one has kept, and not published.
    unpublished: Option<Vec<u8>>,
}

/// The folder of a log.
#[derive(Clone, Debug)]
struct LogFiles {
    folder: PathBuf,
}

/// A signed head with its files, none of which are written yet.
#[derive(Debug)]
pub struct Publication {
    files: LogFiles,
    batch: Batch,
}

/// Reasons why the log cannot be continued.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The key for heads is not one that the trust bundle names.
    #[error("the trust bundle does not name {0} as a key for tree heads")]
    Key(schemas::PublicKey),
    /// The log begins with another manifest than the trust bundle names, or with none.
    #[error(
        "the trust bundle names another log manifest than this service has, or one of the two has none"
    )]
    Manifest,
    /// The newest head is not the service's own.
    #[error("{}: {error}", path.display())]
    Head {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        error: HeadError,
    },
    /// The kept events are others than those under the newest head.
    #[error("{}: {error}", folder.display())]
    Contradicted {
        /// The folder of the log.
        folder: PathBuf,
        /// The contradiction.
        error: WriterError,
    },
    /// A file that may not change has other bytes.
    #[error("{} has other bytes than the kept events lead to", .0.display())]
    Changed(PathBuf),
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error(transparent)]
    Write(#[from] FileError),
}

impl LogError {
    /// The code of the page that says what to do.
    pub const fn code(&self) -> Code {
        match self {
            Self::Key(_) => Code::RoleMismatch,
            Self::Manifest => Code::LogManifestMissing,
            Self::Head { .. } | Self::Contradicted { .. } | Self::Changed(_) => {
                Code::LogContradicted
            }
            Self::Read { .. } | Self::Write(_) => Code::AuditFolderInvalid,
        }
    }
}

schemas::coded!(LogError);

/// Reads a file of a log; none if it is not there.
///
/// # Errors
/// It cannot be read, or is longer than any file of a log.
pub fn read_file(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        metadata => metadata?,
    };
    // Looked at before it is opened, since opening a pipe would wait for its writer.
    if !metadata.is_file() || metadata.len() > FILE_BYTES_MAX {
        let text = "it is no regular file, or longer than any file of a log";
        return Err(io::Error::other(text));
    }
    fs::read(path).map(Some)
}

impl Log {
    /// Reads the newest head in `folder`. All events that were kept must then be given to
    /// [`Log::take`], and [`Log::begun`] says if they are those of the head.
    ///
    /// The newest head is the checkpoint, or one that was signed and kept after it by a process
    /// that died then. So an older checkpoint in its place does not let this process sign anew what
    /// was signed before.
    ///
    /// `stored` is the head that the store has, if it has one: entries must lead to that too, and
    /// until they do no head is signed.
    ///
    /// The manifest is the first entry, in each process anew, as all entries are.
    pub(crate) fn open(
        folder: &Path,
        trust: &TrustBundle,
        signer: LogSigner,
        stored: Option<&Head>,
        now: UnixMillis,
    ) -> Result<Self, LogError> {
        let LogSigner { key, manifest } = signer;
        let named = manifest.as_ref().map(|text| Digest::of(text.as_bytes()));
        if trust.log_manifest != named {
            return Err(LogError::Manifest);
        }
        if !trust.head_keys.contains(key.public()) {
            return Err(LogError::Key(key.public().clone()));
        }
        let origin = audit_core::log::origin(trust.domain.as_str());
        let keys = trust.raw_head_keys();
        let read = |path: PathBuf| match read_file(&path) {
            Ok(None) => Ok(None),
            Ok(Some(note)) => match Head::open(&note, &origin, &keys) {
                Ok(head) => Ok(Some((head, note))),
                Err(error) => Err(LogError::Head { path, error }),
            },
            Err(source) => Err(LogError::Read { path, source }),
        };
        let checkpoint = read(folder.join(CHECKPOINT))?;
        let kept = match newest_kept(folder)? {
            Some(path) => read(path)?,
            None => None,
        };
        let covered = checkpoint.as_ref().map_or(0, |(head, _)| head.size);
        let newer = kept.filter(|(head, _)| head.size > covered);
        let published = newer.as_ref().or(checkpoint.as_ref());
        let published = published.map(|(head, _)| head.clone());
        let contradicted = |error| LogError::Contradicted {
            folder: folder.to_owned(),
            error,
        };
        let mut writer = Writer::new(origin, published).map_err(contradicted)?;
        if let Some(stored) = stored {
            writer.bind(stored).map_err(contradicted)?;
        }
        let mut log = Self {
            files: LogFiles {
                folder: folder.to_owned(),
            },
            key,
            writer,
            missing: Vec::new(),
            unpublished: newer.map(|(_, note)| note),
        };
        let first = manifest.as_deref().map(chain::manifest_leaf);
        log.take(first, now)?;
        Ok(log)
    }

    /// Appends an entry, if there is one: of a kept record, if that is an event.
    pub(crate) fn take(&mut self, entry: Option<Vec<u8>>, now: UnixMillis) -> Result<(), LogError> {
        let Some(entry) = entry else {
            return Ok(());
        };
        let pushed = self.writer.push(&entry, now.get());
        pushed.map_err(|error| self.contradicted(error))?;
        let mut recalled = self.writer.take_recalled();
        recalled.retain(|write| !self.files.folder.join(&write.path).exists());
        self.missing.append(&mut recalled);
        // Full tiles and bundles are written at once, so that they need no memory.
        let full = self.writer.take_full();
        full.iter().try_for_each(|write| self.files.write(write))
    }

    /// Says that all events have been given that were kept before. Files under the newest head that
    /// are gone are written again: the events lead to them.
    pub(crate) fn begun(&mut self) -> Result<(), LogError> {
        self.writer
            .begun()
            .map_err(|error| self.contradicted(error))?;
        for write in std::mem::take(&mut self.missing) {
            tracing::warn!(file = %write.path, "a file of the log was gone; written again");
            self.files.write(&write)?;
        }
        match self.unpublished.take() {
            Some(bytes) => self.files.write(&Write {
                path: CHECKPOINT.to_owned(),
                bytes,
            }),
            None => Ok(()),
        }
    }

    /// The entries so far.
    pub(crate) const fn size(&self) -> u64 {
        self.writer.size()
    }

    /// The size of the head in the store, while events up to it are missing here.
    pub(crate) fn missing_up_to(&self) -> Option<u64> {
        self.writer.missing_up_to()
    }

    /// True if it is time for a head.
    pub(crate) fn is_due(&self, now: UnixMillis) -> bool {
        self.writer.is_due(now.get())
    }

    /// Everything that publishes a head over all events; none if no event is new. It is written
    /// beside the service's other work, which goes on meanwhile; then [`Log::published`] is called.
    pub(crate) fn publication(&mut self) -> Option<Publication> {
        let key = &self.key;
        let batch = self.writer.batch(|head| key.sign_head(head))?;
        let files = self.files.clone();
        Some(Publication { files, batch })
    }

    /// Says that a head was published.
    pub(crate) fn published(&mut self, head: &Head) {
        self.writer.published(head);
    }

    fn contradicted(&self, error: WriterError) -> LogError {
        LogError::Contradicted {
            folder: self.files.folder.clone(),
            error,
        }
    }
}

impl Publication {
    /// Writes everything, each file on the disk before the next.
    ///
    /// # Errors
    /// A file cannot be written, or has other bytes than it should.
    pub fn write(self) -> Result<Head, LogError> {
        let Batch {
            head,
            writes,
            removals,
        } = self.batch;
        let files = self.files;
        writes.iter().try_for_each(|write| files.write(write))?;
        for path in removals {
            // A file that stays does no harm.
            let _left = fs::remove_file(files.folder.join(path));
        }
        Ok(head)
    }
}

impl LogFiles {
    fn write(&self, write: &Write) -> Result<(), LogError> {
        let path = self.folder.join(&write.path);
        let read = |source| LogError::Read {
            path: path.clone(),
            source,
        };
        if !write.replaces() {
            match read_file(&path).map_err(read)? {
                // An earlier process may have died before the name of the file was on the disk.
                Some(bytes) if bytes == write.bytes => return sync(&path).map_err(read),
                Some(_) => return Err(LogError::Changed(path)),
                None => {}
            }
        }
        self.make_folders(&write.path)?;
        Ok(replace_private(&path, &write.bytes)?)
    }

    /// Makes the folders of a file, each on the disk before the next. The log's own folder lies in
    /// one that is there: if that was moved away, nothing is written in its old place.
    fn make_folders(&self, file: &str) -> Result<(), LogError> {
        let mut folder = self.folder.clone();
        let parts = file.split('/').rev().skip(1).collect::<Vec<_>>();
        for part in std::iter::once("").chain(parts.into_iter().rev()) {
            folder.push(part);
            if !folder.is_dir() {
                create_private_subfolder(&folder)?;
                sync(&folder).map_err(|source| LogError::Read {
                    path: folder.clone(),
                    source,
                })?;
            }
        }
        Ok(())
    }
}

/// The size of the newest signed head in a folder: the checkpoint, or one that is kept beside it.
pub(crate) fn signed_size(folder: &Path, trust: &TrustBundle) -> Result<Option<u64>, LogError> {
    let origin = audit_core::log::origin(trust.domain.as_str());
    let keys = trust.raw_head_keys();
    let files = [Some(folder.join(CHECKPOINT)), newest_kept(folder)?];
    let mut newest = None;
    for path in files.into_iter().flatten() {
        let size = match read_file(&path) {
            Ok(None) => None,
            Ok(Some(note)) => match Head::open(&note, &origin, &keys) {
                Ok(head) => Some(head.size),
                Err(error) => return Err(LogError::Head { path, error }),
            },
            Err(source) => return Err(LogError::Read { path, source }),
        };
        newest = newest.max(size);
    }
    Ok(newest)
}

/// The file of the newest head that is kept for good.
fn newest_kept(folder: &Path) -> Result<Option<PathBuf>, LogError> {
    let newest = heads_of(folder)?.into_iter().max();
    Ok(newest.map(|size| folder.join(layout::head(size))))
}

/// The sizes of the heads that are kept for good, in no order.
pub(crate) fn heads_of(folder: &Path) -> Result<Vec<u64>, LogError> {
    let heads = folder.join(HEADS);
    let failed = |source| LogError::Read {
        path: heads.clone(),
        source,
    };
    let entries = match fs::read_dir(&heads) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut sizes = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        let size = name.to_str().and_then(|name| name.parse::<u64>().ok());
        sizes.extend(size);
    }
    Ok(sizes)
}

/// Makes sure that a file or folder, and its name, are on the disk.
fn sync(path: &Path) -> io::Result<()> {
    fs::File::open(path)?.sync_all()?;
    let folder = path.parent().expect("it lies in the log's folder");
    fs::File::open(folder)?.sync_all()
}

/// The entry of a record; none if it does not prove its own author.
pub(crate) fn entry(examiner: &Examiner, record: &Record, examined: &Examined) -> Option<Vec<u8>> {
    let event = event_of(examiner, record, examined)?;
    chain::leaf(&event)
}

/// The event in a record, if the record is an entry of the log.
pub fn event_of(examiner: &Examiner, record: &Record, examined: &Examined) -> Option<SignedEvent> {
    let Payload::Whole(payload) = &record.payload else {
        return None;
    };
    examiner
        .is_entry(record, examined)
        .then(|| SignedEvent::decode(payload).ok())?
}
