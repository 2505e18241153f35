//! Objects on local disk, named by digest. Several processes may share the folder, and it may be
//! deleted at any time.
//!
//! ```text
//! <folder>/objects/<ab>/<64 hex>      an object
//! <folder>/objects/<ab>/.part-…       being written; renamed when whole, swept when abandoned
//! ```
//! A file's modification time is the time of its last use. Above the limit, the file that was
//! unused for longest is removed first. Every read hashes the file: a damaged one is removed and
//! reported as absent. Calls block; use them off the async threads.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use schemas::{Code, Digest};

/// Age at which unfinished and foreign files are removed; no transfer of one chunk takes as long.
const ABANDONED: Duration = Duration::from_secs(3600);
/// Share of the limit that is still in use after an eviction, so that evictions are rare.
const FILLED_AFTER_EVICTION: (u64, u64) = (9, 10);
/// Share of the limit that a process adds before it reads the folder again. Other processes add to
/// the same folder, so it may hold this share above the limit for each process.
const LOOK_SHARE: u64 = 16;

/// A cache folder.
#[derive(Debug)]
pub struct Cache {
    objects: PathBuf,
    bytes_max: u64,
    /// Bytes that this process added since it looked last.
    added: AtomicU64,
}

/// An I/O error of the cache.
#[derive(Debug, thiserror::Error)]
#[error("object cache {}: {source}", path.display())]
pub struct CacheError {
    path: PathBuf,
    source: io::Error,
}

struct Entry {
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
}

impl CacheError {
    /// The coded error that this is.
    pub const fn code(&self) -> Code {
        Code::CacheFailed
    }
}

schemas::coded!(CacheError);

impl Cache {
    /// Opens or creates the cache in `folder`, holding about `bytes_max` bytes.
    ///
    /// # Errors
    /// The folder cannot be made or read.
    pub fn open(folder: &Path, bytes_max: schemas::Bytes) -> Result<Self, CacheError> {
        let objects = folder.join("objects");
        fs::create_dir_all(&objects).map_err(at(&objects))?;
        let cache = Self {
            objects,
            bytes_max: bytes_max.get(),
            added: AtomicU64::new(0),
        };
        cache.sweep(SystemTime::now())?;
        Ok(cache)
    }

    /// The verified bytes of an object, if it is here.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub fn get(&self, digest: Digest) -> Result<Option<Bytes>, CacheError> {
        let path = self.path(digest);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(at(&path)(error)),
        };
        Ok(self
            .judge(&path, Digest::of(&bytes) == digest)
            .then(|| bytes.into()))
    }

    /// Keeps an object. Readers see it whole or not at all. One that is larger than the whole cache
    /// is not kept.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn put(&self, digest: Digest, bytes: &[u8]) -> Result<(), CacheError> {
        if bytes.len() as u64 > self.bytes_max {
            return Ok(());
        }
        let path = self.path(digest);
        let folder = path.parent().expect("an object lies in a folder");
        fs::create_dir_all(folder).map_err(at(folder))?;
        let write = || -> io::Result<()> {
            let mut file = tempfile::Builder::new()
                .prefix(".part-")
                .tempfile_in(folder)?;
            file.write_all(bytes)?;
            file.persist(&path).map(drop).map_err(|error| error.error)
        };
        write().map_err(at(&path))?;
        self.added(bytes.len() as u64)
    }

    /// Counts what was put, and looks at the folder when that is enough to pass the limit by.
    fn added(&self, bytes: u64) -> Result<(), CacheError> {
        let added = self.added.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if added >= self.bytes_max / LOOK_SHARE {
            self.sweep(SystemTime::now())
        } else {
            Ok(())
        }
    }

    /// Removes files that are abandoned at `now`, and then the longest unused objects while the
    /// limit is exceeded.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn sweep(&self, now: SystemTime) -> Result<(), CacheError> {
        // Reset before the folder is read, so that bytes added meanwhile may be counted twice. Of
        // two simultaneous sweeps the later one counts.
        self.added.store(0, Ordering::Relaxed);
        let mut entries = self.entries(now).map_err(at(&self.objects))?;
        let mut total: u64 = entries.iter().map(|entry| entry.bytes).sum();
        if total > self.bytes_max {
            let (share, whole) = FILLED_AFTER_EVICTION;
            let goal = self.bytes_max / whole * share;
            entries.sort_by_key(|entry| entry.used);
            for entry in entries {
                if total <= goal {
                    break;
                }
                remove(&entry.path);
                total -= entry.bytes;
            }
        }
        Ok(())
    }

    fn path(&self, digest: Digest) -> PathBuf {
        let hex = digest.hex();
        self.objects.join(&hex[..2]).join(hex)
    }

    fn judge(&self, path: &Path, right: bool) -> bool {
        if right {
            // If the touch fails, the object is only evicted earlier.
            let touched = File::options()
                .append(true)
                .open(path)
                .and_then(|file| file.set_modified(SystemTime::now()));
            if let Err(error) = touched {
                tracing::debug!(path = %path.display(), %error, "cannot note the use of a cached object");
            }
        } else {
            tracing::warn!(path = %path.display(), "a cached object was damaged and is removed");
            remove(path);
        }
        right
    }

    /// The objects. Abandoned files that are no objects are removed on the way, and foreign folders
    /// stay.
    fn entries(&self, now: SystemTime) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for folder in fs::read_dir(&self.objects)?.flatten() {
            let files = match fs::read_dir(folder.path()) {
                Ok(files) => files,
                Err(_) => {
                    remove_abandoned(&folder, now);
                    continue;
                }
            };
            for file in files.flatten() {
                let Ok(metadata) = file.metadata() else {
                    continue;
                };
                let digest = file
                    .file_name()
                    .to_str()
                    .and_then(|hex| format!("sha256:{hex}").parse().ok());
                if metadata.is_file()
                    && digest.is_some_and(|digest| self.path(digest) == file.path())
                {
                    let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                    entries.push(Entry {
                        path: file.path(),
                        bytes: metadata.len(),
                        used,
                    });
                } else {
                    remove_abandoned(&file, now);
                }
            }
        }
        Ok(entries)
    }
}

fn remove_abandoned(file: &fs::DirEntry, now: SystemTime) {
    let Ok(metadata) = file.metadata() else {
        return;
    };
    let age = metadata
        .modified()
        .ok()
        .and_then(|then| now.duration_since(then).ok());
    if metadata.is_file() && age.is_some_and(|age| age > ABANDONED) {
        remove(&file.path());
    }
}

fn remove(path: &Path) {
    if let Err(error) = try_remove(path) {
        tracing::warn!(path = %path.display(), %error, "cannot remove a file of the object cache");
    }
}

/// Another process may have removed it already, which is as good.
fn try_remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

fn at(path: &Path) -> impl Fn(io::Error) -> CacheError + '_ {
    move |source| CacheError {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(bytes_max: u64) -> (tempfile::TempDir, Cache) {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path(), schemas::Bytes(bytes_max)).unwrap();
        (folder, cache)
    }

    fn put(cache: &Cache, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        cache.put(digest, bytes).unwrap();
        digest
    }

    fn use_at(cache: &Cache, digest: Digest, seconds: u64) {
        let file = File::options()
            .append(true)
            .open(cache.path(digest))
            .unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
            .unwrap();
    }

    #[test]
    fn objects_come_back() {
        let (folder, cache) = cache(1000);
        let digest = put(&cache, b"some bytes");
        assert_eq!(
            cache.get(digest).unwrap().as_deref(),
            Some(&b"some bytes"[..])
        );
        assert_eq!(cache.get(Digest::of(b"other")).unwrap(), None);
        // A second process on the same folder sees them too.
        let other = Cache::open(folder.path(), schemas::Bytes(1000)).unwrap();
        assert!(other.get(digest).unwrap().is_some());
    }

    #[test]
    fn a_damaged_object_is_absent() {
        let (_folder, cache) = cache(1000);
        let digest = put(&cache, b"some bytes");
        fs::write(cache.path(digest), b"some byteZ").unwrap();
        assert_eq!(cache.get(digest).unwrap(), None);
        assert!(!cache.path(digest).exists());
    }

    #[test]
    fn the_longest_unused_goes_first() {
        let (_folder, cache) = cache(100);
        let digests: Vec<Digest> = (0..3_u8).map(|seed| put(&cache, &[seed; 30])).collect();
        for (digest, used) in digests.iter().zip([20, 10, 30]) {
            use_at(&cache, *digest, used);
        }
        let newest = put(&cache, &[9; 30]);
        let kept: Vec<bool> = digests
            .iter()
            .map(|digest| cache.path(*digest).exists())
            .collect();
        assert_eq!(kept, [true, false, true]);
        assert!(cache.get(newest).unwrap().is_some());
    }

    #[test]
    fn an_object_fills_the_whole_cache_at_most() {
        let (_folder, cache) = cache(100);
        let small = put(&cache, &[7; 30]);
        let large = put(&cache, &[1; 101]);
        assert_eq!(cache.get(large).unwrap(), None);
        assert!(cache.get(small).unwrap().is_some(), "it made no room");
        fs::remove_file(cache.path(small)).unwrap();
        let whole = put(&cache, &[1; 100]);
        assert!(cache.get(whole).unwrap().is_some());
    }

    #[test]
    fn a_cache_that_is_full_loses_nothing_and_one_that_is_too_full_a_tenth_of_its_limit() {
        let (folder, large) = cache(10_000);
        for seed in 0..10_u8 {
            put(&large, &[seed; 100]);
        }
        for (limit, left) in [(1000, 10), (300, 2)] {
            let cache = Cache::open(folder.path(), schemas::Bytes(limit)).unwrap();
            assert_eq!(cache.entries(SystemTime::now()).unwrap().len(), left);
        }
    }

    #[test]
    fn what_cannot_be_read_or_removed_is_an_error_and_what_is_gone_is_none() {
        let (_folder, cache) = cache(100);
        let path = cache.path(Digest::of(b"x"));
        assert!(try_remove(&path).is_ok());
        fs::create_dir_all(&path).unwrap();
        assert!(cache.get(Digest::of(b"x")).is_err());
        assert!(try_remove(&path).is_err());
    }

    #[test]
    fn several_processes_keep_to_one_limit() {
        let folder = tempfile::tempdir().unwrap();
        let limit = schemas::Bytes(16_000);
        let caches: Vec<Cache> = (0..8)
            .map(|_| Cache::open(folder.path(), limit).unwrap())
            .collect();
        for object in 0..15_u8 {
            for (process, cache) in (0..).zip(&caches) {
                put(cache, &[&[process, object][..], &[0; 998]].concat());
            }
        }
        let held: u64 = caches[0]
            .entries(SystemTime::now())
            .unwrap()
            .iter()
            .map(|entry| entry.bytes)
            .sum();
        let above = limit.get() / LOOK_SHARE * caches.len() as u64;
        assert!(held <= limit.get() + above, "{held} bytes");
    }

    #[test]
    fn looks_at_the_folder_are_rare() {
        let (folder, cache) = cache(16_000);
        put(&cache, &[1; 999]);
        let foreign = put(
            &Cache::open(folder.path(), schemas::Bytes(16_000)).unwrap(),
            &[2; 500],
        );
        let added = || cache.added.load(Ordering::Relaxed);
        assert_eq!(added(), 999, "not after less than a sixteenth");
        put(&cache, &[3; 1]);
        assert_eq!(added(), 0, "it looked");
        assert!(cache.path(foreign).exists());
    }

    #[test]
    fn garbage_is_swept_when_old() {
        let (folder, cache) = cache(1000);
        let digest = put(&cache, b"kept");
        let part = cache.path(digest).with_file_name(".part-x");
        let foreign = folder.path().join("objects/README");
        let misplaced = cache
            .path(digest)
            .with_file_name(Digest::of(b"elsewhere").hex());
        for path in [&part, &foreign, &misplaced] {
            fs::write(path, b"garbage").unwrap();
        }
        cache.sweep(SystemTime::now()).unwrap();
        assert!(part.exists() && foreign.exists() && misplaced.exists());
        let written = fs::metadata(&part).unwrap().modified().unwrap();
        cache.sweep(written + ABANDONED).unwrap();
        assert!(part.exists(), "it is just as old as a transfer may take");
        cache.sweep(SystemTime::now() + 2 * ABANDONED).unwrap();
        assert!(!part.exists() && !foreign.exists() && !misplaced.exists());
        assert!(cache.get(digest).unwrap().is_some());
    }
}
