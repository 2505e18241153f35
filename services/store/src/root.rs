//! The store's folder: its lock, its free space, and how files get and lose their names.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use objects::BucketName;
use objects::key::STOPPED;
use schemas::Digest;
use tempfile::{NamedTempFile, TempPath};
use tokio_util::task::TaskTracker;

use crate::config::Durability;
use crate::disk::Disk;
use crate::landing::{Ahead, Landings};
use crate::power::Suspects;

/// Most tries to name a file. The first may find no folder for it; a folder that is made then may
/// vanish at once, since somebody may remove empty folders by hand, and is made again.
const PUBLISH_TRIES_MAX: usize = 3;
/// The folders of verified objects that there may be: one for each first byte of a digest.
const SHARDS: usize = 256;
/// Folders of verified objects at which all others are made too, with one sync for all: a store
/// with so many gets more, and each would delay an object by a sync of its own. A smaller store is
/// spared a mebibyte of empty folders.
const SHARDS_ALONE_MAX: usize = 24;

/// A locked root.
#[derive(Debug)]
pub(crate) struct Root {
    path: PathBuf,
    durability: Durability,
    free_bytes_min: u64,
    /// Bytes of uploads in progress that are announced and not on disk yet.
    reserved: Arc<AtomicU64>,
    /// Names that uploads in progress are to get.
    claimed: Claimed,
    /// Folders that were made, and whose own entry may not be durable yet.
    fresh: Mutex<BTreeSet<PathBuf>>,
    /// True if the file system has hard links.
    links: bool,
    /// Locked from the check of a name until it is given, on a file system that cannot do both at
    /// once.
    naming: Mutex<()>,
    /// The writing threads; the root stays locked while one runs.
    writers: TaskTracker,
    /// Uploads that the disk has, or is about to have.
    landings: Landings,
    /// Uploads that a power failure may have torn.
    suspects: Suspects,
    disk: Disk,
    /// The lock lives as long as this handle.
    _lock: File,
}

/// Reasons why a root cannot be opened.
#[derive(Debug)]
pub(crate) enum RootError {
    Busy,
    Io(io::Error),
    /// The file system lacks an operation that a store needs.
    Ground {
        tried: &'static str,
        source: io::Error,
    },
}

/// Space for the bytes of one upload that are still to come; dropping it frees the space.
#[derive(Debug)]
pub(crate) struct Reservation {
    reserved: Arc<AtomicU64>,
    bytes: u64,
}

/// A name that is reserved for one upload in progress, until it is dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    claimed: Claimed,
    name: PathBuf,
}

type Claimed = Arc<Mutex<BTreeSet<PathBuf>>>;

/// The way a file gets its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Publish {
    /// Fails if the name is taken.
    Once,
    /// Replaces the file with the name.
    Replace,
    /// Replaces the file with the name if its bytes have this digest, and fails with
    /// `AlreadyExists` otherwise.
    Over(Digest),
}

impl Root {
    /// Makes and locks the folder, removes unfinished files of an earlier process, and tests the
    /// file system, so that a missing operation shows at the start and not at the first upload.
    pub(crate) fn open(
        path: &Path,
        durability: Durability,
        free_bytes_min: u64,
    ) -> Result<Self, RootError> {
        Self::open_on(Disk::system(), path, durability, free_bytes_min)
    }

    fn open_on(
        disk: Disk,
        path: &Path,
        durability: Durability,
        free_bytes_min: u64,
    ) -> Result<Self, RootError> {
        for folder in [
            "",
            "tmp",
            BucketName::Incoming.as_str(),
            BucketName::Blobs.as_str(),
            BucketName::Log.as_str(),
        ] {
            fs::create_dir_all(path.join(folder)).map_err(RootError::Io)?;
        }
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path.join("lock"));
        let lock = lock.map_err(RootError::Io)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(RootError::Busy),
            Err(TryLockError::Error(error)) => return Err(RootError::Io(error)),
        }
        let mut root = Self {
            path: path.to_owned(),
            durability,
            free_bytes_min,
            reserved: Arc::new(AtomicU64::new(0)),
            claimed: Arc::default(),
            fresh: Mutex::default(),
            links: true,
            naming: Mutex::default(),
            writers: TaskTracker::new(),
            landings: Landings::default(),
            suspects: Suspects::default(),
            disk,
            _lock: lock,
        };
        root.empty_tmp().map_err(RootError::Io)?;
        crate::nested::take_over(path).map_err(RootError::Io)?;
        root.suspects = Suspects::of(path).map_err(RootError::Io)?;
        root.links = root.try_ground()?;
        root.sync_buckets().map_err(RootError::Io)?;
        Ok(root)
    }

    /// Makes the folders of the buckets durable, with the folder above the root, which has its
    /// entry. An earlier process may have ended between the making of a folder and its sync.
    fn sync_buckets(&self) -> io::Result<()> {
        if self.durability == Durability::Kernel {
            return Ok(());
        }
        let (root, shards) = (fs::canonicalize(&self.path)?, self.shards());
        if shards.is_dir() {
            self.disk.sync_names(&shards)?;
        }
        self.disk.sync_names(&self.bucket(BucketName::Blobs))?;
        self.disk.sync_names(&self.bucket(BucketName::Log))?;
        self.disk.sync_names(&self.path)?;
        match self.disk.sync_names(root.parent().unwrap_or(&root)) {
            // It belongs to another user, who also made the root in it.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            synced => synced,
        }
    }

    /// The folder of verified objects, with a folder for each first byte of a digest.
    fn shards(&self) -> PathBuf {
        self.bucket(BucketName::Blobs).join("sha256")
    }

    /// Tests the file system. Returns true if it has hard links, which save a copy of every
    /// promoted upload.
    fn try_ground(&self) -> Result<bool, RootError> {
        let tried = |tried| move |source| RootError::Ground { tried, source };
        let mut file = self.temporary().map_err(tried("make a file"))?;
        file.write_all(b"diloco-store tries its ground")
            .map_err(tried("write a file"))?;
        file.as_file()
            .set_modified(SystemTime::now())
            .map_err(tried("set a file's time"))?;
        if self.durability == Durability::Always {
            file.as_file().sync_all().map_err(tried("sync a file"))?;
            let folder = File::open(self.path.join("tmp")).and_then(|folder| folder.sync_all());
            folder.map_err(tried("sync a folder"))?;
        }
        let (moved, second) = (self.path.join("tmp/moved"), self.path.join("tmp/second"));
        let (file, temporary) = file.into_parts();
        let renamed = temporary.persist(&moved).map_err(|refused| refused.error);
        renamed.map_err(tried("rename a file"))?;
        let links = link_open(&file, &second).is_ok();
        self.empty_tmp().map_err(tried("remove a file"))?;
        Ok(links)
    }

    /// True if promotions are links; otherwise they are copies.
    pub(crate) const fn has_links(&self) -> bool {
        self.links
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn bucket(&self, bucket: BucketName) -> PathBuf {
        self.path.join(bucket.as_str())
    }

    pub(crate) const fn landings(&self) -> &Landings {
        &self.landings
    }

    pub(crate) const fn suspects(&self) -> &Suspects {
        &self.suspects
    }

    /// Checks all uploads that a power failure may have torn, unless the store ends before.
    pub(crate) fn check_suspects(&self) {
        self.suspects.check_all(|| self.writers.is_closed());
    }

    pub(crate) const fn writers(&self) -> &TaskTracker {
        &self.writers
    }

    /// Reserves space for `bytes`, if enough remains free beside all uploads in progress.
    pub(crate) fn reserve(&self, bytes: u64) -> io::Result<Option<Reservation>> {
        let before = self.reserved.fetch_add(bytes, Ordering::Relaxed);
        let reservation = Reservation {
            reserved: self.reserved.clone(),
            bytes,
        };
        // Read last, so that bytes that are written meanwhile count twice, and never not at all.
        let free = free_bytes(&self.path)?;
        let needed = before
            .saturating_add(bytes)
            .saturating_add(self.free_bytes_min);
        if free >= needed {
            return Ok(Some(reservation));
        }
        let (code, kept_free) = (schemas::Code::StoreFull, self.free_bytes_min);
        tracing::warn!(%code, free, kept_free, bytes, "the store has no room for an object, since some space must stay free");
        Ok(None)
    }

    /// Reserves the name for one upload; none while another has it.
    pub(crate) fn claim(&self, name: PathBuf) -> Option<Claim> {
        let is_free = self
            .claimed
            .lock()
            .expect("no holder panics")
            .insert(name.clone());
        is_free.then(|| Claim {
            claimed: self.claimed.clone(),
            name,
        })
    }

    /// A file for an upload; dropping it removes the file.
    pub(crate) fn temporary(&self) -> io::Result<NamedTempFile> {
        NamedTempFile::new_in(self.path.join("tmp"))
    }

    /// Gives a complete file its name. Fails with `AlreadyExists` if the name is taken and `how` is
    /// once. In `incoming` the system only begins to write the file to the disk; the answer is then
    /// a turn to wait for that, if one is free. See [`crate::landing`] and [`crate::power`].
    pub(crate) fn publish(
        &self,
        file: NamedTempFile,
        name: &Path,
        how: Publish,
    ) -> io::Result<Option<Ahead>> {
        let lands = self.lands(name);
        if self.lasts(name) {
            self.disk.sync_bytes(file.as_file())?;
        } else if lands {
            begin_writing(file.as_file());
        }
        let (file, temporary) = file.into_parts();
        if !lands {
            self.give(temporary, name, how)?;
            return Ok(None);
        }
        self.landings
            .rename(name, || self.give(temporary, name, how))?;
        Ok(self.landings.ahead(name, file))
    }

    /// Moves a file from its temporary name to its own. A temporary name that is left at the end is
    /// removed.
    fn give(&self, temporary: TempPath, name: &Path, how: Publish) -> io::Result<()> {
        let mut left = Some(temporary);
        self.in_folder_of(name, || {
            let temporary = left.take().expect("each try but the last gives it back");
            let given = match how {
                Publish::Once if self.links => temporary.persist_noclobber(name),
                Publish::Once => self.rename_once(temporary, name),
                Publish::Replace if self.links => temporary.persist(name),
                Publish::Replace => self.replace_alone(temporary, name),
                Publish::Over(before) => self.replace_known(temporary, name, before),
            };
            given.map_err(|refused| {
                left = Some(refused.path);
                refused.error
            })
        })
    }

    /// Waits until the disk has the bytes of an upload, of which `file` is open. Everybody who
    /// waits for the same upload shares one sync.
    ///
    /// If the disk fails, its error is reported once: a second sync would find none, and the bytes
    /// would be lost. So the upload is removed, and must be sent again. It is forgotten only once
    /// it is gone: a request that comes before that shares the error, and one that comes after it
    /// finds no upload, nor a name to promote by, even if it has opened the file before.
    pub(crate) fn land(&self, name: &Path, file: &File) -> io::Result<()> {
        let landing = self.landings.of(name, file)?;
        let landed = landing.synced.done(|| {
            let Err(error) = self.disk.sync_bytes(file) else {
                return Ok(());
            };
            if let Err(kept) = self.landings.lose(name, &landing) {
                tracing::error!(%kept, name = %name.display(), "an upload that the disk has lost cannot be removed");
            }
            Err(error)
        });
        if landed.is_ok() {
            self.landings.forget_if_full(name, &landing);
        }
        landed
    }

    /// Removes a file, and everything that is known of that file. One whose absence means something
    /// stays away through a power failure.
    pub(crate) fn remove(&self, name: &Path) -> io::Result<()> {
        let removed = self.landings.rename(name, || fs::remove_file(name));
        let error = removed.as_ref().err();
        // A file that is not there may have been removed by a request whose sync failed.
        let is_gone = error.is_none_or(|error| error.kind() == io::ErrorKind::NotFound);
        let stopped = self.bucket(BucketName::Blobs).join(STOPPED);
        if is_gone && self.lasts(name) && name.starts_with(&stopped) && stopped.is_dir() {
            self.disk.sync_names(&stopped)?;
        }
        removed
    }

    /// True for the name of an upload that a promotion waits for.
    fn lands(&self, name: &Path) -> bool {
        self.durability == Durability::Always && name.starts_with(self.bucket(BucketName::Incoming))
    }

    /// True for a name that survives a power failure once it is answered.
    fn lasts(&self, name: &Path) -> bool {
        self.durability == Durability::Always
            && !name.starts_with(self.bucket(BucketName::Incoming))
    }

    /// Gives the bytes of the upload `source` a second name: by a link if the file system has them,
    /// otherwise by a copy. Fails with `AlreadyExists` if the name is taken. The file's time is set
    /// to now, since an object's age in a bucket counts from its arrival there.
    ///
    /// The name is given to the file that was synced, and not to the one that has the name of the
    /// upload by then: that one may have been deleted and sent again.
    pub(crate) fn link(&self, source: &Path, name: &Path) -> io::Result<()> {
        self.suspects.check(source)?;
        let file = File::open(source)?;
        if self.lasts(name) {
            self.land(source, &file)?;
        }
        if !self.links {
            self.copy(&file, name)?;
            return self.landings.forget_promoted(source, &file);
        }
        // Before the link, so that one write of the file's entry covers both.
        file.set_modified(SystemTime::now())?;
        self.in_folder_of(name, || link_open(&file, name))?;
        forget_pages(&file);
        self.landings.forget_promoted(source, &file)
    }

    /// A copy is made like an upload: it is complete and durable before it gets its name.
    fn copy(&self, mut from: &File, name: &Path) -> io::Result<()> {
        if name.exists() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let source = from.metadata()?;
        // Without a name it was lost by the disk while this promotion waited, and a read may give
        // other bytes.
        if source.nlink() == 0 {
            return Err(io::ErrorKind::NotFound.into());
        }
        let room = self.reserve(source.len())?;
        let _room = room.ok_or(io::ErrorKind::StorageFull)?;
        let mut file = self.temporary()?;
        io::copy(&mut from, file.as_file_mut())?;
        forget_pages(from);
        self.publish(file, name, Publish::Once).map(drop)
    }

    /// Gives a name by `put`, and makes the folder of the name if there is none.
    fn in_folder_of(&self, name: &Path, mut put: impl FnMut() -> io::Result<()>) -> io::Result<()> {
        let folder = name.parent().expect("a key lies in a bucket's folder");
        let mut tries = 0;
        let put = loop {
            tries += 1;
            match put() {
                Err(error)
                    if error.kind() == io::ErrorKind::NotFound && tries < PUBLISH_TRIES_MAX =>
                {
                    self.make_folder(folder)?;
                }
                put => break put,
            }
        };
        // The existing name may have been given just before a power failure, or by a request that
        // is not finished. The promotion that is answered now relies on it, so its folders are
        // synced here too.
        let is_there = put
            .as_ref()
            .err()
            .is_none_or(|error| error.kind() == io::ErrorKind::AlreadyExists);
        if is_there && self.lasts(name) {
            self.sync_folders(folder)?;
        }
        put
    }

    /// Makes a folder and its parents. [`Root::sync_folders`] makes them durable.
    fn make_folder(&self, folder: &Path) -> io::Result<()> {
        if folder.is_dir() {
            return Ok(());
        }
        let parent = folder.parent().expect("the root lies above");
        self.make_folder(parent)?;
        self.make_in(folder)?;
        if parent == self.shards()
            && (SHARDS_ALONE_MAX..SHARDS).contains(&fs::read_dir(parent)?.count())
        {
            for shard in 0..SHARDS {
                self.make_in(&parent.join(format!("{shard:02x}")))?;
            }
        }
        Ok(())
    }

    /// Makes a folder unless it is there. The folder above it is there.
    fn make_in(&self, folder: &Path) -> io::Result<()> {
        if folder.is_dir() {
            return Ok(());
        }
        if self.lasts(folder) {
            // Noted before other threads can see the folder, so that they sync it too.
            self.fresh().insert(folder.to_owned());
        }
        // Another thread may have made it just now, which is no failure to this call.
        fs::create_dir_all(folder)
    }

    /// Makes the entries of `folder` durable, and then those of the folders above it that may not
    /// be. The deepest comes first: a journal then writes all of them at once, and the others find
    /// nothing to do.
    fn sync_folders(&self, folder: &Path) -> io::Result<()> {
        self.disk.sync_names(folder)?;
        for folder in folder.ancestors().take_while(|folder| *folder != self.path) {
            if !self.fresh().contains(folder) {
                continue;
            }
            let parent = folder.parent().expect("the root lies above");
            // A folder that is made now is noted first, so that it may have missed this sync only
            // if it is not among these.
            let beside = |made: &&PathBuf| made.parent() == Some(parent) && made.is_dir();
            let made: BTreeSet<_> = self.fresh().iter().filter(beside).cloned().collect();
            self.disk.sync_names(parent)?;
            let mut fresh = self.fresh();
            fresh.retain(|folder| !made.contains(folder));
        }
        Ok(())
    }

    fn fresh(&self) -> MutexGuard<'_, BTreeSet<PathBuf>> {
        self.fresh.lock().expect("no holder panics")
    }

    fn empty_tmp(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.path.join("tmp"))? {
            fs::remove_file(entry?.path())?;
        }
        Ok(())
    }
}

impl Reservation {
    /// Notes that `bytes` are written: ext4 and XFS subtract them from the free space at once.
    pub(crate) fn landed(&mut self, bytes: u64) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.reserved.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.claimed
            .lock()
            .expect("no holder panics")
            .remove(&self.name);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.reserved.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Gives an open file one more name, unless the name is taken. A file without any name gets none:
/// the error is then `NotFound`.
#[cfg(target_os = "linux")]
fn link_open(file: &File, name: &Path) -> io::Result<()> {
    let open = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let name = CString::new(name.as_os_str().as_bytes())?;
    let (here, flags) = (libc::AT_FDCWD, libc::AT_SYMLINK_FOLLOW);
    // SAFETY: both paths are C strings that outlive the call, and the descriptor is open.
    let status = unsafe { libc::linkat(here, open.as_ptr(), here, name.as_ptr(), flags) };
    match status {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Other systems have no way to it, so that promotions are copies there.
#[cfg(not(target_os = "linux"))]
fn link_open(_: &File, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Drops a file from the system's cache. The coordinator reads an upload before it promotes it, and
/// rarely again, so the memory is free for the next upload.
fn forget_pages(file: &File) {
    // SAFETY: the descriptor is open for as long as `file` lives; the call changes no data.
    let _advised =
        unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
}

/// Sends a file's bytes on their way to the disk without waiting for them. An error of the disk is
/// left for the first sync to tell: no call before that takes it.
fn begin_writing(file: &File) {
    // SAFETY: the descriptor is open for as long as `file` lives; the call changes no data.
    #[cfg(target_os = "linux")]
    unsafe {
        libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE);
    }
    #[cfg(not(target_os = "linux"))]
    let _the_system_writes_when_it_likes = file;
}

fn free_bytes(path: &Path) -> io::Result<u64> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `path` is a C string that outlives the call, and `stat` is room for what the call
    // writes.
    let status = unsafe { libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so it filled `stat`.
    let stat = unsafe { stat.assume_init() };
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

mod naming;
#[cfg(test)]
mod survival;
#[cfg(test)]
mod tests;
