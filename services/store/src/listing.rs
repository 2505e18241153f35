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
}
