//! The coordinator's own access to both buckets, with the admin key.
//!
//! Requests are signed here, by the store's clock, and sent over one pooled HTTP/1.1 client. Only
//! listing goes through `object_store`, over the same client.

mod listing;
mod stopped;
pub(crate) mod stranger;
#[cfg(test)]
mod tests;

pub use self::stopped::Taken;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};
use http::{StatusCode, Uri};
use identity::AccessKey;
use object_store::aws::AmazonS3;
use schemas::blob::Grant;
use schemas::limits::OBJECT_BYTES_MAX;
use schemas::{Digest, ObjectRef, Refusal, UnixMillis};

use crate::client::{self, Response};
use crate::endpoint::Endpoint;
use crate::error::ObjectError;
use crate::key::{BlobKey, BucketName, IncomingKey};
use crate::limits::TransferLimits;
use crate::link::Link;
use crate::presign::{CHECKSUM, Place, Request, StoreClock, checksum};
use crate::transfer::{Regrant, Stored};

/// A store's record of the sha256 that it checked at upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// It did, and the value is the expected one.
    Yes,
    /// It does not say; the object has to be read.
    No,
}

/// A verified object as a listing shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The object that its key names.
    pub object: ObjectRef,
    /// The time at which it was stored, by the store's clock.
    pub stored_at: UnixMillis,
}

/// Both buckets, with every right. Cheap to clone; clones share connections.
#[derive(Clone, Debug)]
pub struct Buckets {
    link: Link,
    incoming: Place,
    blobs: Place,
    blobs_listing: Arc<AmazonS3>,
    incoming_listing: Arc<AmazonS3>,
}

/// The answer to a HEAD.
struct Head {
    bytes: Option<u64>,
    checksum: Option<String>,
}

impl Buckets {
    /// Access to the store at `endpoint`. Each operation is retried until `patience` has passed.
    ///
    /// # Errors
    /// The endpoint or its authority is not usable.
    pub fn new(
        endpoint: &Endpoint,
        admin: &AccessKey,
        clock: StoreClock,
        limits: TransferLimits,
        patience: Duration,
    ) -> Result<Self, ObjectError> {
        let link = Link::new(endpoint, clock, limits, patience)?;
        let http = link.transfer.http();
        Ok(Self {
            incoming: Place::new(endpoint, BucketName::Incoming, admin.clone())?,
            blobs: Place::new(endpoint, BucketName::Blobs, admin.clone())?,
            blobs_listing: Arc::new(listing::client(endpoint, admin, BucketName::Blobs, http)?),
            incoming_listing: Arc::new(listing::client(
                endpoint,
                admin,
                BucketName::Incoming,
                http,
            )?),
            link,
        })
    }

    /// Makes one round trip, which shows that the store is there and accepts the key pair, and
    /// measures its clock.
    ///
    /// # Errors
    /// The store does not answer, or refuses.
    pub async fn ping(&self) -> Result<(), ObjectError> {
        let places = [
            (BucketName::Incoming, &self.incoming),
            (BucketName::Blobs, &self.blobs),
        ];
        for (name, place) in places {
            let request = Request {
                method: rusty_s3::Method::Head,
                key: "",
                headers: &[],
                holder: None,
                grant: None,
            };
            let response = self.send("ping of the store", place, &request).await?;
            match response.status() {
                status if status.is_success() => {}
                StatusCode::NOT_FOUND => {
                    let what = format!("bucket {name}");
                    return Err(ObjectError::Missing { what });
                }
                _ => return Err(self.link.refused("ping of the store", response).await),
            }
        }
        Ok(())
    }

    /// Checks an upload without reading it: it is there, with this length and, if the store
    /// recorded one, this sha256.
    ///
    /// # Errors
    /// [`ObjectError::Missing`], [`ObjectError::Mismatch`], or the store does not answer.
    pub async fn head_checked(
        &self,
        key: &IncomingKey,
        object: ObjectRef,
    ) -> Result<Recorded, ObjectError> {
        self.compare_head(&self.incoming, &key.to_string(), object)
            .await
    }

    /// Copies an upload to its place in `blobs`, at the store: one request where the store answers
    /// a copy with its sha256. A copy over a blob that is there writes the same bytes; an upload
    /// that is gone is no loss when the blob is there. The upload's length is the caller's to
    /// compare, as [`Buckets::get_incoming`] and [`Buckets::head_checked`] do.
    ///
    /// # Errors
    /// The upload is gone, the copy is not what it should be, or the store does not answer.
    pub async fn promote(
        &self,
        key: &IncomingKey,
        object: ObjectRef,
    ) -> Result<Stored, ObjectError> {
        let blob = BlobKey(object.digest).to_string();
        if key.digest() != object.digest {
            let reason = format!("its upload lies under {key}");
            return Err(ObjectError::Mismatch {
                digest: object.digest,
                reason,
            });
        }
        let source = format!("/{}/{key}", BucketName::Incoming);
        let headers = [("x-amz-copy-source", source.as_str())];
        let request = Request {
            method: rusty_s3::Method::Put,
            key: &blob,
            headers: &headers,
            holder: None,
            grant: None,
        };
        let during = format!("promotion of {}", object.digest);
        let response = self.send(&during, &self.blobs, &request).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return self
                .compare_head(&self.blobs, &blob, object)
                .await
                .map(|_| Stored::Before);
        }
        if !response.status().is_success() {
            return Err(self.link.refused(&during, response).await);
        }
        // A copy may fail after its 200 has been sent; the body then holds an error code.
        let answer = client::s3_answer(response, self.link.limits.idle).await;
        if !answer.code.is_empty() {
            return Err(ObjectError::Refused {
                during,
                status: 200,
                code: answer.code,
                for_good: answer.for_good,
            });
        }
        if answer.checksum != checksum(object.digest) {
            self.compare_head(&self.blobs, &blob, object).await?;
        }
        Ok(Stored::Now)
    }

    /// A verified object's bytes, hashed here.
    ///
    /// # Errors
    /// The object was not read, or its bytes do not hash to its digest.
    pub async fn get(&self, digest: Digest) -> Result<Bytes, ObjectError> {
        self.read(
            &self.blobs,
            &BlobKey(digest).to_string(),
            digest,
            OBJECT_BYTES_MAX,
        )
        .await
    }

    /// An upload's bytes, for the screen before promotion; hashed here.
    ///
    /// # Errors
    /// The object was not read, or its bytes do not hash to its digest.
    pub async fn get_incoming(
        &self,
        key: &IncomingKey,
        object: ObjectRef,
    ) -> Result<Bytes, ObjectError> {
        let bytes = self
            .read(
                &self.incoming,
                &key.to_string(),
                object.digest,
                object.bytes,
            )
            .await?;
        if bytes.len() as u64 == object.bytes.get() {
            return Ok(bytes);
        }
        let reason = format!("{} bytes instead of {}", bytes.len(), object.bytes);
        Err(ObjectError::Mismatch {
            digest: object.digest,
            reason,
        })
    }

    /// Stores bytes that were just made, without asking if the store has them. This costs one hash
    /// and one PUT; the store compares the hash before the object can be seen.
    ///
    /// # Errors
    /// It was not stored.
    pub async fn put_blob(&self, bytes: Bytes) -> Result<ObjectRef, ObjectError> {
        let hashed = bytes.clone();
        let object = tokio::task::spawn_blocking(move || ObjectRef::of(&hashed))
            .await
            .expect("hashing does not panic");
        self.put_hashed(object, bytes).await?;
        Ok(object)
    }

    /// The same for bytes whose reference the caller has.
    ///
    /// # Errors
    /// It was not stored.
    pub async fn put_hashed(&self, object: ObjectRef, bytes: Bytes) -> Result<(), ObjectError> {
        if bytes.len() as u64 > OBJECT_BYTES_MAX.get() {
            let (length, max) = (bytes.len() as u64, OBJECT_BYTES_MAX.get());
            return Err(ObjectError::TooLarge {
                digest: object.digest,
                bytes: length,
                bytes_max: max,
            });
        }
        let own = OwnGrants {
            buckets: self,
            place: &self.blobs,
            key: BlobKey(object.digest).to_string(),
            put: Some(object),
        };
        self.link
            .transfer
            .put(&own.grant(object.digest), bytes, &own, self.link.deadline())
            .await
            .map(|_| ())
    }

    /// The length of a verified object, if it is there.
    ///
    /// # Errors
    /// The store does not answer, or refuses.
    pub async fn exists(&self, digest: Digest) -> Result<Option<schemas::Bytes>, ObjectError> {
        match self.head(&self.blobs, &BlobKey(digest).to_string()).await {
            Ok(head) => Ok(head.bytes.map(schemas::Bytes)),
            Err(ObjectError::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Deletes a verified object; it need not be there.
    ///
    /// # Errors
    /// The store does not answer, or refuses.
    pub async fn delete(&self, digest: Digest) -> Result<(), ObjectError> {
        self.remove(&self.blobs, &BlobKey(digest).to_string()).await
    }

    /// Deletes an upload; it need not be there.
    ///
    /// # Errors
    /// The store does not answer, or refuses.
    pub async fn delete_incoming(&self, key: &IncomingKey) -> Result<(), ObjectError> {
        self.remove(&self.incoming, &key.to_string()).await
    }

    async fn remove(&self, place: &Place, key: &str) -> Result<(), ObjectError> {
        let request = Request {
            method: rusty_s3::Method::Delete,
            key,
            headers: &[],
            holder: None,
            grant: None,
        };
        let during = format!("deletion of {key}");
        let response = self.send(&during, place, &request).await?;
        match response.status() {
            status if status.is_success() || status == StatusCode::NOT_FOUND => Ok(()),
            _ => Err(self.link.refused(&during, response).await),
        }
    }

    async fn read(
        &self,
        place: &Place,
        key: &str,
        digest: Digest,
        bytes_max: schemas::Bytes,
    ) -> Result<Bytes, ObjectError> {
        let own = OwnGrants {
            buckets: self,
            place,
            key: key.to_owned(),
            put: None,
        };
        self.link
            .transfer
            .get(&own.grant(digest), bytes_max, &own, self.link.deadline())
            .await
    }

    async fn compare_head(
        &self,
        place: &Place,
        key: &str,
        object: ObjectRef,
    ) -> Result<Recorded, ObjectError> {
        let digest = object.digest;
        let head = self.head(place, key).await?;
        if head.bytes != Some(object.bytes.get()) {
            let reason = format!(
                "the store has {:?} bytes of it, expected {}",
                head.bytes, object.bytes
            );
            return Err(ObjectError::Mismatch { digest, reason });
        }
        match head.checksum {
            Some(recorded) if recorded == checksum(digest) => Ok(Recorded::Yes),
            Some(recorded) => {
                let reason = format!("the store recorded the checksum {recorded:?}");
                Err(ObjectError::Mismatch { digest, reason })
            }
            None => Ok(Recorded::No),
        }
    }

    async fn head(&self, place: &Place, key: &str) -> Result<Head, ObjectError> {
        let headers = [("x-amz-checksum-mode", "ENABLED")];
        let during = format!("look at {key}");
        let request = Request {
            method: rusty_s3::Method::Head,
            key,
            headers: &headers,
            holder: None,
            grant: None,
        };
        let response = self.send(&during, place, &request).await?;
        match response.status() {
            StatusCode::OK => {
                let header = |name: &str| response.headers().get(name)?.to_str().ok();
                Ok(Head {
                    bytes: header(CONTENT_LENGTH.as_str()).and_then(|text| text.parse().ok()),
                    checksum: header(CHECKSUM).map(str::to_owned),
                })
            }
            StatusCode::NOT_FOUND => Err(ObjectError::Missing {
                what: key.to_owned(),
            }),
            _ => Err(self.link.refused(&during, response).await),
        }
    }

    /// Sends a request without a body.
    async fn send(
        &self,
        during: &str,
        place: &Place,
        request: &Request<'_>,
    ) -> Result<Response, ObjectError> {
        let nothing = Bytes::new();
        self.link.send(during, place, request, &nothing, &[]).await
    }
}

/// Grants the coordinator its own URLs.
struct OwnGrants<'a> {
    buckets: &'a Buckets,
    place: &'a Place,
    key: String,
    /// The object to upload; none for a read.
    put: Option<ObjectRef>,
}

impl OwnGrants<'_> {
    fn grant(&self, digest: Digest) -> Grant {
        let now = self.buckets.link.clock.at(local_now());
        let action = match self.put {
            // Not limited to one use: bytes under a digest's key are always the same, and after a
            // lost answer the request may be repeated.
            Some(object) => self
                .place
                .put(&self.key, digest, object.bytes, false, None, now),
            None => self.place.get(&self.key, None, now),
        };
        Grant {
            digest,
            action: Some(action),
        }
    }
}

#[async_trait]
impl Regrant for OwnGrants<'_> {
    async fn regrant(&self, digest: Digest) -> Result<Grant, Refusal> {
        Ok(self.grant(digest))
    }
}

/// The parts of a request that this crate signed.
pub(crate) fn parts(url: &str, headers: &[(&str, &str)]) -> (Uri, HeaderMap) {
    let uri = url.parse().expect("a signed url is a uri");
    let header = |(name, value): &(&str, &str)| {
        let name: HeaderName = name.parse().expect("signed headers have valid names");
        (
            name,
            HeaderValue::from_str(value).expect("signed headers have valid values"),
        )
    };
    (uri, headers.iter().map(header).collect())
}

/// This machine's clock, to which the correction for the store's clock is added. It is read once
/// and then continued by a monotonic clock: a step of the wall clock would make the correction
/// wrong until the store's next answer.
pub fn local_now() -> UnixMillis {
    static START: OnceLock<(SystemTime, std::time::Instant)> = OnceLock::new();
    let (wall, started) = START.get_or_init(|| (SystemTime::now(), std::time::Instant::now()));
    let since = wall.duration_since(UNIX_EPOCH).unwrap_or_default() + started.elapsed();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
