//! A log: its head, its entries, its tiles, and the head that was pinned.

use std::collections::{BTreeMap, BTreeSet};

use schemas::event::{Event, EventBody, LedgerEvent};
use schemas::log_manifest::origin;
use schemas::{AccountId, ChainSequence, Digest, Message as _, PublicKey, RunId, WorkerId};
use tlog::layout::{Bundle, CHECKPOINT, TILE_WIDTH, Tile, entries_of, first_entries};
use tlog::{Hash, Head};

use super::course::Course;
use super::fault::LogFault;
use super::proof::Proof;
use super::rebuild::Rebuilt;
use crate::check::Auditor;

/// Reads a file of a log by its name; none if it is not there. The error is in words.
pub type Read<'a> = dyn Fn(&str) -> Result<Option<Vec<u8>>, String> + 'a;

/// Takes an entry with its index, and says if reading goes on.
pub type Each<'a> = dyn FnMut(u64, &[u8]) -> Result<(), LogFault> + 'a;

/// The public facts against which a log is checked.
#[derive(Clone, Debug)]
pub struct Trusted {
    /// The domain: its id as text.
    pub domain: String,
    /// The tenants' accounts; there is one at least.
    pub tenants: Vec<AccountId>,
    /// The keys that may write the ledger, oldest first.
    pub coordinators: Vec<PublicKey>,
    /// Those of them that have ended, each with its last event.
    pub ended: BTreeMap<PublicKey, ChainSequence>,
    /// The keys that may sign security events.
    pub sentries: Vec<PublicKey>,
    /// The keys that may sign heads, as raw keys.
    pub heads: Vec<[u8; 32]>,
}

/// Where the workers joined whose keys the ledger names.
pub(super) type Members = BTreeMap<(RunId, PublicKey), (AccountId, WorkerId)>;

/// A log whose head is signed, whose entries lead to the signed root, and whose tiles belong to
/// them. Nothing was said about the events in it.
pub struct Log {
    head: Head,
    note: String,
    tree: Rebuilt,
    /// The digest of each bundle, so that a second reading gets the same bytes.
    bundles: Vec<Digest>,
    members: Members,
    course: Course,
    /// The signed document in the first entry, if that is a log manifest.
    manifest: Option<String>,
}

/// The newest head, with its signed text.
///
/// # Errors
/// There is none, or no trusted key has signed it.
pub fn newest_head(read: &Read<'_>, trusted: &Trusted) -> Result<(Head, String), LogFault> {
    let note = fetch(read, CHECKPOINT)?.ok_or_else(|| LogFault::Missing(CHECKPOINT.to_owned()))?;
    let head = trusted.open(CHECKPOINT, &note)?;
    let note = String::from_utf8(note).expect("a head is text");
    Ok((head, note))
}

impl Trusted {
    /// The auditor that takes events of these keys.
    pub fn auditor(&self) -> Auditor {
        Auditor::new(&self.domain, self.coordinators.iter().cloned())
            .hearing(self.sentries.iter().cloned())
            .ending(self.ended.clone())
    }

    /// Reads a signed head.
    ///
    /// # Errors
    /// No trusted key has signed it; or no key is trusted.
    pub fn open(&self, path: &str, note: &[u8]) -> Result<Head, LogFault> {
        if self.heads.is_empty() {
            return Err(LogFault::NoKey);
        }
        let origin = origin(&self.domain);
        Head::open(note, &origin, &self.heads).map_err(|error| LogFault::Head {
            path: path.to_owned(),
            error,
        })
    }
}

impl Log {
    /// Reads the newest head and everything under it, passes each entry to `each`, and compares all
    /// of it with the head and with the `pinned` one. Entries count only when this has succeeded.
    ///
    /// # Errors
    /// The first contradiction; or something is not there.
    pub fn open(
        read: &Read<'_>,
        trusted: &Trusted,
        pinned: Option<&Head>,
        each: &mut dyn FnMut(u64, &[u8]),
    ) -> Result<Self, LogFault> {
        let (head, note) = newest_head(read, trusted)?;
        if let Some(pinned) = pinned.filter(|pinned| pinned.size > head.size) {
            let (found, pinned) = (head.size, pinned.size);
            return Err(LogFault::RolledBack { found, pinned });
        }
        if head.size == 0 {
            return Err(LogFault::Empty);
        }
        let mut log = Self {
            tree: Rebuilt::of_size(head.size),
            head,
            note,
            bundles: Vec::new(),
            members: Members::new(),
            course: Course::new(trusted),
            manifest: None,
        };
        let mut pinned_root = None;
        let mut other_tile = None;
        let mut missing = None;
        let mut look = |tile: Tile, bytes: &[u8]| match tile_bytes(read, tile) {
            Ok(found) if found == bytes => {}
            Ok(_) => drop(other_tile.get_or_insert_with(|| tile.path())),
            Err(fault) => drop(missing.get_or_insert(fault)),
        };
        for bundle in Bundle::all(log.head.size) {
            let bytes = bundle_bytes(read, bundle)?;
            log.bundles.push(Digest::of(&bytes));
            let entries = entries_of(&bytes, bundle.width).ok_or_else(|| malformed(bundle))?;
            for entry in entries {
                if log.tree.size() == 0 {
                    log.manifest = chain::of_manifest_leaf(entry).map(str::to_owned);
                }
                each(log.tree.size(), entry);
                log.note_member(trusted, log.tree.size(), entry);
                for (tile, bytes) in log.tree.push(entry) {
                    look(tile, &bytes);
                }
                if pinned.is_some_and(|pinned| pinned.size == log.tree.size()) {
                    pinned_root = Some(log.tree.root());
                }
            }
        }
        for (tile, bytes) in log.tree.partial() {
            look(tile, &bytes);
        }
        log.judge(pinned, pinned_root, other_tile)?;
        missing.map_or(Ok(log), Err)
    }

    fn judge(
        &self,
        pinned: Option<&Head>,
        pinned_root: Option<Hash>,
        other_tile: Option<String>,
    ) -> Result<(), LogFault> {
        let size = self.head.size;
        if self.tree.root() != self.head.root {
            let tile = other_tile;
            return Err(LogFault::Root { size, tile });
        }
        let pinned = pinned.filter(|pinned| pinned.size > 0);
        if let Some(Head { size, root, .. }) = pinned
            && pinned_root != Some(*root)
        {
            return Err(LogFault::Forked { size: *size });
        }
        other_tile.map_or(Ok(()), |tile| Err(LogFault::Tile(tile)))
    }

    /// The head.
    pub const fn head(&self) -> &Head {
        &self.head
    }

    /// The head as signed text.
    pub fn note(&self) -> &str {
        &self.note
    }

    /// Reads the entries once more, and passes each to `each`.
    ///
    /// # Errors
    /// A bundle is gone, or is not what it was; or `each` fails.
    pub fn again(&self, read: &Read<'_>, each: &mut Each<'_>) -> Result<(), LogFault> {
        let mut index = 0;
        for (bundle, digest) in Bundle::all(self.head.size).zip(&self.bundles) {
            let bytes = bundle_bytes(read, bundle)?;
            if Digest::of(&bytes) != *digest {
                return Err(LogFault::Changed(bundle.path()));
            }
            for entry in entries_of(&bytes, bundle.width).ok_or_else(|| malformed(bundle))? {
                each(index, entry)?;
                index += 1;
            }
        }
        Ok(())
    }

    /// The proof that `entry` is at `index`, checked; none if it is not.
    pub fn prove(&self, index: u64, entry: &[u8]) -> Option<Proof> {
        let proof = Proof {
            entry: entry.to_vec(),
            index,
            hashes: self.tree.prove(index)?,
            note: self.note.clone(),
        };
        proof.leads_to(&self.head).then_some(proof)
    }

    /// Finds the root that the log had at an earlier size.
    ///
    /// # Errors
    /// As [`Log::again`].
    pub fn root_at(&self, read: &Read<'_>, size: u64) -> Result<Hash, LogFault> {
        let mut tree = Rebuilt::default();
        self.again(read, &mut |index, entry| {
            if index < size {
                tree.push(entry);
            }
            Ok(())
        })?;
        Ok(tree.root())
    }

    /// Finds the first of these heads, by size, that the log does not lead to. Heads over more
    /// events than it has are passed over: they say nothing here.
    ///
    /// # Errors
    /// As [`Log::again`].
    pub fn first_other<'a>(
        &self,
        read: &Read<'_>,
        heads: impl IntoIterator<Item = &'a Head>,
    ) -> Result<Option<&'a Head>, LogFault> {
        let size = self.head.size;
        let heads = heads
            .into_iter()
            .filter(|head| (1..=size).contains(&head.size));
        let mut heads: Vec<&Head> = heads.filter(|head| **head != self.head).collect();
        heads.sort_by_key(|head| head.size);
        if heads.is_empty() {
            return Ok(None);
        }
        let (mut tree, mut other, mut waiting) =
            (Rebuilt::default(), None, heads.into_iter().peekable());
        self.again(read, &mut |_, entry| {
            tree.push(entry);
            while let Some(head) = waiting.next_if(|head| head.size == tree.size()) {
                if other.is_none() && head.root != tree.root() {
                    other = Some(head);
                }
            }
            Ok(())
        })?;
        Ok(other)
    }

    /// Says if the log's head may be pinned where `pinned` is the pinned head now: never a smaller
    /// one in the place of a greater one.
    ///
    /// # Errors
    /// The pinned head is of another history; or as [`Log::again`].
    pub fn may_replace(&self, read: &Read<'_>, pinned: Option<&Head>) -> Result<bool, LogFault> {
        let Some(pinned) = pinned.filter(|pinned| pinned.size > 0) else {
            return Ok(true);
        };
        if pinned.size > self.head.size {
            return Ok(false);
        }
        match self.root_at(read, pinned.size)? == pinned.root {
            true => Ok(true),
            false => Err(LogFault::Forked { size: pinned.size }),
        }
    }

    /// The log manifest with which the log begins, as its owner signed it; nothing in it was
    /// checked. None if the first entry is an event.
    pub fn manifest(&self) -> Option<&str> {
        self.manifest.as_deref()
    }

    /// The number of entries before the first event: 1 if the log begins with a manifest.
    pub const fn before_events(&self) -> u64 {
        match self.manifest {
            Some(_) => 1,
            None => 0,
        }
    }

    /// The workers that have joined, by the words of the coordinators in the log.
    pub fn workers(&self) -> BTreeSet<WorkerId> {
        let members = self.members.values();
        members.map(|(_, worker)| worker.clone()).collect()
    }

    pub(super) const fn members(&self) -> &Members {
        &self.members
    }

    /// The keys that go on with the ledger.
    pub(super) const fn course(&self) -> &Course {
        &self.course
    }

    /// Notes a worker that joins, since a worker's own events do not name its account.
    fn note_member(&mut self, trusted: &Trusted, index: u64, entry: &[u8]) {
        let Some(event) = chain::of_leaf(entry) else {
            return;
        };
        if !trusted.coordinators.contains(&event.key) {
            return;
        }
        let Ok(body) = EventBody::decode(&event.body) else {
            return;
        };
        if !self.course.follow(trusted, index, &event, &body) {
            return;
        }
        if let (
            Some(run),
            Event::Ledger(LedgerEvent::WorkerJoined {
                worker,
                account,
                audit_key,
                ..
            }),
        ) = (body.run, body.event)
        {
            let member = self.members.entry((run, audit_key));
            member.or_insert((account, worker));
        }
    }
}

fn fetch(read: &Read<'_>, path: &str) -> Result<Option<Vec<u8>>, LogFault> {
    read(path).map_err(|reason| LogFault::Unreadable {
        path: path.to_owned(),
        reason,
    })
}

/// The bytes of a bundle. A log that has grown may have the full one only.
fn bundle_bytes(read: &Read<'_>, bundle: Bundle) -> Result<Vec<u8>, LogFault> {
    if let Some(bytes) = fetch(read, &bundle.path())? {
        return Ok(bytes);
    }
    let missing = || LogFault::Missing(bundle.path());
    if bundle.width == TILE_WIDTH {
        return Err(missing());
    }
    let bytes = fetch(read, &bundle.full().path())?.ok_or_else(missing)?;
    let (_, rest) = first_entries(&bytes, bundle.width).ok_or_else(|| malformed(bundle.full()))?;
    Ok(bytes[..bytes.len() - rest.len()].to_vec())
}

fn tile_bytes(read: &Read<'_>, tile: Tile) -> Result<Vec<u8>, LogFault> {
    if let Some(bytes) = fetch(read, &tile.path())? {
        return Ok(bytes);
    }
    let missing = || LogFault::Missing(tile.path());
    if tile.width == TILE_WIDTH {
        return Err(missing());
    }
    let mut bytes = fetch(read, &tile.full().path())?.ok_or_else(missing)?;
    bytes.truncate(32 * tile.width);
    Ok(bytes)
}

fn malformed(bundle: Bundle) -> LogFault {
    LogFault::Bundle {
        path: bundle.path(),
        width: bundle.width,
    }
}
