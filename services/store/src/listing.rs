//! Lists a bucket's folder in the order of keys, a page at a time, without reading the folders
//! before the page.

use std::fs;
use std::io;
use std::path::Path;
use std::time::SystemTime;

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

/// The page's objects, and true if others follow.
pub(crate) fn list(folder: &Path, page: &Page<'_>) -> io::Result<(Vec<Found>, bool)> {
    let mut found = Vec::new();
    walk(folder, "", page, &mut found)?;
    let more = found.len() > page.keys_max;
    found.truncate(page.keys_max);
    Ok((found, more))
}

/// Collects until there is one object more than asked for.
fn walk(folder: &Path, above: &str, page: &Page<'_>, found: &mut Vec<Found>) -> io::Result<()> {
    let mut entries = Vec::new();
    let files = match fs::read_dir(folder) {
        // The sweeper removes empty folders.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        files => files?,
    };
    for entry in files {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        // With a slash after its name, a folder sorts where its keys do.
        let slash = if entry.file_type()?.is_dir() { "/" } else { "" };
        entries.push((format!("{above}{name}{slash}"), entry.path()));
    }
    entries.sort();
    for (key, path) in entries {
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
        } else if key.starts_with(page.prefix)
            && page.after.is_none_or(|after| key.as_str() > after)
        {
            match fs::metadata(&path) {
                Ok(metadata) => found.push(Found {
                    key,
                    bytes: metadata.len(),
                    modified: metadata.modified()?,
                }),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
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
                let (found, more) = list(folder.path(), &page).unwrap();
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
            list(folder.path(), &page).map(|(found, _)| found.len())
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
        let listed = |path: &Path| list(path, &page).map(|(found, _)| found.len());
        assert_eq!(listed(&folder.path().join("gone")).unwrap(), 0);
        fs::write(folder.path().join("file"), b"").unwrap();
        assert!(listed(&folder.path().join("file")).is_err(), "no folder");
        symlink(folder.path().join("gone"), folder.path().join("link")).unwrap();
        assert_eq!(listed(folder.path()).unwrap(), 1, "the file");
        symlink(folder.path().join("loop"), folder.path().join("loop")).unwrap();
        assert!(listed(folder.path()).is_err(), "it leads nowhere");
    }
}
