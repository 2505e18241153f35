//! Signed texts that contradict what this machine has seen, on its disk. None is written over: what
//! was seen first is the strongest, and a later one could be made to hide it.

use std::io::Error;
use std::path::{Path, PathBuf};

use identity::secret::{FileError, replace_private};

/// Most texts that lie aside.
const ASIDE_MAX: u32 = 8;

/// The file of the text against what is held for true now, and those that were moved aside.
#[derive(Debug)]
pub struct Evidence {
    file: PathBuf,
}

impl Evidence {
    /// In this file, and in those beside it whose names have `.before` and a number behind.
    pub const fn at(file: PathBuf) -> Self {
        Self { file }
    }

    /// True if there is a text in the file.
    pub fn is_kept(&self) -> bool {
        self.file.is_file()
    }

    /// Keeps a text, unless another one is there. It is on the disk when this returns.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn keep(&self, text: &[u8]) -> Result<(), FileError> {
        match self.is_kept() {
            true => Ok(()),
            false => replace_private(&self.file, text),
        }
    }

    /// Moves the text aside, so that there is room for one against what is held for true from now
    /// on. Without a free name it stays where it is.
    ///
    /// # Errors
    /// The file cannot be moved.
    pub fn set_aside(&self) -> Result<(), Error> {
        let free = (1..=ASIDE_MAX).map(|number| aside(&self.file, number));
        match free.into_iter().find(|path| !path.exists()) {
            Some(path) if self.is_kept() => std::fs::rename(&self.file, path),
            _ => Ok(()),
        }
    }
}

fn aside(file: &Path, number: u32) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".before");
    if number > 1 {
        name.push(format!(".{number}"));
    }
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_first_is_never_written_over_and_no_more_is_kept_than_has_room() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let file = scratch.path().join("log.refused");
        let evidence = Evidence::at(file.clone());
        evidence.set_aside().expect("there is nothing");
        for number in 1..=ASIDE_MAX {
            let text = number.to_string();
            assert!(!evidence.is_kept());
            evidence.keep(text.as_bytes()).expect("there is room");
            evidence.keep(b"later").expect("one is there");
            assert_eq!(std::fs::read(&file).expect("it is kept"), text.as_bytes());
            evidence.set_aside().expect("there is a name");
        }
        evidence.keep(b"last").expect("there is room");
        evidence.set_aside().expect("it stays");
        assert_eq!(std::fs::read(&file).expect("it stays"), b"last");
        for number in 1..=ASIDE_MAX {
            let text = std::fs::read(aside(&file, number)).expect("it lies aside");
            assert_eq!(text, number.to_string().as_bytes());
        }
        let names = std::fs::read_dir(scratch.path()).expect("ours");
        assert_eq!(names.count(), ASIDE_MAX as usize + 1);
        assert!(scratch.path().join("log.refused.before").is_file());
        assert!(scratch.path().join("log.refused.before.2").is_file());
    }

    #[test]
    fn what_cannot_be_written_is_an_error() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let evidence = Evidence::at(scratch.path().join("gone").join("file"));
        evidence.keep(b"text").expect_err("there is no folder");
        assert!(!evidence.is_kept());
    }
}
