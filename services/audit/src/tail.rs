//! The broker's log, read as it grows. The broker renames a full log and begins a new file of the
//! same name, so the end of the old one is read first, through the handle that is still open.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use audit_core::sentry::{Lines, Sighting, of_line};

/// Most bytes that are read at a time. The broker can write half as much between two looks, for as
/// long as somebody is refused; after a longer pause the rest is passed over and counted.
const READ_MAX: usize = 24 << 20;

/// A log that is followed.
#[derive(Debug)]
pub(crate) struct Tail {
    path: PathBuf,
    open: Option<Open>,
    lines: Lines,
    /// When it was read last.
    looked: SystemTime,
}

#[derive(Debug)]
struct Open {
    file: File,
    /// Which file it is.
    inode: u64,
    at: u64,
}

/// What was read in one look.
#[derive(Debug, Default)]
pub(crate) struct Looked {
    pub(crate) sightings: Vec<Sighting>,
    /// Bytes that were passed over.
    pub(crate) skipped: u64,
}

impl Tail {
    /// Follows a log from its present end on.
    ///
    /// # Errors
    /// It cannot be read now. It is followed from its beginning once it is there.
    pub(crate) fn open(path: &Path) -> (Self, std::io::Result<()>) {
        let opened = File::open(path).and_then(|mut file| {
            let at = file.seek(SeekFrom::End(0))?;
            let inode = file.metadata()?.ino();
            Ok(Open { file, inode, at })
        });
        let (open, outcome) = match opened {
            Ok(open) => (Some(open), Ok(())),
            Err(error) => (None, Err(error)),
        };
        let tail = Self {
            path: path.to_owned(),
            open,
            lines: Lines::default(),
            looked: SystemTime::now(),
        };
        (tail, outcome)
    }

    /// Where it lies.
    pub(crate) fn path(&self) -> std::path::Display<'_> {
        self.path.display()
    }

    /// Reads what has come.
    ///
    /// # Errors
    /// The file cannot be read; the next look tries again.
    pub(crate) fn look(&mut self) -> std::io::Result<Looked> {
        let began = SystemTime::now();
        let mut looked = Looked::default();
        let now = match std::fs::metadata(&self.path) {
            Ok(now) => Some(now),
            Err(error) if error.kind() == ErrorKind::NotFound && self.open.is_some() => None,
            Err(error) => return Err(error),
        };
        let cut = |open: &Open| {
            let same = now.as_ref().filter(|now| now.ino() == open.inode);
            same.is_some_and(|now| now.len() < open.at)
        };
        let replaced = |open: &Open| now.as_ref().is_some_and(|now| now.ino() != open.inode);
        match &mut self.open {
            Some(open) if cut(open) => {
                open.at = open.file.seek(SeekFrom::Start(0))?;
                self.lines.begin_anew();
            }
            Some(open) if replaced(open) => {
                read(open, &mut self.lines, &mut looked)?;
                looked.skipped += renamed_since(&self.path, self.looked, open.inode)?;
                self.open = None;
                self.lines.begin_anew();
            }
            _ => {}
        }
        if self.open.is_none() {
            let file = File::open(&self.path)?;
            let inode = file.metadata()?.ino();
            self.open = Some(Open { file, inode, at: 0 });
        }
        if let Some(open) = &mut self.open {
            read(open, &mut self.lines, &mut looked)?;
        }
        self.looked = began;
        Ok(looked)
    }
}

/// The bytes of other files that the broker began and renamed since the last look. They are not
/// read, since nobody knows in which order they were written; so they are counted.
fn renamed_since(path: &Path, looked: SystemTime, read: u64) -> std::io::Result<u64> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(0);
    };
    let beginning = format!("{}.", name.to_string_lossy());
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with(&beginning) {
            continue;
        }
        let Ok(found) = entry.metadata() else {
            continue;
        };
        if found.ino() != read && found.modified()? > looked {
            bytes += found.len();
        }
    }
    Ok(bytes)
}

/// Reads on to the end of a file, or passes over what is too much.
fn read(open: &mut Open, lines: &mut Lines, looked: &mut Looked) -> std::io::Result<()> {
    let end = open.file.metadata()?.len();
    let bound = READ_MAX as u64;
    if end.saturating_sub(open.at) > bound {
        let skipped = end - open.at - bound;
        looked.skipped += skipped;
        open.at = open.file.seek(SeekFrom::Start(open.at + skipped))?;
        lines.begin_anew();
    }
    let mut piece = Vec::new();
    (&open.file).take(bound).read_to_end(&mut piece)?;
    open.at += piece.len() as u64;
    lines.feed(&piece, &mut |line| looked.sightings.extend(of_line(line)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn line(subject: &str) -> String {
        format!(
            "[7] 2026/11/28 09:33:43.808814 [ERR] 127.0.0.1:38062 - cid:9 - \"v1:rust:x\" - \"A/nkey:U\" - Publish Violation - \
             Subject \"{subject}\"\n"
        )
    }

    fn subjects(looked: Looked) -> Vec<String> {
        let subject = |one: Sighting| one.subject;
        looked.sightings.into_iter().map(subject).collect()
    }

    #[test]
    fn tl_29_a_log_is_followed_from_its_end_through_a_new_file_and_a_cut() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let path = scratch.path().join("broker.log");
        std::fs::write(&path, line("before")).expect("it is ours");
        let (mut tail, opened) = Tail::open(&path);
        opened.expect("it is there");
        let mut append = File::options()
            .append(true)
            .open(&path)
            .expect("it is ours");
        assert!(tail.look().expect("nothing new").sightings.is_empty());
        let first = line("first");
        let (begun, rest) = first.split_at(40);
        append.write_all(begun.as_bytes()).expect("it is ours");
        assert!(tail.look().expect("half a line").sightings.is_empty());
        append.write_all(rest.as_bytes()).expect("it is ours");
        assert_eq!(subjects(tail.look().expect("the line")), ["first"]);
        // The broker begins a new file; a line went into the old one before.
        append
            .write_all(line("old").as_bytes())
            .expect("it is ours");
        std::fs::rename(&path, scratch.path().join("broker.log.1")).expect("it is ours");
        std::fs::write(&path, line("new")).expect("it is ours");
        let both = tail.look().expect("both");
        assert_eq!(both.skipped, 0, "the old one was read");
        assert_eq!(subjects(both), ["old", "new"]);
        // Two new files between two looks: the one that was renamed again is counted.
        std::fs::rename(&path, scratch.path().join("broker.log.2")).expect("it is ours");
        std::fs::write(scratch.path().join("broker.log.3"), line("missed")).expect("it is ours");
        std::fs::write(&path, line("third")).expect("it is ours");
        let both = tail.look().expect("both");
        assert_eq!(both.skipped as usize, line("missed").len());
        assert_eq!(subjects(both), ["third"]);
        std::fs::write(&path, line("x")).expect("it is cut, and shorter");
        assert_eq!(subjects(tail.look().expect("from the start")), ["x"]);
    }

    #[test]
    fn tl_29_a_log_that_is_not_there_yet_is_read_from_its_start() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let path = scratch.path().join("broker.log");
        let (mut tail, opened) = Tail::open(&path);
        assert!(opened.is_err() && tail.look().is_err());
        std::fs::write(&path, line("first")).expect("it is ours");
        assert_eq!(subjects(tail.look().expect("it is there")), ["first"]);
    }

    #[test]
    fn tl_29_a_flood_is_passed_over_and_counted() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let path = scratch.path().join("broker.log");
        std::fs::write(&path, "").expect("it is ours");
        let (mut tail, _) = Tail::open(&path);
        let flood = line("flood").repeat(READ_MAX / line("flood").len() + 2);
        std::fs::write(&path, &flood).expect("it is ours");
        let looked = tail.look().expect("it is there");
        assert_eq!(looked.skipped as usize, flood.len() - READ_MAX);
        assert!(looked.sightings.len() < flood.lines().count());
        assert!(looked.sightings.len() > flood.lines().count() - 4);
        assert_eq!(tail.look().expect("it is there").skipped, 0);
    }
}
