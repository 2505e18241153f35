//! Removes uploads from `incoming` that were not promoted within some days. Other stores do this by
//! a lifecycle rule.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Removes files under `folder` that are older than `life` at `now`, and folders that become empty.
/// Returns the number of removed files.
pub(crate) fn sweep(folder: &Path, life: Duration, now: SystemTime) -> io::Result<u64> {
    let mut removed = 0;
    let Some(entries) = unless_gone(fs::read_dir(folder))? else {
        return Ok(0);
    };
    for entry in entries {
        let entry = entry?;
        let Some(metadata) = unless_gone(entry.metadata())? else {
            continue;
        };
        if metadata.is_dir() {
            removed += sweep(&entry.path(), life, now)?;
            // Fails unless the folder is empty, as intended. An upload that needs the folder makes
            // it again.
            let _kept = fs::remove_dir(entry.path());
        } else if now
            .duration_since(metadata.modified()?)
            .is_ok_and(|age| age > life)
        {
            removed += u64::from(unless_gone(fs::remove_file(entry.path()))?.is_some());
        }
    }
    Ok(removed)
}

/// Turns the absence of a file into `None`: it may have gone meanwhile.
fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_uploads_and_their_folders_go() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("incoming");
        let old = folder.join("demo/1/U/old");
        let fresh = folder.join("demo/2/U/fresh");
        let now = SystemTime::now();
        for (path, age) in [(&old, 100), (&fresh, 10)] {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let file = fs::File::create(path).unwrap();
            file.set_modified(now - Duration::from_secs(age)).unwrap();
        }
        assert_eq!(sweep(&folder, Duration::from_secs(50), now).unwrap(), 1);
        assert!(!folder.join("demo/1").exists() && fresh.exists() && folder.exists());
        assert_eq!(
            sweep(&folder.join("demo/1"), Duration::ZERO, now).unwrap(),
            0,
            "what is gone is no failure"
        );
    }
}
