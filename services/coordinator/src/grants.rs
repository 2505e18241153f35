//! URLs for workers and operators, and the promotion of operators' uploads.

use std::collections::BTreeSet;

use coordinator_core::{Answer, Quarantine};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use identity::UrlsOf;
use objects::{IncomingKey, ObjectError, Recorded, local_now};
use schemas::blob::{Grant, Grants};
use schemas::limits::BASE_GRANTS_MAX;
use schemas::{Chunks, Digest, ObjectRef, PublicKey, Refusal, RunId, V};

use crate::store::{Store, incoming_key, refusal};

/// Objects of one request whose presence is checked at the same time.
const LOOKS_MAX: usize = 16;
/// Granted uploads that are remembered. Above that all are forgotten, and an upload whose answer
/// was lost may be sent once more.
const REMEMBERED_MAX: usize = 16_384;

/// Uploads that were granted before. A worker that asks for one again may have lost the store's
/// answer, so only then is the store asked whether it has the object.
#[derive(Debug, Default)]
pub(crate) struct Granted(BTreeSet<IncomingKey>);

impl Granted {
    /// For each object, returns true if its upload was granted before, and notes that it is granted
    /// now.
    pub(crate) fn mark(&mut self, place: &Quarantine, objects: &[ObjectRef]) -> Vec<Upload> {
        if self.0.len() + objects.len() > REMEMBERED_MAX {
            self.0.clear();
        }
        let upload = |object: &ObjectRef| {
            let key = incoming_key(place, object.digest);
            let fresh = self.0.insert(key.clone());
            Upload {
                key,
                object: *object,
                fresh,
            }
        };
        objects.iter().map(upload).collect()
    }
}

/// An upload to grant.
#[derive(Clone, Debug)]
pub(crate) struct Upload {
    key: IncomingKey,
    object: ObjectRef,
    fresh: bool,
}

/// Makes URLs for this holder to read objects, for the work of its run; for an operator there is
/// none.
pub(crate) fn get(
    store: &Store,
    run: Option<RunId>,
    objects: &[Digest],
    holder: &PublicKey,
) -> Answer {
    let urls = run.map_or(UrlsOf::Operators, UrlsOf::Run);
    let (now, signer) = (local_now(), store.signer.of(&urls).given_to(holder));
    let grants = objects
        .iter()
        .map(|digest| signer.get(*digest, now))
        .collect();
    Answer::Grants(Grants { v: V, grants })
}

/// Makes URLs for this holder to read what a lease begins with: the chunks of its base, or their
/// list.
pub(crate) fn of_base(
    store: &Store,
    run: &RunId,
    chunks: &Chunks,
    holder: &PublicKey,
) -> Vec<Grant> {
    let signer = store.signer.of(&UrlsOf::Run(run.clone()));
    let (now, signer) = (local_now(), signer.given_to(holder));
    let first = match chunks {
        Chunks::Named(chunks) => chunks,
        Chunks::Listed(listed) => std::slice::from_ref(&listed.list),
    };
    first
        .iter()
        .take(BASE_GRANTS_MAX)
        .map(|object| signer.get(object.digest, now))
        .collect()
}

/// Makes URLs for this holder to upload objects. An object that the store has needs none.
pub(crate) async fn put(
    store: &Store,
    place: &Quarantine,
    uploads: Vec<Upload>,
    holder: &PublicKey,
) -> Result<Answer, Refusal> {
    let urls = match place {
        Quarantine::Worker { run, .. } => UrlsOf::Run(run.clone()),
        Quarantine::Operator { .. } => UrlsOf::Operators,
    };
    let signer = &store.signer.of(&urls).given_to(holder);
    let operator = urls == UrlsOf::Operators;
    let grants = uploads.into_iter().map(|upload| async move {
        let there = match (operator, upload.fresh) {
            (true, _) => blob_is_there(store, upload.object).await?,
            (false, true) => false,
            (false, false) => upload_is_there(store, &upload).await?,
        };
        let digest = upload.object.digest;
        let grant = if there {
            Grant {
                digest,
                action: None,
            }
        } else {
            signer.put(&upload.key, upload.object.bytes, local_now())
        };
        Ok::<Grant, Refusal>(grant)
    });
    let grants = stream::iter(grants)
        .buffered(LOOKS_MAX)
        .try_collect()
        .await?;
    Ok(Answer::Grants(Grants { v: V, grants }))
}

/// Checks an operator's uploads. Returns those that `blobs` does not have.
pub(crate) async fn check(
    store: &Store,
    place: &Quarantine,
    objects: Vec<ObjectRef>,
) -> Result<Vec<ObjectRef>, Refusal> {
    let checks = objects.into_iter().map(|object| async move {
        let key = incoming_key(place, object.digest);
        let is_new =
            !blob_is_there(store, object).await? && is_uploaded(store, &key, object).await?;
        Ok::<_, Refusal>(is_new.then_some(object))
    });
    let checks: Vec<_> = checks.collect();
    let found: Vec<_> = stream::iter(checks)
        .buffered(LOOKS_MAX)
        .try_collect()
        .await?;
    Ok(found.into_iter().flatten().collect())
}

/// True for an upload that is whole. False if another order for the same object has promoted it
/// meanwhile, so that the upload was deleted.
async fn is_uploaded(store: &Store, key: &IncomingKey, object: ObjectRef) -> Result<bool, Refusal> {
    match look_at_upload(store, key, object).await {
        Ok(()) => Ok(true),
        Err(ObjectError::Missing { .. }) if blob_is_there(store, object).await? => Ok(false),
        Err(error) => Err(refusal(&error)),
    }
}

async fn look_at_upload(
    store: &Store,
    key: &IncomingKey,
    object: ObjectRef,
) -> Result<(), ObjectError> {
    if store.buckets.head_checked(key, object).await? == Recorded::No {
        // This store did not keep the hash that it checked, so the object has to be read.
        let _permit = store.transfer().await;
        store.buckets.get_incoming(key, object).await?;
    }
    Ok(())
}

/// Copies an operator's checked uploads to `blobs`. All are tried, even if one fails.
pub(crate) async fn promote(
    store: &Store,
    place: &Quarantine,
    objects: &[ObjectRef],
) -> Result<(), Refusal> {
    let promotions = objects.iter().map(|object| async move {
        let key = incoming_key(place, object.digest);
        let promoted = store.promote(&key, *object).await;
        promoted.map_err(|error| refusal(&error))
    });
    let promotions: Vec<_> = promotions.collect();
    let promoted: Vec<_> = stream::iter(promotions)
        .buffer_unordered(LOOKS_MAX)
        .collect()
        .await;
    promoted.into_iter().collect()
}

async fn blob_is_there(store: &Store, object: ObjectRef) -> Result<bool, Refusal> {
    let _permit = store.look().await;
    let found = store
        .buckets
        .exists(object.digest)
        .await
        .map_err(|error| refusal(&error))?;
    Ok(found == Some(object.bytes))
}

async fn upload_is_there(store: &Store, upload: &Upload) -> Result<bool, Refusal> {
    let _permit = store.look().await;
    match store.buckets.head_checked(&upload.key, upload.object).await {
        Ok(_) => Ok(true),
        Err(ObjectError::Missing { .. }) => Ok(false),
        Err(error) => Err(refusal(&error)),
    }
}
