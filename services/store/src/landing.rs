//! Uploads on their way to the disk. An upload is answered before the disk has its bytes, and a
//! promotion waits until it has. The wait begins right after the answer, in a thread of its own, so
//! that most promotions find it over.
//!
//! The system reports an error of the disk once, to the first sync after it, and a second sync
//! succeeds although the bytes are lost. So each upload is synced once, and everybody who relies on it
//! shares the outcome. See [`Root::land`](crate::root::Root::land).

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Most uploads that are remembered, as on their way or as on the disk: those of some hundred
/// workers. Each takes half a kilobyte. One that is not remembered is synced when it is promoted.
const REMEMBERED_MAX: usize = 8192;
/// Most syncs that are begun ahead of their promotion at a time. Each holds a file and a thread, and a
/// disk that is slower than the uploads would gather them without end.
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
    /// A turn to sync an upload ahead of its promotion; none while too many are synced or remembered.
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

    /// The landing of the open file `file` with this name. Everybody who asks for the same file gets
    /// the same one until it is forgotten.
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

    /// Forgets the file with this name: it is gone, or about to go. To be called before another file
    /// can get the name, since that may get the number of this one too.
    pub(crate) fn forget(&self, name: &Path) {
        self.by_name().remove(name);
    }

    /// Forgets the file with this name if more are remembered than should be.
    pub(crate) fn forget_if_full(&self, name: &Path) {
        let mut by_name = self.by_name();
        if by_name.len() > REMEMBERED_MAX {
            by_name.remove(name);
        }
    }

    /// Forgets files without a name.
    pub(crate) fn forget_gone(&self) {
        self.by_name().retain(|name, _| name.exists());
    }

    fn by_name(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Arc<Landing>>> {
        self.by_name.lock().expect("no holder panics")
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
        let metadata = file.metadata()?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }
}
