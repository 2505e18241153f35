//! The waits for the disk, in one place: tests put a disk there that fails, or one that takes
//! notes.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;

type Wait<T> = Box<dyn Fn(&T) -> io::Result<()> + Send + Sync>;

/// The disk under a root.
pub(crate) struct Disk {
    /// Waits until the disk has the bytes of a file.
    pub(crate) bytes: Wait<File>,
    /// Waits until the disk has the names in a folder.
    pub(crate) names: Wait<Path>,
}

impl Disk {
    /// The system's.
    pub(crate) fn system() -> Self {
        Self {
            bytes: Box::new(File::sync_data),
            names: Box::new(|folder| File::open(folder)?.sync_all()),
        }
    }

    pub(crate) fn sync_bytes(&self, file: &File) -> io::Result<()> {
        (self.bytes)(file)
    }

    pub(crate) fn sync_names(&self, folder: &Path) -> io::Result<()> {
        (self.names)(folder)
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Disk")
    }
}
