//! The log in the store: a copy of the folder's, in the bucket `log`.
//!
//! The folder comes first. A head is signed when its files are there, and is copied afterwards, so
//! that a store that is away holds nothing up. But every head that was signed binds, wherever it is
//! kept: before this process signs anything, the store has said which head it has, and the events
//! must lead to that one too. So a service whose folder was lost, or put back to an older copy,
//! signs no second history: it waits until the events up to the store's head have come again from
//! the stream.
//!
//! Cosigned heads are copied after the heads that they are of. They follow from nothing and bind
//! nobody here: one that is not copied holds nothing up.
//!
//! Files are copied in the order in which they were written, the checkpoint last. What was copied
//! before a crash is copied again, and must be the same. The checkpoint is replaced on the
//! condition that it is the one that this service knows: of two services that write one log, one
//! ends.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use identity::secret::replace_private;
use identity::store_keys::StoreKeysError;
use identity::{ClientFile, TrustBundle};
use metrics::gauge;
use objects::{Endpoint, LogBucket, ObjectError, Replaced, Tagged, TransferLimits, Trust};
use runtime::Failure;
use runtime::metrics::{AUDIT_LOG_BEHIND, AUDIT_LOG_EVENTS};
use schemas::Code;
use tlog::layout::{self, CHECKPOINT};
use tlog::{Head, HeadError};

use crate::config::Config;
use crate::log::{LogError, heads_of, read_file};
use crate::recorder::LOG_FOLDER;

/// Time for which an operation at the store is tried again before the copy counts as behind.
const PATIENCE: Duration = Duration::from_secs(3);
/// Most cosigned heads that are copied at one look; the others have their turn at the next.
const COSIGNED_AT_ONCE: usize = 256;
/// Time of one look at cosigned heads, beside the copy that is under way at its end.
const COSIGNED_FOR: Duration = Duration::from_secs(2);
/// The file of the newest head that was seen in the store, beside the folder of the log.
const COPIED: &str = "log.copied";

/// The bucket, and what the head there is checked against.
#[derive(Debug)]
pub struct Mirror {
    bucket: LogBucket,
    /// The folder of the log.
    folder: PathBuf,
    origin: String,
    keys: Vec<[u8; 32]>,
}

/// The newest head in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The head.
    pub head: Head,
    /// Its signed text, with the tag of this version.
    checkpoint: Tagged,
}

/// The cosigned heads that this process has copied.
#[derive(Debug)]
pub struct Copies {
    known: BTreeMap<String, Bytes>,
    /// The name of the last one: the next look begins behind it, so that each has its turn.
    last: String,
    /// The time of one look.
    within: Duration,
}

impl Default for Copies {
    fn default() -> Self {
        Self::within(COSIGNED_FOR)
    }
}

impl Copies {
    /// None yet. A look begins with no further copy once it has lasted for so long.
    pub const fn within(within: Duration) -> Self {
        Self {
            known: BTreeMap::new(),
            last: String::new(),
            within,
        }
    }
}

/// Reasons why the log was not copied.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// The store did not answer, or refused.
    #[error(transparent)]
    Store(#[from] ObjectError),
    /// A file of the folder cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The folder's log cannot be used.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The checkpoint in the store is not signed by this domain.
    #[error("checkpoint of the log in the store: {0}")]
    Head(#[from] HeadError),
    /// A file in the store that may not change has other bytes.
    #[error("{0} of the log in the store has other bytes than it was written with")]
    Altered(String),
    /// The store has an older head than this service has copied there, or none.
    #[error(
        "the log in the store has a head over {found} events, and this service has copied one over {copied} there; {} says so", note.display()
    )]
    WentBack {
        /// The events under the head that is there; 0 without one.
        found: u64,
        /// The events under the newest head that was there.
        copied: u64,
        /// The file with that head.
        note: PathBuf,
    },
    /// Another service has written the checkpoint.
    #[error(
        "the log in the store has a head over {found} events that this service has not written; it knows one over {known}"
    )]
    Taken {
        /// The events under the head that is there.
        found: u64,
        /// The events under the head that this service knows.
        known: u64,
    },
}

impl MirrorError {
    /// The code of the page that says what to do.
    pub const fn code(&self) -> Code {
        match self {
            Self::Store(_) => Code::LogStoreBehind,
            Self::Read { .. } => Code::AuditFolderInvalid,
            Self::Log(error) => error.code(),
            Self::Head(_) | Self::Altered(_) | Self::WentBack { .. } => Code::LogStoreAltered,
            Self::Taken { .. } => Code::LogTaken,
        }
    }
}

schemas::coded!(MirrorError);

/// The bucket of the log at the store that the configuration names; none if it names none.
///
/// # Errors
/// The key or the authority cannot be read, or the address is none.
pub(crate) fn bucket(config: &Config) -> Result<Option<LogBucket>, Failure> {
    let store = &config.store;
    if store.url.is_empty() {
        return Ok(None);
    }
    if !store.keys.exists() {
        // Without the store's head, heads would be signed that nothing elsewhere binds.
        let text = format!(
            "store.keys: {} is not there; copy `store/log.json` of the domain's folder, which `diloctl up` or `diloctl auth \
                 issue auditor NAME` makes, or unset store.url",
            store.keys.display()
        );
        return Err(Failure::new(Code::CredentialMissing, text));
    }
    let failed = |error: StoreKeysError| Failure::new(error.code(), format!("store.keys: {error}"));
    let key = identity::AccessKey::read_log(&store.keys).map_err(failed)?;
    let authority = match store.url.starts_with("https://") {
        true => {
            let unreadable = |error| {
                let text = format!("store.ca: {}: {error}", store.ca.display());
                Failure::new(Code::CredentialUnreadable, text)
            };
            std::fs::read(&store.ca).map_err(unreadable)?;
            let shown = ClientFile::beside(&config.recorder.credentials);
            Trust::Shown(store.ca.clone(), shown)
        }
        false => Trust::PlainLoopback,
    };
    let endpoint = Endpoint::new(&store.url, &store.region, authority)
        .map_err(|error| Failure::new(Code::ConfigInvalid, format!("store: {error}")))?;
    Ok(Some(LogBucket::new(
        &endpoint,
        &key,
        TransferLimits::default(),
        PATIENCE,
    )?))
}

/// Asks the store that the configuration names for the log without a signature, which it must
/// refuse.
///
/// # Errors
/// [`Code::StrangerServed`]: the store serves strangers. What else is wrong with it shows where it
/// is used.
pub(crate) async fn refuse_strangers(config: &Config) -> Result<(), Failure> {
    match bucket(config) {
        Ok(Some(bucket)) => Ok(bucket.refuse_strangers(CHECKPOINT).await?),
        Ok(None) | Err(_) => Ok(()),
    }
}

impl Mirror {
    /// Access to the store that the configuration names; none if it names none.
    ///
    /// # Errors
    /// The key or the authority cannot be read, or the address is none.
    pub fn open(config: &Config, trust: &TrustBundle) -> Result<Option<Self>, Failure> {
        let Some(bucket) = bucket(config)? else {
            tracing::info!("store.url is not set, so the log is in the service's folder only");
            return Ok(None);
        };
        Ok(Some(Self::new(
            bucket,
            config.audit.folder.join(LOG_FOLDER),
            trust,
        )))
    }

    /// A copy of the log in `folder`.
    pub fn new(bucket: LogBucket, folder: PathBuf, trust: &TrustBundle) -> Self {
        Self {
            bucket,
            folder,
            origin: audit_core::log::origin(trust.domain.as_str()),
            keys: trust.raw_head_keys(),
        }
    }

    /// The newest head in the store; none if it has no log.
    ///
    /// # Errors
    /// The store does not answer, or the head is not this domain's, or an older one than this
    /// service has copied there, in this process or an earlier one.
    pub async fn stored(&self) -> Result<Option<Stored>, MirrorError> {
        let checkpoint = self.bucket.get(CHECKPOINT).await?;
        let stored = match checkpoint {
            None => None,
            Some(checkpoint) => {
                let head = Head::open(&checkpoint.bytes, &self.origin, &self.keys)?;
                Some(Stored { head, checkpoint })
            }
        };
        self.compare(stored.as_ref().map(|stored| &stored.head))
            .await?;
        Ok(stored)
    }

    /// Compares the head in the store with the newest one that was there.
    async fn compare(&self, found: Option<&Head>) -> Result<(), MirrorError> {
        let Some(copied) = self.copied().await? else {
            return Ok(());
        };
        match found {
            Some(found) if found.size > copied.size => Ok(()),
            Some(found) if found.size == copied.size => match found.root == copied.root {
                true => Ok(()),
                false => Err(MirrorError::Altered(CHECKPOINT.to_owned())),
            },
            older => Err(MirrorError::WentBack {
                found: older.map_or(0, |head| head.size),
                copied: copied.size,
                note: self.copied_note(),
            }),
        }
    }

    /// The newest head that was seen in the store, as this folder remembers it.
    async fn copied(&self) -> Result<Option<Head>, MirrorError> {
        let path = self.copied_note();
        let Some(note) = read(path.clone()).await? else {
            return Ok(None);
        };
        match Head::open(&note, &self.origin, &self.keys) {
            Ok(head) => Ok(Some(head)),
            Err(error) => {
                let source = io::Error::other(error);
                Err(MirrorError::Read { path, source })
            }
        }
    }

    /// Keeps the head that the store has, so that this service notices after a start if it went
    /// back.
    async fn remember(&self, note: Bytes) -> Result<(), MirrorError> {
        let path = self.copied_note();
        if read(path.clone()).await?.as_ref() == Some(&note) {
            return Ok(());
        }
        let write = move || replace_private(&path, &note);
        let written = tokio::task::spawn_blocking(write).await;
        let failed = |error| MirrorError::Read {
            path: self.copied_note(),
            source: io::Error::other(error),
        };
        Ok(written.map_err(failed)?.map_err(LogError::Write)?)
    }

    fn copied_note(&self) -> PathBuf {
        self.folder.with_file_name(COPIED)
    }

    /// Copies everything up to the folder's newest head, and returns what the store then has.
    /// `known` is what it had.
    ///
    /// # Errors
    /// Something was not copied. What was copied stays, and is copied again.
    pub async fn copy(&self, known: Option<&Stored>) -> Result<Option<Stored>, MirrorError> {
        let Some(note) = self.file(CHECKPOINT).await? else {
            return Ok(known.cloned());
        };
        let newest = Head::open(&note, &self.origin, &self.keys)?;
        let from = known.map_or(0, |stored| stored.head.size);
        gauge!(AUDIT_LOG_EVENTS).set(newest.size as f64);
        gauge!(AUDIT_LOG_BEHIND).set(newest.size.saturating_sub(from) as f64);
        if newest.size <= from {
            if known.is_some_and(|stored| stored.checkpoint.bytes == note) {
                self.remember(note).await?;
            }
            return Ok(known.cloned());
        }
        let mut heads = heads_of(&self.folder)?;
        heads.retain(|size| (from + 1..=newest.size).contains(size));
        heads.sort_unstable();
        let mut copied = from;
        for size in heads {
            for name in layout::between(copied, size) {
                self.create(&name).await?;
            }
            self.create(&layout::head(size)).await?;
            copied = size;
        }
        let checkpoint = self.publish(&newest, note.clone(), known).await?;
        gauge!(AUDIT_LOG_BEHIND).set(0.0);
        self.remember(note).await?;
        // The head is there, whatever stays beside it.
        if let Err(error) = self.clean(from, newest.size).await {
            tracing::debug!(%error, "partial files of the log stay in the store");
        }
        Ok(Some(Stored {
            head: newest,
            checkpoint,
        }))
    }

    /// Writes one file, which may be there already.
    async fn create(&self, name: &str) -> Result<(), MirrorError> {
        let Some(bytes) = self.file(name).await? else {
            return match layout::Lasting::of(name) {
                // The full one is there by now.
                Some(layout::Lasting::Partial) => Ok(()),
                _ => Err(MirrorError::Read {
                    path: self.folder.join(name),
                    source: io::ErrorKind::NotFound.into(),
                }),
            };
        };
        if self.bucket.create(name, &bytes).await? == Replaced::Yes {
            return Ok(());
        }
        match self.bucket.get(name).await? {
            Some(found) if found.bytes == bytes => Ok(()),
            Some(_) => Err(MirrorError::Altered(name.to_owned())),
            None => Err(undecided(name)),
        }
    }

    /// Replaces the checkpoint that this service knows, and reads it back: the answer to an earlier
    /// try may have been lost, so what counts is what is there.
    async fn publish(
        &self,
        head: &Head,
        note: Bytes,
        known: Option<&Stored>,
    ) -> Result<Tagged, MirrorError> {
        // A store that ignores conditions overwrites what another service has written, so it is
        // compared here too.
        let before = self.bucket.get(CHECKPOINT).await?;
        self.judge(before.as_ref(), known).await?;
        match &before {
            None => self.bucket.create(CHECKPOINT, &note).await?,
            Some(before) if before.bytes == note => Replaced::Yes,
            Some(before) => self.bucket.replace(CHECKPOINT, &note, &before.tag).await?,
        };
        match self.bucket.get(CHECKPOINT).await? {
            Some(found) if found.bytes == note => Ok(found),
            Some(found) if before.is_none_or(|before| before.bytes != found.bytes) => {
                Err(MirrorError::Taken {
                    found: Head::open(&found.bytes, &self.origin, &self.keys)?.size,
                    known: head.size,
                })
            }
            // Neither the old one replaced, nor a new one there.
            Some(_) | None => Err(undecided(CHECKPOINT)),
        }
    }

    /// Says if the checkpoint in the store is one of this service's own, and not an older one than
    /// it had there.
    async fn judge(
        &self,
        found: Option<&Tagged>,
        known: Option<&Stored>,
    ) -> Result<(), MirrorError> {
        let altered = || Err(MirrorError::Altered(CHECKPOINT.to_owned()));
        let (found, known_size) = match (found, known) {
            (None, None) => return self.compare(None).await,
            (None, Some(_)) => return altered(),
            (Some(found), Some(known)) if found.bytes == known.checkpoint.bytes => return Ok(()),
            (Some(found), known) => (found, known.map_or(0, |stored| stored.head.size)),
        };
        let head = Head::open(&found.bytes, &self.origin, &self.keys)?;
        let own = self.file(&layout::head(head.size)).await?;
        match own.is_some_and(|own| own == found.bytes) {
            true if head.size >= known_size => Ok(()),
            true => altered(),
            false => Err(MirrorError::Taken {
                found: head.size,
                known: known_size,
            }),
        }
    }

    /// Deletes the partial files that became full between two sizes. It does no harm if some stay.
    async fn clean(&self, from: u64, to: u64) -> Result<(), MirrorError> {
        let width = layout::TILE_WIDTH as u64;
        if from / width == to / width {
            return Ok(());
        }
        let mut heads = heads_of(&self.folder)?;
        heads.retain(|size| *size < to);
        let partial = heads.into_iter().flat_map(layout::partial_files);
        let full = partial.filter(|(_, full_at)| (from + 1..=to).contains(full_at));
        let names: std::collections::BTreeSet<String> = full.map(|(name, _)| name).collect();
        for name in names {
            self.bucket.delete(&name).await?;
        }
        Ok(())
    }

    /// Copies the cosigned heads that `copies` does not have in this form: those that the store's
    /// log, whose head is over `size` events, leads to. The log itself waits meanwhile, so this
    /// takes no more than a moment at a time; one that is not copied has its turn again after all
    /// others.
    ///
    /// # Errors
    /// One was not copied: the first fault.
    pub async fn copy_cosigned(&self, size: u64, copies: &mut Copies) -> Result<(), MirrorError> {
        let folder = self.folder.clone();
        let listed = tokio::task::spawn_blocking(move || cosigned_of(&folder)).await;
        let names = listed.unwrap_or_else(|error| Err(io::Error::other(error)));
        let mut names = names.map_err(|source| MirrorError::Read {
            path: self.folder.join(layout::COSIGNED),
            source,
        })?;
        copies
            .known
            .retain(|name, _| names.binary_search(name).is_ok());
        let next = names.partition_point(|name| *name <= copies.last);
        names.rotate_left(next);
        let (mut left, until) = (COSIGNED_AT_ONCE, Instant::now() + copies.within);
        let mut first = Ok(());
        for name in names {
            let Some(note) = self.file(&name).await? else {
                continue;
            };
            if copies.known.get(&name) == Some(&note) {
                continue;
            }
            // A reader takes a cosigned head that the log does not cover for evidence.
            let head = Head::open(&note, &self.origin, &self.keys);
            if head.is_ok_and(|head| head.size <= size) {
                copies.last.clone_from(&name);
                match self.bucket.overwrite(&name, &note).await {
                    Ok(()) => _ = copies.known.insert(name, note),
                    Err(error) => first = first.and(Err(error)),
                }
                left -= 1;
            }
            if left == 0 || Instant::now() >= until {
                break;
            }
        }
        Ok(first?)
    }

    async fn file(&self, name: &str) -> Result<Option<Bytes>, MirrorError> {
        read(self.folder.join(name)).await
    }
}

/// The names of the cosigned heads in the folder of a log, in order.
fn cosigned_of(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(folder.join(layout::COSIGNED)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let name = name.to_str().map(layout::cosigned);
        names.extend(name.filter(|name| layout::Lasting::of(name).is_some()));
    }
    names.sort_unstable();
    Ok(names)
}

async fn read(path: PathBuf) -> Result<Option<Bytes>, MirrorError> {
    let reading = path.clone();
    let read = tokio::task::spawn_blocking(move || read_file(&reading)).await;
    let read = read.unwrap_or_else(|error| Err(io::Error::other(error)));
    match read {
        Ok(bytes) => Ok(bytes.map(Bytes::from)),
        Err(source) => Err(MirrorError::Read { path, source }),
    }
}

/// A store whose answers contradict each other: no evidence about the log, and asked again.
fn undecided(name: &str) -> MirrorError {
    MirrorError::Store(ObjectError::Unreachable {
        during: format!("writing {name} of the log"),
        reason: "the store refuses to write the file, and does not have what it was to write"
            .to_owned(),
    })
}
