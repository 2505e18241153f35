//! Read access to verified objects with an access key of one's own, as an auditor has.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use identity::AccessKey;
use schemas::blob::Grant;
use schemas::{Digest, ObjectRef, Refusal};
use tokio::time::Instant;

use crate::buckets::local_now;
use crate::endpoint::Endpoint;
use crate::error::ObjectError;
use crate::key::{BlobKey, BucketName};
use crate::limits::TransferLimits;
use crate::presign::{Place, StoreClock};
use crate::transfer::{Regrant, Transfer};

/// Reads bucket `blobs`. Its key needs no other right.
#[derive(Clone, Debug)]
pub struct BlobReader {
    transfer: Transfer,
    blobs: Place,
    clock: StoreClock,
    patience: Duration,
}

impl BlobReader {
    /// A reader of the store at `endpoint`. Each read is retried until `patience` has passed.
    ///
    /// # Errors
    /// The endpoint or its authority is not usable.
    pub fn new(
        endpoint: &Endpoint,
        key: &AccessKey,
        limits: TransferLimits,
        patience: Duration,
    ) -> Result<Self, ObjectError> {
        let clock = StoreClock::default();
        Ok(Self {
            transfer: Transfer::new(endpoint.trust(), limits)?.with_clock(clock.clone()),
            blobs: Place::new(endpoint, BucketName::Blobs, key.clone())?,
            clock,
            patience,
        })
    }

    /// An object's bytes, hashed here.
    ///
    /// # Errors
    /// The object was not read, or its bytes are others than the reference says.
    pub async fn get(&self, object: ObjectRef) -> Result<Bytes, ObjectError> {
        let ObjectRef { digest, bytes } = object;
        let deadline = Instant::now() + self.patience;
        let grant = self.grant(digest);
        let read = self.transfer.get(&grant, bytes, self, deadline).await?;
        if read.len() as u64 == bytes.get() {
            return Ok(read);
        }
        let reason = format!("{} bytes instead of {bytes}", read.len());
        Err(ObjectError::Mismatch { digest, reason })
    }

    fn grant(&self, digest: Digest) -> Grant {
        let now = self.clock.at(local_now());
        let action = self.blobs.get(&BlobKey(digest).to_string(), None, now);
        Grant {
            digest,
            action: Some(action),
        }
    }
}

#[async_trait]
impl Regrant for BlobReader {
    async fn regrant(&self, digest: Digest) -> Result<Grant, Refusal> {
        Ok(self.grant(digest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Trust;
    use crate::stub::{self, answer};

    #[tokio::test]
    async fn a_store_that_is_busy_for_a_moment_is_asked_again() {
        let close = "connection: close\r\n";
        let busy = answer("503 Service Unavailable", close, "");
        let address = stub::serve(vec![busy, answer("200 OK", close, "bytes")]).await;
        let url = format!("http://{address}");
        let endpoint = Endpoint::new(&url, "us-east-1", Trust::PlainLoopback).unwrap();
        let limits = TransferLimits {
            pause_first: Duration::from_millis(1),
            pause_max: Duration::from_millis(2),
            ..TransferLimits::default()
        };
        let patience = Duration::from_secs(10);
        let key = AccessKey::generate();
        let reader = BlobReader::new(&endpoint, &key, limits, patience).unwrap();
        let read = reader.get(ObjectRef::of(b"bytes")).await;
        assert_eq!(read.unwrap(), Bytes::from_static(b"bytes"));
    }
}
