//! Lists a bucket's folder in the order of keys, a page at a time. Folders of `blobs` before the
//! page are not read; the names of all uploads are, since they lie in one folder.

use std::fs;
use std::io;
use std::path::Path;
use std::time::SystemTime;

use objects::BucketName;

use crate::place::Place;

/// One object.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) key: String,
    pub(crate) bytes: u64,
    pub(crate) modified: SystemTime,
}

/// The request for one page of a listing.
pub(crate) struct Page<'a> {
    pub(crate) prefix: &'a str,
    /// Keys up to and including this one are skipped.
    pub(crate) after: Option<&'a str>,
    pub(crate) keys_max: usize,
}

/// The page's objects in the folder of a bucket, and true if others follow.
pub(crate) fn list(
    bucket: BucketName,
    folder: &Path,
    page: &Page<'_>,
) -> io::Result<(Vec<Found>, bool)> {
    let mut found = Vec::new();
    match bucket {
        BucketName::Incoming => look_through(folder, page, &mut found)?,
        BucketName::Blobs | BucketName::Log => walk(folder, "", page, &mut found)?,
    }
    let more = found.len() > page.keys_max;
    found.truncate(page.keys_max);
    Ok((found, more))
}

/// Collects uploads until there is one more than asked for. The name of a file is not its key, and
/// sorts otherwise.
fn look_through(folder: &Path, page: &Page<'_>, found: &mut Vec<Found>) -> io::Result<()> {
    let mut uploads = Vec::new();
    for entry in entries(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(place) = name.to_str().and_then(Place::of_upload) else {
            continue;
        };
        if page.has(&place.key) {
            uploads.push((place.key, entry.path()));
        }
    }
    uploads.sort();
    for (key, path) in uploads {
        if found.len() > page.keys_max {
            break;
        }
        found.extend(look(key, &path)?);
    }
    Ok(())
}

/// Collects objects of a tree until there is one more than asked for.
fn walk(folder: &Path, above: &str, page: &Page<'_>, found: &mut Vec<Found>) -> io::Result<()> {
    let mut inside = Vec::new();
    for entry in entries(folder)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        // With a slash after its name, a folder sorts where its keys do.
        let slash = if entry.file_type()?.is_dir() { "/" } else { "" };
        inside.push((format!("{above}{name}{slash}"), entry.path()));
    }
    inside.sort();
    for (key, path) in inside {
        if found.len() > page.keys_max {
            break;
        }
        if key.ends_with('/') {
            let wanted = key.starts_with(page.prefix) || page.prefix.starts_with(&key);
            let passed = page
                .after
                .is_some_and(|after| after > key.as_str() && !after.starts_with(&key));
            if wanted && !passed {
                walk(&path, &key, page, found)?;
            }
        } else if page.has(&key) {
            found.extend(look(key, &path)?);
        }
    }
    Ok(())
}

impl Page<'_> {
    /// True for a key that was asked for, on this page or a later one.
    fn has(&self, key: &str) -> bool {
        key.starts_with(self.prefix) && self.after.is_none_or(|after| key > after)
    }
}

/// The entries of a folder; none if it is gone, since folders of named files may be removed by
/// hand.
fn entries(folder: &Path) -> io::Result<impl Iterator<Item = io::Result<fs::DirEntry>>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        entries => Some(entries?),
    };
    Ok(entries.into_iter().flatten())
}

/// The object at `path`; none if it is gone meanwhile.
fn look(key: String, path: &Path) -> io::Result<Option<Found>> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(Found {
            key,
            bytes: metadata.len(),
            modified: metadata.modified()?,
        })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn pages_cover_everything_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let mut keys = ["a-b", "a/b", "a/c/d", "a0", "b/x", "b/y", "c"].map(str::to_owned);
        for key in &keys {
            let path = folder.path().join(key);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, key).unwrap();
        }
        keys.sort();
        for keys_max in 1..=8 {
            let mut seen: Vec<String> = Vec::new();
            loop {
                let after = seen.last().cloned();
                let page = Page {
                    prefix: "",
                    after: after.as_deref(),
                    keys_max,
                };
                let (found, more) = list(BucketName::Blobs, folder.path(), &page).unwrap();
                seen.extend(found.into_iter().map(|found| found.key));
                if !more {
                    break;
                }
            }
            assert_eq!(seen, keys, "{keys_max} a page");
        }
    }

    /// A path that is longer than the system opens: its folder is there, and cannot be read.
    fn unreadable_below(folder: &Path) {
        let segment = "x".repeat(200);
        let deep = |top: &str| -> std::path::PathBuf {
            let segments = std::iter::repeat_n(&*segment, 12);
            [top].into_iter().chain(segments).collect()
        };
        fs::create_dir_all(folder.join(deep("upper"))).unwrap();
        fs::create_dir_all(folder.join(deep("lower"))).unwrap();
        let end = folder.join(deep("upper")).join("lower");
        fs::rename(folder.join("lower"), end).unwrap();
    }

    #[test]
    fn folders_before_the_page_and_beside_the_prefix_are_not_read() {
        let folder = tempfile::tempdir().unwrap();
        unreadable_below(folder.path());
        fs::write(folder.path().join("z"), b"").unwrap();
        let count = |prefix, after| {
            let keys_max = 10;
            let page = Page {
                prefix,
                after,
                keys_max,
            };
            list(BucketName::Blobs, folder.path(), &page).map(|(found, _)| found.len())
        };
        assert!(count("", None).is_err(), "the folder cannot be read");
        assert!(
            count("up", Some("upper/")).is_err(),
            "the page begins in it"
        );
        assert_eq!(count("", Some("v")).unwrap(), 1, "it lies before the page");
        assert_eq!(count("z", None).unwrap(), 1, "it lies beside the prefix");
    }

    #[test]
    fn prefixes_need_not_end_at_a_slash() {
        let folder = tempfile::tempdir().unwrap();
        for key in ["ab/c", "ab/d", "ac/c"] {
            let path = folder.path().join(key);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"").unwrap();
        }
        let keys = |prefix| {
            let (found, _) = list(
                BucketName::Blobs,
                folder.path(),
                &Page {
                    prefix,
                    after: None,
                    keys_max: 10,
                },
            )
            .unwrap();
            found.into_iter().map(|found| found.key).collect::<Vec<_>>()
        };
        assert_eq!(keys("a").len(), 3);
        assert_eq!(keys("ab"), ["ab/c", "ab/d"]);
        assert_eq!(keys("ab/d"), ["ab/d"]);
        assert!(keys("b").is_empty());
    }

    #[test]
    fn what_is_gone_is_not_listed_and_what_cannot_be_read_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let page = Page {
            prefix: "",
            after: None,
            keys_max: 10,
        };
        let listed =
            |path: &Path| list(BucketName::Blobs, path, &page).map(|(found, _)| found.len());
        assert_eq!(listed(&folder.path().join("gone")).unwrap(), 0);
        fs::write(folder.path().join("file"), b"").unwrap();
        assert!(listed(&folder.path().join("file")).is_err(), "no folder");
        symlink(folder.path().join("gone"), folder.path().join("link")).unwrap();
        assert_eq!(listed(folder.path()).unwrap(), 1, "the file");
        symlink(folder.path().join("loop"), folder.path().join("loop")).unwrap();
        assert!(listed(folder.path()).is_err(), "it leads nowhere");
    }

    #[test]
    fn uploads_are_listed_by_their_keys_and_not_by_the_names_of_their_files() {
        let folder = tempfile::tempdir().unwrap();
        let worker = format!("U{}", "A".repeat(55));
        let hex = schemas::Digest::of(b"x").hex();
        // A joint sorts before a hyphen, and a slash behind it.
        let mut keys = ["a", "a-b"].map(|run| format!("{run}/7/{worker}/train-0-1/{hex}"));
        for key in &keys {
            let place = Place::parse("incoming", key).unwrap();
            let path = folder
                .path()
                .join(place.path(Path::new("")).file_name().unwrap());
            fs::write(path, b"1234").unwrap();
        }
        fs::write(folder.path().join("by hand"), b"").unwrap();
        fs::create_dir(folder.path().join("a")).unwrap();
        keys.sort();
        let listed = |prefix, after, keys_max| {
            let page = Page {
                prefix,
                after,
                keys_max,
            };
            let (found, more) = list(BucketName::Incoming, folder.path(), &page).unwrap();
            assert!(found.iter().all(|found| found.bytes == 4));
            let found = found.into_iter().map(|found| found.key);
            (found.collect::<Vec<_>>(), more)
        };
        assert_eq!(listed("", None, 10), (keys.to_vec(), false));
        assert_eq!(listed("", None, 1), (keys[..1].to_vec(), true));
        assert_eq!(listed("", Some(&keys[0]), 1), (keys[1..].to_vec(), false));
        assert_eq!(listed("a/7/", None, 10), (keys[1..].to_vec(), false));
        assert_eq!(listed("b", None, 10), (vec![], false));
    }
}
