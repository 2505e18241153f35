//! The broker's configuration below a domain's folder: copies of the committed files of
//! `nats-config`, and beside them the parts that belong to this domain. Two domains share nothing.
//! After a folder was moved, writing the files again corrects their paths.

use std::fs;
use std::path::{Path, PathBuf};

use schemas::UnixMillis;

use crate::domain::{Domain, DomainError, HEADER};
use crate::init::quotable;
use crate::secret::write_private;

/// The committed file for one node, and its name below a domain's folder.
const SINGLE: (&str, &str) = ("dev.conf", "nats.conf");

/// The committed part of the broker's configuration, read into memory, so that a missing file shows
/// before anything is written.
#[derive(Clone, Debug)]
pub struct BrokerFiles {
    /// Path below the folder, and text.
    files: Vec<(PathBuf, Vec<u8>)>,
}

impl BrokerFiles {
    /// Reads the `.conf` files of a folder such as `nats-config`, and of its `include`.
    ///
    /// # Errors
    /// A file or folder is missing or cannot be read.
    pub fn read(folder: &Path) -> Result<Self, DomainError> {
        let mut files = Vec::new();
        for part in ["", "include"] {
            let place = folder.join(part);
            let failed = |path: &Path| {
                let path = path.to_owned();
                move |source| DomainError::Template { path, source }
            };
            let mut paths = Vec::new();
            for entry in fs::read_dir(&place).map_err(failed(&place))? {
                paths.push(entry.map_err(failed(&place))?.path());
            }
            paths.sort();
            for path in paths
                .iter()
                .filter(|path| path.extension().is_some_and(|ending| ending == "conf"))
            {
                let name = path.file_name().expect("an entry of a folder has a name");
                let name = if *name == *SINGLE.0 {
                    SINGLE.1.as_ref()
                } else {
                    name
                };
                files.push((
                    Path::new(part).join(name),
                    fs::read(path).map_err(failed(path))?,
                ));
            }
        }
        if files.iter().any(|(path, _)| path == Path::new(SINGLE.1)) {
            return Ok(Self { files });
        }
        let path = folder.join(SINGLE.0);
        Err(DomainError::Template {
            path,
            source: std::io::ErrorKind::NotFound.into(),
        })
    }
}

impl Domain {
    /// Writes the broker's whole configuration below the domain's folder, for the owner alone. Its
    /// listening addresses stay as they are, see [`Domain::write_listen`].
    ///
    /// # Errors
    /// As [`Domain::server_config`]; or a file cannot be written.
    pub fn write_broker(
        &self,
        committed: &BrokerFiles,
        now: UnixMillis,
    ) -> Result<(), DomainError> {
        let folder = self.layout().broker_folder();
        let data = quotable(&self.absolute()?.broker_data())?;
        for (path, text) in &committed.files {
            write_private(&folder.join(path), text)?;
        }
        let generated = self.layout().broker_generated();
        let store = format!(
            "{HEADER}# For the folder as it lies now: after it was moved, `diloctl auth config` or `diloctl up` writes it again.\nstore_dir: \"{data}\"\n"
        );
        write_private(&generated.join("jetstream.conf"), store.as_bytes())?;
        self.write_server_config(&generated, now).map(drop)
    }

    /// Writes where the broker listens.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_listen(&self, address: &str) -> Result<(), DomainError> {
        let text = format!("{HEADER}listen: \"{address}\"\n");
        Ok(write_private(
            &self.layout().broker_generated().join("listen.conf"),
            text.as_bytes(),
        )?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_main_file_must_be_there_whatever_else_is() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let folder = scratch.path();
        fs::create_dir(folder.join("include")).expect("it is ours");
        for file in ["include/limits.conf", "cluster.conf", "notes.txt"] {
            fs::write(folder.join(file), file).expect("it is ours");
        }
        let error = BrokerFiles::read(folder).expect_err("no broker starts from these");
        assert!(
            matches!(&error, DomainError::Template { path, .. } if *path == folder.join(SINGLE.0)),
            "{error}"
        );
        fs::write(folder.join(SINGLE.0), "main").expect("it is ours");
        let files = BrokerFiles::read(folder).expect("it is there").files;
        let names: Vec<&Path> = files.iter().map(|(path, _)| &**path).collect();
        assert_eq!(
            names,
            ["cluster.conf", SINGLE.1, "include/limits.conf"].map(Path::new)
        );
    }
}
