//! The runs and workers whose URLs the embedded store refuses. It takes a URL by the pair that
//! signed it, and each run has a pair of its own; the place of an upload names its worker, and the
//! grant of a URL to read its holder. So it needs to know no more than the names of runs and the
//! tags of workers. They are small files of the bucket `blobs`, which outlive the store's process,
//! and which the admin key alone writes.

use std::collections::BTreeSet;

use bytes::Bytes;
use futures::stream::TryStreamExt as _;
use http::StatusCode;
use http::header::CONTENT_LENGTH;
use identity::{AccessKey, UrlsOf};
use object_store::ObjectStore as _;
use schemas::{Digest, PublicKey};

use super::{Buckets, listing};
use crate::client;
use crate::error::ObjectError;
use crate::key::{BlobKey, HolderTag, SHUT_OUT_WORDS, STOPPED, STOPPED_WORDS, StoppedUrls};
use crate::presign::{CHECKSUM, CONTENT_TYPE, Request, checksum};

/// What a store does with URLs of one kind, which the pair signs that is derived for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It takes them.
    Taken,
    /// It refuses them since it was told that those of their run are stopped.
    Stopped,
    /// It refuses them since it was told that their worker is shut out.
    ShutOut,
    /// It knows no such pair: it derives none. These are its words.
    NoPair(String),
}

/// The code with which S3 stores refuse a pair that they do not know, the embedded one too.
const NO_PAIR: &str = "InvalidAccessKeyId";
/// What Garage says instead, with the code `AccessDenied`.
const NO_PAIR_WORDS: &str = "No such key";
/// Codes with which the embedded store refuses a URL whose pair it knows. They say nothing about
/// what it derives, so they are errors here.
const OTHERWISE: [&str; 6] = [
    "",
    "AccessDenied",
    "AuthorizationQueryParametersError",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "SlowDown",
];

/// What a refusal says about the pair; none if it is for another reason.
fn pair(code: &str, message: &str) -> Option<Taken> {
    match code {
        "AccessDenied" if message == STOPPED_WORDS => Some(Taken::Stopped),
        "AccessDenied" if message == SHUT_OUT_WORDS => Some(Taken::ShutOut),
        "AccessDenied" if message.contains(NO_PAIR_WORDS) => {
            Some(Taken::NoPair(message.to_owned()))
        }
        NO_PAIR => Some(Taken::NoPair(code.to_owned())),
        // Stores of others have codes of their own.
        code if !OTHERWISE.contains(&code) => Some(Taken::NoPair(code.to_owned())),
        _ => None,
    }
}

/// What such a file says, for people.
const TEXT: &[u8] = b"The store refuses the urls of this run, or of the worker with this tag.\n";

impl Buckets {
    /// Has the store refuse these URLs from now on. A transfer that has begun goes on.
    ///
    /// # Errors
    /// The store does not answer, or refuses.
    pub async fn stop_urls(&self, urls: &StoppedUrls) -> Result<(), ObjectError> {
        let during = format!("stop of the urls of {urls}");
        let (length, sum) = (TEXT.len().to_string(), checksum(Digest::of(TEXT)));
        let headers = [
            (CONTENT_LENGTH.as_str(), length.as_str()),
            ("content-type", CONTENT_TYPE),
            (CHECKSUM, &sum),
        ];
        let request = Request {
            method: rusty_s3::Method::Put,
            key: &key(urls),
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

    /// Has the store take these URLs again.
    ///
    /// # Errors
    /// The store does not answer, or refuses.
    pub async fn allow_urls(&self, urls: &StoppedUrls) -> Result<(), ObjectError> {
        self.remove(&self.blobs, &key(urls)).await
    }

    /// The URLs that the store was told to refuse.
    ///
    /// # Errors
    /// The store does not answer, or refuses.
    pub async fn stopped_urls(&self) -> Result<BTreeSet<StoppedUrls>, ObjectError> {
        let folder = object_store::path::Path::from(STOPPED);
        let entries = self.blobs_listing.list(Some(&folder));
        let failed = |error| listing::from_object_store("listing of stopped urls", error);
        let entries = entries.map_err(failed).try_filter_map(|entry| async move {
            let name = entry.location.filename().map(str::parse);
            Ok(name.and_then(Result::ok))
        });
        entries.try_collect().await
    }

    /// What the store does with URLs to read of this kind, which the pair signs that is derived for
    /// them from `get`, and which were given to this worker, if to any. No store but the embedded
    /// one derives pairs: to others such a pair is a stranger's. The store is asked for an object
    /// that none has. Where it asks for certificates, the URL is this holder's.
    ///
    /// # Errors
    /// The store does not answer, or refuses for another reason.
    pub async fn takes(
        &self,
        (urls, worker): (&UrlsOf, Option<HolderTag>),
        get: &AccessKey,
        holder: Option<&PublicKey>,
    ) -> Result<Taken, ObjectError> {
        let place = self.blobs.with(get.derived(urls));
        let nothing = identity::secret::random::<32>();
        let number = || u64::from_le_bytes(*identity::secret::random::<8>());
        let grant = worker.map(|worker| worker.grant(number()));
        let request = Request {
            method: rusty_s3::Method::Get,
            key: &BlobKey(Digest::of(nothing.as_slice())).to_string(),
            headers: &[],
            holder,
            grant: grant.as_deref(),
        };
        let during = format!("try of a url of {urls}");
        let response = self.send(&during, &place, &request).await?;
        let status = response.status();
        if status == StatusCode::NOT_FOUND || status.is_success() {
            return Ok(Taken::Taken);
        }
        let answer = client::s3_answer(response, self.link.limits.idle).await;
        let said = pair(&answer.code, &answer.message);
        said.ok_or(ObjectError::Refused {
            during,
            status: status.as_u16(),
            code: answer.code,
            for_good: answer.for_good,
        })
    }
}

fn key(urls: &StoppedUrls) -> String {
    format!("{STOPPED}/{urls}")
}

#[cfg(test)]
mod tests {
    use schemas::Code;

    use super::*;

    #[test]
    fn tl_20_only_a_refusal_of_the_pair_itself_says_that_none_is_derived() {
        let stopped = pair("AccessDenied", STOPPED_WORDS);
        assert_eq!(stopped, Some(Taken::Stopped));
        let shut_out = pair("AccessDenied", SHUT_OUT_WORDS);
        assert_eq!(shut_out, Some(Taken::ShutOut));
        assert!(SHUT_OUT_WORDS.contains(&Code::WorkerQuarantined.to_string()));
        for (code, message) in [
            ("InvalidAccessKeyId", ""),
            ("AccessDenied", "Forbidden: No such key: DILOX.operator"),
            ("InvalidArgument", "Credential access key has length 29"),
        ] {
            let said = pair(code, message);
            assert!(matches!(said, Some(Taken::NoPair(_))), "{code} {message}");
        }
        for (code, message) in [
            ("AccessDenied", "not a right of this key"),
            ("AccessDenied", "the url is another holder's"),
            ("AccessDenied", ""),
            ("SignatureDoesNotMatch", ""),
            ("RequestTimeTooSkewed", "the clocks differ"),
            ("", ""),
        ] {
            assert_eq!(pair(code, message), None, "{code} {message}");
        }
    }
}
