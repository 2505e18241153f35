//! Uploads on their way to the disk. An upload is answered before the disk has its bytes, and a
//! promotion waits until it has. The wait begins right after the answer, in a thread of its own, so
//! that most promotions find it over.
//!
//! The system reports an error of the disk once, to the first sync after it, and a second sync
//! succeeds although the bytes are lost. So each upload is synced once, and everybody who relies on
//! it shares the outcome. See [`Root::land`](crate::root::Root::land).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Most uploads that are remembered, as on their way or as on the disk: those of some hundred
/// workers. Each takes half a kilobyte. One that is not remembered is synced when it is promoted.
const REMEMBERED_MAX: usize = 8192;
/// Most syncs that are begun ahead of their promotion at a time. Each holds a file and a thread,
/// and a disk that is slower than the uploads would gather them without end.
pub(crate) const AHEAD_MAX: usize = 16;

/// The uploads of this process that the disk has, or is about to have.
#[derive(Debug)]
pub(crate) struct Landings {
    by_name: Mutex<BTreeMap<PathBuf, Arc<Landing>>>,
    ahead: Arc<Semaphore>,
}

/// One file on its way to the disk.
#[derive(Debug)]
pub(crate) struct Landing {
    file: FileId,
    pub(crate) synced: Shared,
}

/// Work that is done once for everybody who needs it. The first does it, the others wait meanwhile,
/// and all share its outcome.
#[derive(Debug, Default)]
pub(crate) struct Shared(OnceLock<Result<(), Arc<io::Error>>>);

/// The number of a file, which no other file has while this one is open or has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

/// An upload that may be synced ahead of its promotion.
#[derive(Debug)]
pub(crate) struct Ahead {
    pub(crate) name: PathBuf,
    pub(crate) file: File,
    _turn: OwnedSemaphorePermit,
}

impl Default for Landings {
    fn default() -> Self {
        Self {
            by_name: Mutex::default(),
            ahead: Arc::new(Semaphore::new(AHEAD_MAX)),
        }
    }
}

impl Landings {
    /// A turn to sync an upload ahead of its promotion; none while too many are synced or
    /// remembered.
    pub(crate) fn ahead(&self, name: &Path, file: File) -> Option<Ahead> {
        if self.by_name().len() >= REMEMBERED_MAX {
            return None;
        }
        let turn = self.ahead.clone().try_acquire_owned().ok()?;
        Some(Ahead {
            name: name.to_owned(),
            file,
            _turn: turn,
        })
    }

    /// The landing of the open file `file` with this name. Everybody who asks for the same file
    /// gets the same one until it is forgotten.
    pub(crate) fn of(&self, name: &Path, file: &File) -> io::Result<Arc<Landing>> {
        let file = FileId::of(file)?;
        let mut by_name = self.by_name();
        if let Some(known) = by_name.get(name)
            && known.file == file
        {
            return Ok(known.clone());
        }
        let landing = Arc::new(Landing {
            file,
            synced: Shared::default(),
        });
        by_name.insert(name.to_owned(), landing.clone());
        Ok(landing)
    }

    /// Gives a name to another file, or to none, and forgets the file that had it. If `change`
    /// fails, that file still has the name, and stays known: with the disk's error, if there was
    /// one.
    pub(crate) fn rename<T>(
        &self,
        name: &Path,
        change: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        let mut by_name = self.by_name();
        let changed = change()?;
        by_name.remove(name);
        Ok(changed)
    }

    /// Removes a file that the disk has lost, and then forgets it. If another file has its name by
    /// now, that one stays.
    pub(crate) fn lose(&self, name: &Path, lost: &Landing) -> io::Result<()> {
        let mut by_name = self.by_name();
        match FileId::at(name) {
            Ok(found) if found == lost.file => fs::remove_file(name)?,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        forget(&mut by_name, name, lost);
        Ok(())
    }

    /// Forgets a file that the disk has, and that nobody will ask for again.
    pub(crate) fn forget_promoted(&self, name: &Path, file: &File) -> io::Result<()> {
        let file = FileId::of(file)?;
        let mut by_name = self.by_name();
        if by_name.get(name).is_some_and(|known| known.file == file) {
            by_name.remove(name);
        }
        Ok(())
    }

    /// Forgets a file that the disk has if more are remembered than should be.
    pub(crate) fn forget_if_full(&self, name: &Path, landed: &Landing) {
        let mut by_name = self.by_name();
        if by_name.len() > REMEMBERED_MAX {
            forget(&mut by_name, name, landed);
        }
    }

    /// Forgets files without a name. A name that cannot be looked at is kept.
    pub(crate) fn forget_gone(&self) {
        let names: Vec<PathBuf> = self.by_name().keys().cloned().collect();
        for name in names {
            // Locked for each name by itself, so that uploads do not wait for all of them.
            let mut by_name = self.by_name();
            if FileId::at(&name).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
                by_name.remove(&name);
            }
        }
    }

    fn by_name(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Arc<Landing>>> {
        self.by_name.lock().expect("no holder panics")
    }
}

fn forget(by_name: &mut BTreeMap<PathBuf, Arc<Landing>>, name: &Path, landing: &Landing) {
    if by_name
        .get(name)
        .is_some_and(|known| known.file == landing.file)
    {
        by_name.remove(name);
    }
}

impl Shared {
    /// The outcome of `work`, which only the first caller runs.
    pub(crate) fn done(&self, work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let outcome = self.0.get_or_init(|| work().map_err(Arc::new));
        let shared = |error: &Arc<io::Error>| io::Error::new(error.kind(), error.clone());
        outcome.as_ref().copied().map_err(shared)
    }
}

impl FileId {
    fn of(file: &File) -> io::Result<Self> {
        Ok(Self::from(file.metadata()?))
    }

    /// The number of the file with this name.
    fn at(name: &Path) -> io::Result<Self> {
        Ok(Self::from(fs::symlink_metadata(name)?))
    }
}

impl From<fs::Metadata> for FileId {
    fn from(metadata: fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remembered(landings: &Landings) -> Vec<PathBuf> {
        landings.by_name().keys().cloned().collect()
    }

    #[test]
    fn files_without_a_name_are_forgotten_and_no_others() {
        let folder = tempfile::tempdir().unwrap();
        let landings = Landings::default();
        let names = ["gone", "stays"].map(|name| folder.path().join(name));
        for name in &names {
            landings.of(name, &File::create(name).unwrap()).unwrap();
        }
        let [gone, stays] = names;
        std::fs::remove_file(gone).unwrap();
        landings.forget_gone();
        assert_eq!(remembered(&landings), [stays]);
    }

    /// Between the disk's error and the end of the file, a name is deleted or given to another
    /// file.
    #[test]
    fn an_error_of_the_disk_is_known_until_the_file_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let name = folder.path().join("upload");
        let file = File::create(&name).unwrap();
        let landings = Landings::default();
        let landing = landings.of(&name, &file).unwrap();
        landing
            .synced
            .done(|| Err(io::Error::other("disk")))
            .unwrap_err();
        let again = |file: &File| landings.of(&name, file).unwrap().synced.done(|| Ok(()));

        let refused: io::Result<()> = landings.rename(&name, || Err(io::Error::other("no")));
        refused.unwrap_err();
        again(&file).unwrap_err();
        // Another file has the name by the time at which the lost one is removed.
        std::fs::remove_file(&name).unwrap();
        let other = File::create_new(&name).unwrap();
        landings.lose(&name, &landing).unwrap();
        assert!(name.exists());
        again(&other).unwrap();
        // The lost file itself is removed, and then forgotten.
        let lost = landings.of(&name, &other).unwrap();
        landings.lose(&name, &lost).unwrap();
        assert!(!name.exists());
        assert_eq!(remembered(&landings), [] as [PathBuf; 0]);
    }

    #[test]
    fn a_promoted_file_is_forgotten_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let name = folder.path().join("upload");
        let (file, other) = (File::create(&name).unwrap(), tempfile::tempfile().unwrap());
        let landings = Landings::default();
        landings.of(&name, &file).unwrap();
        landings.forget_promoted(&name, &other).unwrap();
        assert_eq!(remembered(&landings), std::slice::from_ref(&name));
        landings.forget_promoted(&name, &file).unwrap();
        assert_eq!(remembered(&landings), [] as [PathBuf; 0]);
    }

    #[test]
    fn as_many_uploads_are_remembered_as_should_be() {
        let file = tempfile::tempfile().unwrap();
        let landings = Landings::default();
        let name = |number: usize| PathBuf::from(format!("{number:05}"));
        for number in 0..REMEMBERED_MAX {
            let turn = landings.ahead(&name(number), file.try_clone().unwrap());
            assert!(turn.is_some(), "{number} are remembered");
            landings.of(&name(number), &file).unwrap();
        }
        // One more would be too many, and is not begun ahead of its promotion.
        let last = name(REMEMBERED_MAX);
        assert!(landings.ahead(&last, file.try_clone().unwrap()).is_none());
        let known = |name: &Path| landings.of(name, &file).unwrap();
        landings.forget_if_full(&name(0), &known(&name(0)));
        assert_eq!(remembered(&landings).len(), REMEMBERED_MAX, "not full");
        landings.forget_if_full(&last, &known(&last));
        let all: Vec<PathBuf> = (0..REMEMBERED_MAX).map(name).collect();
        assert_eq!(remembered(&landings), all);
    }
}
