//! Objects for a worker: granted over the bus, transferred over HTTP and hashed on the way. Shards
//! are kept on disk.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{Stream, StreamExt as _, TryStreamExt as _, stream};
use objects::{Cache, ObjectError, Regrant, Transfer};
use schemas::blob::{GetRequest, Grant, Grants, PutRequest};
use schemas::call::worker as call;
use schemas::lease::LeaseRef;
use schemas::limits::GRANTS_MAX;
use schemas::{Chunks, Code, Digest, Millis, ObjectRef, Refusal, V};
use tokio::task::JoinError;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::asker::Asker;

/// Objects that are transferred at the same time: enough to keep the cores busy while some
/// transfers wait for the store's disk.
pub(crate) const TRANSFERS_MAX: usize = 8;
/// Longest wait for a new URL in the middle of a transfer. The transfer repeats the request itself,
/// and an answer takes a fraction of a second.
const GRANT_PATIENCE: Millis = Millis::from_secs(4);
/// Time for which one object is tried; an attempt that still moves bytes may go on longer. A worker
/// that loses its lease gives up much earlier.
const TRANSFER_TIME_MAX: Duration = Duration::from_secs(900);

/// The worker's access to objects: cache, downloads and uploads. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct ObjectClient {
    asker: Asker,
    transfer: Transfer,
    cache: Arc<Cache>,
}

/// Asks for a new URL to read from.
struct ToRead<'a>(&'a Asker);

/// Asks for a new URL to upload an object of a unit.
struct ToWrite<'a>(&'a Asker, LeaseRef, ObjectRef);

impl ObjectClient {
    pub(crate) const fn new(asker: Asker, transfer: Transfer, cache: Arc<Cache>) -> Self {
        Self {
            asker,
            transfer,
            cache,
        }
    }

    /// Downloads objects that are needed once, several at a time, in their order. Each item is a
    /// verified object, or the reason why it cannot be fetched. URLs that did not
    /// come with the lease are requested shortly before their use: with a large model they would
    /// otherwise expire first.
    pub(crate) fn stream(
        &self,
        wanted: &[ObjectRef],
    ) -> impl Stream<Item = Result<(usize, Bytes), Refusal>> + use<> {
        let lease_urls = self
            .asker
            .lease_urls()
            .take(wanted, std::time::Instant::now());
        let (first, rest) = wanted.split_at(lease_urls.len());
        let first: Vec<_> = first.iter().copied().zip(lease_urls).map(Ok).collect();
        let batches: Vec<Vec<ObjectRef>> = rest.chunks(GRANTS_MAX).map(<[_]>::to_vec).collect();
        let (object_client, asker) = (self.clone(), self.asker.clone());
        let granted = stream::iter(batches).then(move |batch| {
            let asker = asker.clone();
            async move {
                let grants = grants_to_read(&asker, &batch).await?;
                let pairs: Vec<(ObjectRef, Grant)> = batch.into_iter().zip(grants).collect();
                Ok::<_, Refusal>(stream::iter(pairs).map(Ok::<_, Refusal>))
            }
        });
        stream::iter(first)
            .chain(granted.try_flatten())
            .enumerate()
            .map(move |(index, granted)| {
                // Each transfer is a task, so that several cores hash and decrypt. The task ends
                // with the stream.
                let task = granted.map(|(object, grant)| {
                    let object_client = object_client.clone();
                    AbortOnDropHandle::new(tokio::spawn(async move {
                        object_client.download(object, grant).await
                    }))
                });
                async move { Ok((index, task?.await.map_err(broken)??)) }
            })
            .buffered(TRANSFERS_MAX)
    }

    /// The chunks that are named, one by one or by their list.
    ///
    /// # Errors
    /// The list cannot be fetched, or does not fit the chunks' totals.
    pub(crate) async fn chunks(&self, chunks: &Chunks) -> Result<Vec<ObjectRef>, Refusal> {
        match chunks {
            Chunks::Named(chunks) => Ok(chunks.clone()),
            Chunks::Listed(listed) => listed.read(&self.keep(&[listed.list]).await?[0]),
        }
    }

    /// Objects that are needed again and again, in the order given. Those in the cache are taken
    /// from there.
    ///
    /// # Errors
    /// The reason why one of them cannot be fetched.
    pub(crate) async fn keep(&self, wanted: &[ObjectRef]) -> Result<Vec<Bytes>, Refusal> {
        let mut found: Vec<Option<Bytes>> = Vec::with_capacity(wanted.len());
        for object in wanted {
            found.push(self.cached(object.digest).await);
        }
        let absent: Vec<usize> = (0..wanted.len())
            .filter(|index| found[*index].is_none())
            .collect();
        let missing: Vec<ObjectRef> = absent.iter().map(|index| wanted[*index]).collect();
        if !missing.is_empty() {
            let mut arriving = std::pin::pin!(self.stream(&missing));
            while let Some(item) = arriving.next().await {
                let (position, bytes) = item?;
                self.remember(missing[position].digest, bytes.clone()).await;
                found[absent[position]] = Some(bytes);
            }
        }
        Ok(found
            .into_iter()
            .map(|bytes| bytes.expect("each was in the cache or has arrived"))
            .collect())
    }

    /// Uploads an object of a leased unit.
    ///
    /// # Errors
    /// The reason why the upload failed.
    pub(crate) async fn put(
        &self,
        lease: LeaseRef,
        object: ObjectRef,
        bytes: Bytes,
    ) -> Result<(), Refusal> {
        let request = PutRequest {
            v: V,
            lease,
            objects: vec![object],
        };
        let grants = self
            .asker
            .call_until::<call::Put>(&request, deadline())
            .await?;
        let grant = first(grants, object.digest)?;
        let (asker, transfer) = (self.asker.clone(), self.transfer.clone());
        let sending = async move {
            let regrant = ToWrite(&asker, lease, object);
            transfer.put(&grant, bytes, &regrant, deadline()).await
        };
        AbortOnDropHandle::new(tokio::spawn(sending))
            .await
            .map_err(broken)?
            .map_err(refused)?;
        Ok(())
    }

    async fn download(&self, object: ObjectRef, grant: Grant) -> Result<Bytes, Refusal> {
        let got = self
            .transfer
            .get(&grant, object.bytes, &ToRead(&self.asker), deadline())
            .await;
        let bytes = got.map_err(refused)?;
        if bytes.len() as u64 != object.bytes.get() {
            let detail = format!(
                "{} has {} bytes, {} were announced",
                object.digest,
                bytes.len(),
                object.bytes
            );
            return Err(Refusal::new(Code::ObjectMismatch, detail));
        }
        Ok(bytes)
    }

    /// The object from the cache. A failing cache only costs a download.
    async fn cached(&self, digest: Digest) -> Option<Bytes> {
        let cache = Arc::clone(&self.cache);
        let got = tokio::task::spawn_blocking(move || cache.get(digest))
            .await
            .ok()?;
        got.unwrap_or_else(|error| {
            tracing::warn!(code = %error.code(), %error, "the cache is not used");
            None
        })
    }

    async fn remember(&self, digest: Digest, bytes: Bytes) {
        let cache = Arc::clone(&self.cache);
        let put = tokio::task::spawn_blocking(move || cache.put(digest, &bytes)).await;
        if let Ok(Err(error)) = put {
            tracing::warn!(code = %error.code(), %error, "an object is not kept in the cache");
        }
    }
}

#[async_trait]
impl Regrant for ToRead<'_> {
    async fn regrant(&self, digest: Digest) -> Result<Grant, Refusal> {
        let request = GetRequest {
            v: V,
            objects: vec![digest],
        };
        first(
            self.0.call::<call::Get>(&request, GRANT_PATIENCE).await?,
            digest,
        )
    }
}

#[async_trait]
impl Regrant for ToWrite<'_> {
    async fn regrant(&self, _: Digest) -> Result<Grant, Refusal> {
        let request = PutRequest {
            v: V,
            lease: self.1,
            objects: vec![self.2],
        };
        first(
            self.0.call::<call::Put>(&request, GRANT_PATIENCE).await?,
            self.2.digest,
        )
    }
}

async fn grants_to_read(asker: &Asker, wanted: &[ObjectRef]) -> Result<Vec<Grant>, Refusal> {
    let digests: Vec<Digest> = wanted.iter().map(|object| object.digest).collect();
    let request = GetRequest {
        v: V,
        objects: digests.clone(),
    };
    let reply = asker.call_until::<call::Get>(&request, deadline()).await?;
    checked(reply, &digests)
}

/// Checks that there is one grant for each object, in their order.
fn checked(reply: Grants, digests: &[Digest]) -> Result<Vec<Grant>, Refusal> {
    let right = reply.grants.len() == digests.len()
        && reply
            .grants
            .iter()
            .zip(digests)
            .all(|(grant, digest)| grant.digest == *digest);
    if right {
        return Ok(reply.grants);
    }
    Err(Refusal::new(
        Code::MessageInvalid,
        "the grants are for other objects than were asked for",
    ))
}

fn first(reply: Grants, digest: Digest) -> Result<Grant, Refusal> {
    let mut grants = checked(reply, &[digest])?;
    Ok(grants.remove(0))
}

fn deadline() -> Instant {
    Instant::now() + TRANSFER_TIME_MAX
}

/// The refusal for a transfer that panicked.
fn broken(error: JoinError) -> Refusal {
    Refusal::new(Code::Internal, error.to_string())
}

fn refused(error: ObjectError) -> Refusal {
    match error {
        ObjectError::Denied(refusal) => refusal,
        error => Refusal::new(error.code(), error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_must_be_for_what_was_asked() {
        let digests = [Digest::of(b"a"), Digest::of(b"b")];
        let grants = |digests: &[Digest]| {
            let grants = digests.iter().map(|digest| Grant {
                digest: *digest,
                action: None,
            });
            Grants {
                v: V,
                grants: grants.collect(),
            }
        };
        assert!(checked(grants(&digests), &digests).is_ok());
        let swapped = [digests[1], digests[0]];
        for other in [
            &swapped[..],
            &digests[..1],
            &[],
            &[digests[0], digests[1], digests[1]],
        ] {
            assert_eq!(
                checked(grants(other), &digests).expect_err("refused").code,
                Code::MessageInvalid
            );
        }
        assert!(first(grants(&[]), digests[0]).is_err());
    }
}
