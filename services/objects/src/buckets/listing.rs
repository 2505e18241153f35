//! Listings of both buckets, through `object_store`.

use futures::stream::{BoxStream, StreamExt as _, TryStreamExt as _};
use identity::AccessKey;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::client::{HttpClient, HttpConnector};
use object_store::{ClientOptions, ObjectStore as _};
use schemas::{ObjectRef, RunId, UnixMillis};

use super::{Buckets, Listed};
use crate::client::Client;
use crate::endpoint::Endpoint;
use crate::error::ObjectError;
use crate::key::{BlobKey, BucketName, IncomingKey};

impl Buckets {
    /// All verified objects, in order of digest. Other keys in the bucket are skipped.
    pub fn list(&self) -> BoxStream<'static, Result<Listed, ObjectError>> {
        let entries = self
            .blobs_listing
            .list(Some(&object_store::path::Path::from("sha256")));
        let listed = entries
            .map_err(|error| from_object_store("listing of blobs", error))
            .try_filter_map(|entry| async move {
                let key = entry.location.as_ref().parse::<BlobKey>().ok();
                Ok(key.map(|key| Listed {
                    object: ObjectRef {
                        digest: key.0,
                        bytes: schemas::Bytes(entry.size),
                    },
                    stored_at: UnixMillis(
                        u64::try_from(entry.last_modified.timestamp_millis()).unwrap_or(0),
                    ),
                }))
            });
        listed.boxed()
    }

    /// The keys of all uploads of workers to a run. Other keys in the bucket are skipped.
    pub fn list_incoming(
        &self,
        run: &RunId,
    ) -> BoxStream<'static, Result<IncomingKey, ObjectError>> {
        let folder = object_store::path::Path::from(run.to_string());
        let entries = self.incoming_listing.list(Some(&folder));
        let listed = entries
            .map_err(|error| from_object_store("listing of incoming", error))
            .try_filter_map(|entry| async move { Ok(entry.location.as_ref().parse().ok()) });
        listed.boxed()
    }
}

/// Gives `object_store` the client that this crate uses: same trust, same pool, no proxies.
#[derive(Debug)]
struct SharedClient(Client);

impl HttpConnector for SharedClient {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.0.clone()))
    }
}

pub(super) fn client(
    endpoint: &Endpoint,
    admin: &AccessKey,
    name: BucketName,
    http: &Client,
) -> Result<AmazonS3, ObjectError> {
    AmazonS3Builder::new()
        .with_endpoint(endpoint.url().origin().ascii_serialization())
        .with_region(endpoint.region())
        .with_bucket_name(name.as_str())
        .with_access_key_id(admin.id())
        .with_secret_access_key(admin.expose_secret())
        .with_virtual_hosted_style_request(false)
        // The client below refuses plaintext where TLS is meant.
        .with_allow_http(true)
        .with_http_connector(SharedClient(http.clone()))
        .build()
        .map_err(|error| from_object_store("set-up of the store's client", error))
}

pub(super) fn from_object_store(during: &str, error: object_store::Error) -> ObjectError {
    let text = error.to_string();
    // This crate signs listing requests in a header, but nothing behind a question mark is shown in
    // any case.
    let reason = text
        .split('?')
        .next()
        .unwrap_or_default()
        .chars()
        .take(200)
        .collect();
    ObjectError::Unreachable {
        during: during.to_owned(),
        reason,
    }
}
