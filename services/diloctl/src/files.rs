//! Files that several commands may write at the same time: each is replaced as a whole, by one
//! command at a time.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use runtime::Failure;
use schemas::Code;

/// Waits for the lock on this file, and holds it until the result is dropped.
pub(crate) fn wait_for_lock(path: &Path) -> io::Result<File> {
    let file = open_lock(path)?;
    file.lock()?;
    Ok(file)
}

fn open_lock(path: &Path) -> io::Result<File> {
    // The lock file is never removed: a command that removed it could remove the lock of another
    // command.
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
}

/// Replaces a file by one with these `bytes`, so that every reader and every crash finds either the
/// old file or the new one.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".part");
    let aside = PathBuf::from(aside);
    write(&aside, bytes)?;
    fs::rename(&aside, path)?;
    sync_folder(
        path.parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new(".")),
    )
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// A folder whose files belong together. New files are written into a subfolder, and moved to their
/// places at the end. The files that make the folder count as whole are removed first and moved
/// last.
pub(crate) struct Staged {
    folder: PathBuf,
    stage: PathBuf,
    names: Vec<&'static str>,
    _lock: File,
}

/// The subfolder in which new files wait. It lies in the target folder itself, since a rename
/// cannot cross file systems.
pub(crate) const STAGE: &str = ".pull";
/// The file on which commands that write into the folder hold a lock.
pub(crate) const LOCK: &str = ".pull.lock";

impl Staged {
    /// Makes the folder if it is absent, and locks it against other commands.
    ///
    /// # Errors
    /// [`Code::FolderBusy`]: another command holds the lock. [`Code::CacheFailed`]: the folder
    /// cannot be written.
    pub(crate) fn open(folder: &Path) -> Result<Self, Failure> {
        let failed = |error: io::Error| unwritable(folder, &error);
        fs::create_dir_all(folder).map_err(failed)?;
        let lock = open_lock(&folder.join(LOCK)).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let detail = format!(
                    "another command writes a snapshot into {}",
                    data::shown(folder)
                );
                return Err(Failure::new(Code::FolderBusy, detail));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let stage = folder.join(STAGE);
        // Files that a killed command left.
        match fs::remove_dir_all(&stage) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        fs::create_dir(&stage).map_err(failed)?;
        Ok(Self {
            folder: folder.to_owned(),
            stage,
            names: Vec::new(),
            _lock: lock,
        })
    }

    /// The path under which to write the file `name`; [`Staged::publish`] moves it to its place
    /// together with the others.
    pub(crate) fn place(&mut self, name: &'static str) -> PathBuf {
        self.names.push(name);
        self.stage.join(name)
    }

    /// Writes a file.
    pub(crate) fn write(&mut self, name: &'static str, bytes: &[u8]) -> Result<(), Failure> {
        let path = self.place(name);
        write(&path, bytes).map_err(|error| unwritable(&path, &error))
    }

    /// Moves all files to their places, those in `last` at the end and in that order.
    pub(crate) fn publish(self, last: &[&'static str]) -> Result<(), Failure> {
        self.put_in_place(last)
            .map_err(|error| unwritable(&self.folder, &error))
    }

    fn put_in_place(&self, last: &[&'static str]) -> io::Result<()> {
        for name in last.iter().rev() {
            match fs::remove_file(self.folder.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        sync_folder(&self.folder)?;
        let first = self.names.iter().filter(|name| !last.contains(name));
        for name in first.chain(last) {
            fs::rename(self.stage.join(name), self.folder.join(name))?;
        }
        fs::remove_dir(&self.stage)?;
        sync_folder(&self.folder)
    }
}

/// The failure for a folder that cannot be written.
pub(crate) fn unwritable(path: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::new(Code::CacheFailed, format!("{}: {error}", data::shown(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let names = fs::read_dir(folder)
            .expect("a folder")
            .map(|entry| entry.expect("an entry").file_name());
        let mut names: Vec<String> = names
            .map(|name| name.to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn one_at_a_time_writes_a_folder() {
        let parent = tempfile::tempdir().expect("a folder");
        let folder = parent.path().join("model");
        let first = Staged::open(&folder).expect("nobody else");
        assert_eq!(
            Staged::open(&folder).err().expect("refused").code(),
            Code::FolderBusy
        );
        drop(first);
        Staged::open(&folder).expect("the first has ended");
    }

    #[test]
    fn half_a_folder_never_looks_whole() {
        let parent = tempfile::tempdir().expect("a folder");
        let folder = parent.path().join("model");
        let mut old = Staged::open(&folder).expect("nobody else");
        for name in ["stamp", "weights", "config"] {
            old.write(name, b"old").expect("written");
        }
        assert_eq!(names(&folder), [STAGE, LOCK], "nothing before all is there");
        old.publish(&["weights", "stamp"]).expect("put in place");
        assert_eq!(names(&folder), [LOCK, "config", "stamp", "weights"]);
        // A command that ends half way leaves the old files, and its leftovers do not disturb the
        // next one.
        let mut broken = Staged::open(&folder).expect("nobody else");
        broken.write("config", b"new").expect("written");
        drop(broken);
        assert_eq!(fs::read(folder.join("config")).expect("is there"), b"old");
        // A command that cannot move its files leaves a folder without the file that makes it
        // whole.
        let mut torn = Staged::open(&folder).expect("nobody else");
        torn.write("config", b"new").expect("written");
        torn.place("weights");
        torn.write("stamp", b"new").expect("written");
        assert!(torn.publish(&["weights", "stamp"]).is_err());
        assert_eq!(names(&folder), [STAGE, LOCK, "config"]);
        let mut whole = Staged::open(&folder).expect("nobody else");
        ["config", "weights", "stamp"]
            .into_iter()
            .for_each(|name| whole.write(name, b"new").expect("written"));
        whole.publish(&["weights", "stamp"]).expect("put in place");
        assert_eq!(names(&folder), [LOCK, "config", "stamp", "weights"]);
    }
}
