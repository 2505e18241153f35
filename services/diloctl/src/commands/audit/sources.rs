//! The places that an auditor reads objects from.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use identity::AccessKey;
use objects::{BlobKey, BlobReader, BucketName, Endpoint, ObjectError, TransferLimits};
use recompute::Objects;
use runtime::Failure;
use schemas::limits::OBJECT_BYTES_MAX;
use schemas::permission::Role;
use schemas::{Code, ObjectRef, Refusal};
use tokio::time::{Instant, sleep};

use crate::cli::{ObjectSource, StoreAddress};
use crate::context::Context;
use crate::objects::OperatorObjectsClient;

/// Time for which an object is asked for while the coordinator says that this operator asks too
/// much.
const PATIENCE: Duration = Duration::from_secs(600);
/// Pause between two such questions: the coordinator allows hundreds a second.
const PAUSE: Duration = Duration::from_secs(1);

/// Objects, from where the command line says.
pub(super) enum Source {
    /// Through URLs that the coordinator grants to operators.
    Operator(Box<OperatorObjectsClient>),
    /// In the store, with an auditor's own key.
    Store(Box<BlobReader>),
    /// In the folder of an embedded store.
    Folder(PathBuf),
}

impl Source {
    pub(super) async fn open(context: &Context, from: &ObjectSource) -> Result<Self, Failure> {
        if let Some(folder) = &from.store_folder {
            let blobs = folder.join(BucketName::Blobs.as_str());
            if !blobs.is_dir() {
                let text = format!("{} is not there: no folder of a store", blobs.display());
                return Err(Failure::new(Code::RoundUnproven, text));
            }
            return Ok(Self::Folder(blobs));
        }
        if let Some(keys) = &from.store_keys {
            let reader = reader(context, from, keys)?;
            return Ok(Self::Store(Box::new(reader)));
        }
        // The credentials that the command line names are those that read the ledger.
        let own = Context {
            credentials: None,
            ..context.clone()
        };
        let operator = own.operator().await?;
        let client = OperatorObjectsClient::new(context, operator)?.of_an_audit();
        Ok(Self::Operator(Box::new(client)))
    }
}

#[async_trait]
impl Objects for Source {
    async fn fetch(&self, object: ObjectRef) -> Result<Bytes, Refusal> {
        // Before anything is read: a record decides how much memory is taken.
        if object.bytes > OBJECT_BYTES_MAX {
            let ObjectRef { digest, bytes } = object;
            let detail = format!("{digest} has {bytes} bytes by the record, more than any object");
            return Err(Refusal::new(Code::ListMismatch, detail));
        }
        let bytes = match self {
            Self::Operator(client) => of_operator(client, object).await?,
            Self::Store(reader) => {
                let read = reader.get(object).await;
                read.map_err(|error| Refusal::new(error.code(), error.to_string()))?
            }
            Self::Folder(blobs) => {
                let path = blobs.join(BlobKey(object.digest).to_string());
                let read = tokio::task::spawn_blocking(move || read(&path, object));
                read.await.expect("reading a file does not panic")?
            }
        };
        if bytes.len() as u64 == object.bytes.get() {
            return Ok(bytes);
        }
        // The digest is right, so the record is wrong about the length.
        let (digest, got, expected) = (object.digest, bytes.len(), object.bytes);
        let detail = format!("{digest} has {got} bytes, {expected} are recorded");
        Err(Refusal::new(Code::ListMismatch, detail))
    }
}

/// The store at this address, or at its usual one, with the auditor's key.
pub(super) fn endpoint(
    context: &Context,
    at: &StoreAddress,
    keys: &Path,
) -> Result<(Endpoint, AccessKey), Failure> {
    let mut context = context.clone();
    if let Some(address) = &at.store {
        address.clone_into(&mut context.endpoints.store);
    }
    let key = AccessKey::read_auditors(keys)?;
    let trust = context.store_trust(Role::Auditor, std::env::vars_os())?;
    let endpoint = Endpoint::new(&context.endpoints.store, &at.store_region, trust);
    Ok((endpoint.map_err(ObjectError::from)?, key))
}

/// A reader with the auditor's key.
fn reader(context: &Context, from: &ObjectSource, keys: &Path) -> Result<BlobReader, Failure> {
    let (endpoint, key) = endpoint(context, &from.at, keys)?;
    let limits = TransferLimits::default();
    Ok(BlobReader::new(&endpoint, &key, limits, context.timeout)?)
}

async fn of_operator(client: &OperatorObjectsClient, object: ObjectRef) -> Result<Bytes, Refusal> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match client.get(object).await {
            Err(failure) if failure.code() == Code::AskedTooMuch && Instant::now() < deadline => {
                sleep(PAUSE).await;
            }
            read => return read.map_err(|failure| failure.refusal().clone()),
        }
    }
}

/// Reads a file of an embedded store. Nothing there is trusted: the bytes must have the digest.
fn read(path: &Path, object: ObjectRef) -> Result<Bytes, Refusal> {
    let failed = |error: std::io::Error| {
        let code = match error.kind() {
            std::io::ErrorKind::NotFound => Code::ObjectMissing,
            _ => Code::StoreUnreachable,
        };
        Refusal::new(code, format!("{}: {error}", path.display()))
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    // As much as an object may have: if the record is wrong about the length, the digest shows that
    // the object is right.
    let mut bounded = file.take(OBJECT_BYTES_MAX.get().saturating_add(1));
    bounded.read_to_end(&mut bytes).map_err(failed)?;
    let got = ObjectRef::of(&bytes);
    if got.digest == object.digest {
        return Ok(bytes.into());
    }
    let detail = format!("{} has other bytes: {}", object.digest, path.display());
    Err(Refusal::new(Code::ObjectMismatch, detail))
}
