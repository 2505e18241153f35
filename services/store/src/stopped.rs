//! The runs and workers whose URLs are refused. Each is a small file in the bucket `blobs`, which
//! the coordinator writes with the admin key and removes when its URLs are good again. The file
//! itself is asked at each request, so that an order holds from its answer on, and through every
//! restart.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use objects::BucketName;
use objects::key::{STOPPED, StoppedUrls};

/// The folder of these files.
#[derive(Clone, Debug)]
pub(crate) struct Stopped(PathBuf);

impl Stopped {
    /// Those of the store in this folder.
    pub(crate) fn of(root: &Path) -> Self {
        Self(root.join(BucketName::Blobs.as_str()).join(STOPPED))
    }

    /// True if these URLs are refused, also if the store cannot tell.
    pub(crate) fn has(&self, urls: &StoppedUrls) -> bool {
        match self.0.join(urls.to_string()).symlink_metadata() {
            Ok(_) => true,
            Err(error) => error.kind() != ErrorKind::NotFound,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_stopped_while_its_file_is_there_and_when_nobody_can_tell() {
        let scratch = tempfile::tempdir().unwrap();
        let stopped = Stopped::of(scratch.path());
        let run: StoppedUrls = "demo".parse().unwrap();
        let worker: StoppedUrls = "demo.0123456789abcdef".parse().unwrap();
        assert!(!stopped.has(&run), "there is no folder");
        let folder = scratch.path().join("blobs").join("stopped");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("demo2"), "").unwrap();
        assert!(!stopped.has(&run), "another is");
        std::fs::write(folder.join("demo"), "").unwrap();
        assert!(stopped.has(&run) && !stopped.has(&worker));
        std::fs::write(folder.join("demo.0123456789abcdef"), "").unwrap();
        std::fs::remove_file(folder.join("demo")).unwrap();
        assert!(!stopped.has(&run) && stopped.has(&worker));
        std::fs::remove_dir_all(&folder).unwrap();
        std::fs::write(&folder, "a file in the folder's place").unwrap();
        assert!(stopped.has(&run), "it cannot be told");
    }
}
