//! The writer of a log: entries come in, files go out, in an order in which the process may die
//! anywhere.
//!
//! The entries are durable elsewhere before they come here, in the order in which they come. So a
//! writer begins with nothing but the published head, is given all entries again, and must arrive
//! at the same root. What it writes follows from the entries alone: a file that was written before
//! the process died is written again with the same bytes, and a head of a size has one root.

use std::collections::BTreeMap;

use crate::edge::{Edge, Filled};
use crate::layout::{self, Bundle, CHECKPOINT, ENTRY_BYTES_MAX, TILE_WIDTH, Tile};
use crate::{Hash, Head};

/// Most entries that wait for a head: as many as a full tile has.
pub const EVENTS_MAX: u64 = 256;
/// Longest wait of an entry for a head, in milliseconds. It bounds what can be lost unnoticed.
pub const HEAD_EVERY_MILLIS: u64 = 10_000;

/// A file to be written so that it survives a power failure, in one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Its place in the log's folder.
    pub path: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl Write {
    /// True if another file may be replaced by this one. All others are written once: if one is
    /// there already it must have the same bytes.
    pub fn replaces(&self) -> bool {
        self.path == CHECKPOINT
    }
}

/// Everything that publishes a head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The head.
    pub head: Head,
    /// The files, to be written in this order, each before the next.
    pub writes: Vec<Write>,
    /// Files that nobody needs once all were written. It does no harm if some are left.
    pub removals: Vec<String>,
}

/// The reason why the entries are not those of the published head.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriterError {
    /// The first entries lead to another root.
    #[error("the first {size} events lead to another root than the published head of this size")]
    Contradicted {
        /// The size of the published head.
        size: u64,
    },
    /// Entries are missing.
    #[error("the published head covers {size} events, and only {found} are kept")]
    Behind {
        /// The size of the published head.
        size: u64,
        /// The entries.
        found: u64,
    },
    /// The published head names another log.
    #[error("the published head is of another log, or cannot be read")]
    Foreign,
    /// An entry is longer than a bundle can hold.
    #[error("an event of {0} bytes does not fit into a bundle")]
    TooLong(usize),
}

/// A log that grows.
#[derive(Clone, Debug)]
pub struct Writer {
    origin: String,
    edge: Edge,
    /// The bytes of the bundle that is not full.
    bundle: Vec<u8>,
    /// Full tiles and bundles that were not given out yet.
    full: Vec<Write>,
    /// Files under the published head that entries have led to again, and that were not given out.
    recalled: Vec<Write>,
    published: Option<(u64, Hash)>,
    /// Heads that were signed for this log and are kept elsewhere: entries must lead to each, and
    /// no smaller head is signed.
    bound: BTreeMap<u64, Hash>,
    /// Partial tiles and bundles that may still be there, and the size at which each is full.
    partial: BTreeMap<String, u64>,
    /// The contradiction that was found. Nothing is signed after it: no later entry mends it.
    contradicted: Option<WriterError>,
    /// The time at which the oldest entry came that no head covers, published or about to be.
    waiting_since: Option<u64>,
}

impl Writer {
    /// A writer of the log `origin`, whose newest published head is this one. It has to be given
    /// all entries, from the first on.
    ///
    /// # Errors
    /// The head is one of another log.
    pub fn new(origin: String, published: Option<Head>) -> Result<Self, WriterError> {
        if published.as_ref().is_some_and(|head| head.origin != origin) {
            return Err(WriterError::Foreign);
        }
        Ok(Self {
            origin,
            edge: Edge::default(),
            bundle: Vec::new(),
            full: Vec::new(),
            recalled: Vec::new(),
            // A process before this one may have left one of each width.
            partial: published
                .iter()
                .flat_map(|head| (1..TILE_WIDTH).flat_map(|width| partial(head.size, Some(width))))
                .collect(),
            published: published.map(|head| (head.size, head.root)),
            bound: BTreeMap::new(),
            contradicted: None,
            waiting_since: None,
        })
    }

    /// Binds this log to a signed head that is kept elsewhere, before entries are given. It may be
    /// older or newer than the published one.
    ///
    /// # Errors
    /// It is a head of another log, or another one of the published size.
    pub fn bind(&mut self, head: &Head) -> Result<(), WriterError> {
        if head.origin != self.origin {
            return Err(WriterError::Foreign);
        }
        let Head { size, root, .. } = *head;
        let other = |(at, published)| at == size && published != root;
        if self.published.is_some_and(other) {
            return Err(self.contradict(size));
        }
        self.bound.insert(size, root);
        Ok(())
    }

    /// The size of the newest head that this log is bound to, while entries up to it are missing.
    pub fn missing_up_to(&self) -> Option<u64> {
        let newest = self.bound.last_key_value().map(|(size, _)| *size);
        newest.filter(|size| *size > self.size())
    }

    /// Appends an entry.
    ///
    /// # Errors
    /// A signed head says that there are other entries up to here, or up to an earlier one; or it
    /// is too long.
    pub fn push(&mut self, entry: &[u8], now_millis: u64) -> Result<(), WriterError> {
        if let Some(contradicted) = &self.contradicted {
            return Err(contradicted.clone());
        }
        if entry.len() > ENTRY_BYTES_MAX {
            return Err(WriterError::TooLong(entry.len()));
        }
        layout::add_entry(&mut self.bundle, entry);
        let filled = self.edge.push(entry);
        let size = self.edge.size();
        let mut full: Vec<Write> = filled.into_iter().map(Write::from).collect();
        if size.is_multiple_of(TILE_WIDTH as u64) {
            let bundle = Bundle {
                index: size / TILE_WIDTH as u64 - 1,
                width: TILE_WIDTH,
            };
            let bytes = std::mem::take(&mut self.bundle);
            let path = bundle.path();
            full.insert(0, Write { path, bytes });
        }
        if let Some(root) = self.bound.get(&size)
            && self.edge.root() != *root
        {
            return Err(self.contradict(size));
        }
        match self.published {
            // They were on the disk before the head was signed.
            Some((published, _)) if size < published => {
                self.recalled.append(&mut full);
                return Ok(());
            }
            Some((published, root)) if size == published => {
                if self.edge.root() != root {
                    return Err(self.contradict(size));
                }
                full.extend(self.partial_files());
                self.recalled.append(&mut full);
                return Ok(());
            }
            _ => {}
        }
        self.full.append(&mut full);
        self.waiting_since.get_or_insert(now_millis);
        Ok(())
    }

    fn contradict(&mut self, size: u64) -> WriterError {
        let error = WriterError::Contradicted { size };
        self.contradicted = Some(error.clone());
        error
    }

    /// Says that all entries have come that were kept before this process began.
    ///
    /// # Errors
    /// The published head covers more, or a signed head is contradicted.
    pub fn begun(&self) -> Result<(), WriterError> {
        if let Some(contradicted) = &self.contradicted {
            return Err(contradicted.clone());
        }
        let found = self.edge.size();
        match self.published {
            Some((size, _)) if size > found => Err(WriterError::Behind { size, found }),
            _ => Ok(()),
        }
    }

    /// The entries so far.
    pub const fn size(&self) -> u64 {
        self.edge.size()
    }

    /// The entries that no published head covers; none before all came that some signed head
    /// covers, and none after a contradiction.
    pub fn waiting(&self) -> u64 {
        if self.contradicted.is_some() || self.missing_up_to().is_some() {
            return 0;
        }
        let covered = self.published.map_or(0, |(size, _)| size);
        self.size().saturating_sub(covered)
    }

    /// True if it is time for a head.
    pub fn is_due(&self, now_millis: u64) -> bool {
        let waited = |since| now_millis.saturating_sub(since) >= HEAD_EVERY_MILLIS;
        let waiting = self.waiting();
        waiting >= EVENTS_MAX || (waiting > 0 && self.waiting_since.is_some_and(waited))
    }

    /// Full tiles and bundles, which never change again. They may be written long before the next
    /// head, so that they need no memory.
    pub fn take_full(&mut self) -> Vec<Write> {
        std::mem::take(&mut self.full)
    }

    /// Tiles and bundles under the published head, as the entries lead to them. If one is not there
    /// any more it can be written again, but only after [`Writer::begun`]: until then nothing says
    /// that the entries are those of the head.
    pub fn take_recalled(&mut self) -> Vec<Write> {
        std::mem::take(&mut self.recalled)
    }

    /// The tiles and the bundle that are not full.
    fn partial_files(&self) -> Vec<Write> {
        let bundle = Bundle::partial(self.size()).map(|bundle| Write {
            path: bundle.path(),
            bytes: self.bundle.clone(),
        });
        let tiles = self.edge.partial().into_iter().map(Write::from);
        bundle.into_iter().chain(tiles).collect()
    }

    /// Everything that publishes a head over all entries; none if no entry waits. `sign` makes the
    /// signed text of a head. When all files were written, call [`Writer::published`]; entries may
    /// come before that.
    pub fn batch(&mut self, sign: impl FnOnce(&Head) -> String) -> Option<Batch> {
        if self.waiting() == 0 {
            return None;
        }
        let size = self.size();
        let head = Head {
            origin: self.origin.clone(),
            size,
            root: self.edge.root(),
        };
        let mut writes = self.take_full();
        writes.extend(self.partial_files());
        let note = sign(&head).into_bytes();
        writes.push(Write {
            path: layout::head(size),
            bytes: note.clone(),
        });
        writes.push(Write {
            path: CHECKPOINT.to_owned(),
            bytes: note,
        });
        let removals = self.unneeded(size);
        self.waiting_since = None;
        Some(Batch {
            head,
            writes,
            removals,
        })
    }

    /// Says that all files of the head were written.
    pub fn published(&mut self, head: &Head) {
        self.bound.retain(|size, _| *size > head.size);
        self.published = Some((head.size, head.root));
        self.partial.retain(|_, full_at| *full_at > head.size);
        self.partial.extend(partial(head.size, None));
    }

    /// Partial tiles and bundles that are full under the head of `size`. Until then they stay: a
    /// reader of an older head finds them or the full ones.
    fn unneeded(&self, size: u64) -> Vec<String> {
        let partial = self.partial.iter();
        let unneeded = partial.filter(|(_, full_at)| **full_at <= size);
        unneeded.map(|(path, _)| path.clone()).collect()
    }
}

impl From<Filled> for Write {
    fn from(Filled { tile, bytes }: Filled) -> Self {
        let path = tile.path();
        Self { path, bytes }
    }
}

/// The files of the partial tiles and of the bundle of a log of `size` entries, as they are or as
/// they would be with another width, with the size at which each is full.
fn partial(size: u64, width: Option<usize>) -> Vec<(String, u64)> {
    let tiles = Tile::partial(size).into_iter().map(|tile| {
        let width = width.unwrap_or(tile.width);
        let full_at = (tile.index + 1).saturating_mul(entries_under(tile.level));
        (Tile { width, ..tile }.path(), full_at)
    });
    let bundle = Bundle::partial(size).map(|bundle| {
        let width = width.unwrap_or(bundle.width);
        let full_at = (bundle.index + 1).saturating_mul(entries_under(0));
        (Bundle { width, ..bundle }.path(), full_at)
    });
    tiles.chain(bundle).collect()
}

/// The entries under a full tile of a level.
fn entries_under(level: usize) -> u64 {
    u32::try_from(8 * (level + 1))
        .ok()
        .and_then(|bits| 1u64.checked_shl(bits))
        .unwrap_or(u64::MAX)
}
