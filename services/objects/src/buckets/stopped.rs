//! The runs whose URLs the embedded store refuses. It takes a URL by the pair that signed it, and each
//! run has a pair of its own, so it needs to know no more than the names of runs. They are small files
//! of the bucket `blobs`, which outlive the store's process, and which the admin key alone writes.

use std::collections::BTreeSet;

use bytes::Bytes;
use futures::stream::TryStreamExt as _;
use http::StatusCode;
use http::header::CONTENT_LENGTH;
use identity::{AccessKey, UrlsOf};
use object_store::ObjectStore as _;
use schemas::{Digest, PublicKey, RunId};

use super::{Buckets, listing};
use crate::error::ObjectError;
use crate::key::{BlobKey, STOPPED};
use crate::presign::{CHECKSUM, CONTENT_TYPE, Request, checksum};

/// What the file of a run says, for people.
const TEXT: &[u8] = b"The store refuses the urls of this run.\n";

impl Buckets {
    /// Has the store refuse all URLs of a run from now on. A transfer that has begun goes on.
    ///
    /// # Errors
    /// The store does not answer, or refuses.
    pub async fn stop_run(&self, run: &RunId) -> Result<(), ObjectError> {
        let during = format!("stop of the urls of run {run}");
        let (length, sum) = (TEXT.len().to_string(), checksum(Digest::of(TEXT)));
        let headers = [
            (CONTENT_LENGTH.as_str(), length.as_str()),
            ("content-type", CONTENT_TYPE),
            (CHECKSUM, &sum),
        ];
        let request = Request {
            method: rusty_s3::Method::Put,
            key: &key(run),
            headers: &headers,
            holder: None,
            grant: None,
        };
        let body = Bytes::from_static(TEXT);
        let busy = [StatusCode::CONFLICT, StatusCode::REQUEST_TIMEOUT];
        let sent = self.link.send(&during, &self.blobs, &request, &body, &busy);
        let response = sent.await?;
        match response.status().is_success() {
            true => Ok(()),
            false => Err(self.link.refused(&during, response).await),
        }
    }

    /// Has the store take the URLs of a run again.
    ///
    /// # Errors
    /// The store does not answer, or refuses.
    pub async fn allow_run(&self, run: &RunId) -> Result<(), ObjectError> {
        self.remove(&self.blobs, &key(run)).await
    }

    /// The runs whose URLs the store was told to refuse.
    ///
    /// # Errors
    /// The store does not answer, or refuses.
    pub async fn stopped_runs(&self) -> Result<BTreeSet<RunId>, ObjectError> {
        let folder = object_store::path::Path::from(STOPPED);
        let entries = self.blobs_listing.list(Some(&folder));
        let failed = |error| listing::from_object_store("listing of stopped runs", error);
        let entries = entries.map_err(failed).try_filter_map(|entry| async move {
            let name = entry.location.filename().map(str::parse);
            Ok(name.and_then(Result::ok))
        });
        entries.try_collect().await
    }

    /// True if the store takes URLs of this kind, which the pair signs that is derived for them from
    /// `get`. No store but the embedded one derives pairs: to others such a pair is a stranger's. It is asked for an object that no store has. Where it asks for certificates, the URL is
    /// this holder's.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn takes(
        &self,
        urls: &UrlsOf,
        get: &AccessKey,
        holder: Option<&PublicKey>,
    ) -> Result<bool, ObjectError> {
        let place = self.blobs.with(get.derived(urls));
        let nothing = identity::secret::random::<32>();
        let request = Request {
            method: rusty_s3::Method::Get,
            key: &BlobKey(Digest::of(nothing.as_slice())).to_string(),
            headers: &[],
            holder,
            grant: None,
        };
        let during = format!("try of a url of {urls}");
        let response = self.send(&during, &place, &request).await?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(true),
            status if status.is_success() => Ok(true),
            status if status.is_client_error() => Ok(false),
            _ => Err(self.link.refused(&during, response).await),
        }
    }
}

fn key(run: &RunId) -> String {
    format!("{STOPPED}/{run}")
}
