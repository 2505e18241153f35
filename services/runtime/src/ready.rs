//! The ready file: it appears as a whole when a service can be used, and disappears when the
//! service ends. `diloctl up` and tests wait for it.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use schemas::member::Posture;
use serde::{Deserialize, Serialize};

/// The content of a ready file (JSON).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ready {
    /// The service's name.
    pub service: String,
    /// Its process.
    pub pid: u32,
    /// Addresses that it listens on; the port is the one that the system chose when 0 was asked
    /// for.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// The address of its metrics; none when it serves none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<String>,
    /// The layers of protection that it relaxed.
    #[serde(default)]
    pub posture: Posture,
}

/// A ready file; dropping it removes the file.
#[derive(Debug)]
pub struct ReadyFile(Option<PathBuf>);

impl ReadyFile {
    /// Checks that the file can be written, before the service begins: a file beside it is made and
    /// removed.
    ///
    /// # Errors
    /// The folder cannot be written to, or `path` is a folder.
    pub fn check(path: Option<&Path>) -> io::Result<()> {
        let Some(path) = path else {
            return Ok(());
        };
        if path.is_dir() {
            return Err(io::Error::from(io::ErrorKind::IsADirectory));
        }
        let aside = aside(path);
        fs::File::create(&aside)?;
        fs::remove_file(&aside)
    }

    /// Writes the file under its final name in one step. Without a path nothing is written.
    ///
    /// # Errors
    /// The folder cannot be written to.
    pub fn announce(path: Option<&Path>, ready: &Ready) -> io::Result<Self> {
        let Some(path) = path else {
            return Ok(Self(None));
        };
        let text = serde_json::to_vec(ready).map_err(io::Error::other)?;
        let aside = aside(path);
        let mut file = fs::File::create(&aside)?;
        file.write_all(&text)?;
        fs::rename(&aside, path)?;
        Ok(Self(Some(path.to_owned())))
    }
}

/// The name under which the file is written before it is renamed.
fn aside(path: &Path) -> PathBuf {
    path.with_extension(format!("part-{}", std::process::id()))
}

impl Drop for ReadyFile {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // The program that waited for the file may have removed it.
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready() -> Ready {
        Ready {
            service: "store".to_owned(),
            pid: std::process::id(),
            addresses: vec!["127.0.0.1:9000".to_owned()],
            metrics: None,
            posture: Posture::default(),
        }
    }

    #[test]
    fn the_file_lives_as_long_as_its_service() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let path = scratch.path().join("store.ready");
        let announced = ready();
        let file = ReadyFile::announce(Some(&path), &announced).expect("a fresh folder");
        let read: Ready =
            serde_json::from_slice(&fs::read(&path).expect("it is there")).expect("it is JSON");
        assert_eq!(read, announced);
        ReadyFile::check(Some(&path)).expect("it may be there from before");
        drop(file);
        assert_eq!(fs::read_dir(scratch.path()).expect("it exists").count(), 0);
    }

    #[test]
    fn a_file_that_cannot_be_written_is_found_out_before() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        assert!(ReadyFile::check(None).is_ok());
        let absent = scratch.path().join("absent/store.ready");
        for path in [absent.as_path(), scratch.path()] {
            let error = ReadyFile::check(Some(path)).expect_err("it is refused");
            let announced = ReadyFile::announce(Some(path), &ready());
            assert!(announced.is_err(), "{}: {error}", path.display());
        }
    }
}
