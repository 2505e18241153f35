//! The files that an import visits: those below a folder, in the order of their paths. Links are
//! followed if they stay inside. Each folder is entered once, however many links lead to it, so the
//! walk ends in spite of loops.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::vec;

use crate::skipped::Reason;
use crate::{DataError, Pattern, Source};

/// Deepest folder that is entered: far deeper than people make folders. Each level holds a list of
/// names in memory.
const DEPTH_MAX: usize = 64;

/// The outcome of a step of a walk.
#[derive(Debug)]
pub(crate) enum WalkStep {
    /// A file to read.
    File(PathBuf),
    /// An entry to leave out.
    Skipped(PathBuf, Reason, Option<String>),
}

/// A walk over a source.
#[derive(Debug)]
pub(crate) struct Walk<'a> {
    source: &'a Source,
    exclude: &'a [Pattern],
    /// The folder that is read, without links: links may not leave it.
    real_root: PathBuf,
    /// Devices and numbers of the folders that were entered.
    entered: BTreeSet<(u64, u64)>,
    /// The entries of each open folder that are still to be visited.
    open: Vec<vec::IntoIter<PathBuf>>,
}

impl<'a> Walk<'a> {
    /// A walk that begins at the source's path, which itself may be a link.
    ///
    /// # Errors
    /// There is nothing at the path, or it cannot be read.
    pub(crate) fn new(source: &'a Source, exclude: &'a [Pattern]) -> Result<Self, DataError> {
        let root = source.path();
        let unreadable = |error: io::Error| DataError::Unreadable {
            path: root.to_owned(),
            reason: error.to_string(),
        };
        let metadata = fs::metadata(root).map_err(unreadable)?;
        let real_root = fs::canonicalize(root).map_err(unreadable)?;
        let (first, mut entered) = if metadata.is_dir() {
            (names(root).map_err(unreadable)?, BTreeSet::new())
        } else {
            (vec![root.to_owned()], BTreeSet::new())
        };
        entered.insert((metadata.dev(), metadata.ino()));
        Ok(Self {
            source,
            exclude,
            real_root,
            entered,
            open: vec![first.into_iter()],
        })
    }

    fn look(&mut self, path: PathBuf) -> Option<WalkStep> {
        let is_root = path == self.source.path();
        if !is_root && let Some(reason) = self.unwanted(&path) {
            return self.left_out(&path, reason, None);
        }
        let metadata = match self.resolve(&path, is_root) {
            Ok(metadata) => metadata,
            Err((reason, detail)) => return self.left_out(&path, reason, detail),
        };
        if metadata.is_dir() {
            return self.enter(path, &metadata);
        }
        match (metadata.is_file(), self.is_kind(&path)) {
            (_, false) => None,
            (true, true) => Some(WalkStep::File(path)),
            (false, true) => self.left_out(&path, Reason::NotAFile, None),
        }
    }

    fn unwanted(&self, path: &Path) -> Option<Reason> {
        let relative = path.strip_prefix(self.source.path()).unwrap_or(path);
        if path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
        {
            return Some(Reason::Hidden);
        }
        self.exclude
            .iter()
            .any(|pattern| pattern.matches(relative))
            .then_some(Reason::Excluded)
    }

    /// Metadata of the file or folder at the end of the path's links.
    fn resolve(&self, path: &Path, is_root: bool) -> Result<Metadata, (Reason, Option<String>)> {
        let unreadable = |error: io::Error| (Reason::Unreadable, Some(error.to_string()));
        let own = fs::symlink_metadata(path).map_err(unreadable)?;
        if !own.is_symlink() || is_root {
            return fs::metadata(path).map_err(unreadable);
        }
        let target = fs::canonicalize(path).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => unreadable(error),
            _ => (Reason::LinkBroken, None),
        })?;
        if !target.starts_with(&self.real_root) {
            return Err((
                Reason::LinkOutside,
                Some(format!("leads to {}", crate::shown(&target))),
            ));
        }
        fs::metadata(path).map_err(unreadable)
    }

    fn enter(&mut self, path: PathBuf, metadata: &Metadata) -> Option<WalkStep> {
        if !self.entered.insert((metadata.dev(), metadata.ino())) {
            return None;
        }
        if self.open.len() >= DEPTH_MAX {
            return self.left_out(&path, Reason::TooDeep, None);
        }
        match names(&path) {
            Ok(names) => {
                self.open.push(names.into_iter());
                None
            }
            Err(error) => self.left_out(&path, Reason::Unreadable, Some(error.to_string())),
        }
    }

    fn is_kind(&self, path: &Path) -> bool {
        match self.source {
            Source::RustSources(_) => path.extension().is_some_and(|extension| extension == "rs"),
            Source::Text(_) => true,
        }
    }

    /// Reports a file that is left out. Among Rust sources, files of other kinds are reported for a
    /// few reasons only, since nobody asked for them.
    fn left_out(&self, path: &Path, reason: Reason, detail: Option<String>) -> Option<WalkStep> {
        let relevant = match reason {
            Reason::Unreadable | Reason::TooDeep | Reason::Excluded => true,
            _ => self.is_kind(path),
        };
        relevant.then(|| WalkStep::Skipped(path.to_owned(), reason, detail))
    }
}

impl Iterator for Walk<'_> {
    type Item = WalkStep;

    fn next(&mut self) -> Option<WalkStep> {
        loop {
            let Some(path) = self.open.last_mut()?.next() else {
                self.open.pop();
                continue;
            };
            if let Some(found) = self.look(path) {
                return Some(found);
            }
        }
    }
}

/// The paths in a folder, by name: this order within each folder gives the order of whole paths.
fn names(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = fs::read_dir(folder)?
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn write(folder: &Path, name: &str) {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().expect("below the folder")).expect("a folder");
        fs::write(path, name).expect("written");
    }

    /// Paths below the folder, and the files that were left out.
    fn walk(source: &Source, exclude: &[&str]) -> (Vec<String>, Vec<(String, Reason)>) {
        let exclude: Vec<Pattern> = exclude
            .iter()
            .map(|text| text.parse().expect("a pattern"))
            .collect();
        let relative = |path: &Path| {
            path.strip_prefix(source.path())
                .unwrap_or(path)
                .display()
                .to_string()
        };
        let (mut files, mut skipped) = (Vec::new(), Vec::new());
        for found in Walk::new(source, &exclude).expect("readable") {
            match found {
                WalkStep::File(path) => files.push(relative(&path)),
                WalkStep::Skipped(path, reason, _) => skipped.push((relative(&path), reason)),
            }
        }
        (files, skipped)
    }

    #[test]
    fn links_are_followed_inside_and_told_of_outside() {
        let outside = tempfile::tempdir().expect("a folder");
        write(outside.path(), "secret.txt");
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path();
        write(root, "blobs/one");
        write(root, "blobs/two");
        fs::create_dir_all(root.join("snapshots/x")).expect("a folder");
        symlink("../../blobs/one", root.join("snapshots/x/part-0.txt")).expect("a link");
        symlink(root.join("blobs"), root.join("again")).expect("a link");
        symlink("..", root.join("snapshots/x/up")).expect("a loop");
        symlink(outside.path(), root.join("out")).expect("a link");
        symlink(outside.path().join("secret.txt"), root.join("out.txt")).expect("a link");
        symlink("nowhere", root.join("broken")).expect("a link");
        symlink("self", root.join("self")).expect("a link");
        let (files, skipped) = walk(&Source::Text(root.to_owned()), &[]);
        assert_eq!(
            files,
            ["again/one", "again/two", "snapshots/x/part-0.txt"],
            "each folder once"
        );
        let expected = [
            ("broken", Reason::LinkBroken),
            ("out", Reason::LinkOutside),
            ("out.txt", Reason::LinkOutside),
            ("self", Reason::LinkBroken),
        ];
        assert_eq!(
            skipped,
            expected.map(|(name, reason)| (name.to_owned(), reason))
        );
        let door = outside.path().join("door");
        symlink(root.join("blobs"), &door).expect("a link");
        assert_eq!(
            walk(&Source::Text(door), &[]).0,
            ["one", "two"],
            "the path that was named may be a link"
        );
    }

    #[test]
    fn a_fan_of_links_ends() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path();
        write(root, "d40/x.txt");
        for level in 0..40 {
            let here = root.join(format!("d{level:02}"));
            fs::create_dir_all(&here).expect("a folder");
            // There are two ways from each folder to the next, and so 2^40 ways to the last.
            for way in ["a", "b"] {
                symlink(format!("../d{:02}", level + 1), here.join(way)).expect("a link");
            }
        }
        assert_eq!(walk(&Source::Text(root.to_owned()), &[]).0.len(), 1);
    }

    #[test]
    fn what_is_no_file_or_not_wanted_is_told_of() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path();
        for name in [
            "a.rs",
            "b.txt",
            ".git/config",
            "target/c.rs",
            "d/e.log",
            "d/f.rs",
            ".hidden.rs",
        ] {
            write(root, name);
        }
        let _socket = UnixListener::bind(root.join("socket")).expect("a socket");
        let (files, skipped) = walk(&Source::Text(root.to_owned()), &["target", "d/*.log"]);
        assert_eq!(files, ["a.rs", "b.txt", "d/f.rs"]);
        let expected = [
            (".git", Reason::Hidden),
            (".hidden.rs", Reason::Hidden),
            ("d/e.log", Reason::Excluded),
            ("socket", Reason::NotAFile),
            ("target", Reason::Excluded),
        ];
        assert_eq!(
            skipped,
            expected.map(|(name, reason)| (name.to_owned(), reason))
        );
        let (files, skipped) = walk(&Source::RustSources(root.to_owned()), &[]);
        assert_eq!(files, ["a.rs", "d/f.rs", "target/c.rs"]);
        assert_eq!(
            skipped,
            [(".hidden.rs".to_owned(), Reason::Hidden)],
            "only what would have been Rust"
        );
        assert_eq!(
            walk(&Source::Text(root.join("socket")), &[]).1.len(),
            1,
            "and it is not opened"
        );
    }

    #[test]
    fn very_deep_folders_are_told_of() {
        let folder = tempfile::tempdir().expect("a folder");
        let deep: PathBuf = std::iter::repeat_n("d", DEPTH_MAX + 3).collect();
        fs::create_dir_all(folder.path().join(&deep)).expect("folders");
        write(folder.path(), &deep.join("x.txt").display().to_string());
        let (files, skipped) = walk(&Source::Text(folder.path().to_owned()), &[]);
        assert!(files.is_empty());
        assert_eq!(
            skipped
                .iter()
                .map(|(_, reason)| *reason)
                .collect::<Vec<_>>(),
            [Reason::TooDeep]
        );
    }
}
