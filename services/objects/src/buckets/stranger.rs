//! The store's own locks, tried as a stranger tries them: without a signature.

use bytes::Bytes;
use http::{HeaderMap, Method, Uri};
use schemas::Digest;
use tokio::time::timeout;

use super::Buckets;
use crate::error::ObjectError;
use crate::key::BlobKey;
use crate::presign::Place;

/// The key of a deletion that must be refused. No upload has such a key, so that a store that lets
/// strangers delete loses nothing.
const NOBODYS: &str = "stranger";

impl Buckets {
    /// Asks for what only a holder of a key may do: to list either bucket, to read the object
    /// `known`, and to delete. A store that does not answer has let nobody in.
    ///
    /// # Errors
    /// [`ObjectError::Stranger`]: the store did one of these.
    pub async fn refuse_strangers(&self, known: Digest) -> Result<(), ObjectError> {
        let (incoming, blobs) = (&self.incoming, &self.blobs);
        let known = BlobKey(known).to_string();
        self.try_stranger(Method::GET, blobs, "").await?;
        self.try_stranger(Method::GET, incoming, "").await?;
        self.try_stranger(Method::GET, blobs, &known).await?;
        self.try_stranger(Method::DELETE, blobs, NOBODYS).await?;
        self.try_stranger(Method::DELETE, incoming, NOBODYS).await
    }

    async fn try_stranger(
        &self,
        method: Method,
        place: &Place,
        key: &str,
    ) -> Result<(), ObjectError> {
        let url = place.unsigned(key);
        let uri: Uri = url.as_str().parse().expect("an unsigned url is a uri");
        let request = format!("{method} {url}");
        let headers = HeaderMap::new();
        let sent = self
            .transfer
            .http()
            .send(method, uri, headers, Bytes::new());
        match timeout(self.limits.idle, sent).await {
            Ok(Ok(response)) if response.status().is_success() => {
                let status = response.status().as_u16();
                Err(ObjectError::Stranger { request, status })
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use identity::StoreKeys;

    use super::*;
    use crate::endpoint::{Endpoint, Trust};
    use crate::limits::TransferLimits;
    use crate::presign::StoreClock;
    use crate::stub::{answer, serve};

    /// The outcome at a store that gives these answers in turn.
    async fn tried(statuses: &[&str]) -> Result<(), ObjectError> {
        let answers = statuses.iter().map(|status| answer(status, "", ""));
        let url = format!("http://{}", serve(answers.collect()).await);
        let endpoint = Endpoint::new(&url, "us-east-1", Trust::PlainLoopback).unwrap();
        let buckets = Buckets::new(
            &endpoint,
            &StoreKeys::generate().admin,
            StoreClock::default(),
            TransferLimits::default(),
            Duration::ZERO,
        );
        let known = Digest::of(b"known");
        buckets.unwrap().refuse_strangers(known).await
    }

    #[tokio::test]
    async fn la_08_a_store_that_serves_a_stranger_is_found_out() {
        tried(&["403 Forbidden"; 5]).await.unwrap();
        // Each of the five questions counts.
        let asked = ["GET", "GET", "GET", "DELETE", "DELETE"];
        for (place, verb) in asked.into_iter().enumerate() {
            let mut statuses = ["403 Forbidden"; 5];
            statuses[place] = "200 OK";
            match tried(&statuses).await {
                Err(ObjectError::Stranger {
                    request,
                    status: 200,
                }) => {
                    assert!(request.starts_with(verb), "{request}");
                    assert!(!request.contains('?'), "nothing is signed: {request}");
                }
                other => panic!("question {place}: {other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn la_08_a_store_that_does_not_answer_has_let_nobody_in() {
        tried(&[]).await.unwrap();
    }
}
