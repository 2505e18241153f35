//! Uploads in folders of their own. Earlier builds kept an upload under its key, in a folder for
//! each round, worker and unit. An upload may wait for its promotion while a store is replaced, so
//! a store that starts moves such uploads to where it looks for them.

use std::fs;
use std::io;
use std::path::Path;

use objects::BucketName;

use crate::place::Place;

/// Moves the uploads in folders of `incoming` into `incoming` itself, and removes folders that
/// become empty. Other files stay where they are. Returns the number of moved uploads.
///
/// Nothing waits for the disk: if a power failure undoes a move, the next start repeats it.
pub(crate) fn take_over(root: &Path) -> io::Result<u64> {
    let mut moved = 0;
    for entry in fs::read_dir(root.join(BucketName::Incoming.as_str()))? {
        let entry = entry?;
        if let Some(name) = entry.file_name().to_str()
            && entry.file_type()?.is_dir()
        {
            moved += empty(root, &entry.path(), name)?;
        }
    }
    Ok(moved)
}

/// Moves the uploads out of `folder`, in which all keys begin with `above` and a slash.
fn empty(root: &Path, folder: &Path, above: &str) -> io::Result<u64> {
    let mut moved = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let key = format!("{above}/{name}");
        if entry.file_type()?.is_dir() {
            moved += empty(root, &entry.path(), &key)?;
        } else if let Ok(upload) = Place::parse(BucketName::Incoming.as_str(), &key) {
            fs::rename(entry.path(), upload.path(root))?;
            moved += 1;
        }
    }
    // Fails unless the folder is empty, as intended.
    let _kept = fs::remove_dir(folder);
    Ok(moved)
}

#[cfg(test)]
mod tests {
    use schemas::Digest;

    use super::*;
    use crate::config::Durability;
    use crate::root::Root;

    #[test]
    fn uploads_of_an_earlier_build_are_found_and_its_folders_go() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let worker = format!("U{}", "A".repeat(55));
        let hex = Digest::of(b"bytes").hex();
        let keys = [
            format!("demo/7/{worker}/train-0-1/{hex}"),
            format!("operator/UDKTV7HZVYJFJN64LLMYQBUR6MTNNYCDC3LAZH4VHURW3GZLL3FULBXV/{hex}"),
        ];
        let nest = || {
            for key in &keys {
                let path = root.join("incoming").join(key);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, b"bytes").unwrap();
            }
        };
        nest();
        let by_hand = root.join("incoming/by/hand");
        fs::create_dir_all(by_hand.parent().unwrap()).unwrap();
        fs::write(&by_hand, b"").unwrap();
        drop(Root::open(root, Durability::Kernel, 0).unwrap());
        for key in &keys {
            let path = Place::parse("incoming", key).unwrap().path(root);
            assert_eq!(fs::read(path).unwrap(), b"bytes");
        }
        assert!(by_hand.exists());
        let left = fs::read_dir(root.join("incoming")).unwrap().count();
        assert_eq!(left, keys.len() + 1, "no folder of an upload is left");
        assert_eq!(take_over(root).unwrap(), 0);
        nest();
        assert_eq!(take_over(root).unwrap(), keys.len() as u64);
    }
}
