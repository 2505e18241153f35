//! The places where a log is read: a folder, or the bucket `log` of a store.

use std::path::PathBuf;

use diloco_audit::log::read_file;
use objects::{LogBucket, TransferLimits};
use runtime::Failure;
use tokio::runtime::Handle;

use super::sources;
use crate::cli;
use crate::context::Context;

/// Where a log is read.
pub(super) enum Place {
    Folder(PathBuf),
    /// The bucket `log` of the store at this address.
    Store(Box<LogBucket>, String),
}

impl Place {
    pub(super) fn open(context: &Context, from: &cli::Log) -> Result<Self, Failure> {
        let Some(keys) = &from.store_keys else {
            let own = || Ok(context.domain()?.layout().audit_log());
            let folder = from.log_folder.clone().map_or_else(own, Ok::<_, Failure>)?;
            return Ok(Self::Folder(folder));
        };
        let (endpoint, key) = sources::endpoint(context, &from.at, keys)?;
        let limits = TransferLimits::default();
        let bucket = LogBucket::new(&endpoint, &key, limits, context.timeout)?;
        Ok(Self::Store(Box::new(bucket), endpoint.url().to_string()))
    }

    /// Its name, which is the same in each command.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Folder(folder) => {
                let whole = folder.canonicalize();
                whole.as_deref().unwrap_or(folder).display().to_string()
            }
            Self::Store(..) => self.to_string(),
        }
    }

    pub(super) fn read(&self, path: &str) -> Result<Option<Vec<u8>>, String> {
        match self {
            Self::Folder(folder) => {
                read_file(&folder.join(path)).map_err(|error| error.to_string())
            }
            Self::Store(bucket, _) => tokio::task::block_in_place(|| {
                let read = Handle::current().block_on(bucket.get(path));
                let read = read.map_err(|error| error.to_string())?;
                Ok(read.map(|file| file.bytes.to_vec()))
            }),
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Folder(folder) => write!(f, "{}", folder.display()),
            Self::Store(_, url) => write!(f, "bucket log of {url}"),
        }
    }
}
