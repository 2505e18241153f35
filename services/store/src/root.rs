//! The store's folder: its lock, its free space, and how files get and lose their names.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use objects::BucketName;
use tempfile::NamedTempFile;
use tokio_util::task::TaskTracker;

use crate::config::Durability;

/// Most tries to name a file. The sweeper removes empty folders, so a folder may vanish between its
/// making and the link into it, and is then made again.
const PUBLISH_TRIES_MAX: usize = 3;

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
}

impl Root {
    /// Makes and locks the folder, removes unfinished files of an earlier process, and tests the
    /// file system, so that a missing operation shows at the start and not at the first upload.
    pub(crate) fn open(
        path: &Path,
        durability: Durability,
        free_bytes_min: u64,
    ) -> Result<Self, RootError> {
        for folder in [
            "",
            "tmp",
            BucketName::Incoming.as_str(),
            BucketName::Blobs.as_str(),
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
            _lock: lock,
        };
        root.empty_tmp().map_err(RootError::Io)?;
        crate::power::remove_torn_uploads(path).map_err(RootError::Io)?;
        root.links = root.try_ground()?;
        Ok(root)
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
        fs::rename(file.into_temp_path(), &moved).map_err(tried("rename a file"))?;
        let links = fs::hard_link(&moved, &second).is_ok();
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
        if free < needed {
            let (code, kept_free) = (schemas::Code::StoreFull, self.free_bytes_min);
            tracing::warn!(%code, free, kept_free, bytes, "the store has no room for an object, since some space must stay free");
        }
        Ok((free >= needed).then_some(reservation))
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
    /// once. In `incoming` the system only begins to write the file to the disk, see
    /// [`crate::power`].
    pub(crate) fn publish(&self, file: NamedTempFile, name: &Path, how: Publish) -> io::Result<()> {
        if self.lasts(name) {
            file.as_file().sync_data()?;
        } else if self.durability == Durability::Always {
            begin_writing(file.as_file());
        }
        let file = file.into_temp_path();
        self.in_folder_of(name, || match how {
            Publish::Once if self.links => fs::hard_link(&file, name),
            Publish::Once => self.rename_once(&file, name),
            Publish::Replace => fs::rename(&file, name),
        })?;
        if how == Publish::Replace || !self.links {
            // The temporary name is gone, so nothing is left to remove.
            let _renamed = file.keep();
        }
        Ok(())
    }

    /// True for a name that survives a power failure once it is answered.
    fn lasts(&self, name: &Path) -> bool {
        self.durability == Durability::Always
            && !name.starts_with(self.bucket(BucketName::Incoming))
    }

    /// Renames unless the name is taken. Only this process writes here, so nothing happens between
    /// the check and the rename.
    fn rename_once(&self, file: &Path, name: &Path) -> io::Result<()> {
        let _alone = self.naming.lock().expect("no holder panics");
        match fs::symlink_metadata(name) {
            Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => fs::rename(file, name),
            Err(error) => Err(error),
        }
    }

    /// Gives the bytes of `source` a second name: by a link if the file system has them, otherwise
    /// by a copy. Fails with `AlreadyExists` if the name is taken. The file's time is set to now,
    /// since an object's age in a bucket counts from its arrival there.
    ///
    /// No call has asked about the bytes of an upload since they were sent to the disk, so an error
    /// of the disk since then is reported here.
    pub(crate) fn link(&self, source: &Path, name: &Path) -> io::Result<()> {
        if !self.links {
            return self.copy(source, name);
        }
        if self.lasts(name) {
            File::open(source)?.sync_data()?;
        }
        self.in_folder_of(name, || fs::hard_link(source, name))?;
        let file = File::options().append(true).open(name)?;
        file.set_modified(SystemTime::now())?;
        forget_pages(&file);
        Ok(())
    }

    /// A copy is made like an upload: it is complete and durable before it gets its name.
    fn copy(&self, source: &Path, name: &Path) -> io::Result<()> {
        if name.exists() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let mut from = File::open(source)?;
        let room = self.reserve(from.metadata()?.len())?;
        let _room = room.ok_or(io::ErrorKind::StorageFull)?;
        let mut file = self.temporary()?;
        io::copy(&mut from, file.as_file_mut())?;
        forget_pages(&from);
        self.publish(file, name, Publish::Once)
    }

    fn in_folder_of(&self, name: &Path, put: impl Fn() -> io::Result<()>) -> io::Result<()> {
        let folder = name.parent().expect("a key lies in a bucket's folder");
        let mut tries = 0;
        let put = loop {
            tries += 1;
            self.make_folder(folder)?;
            match put() {
                Err(error)
                    if error.kind() == io::ErrorKind::NotFound && tries < PUBLISH_TRIES_MAX => {}
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
        if self.lasts(folder) {
            // Noted before other threads can see the folder, so that they sync it too.
            self.fresh().insert(folder.to_owned());
        }
        match fs::create_dir(folder) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Makes the entries of `folder` durable, and then those of the folders above it that may not
    /// be. The deepest comes first: a journal then writes all of them at once, and the others find
    /// nothing to do.
    fn sync_folders(&self, folder: &Path) -> io::Result<()> {
        File::open(folder)?.sync_all()?;
        for folder in folder.ancestors().take_while(|folder| *folder != self.path) {
            if !self.fresh().contains(folder) {
                continue;
            }
            let parent = folder.parent().expect("the root lies above");
            File::open(parent)?.sync_all()?;
            self.fresh().remove(folder);
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

/// Drops a file from the system's cache. The coordinator reads an upload before it promotes it, and
/// rarely again, so the memory is free for the next upload.
fn forget_pages(file: &File) {
    // SAFETY: the descriptor is open for as long as `file` lives; the call changes no data.
    let advised = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    if advised != 0 {
        tracing::debug!(error = advised, "the cache keeps a promoted file");
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn root(folder: &Path) -> Root {
        Root::open(folder, Durability::Always, 0).unwrap()
    }

    #[test]
    fn a_second_process_is_refused_and_leftovers_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let first = root(folder.path());
        assert!(matches!(
            Root::open(folder.path(), Durability::Kernel, 0),
            Err(RootError::Busy)
        ));
        let leftover = folder.path().join("tmp/leftover");
        fs::write(&leftover, b"half").unwrap();
        drop(first);
        let _second = root(folder.path());
        assert!(!leftover.exists());
    }

    /// On a file system with hard links and on one without.
    #[test]
    fn names_are_given_once_or_replaced() {
        for links in [true, false] {
            names_are_given(links);
        }
    }

    fn names_are_given(links: bool) {
        let folder = tempfile::tempdir().unwrap();
        let root = Root {
            links,
            ..root(folder.path())
        };
        let name = folder.path().join("blobs/a/b/c");
        let write = |text: &[u8], how| {
            let mut file = root.temporary().unwrap();
            file.write_all(text).unwrap();
            root.publish(file, &name, how)
        };
        write(b"first", Publish::Once).unwrap();
        assert_eq!(
            write(b"second", Publish::Once).unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
        assert_eq!(fs::read(&name).unwrap(), b"first");
        write(b"third", Publish::Replace).unwrap();
        assert_eq!(fs::read(&name).unwrap(), b"third");
        assert_eq!(fs::read_dir(folder.path().join("tmp")).unwrap().count(), 0);
        assert!(root.fresh().is_empty(), "every folder above was synced");
    }

    #[test]
    fn a_second_name_has_the_same_bytes_and_is_given_once() {
        for links in [true, false] {
            let folder = tempfile::tempdir().unwrap();
            let root = Root {
                links,
                ..root(folder.path())
            };
            let (source, name) = (
                folder.path().join("incoming/a"),
                folder.path().join("blobs/x/a"),
            );
            fs::write(&source, b"bytes").unwrap();
            File::options()
                .append(true)
                .open(&source)
                .unwrap()
                .set_modified(SystemTime::UNIX_EPOCH)
                .unwrap();
            root.link(&source, &name).unwrap();
            assert_eq!(fs::read(&name).unwrap(), b"bytes");
            assert!(
                fs::metadata(&name).unwrap().modified().unwrap() > SystemTime::UNIX_EPOCH,
                "it is young here"
            );
            assert_eq!(
                root.link(&source, &name).unwrap_err().kind(),
                io::ErrorKind::AlreadyExists
            );
            let missing = root.link(
                &folder.path().join("incoming/b"),
                &folder.path().join("blobs/b"),
            );
            assert_eq!(missing.unwrap_err().kind(), io::ErrorKind::NotFound);
            assert_eq!(fs::read_dir(folder.path().join("tmp")).unwrap().count(), 0);
        }
    }

    /// On this file system a promotion is a copy, and needs as much space as an upload.
    #[test]
    fn a_copy_is_refused_where_there_is_no_room_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root {
            links: false,
            free_bytes_min: u64::MAX / 2,
            ..root(folder.path())
        };
        let (source, name) = (
            folder.path().join("incoming/a"),
            folder.path().join("blobs/a"),
        );
        fs::write(&source, b"bytes").unwrap();
        assert_eq!(
            root.link(&source, &name).unwrap_err().kind(),
            io::ErrorKind::StorageFull
        );
        assert!(!name.exists());
        fs::write(&name, b"bytes").unwrap();
        assert_eq!(
            root.link(&source, &name).unwrap_err().kind(),
            io::ErrorKind::AlreadyExists,
            "what is there needs none"
        );
        assert_eq!(
            root.reserved.load(Ordering::Relaxed),
            0,
            "and none is kept for it"
        );
        assert!(
            free_bytes(&folder.path().join("absent")).is_err(),
            "what cannot be looked at is not taken for room"
        );
    }

    #[test]
    fn the_ground_is_tried_and_nothing_is_left_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let root = root(folder.path());
        assert!(root.has_links(), "the folder of tests has hard links");
        assert_eq!(fs::read_dir(folder.path().join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn room_is_counted_with_uploads_in_progress() {
        let folder = tempfile::tempdir().unwrap();
        let free = free_bytes(folder.path()).unwrap();
        let root = Root::open(folder.path(), Durability::Kernel, free / 2).unwrap();
        let first = root.reserve(free / 3).unwrap();
        assert!(first.is_some());
        assert!(root.reserve(free / 3).unwrap().is_none());
        drop(first);
        assert!(root.reserve(free / 3).unwrap().is_some());
    }

    #[test]
    fn what_has_landed_is_not_reserved_any_more() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::open(folder.path(), Durability::Kernel, 0).unwrap();
        let reserved = || root.reserved.load(Ordering::Relaxed);
        let mut room = root.reserve(100).unwrap().unwrap();
        room.landed(60);
        assert_eq!(reserved(), 40);
        room.landed(60);
        assert_eq!(reserved(), 0);
        drop(room);
        assert_eq!(reserved(), 0);
    }

    #[test]
    fn a_name_is_claimed_by_one_upload_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let root = root(folder.path());
        let claim = root.claim("a".into());
        assert!(
            claim.is_some() && root.claim("a".into()).is_none() && root.claim("b".into()).is_some()
        );
        drop(claim);
        assert!(root.claim("a".into()).is_some());
    }
}
