//! Requests that nobody signed, which a store must refuse.

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use schemas::Digest;
use tokio::time::timeout;

use super::Buckets;
use crate::error::ObjectError;
use crate::key::BlobKey;
use crate::link::Link;
use crate::presign::{Place, Request};

/// The key of an object that strangers may neither write nor delete. No object of ours has such a
/// key, so a store that lets them loses nothing.
pub(crate) const NOBODYS: &str = "stranger";
/// Requests for one answer that says yes or no.
const TRIES: usize = 2;

impl Buckets {
    /// Asks, without a signature, to list, read, write and delete in both buckets. `known` is an
    /// object that is read; where it does not exist yet, as at the first start of a domain, a store
    /// that lets strangers read and not list is not noticed. Objects in `incoming` are not read,
    /// since none is known.
    ///
    /// # Errors
    /// [`ObjectError::Stranger`]: the store did one of these.
    pub async fn refuse_strangers(&self, known: Digest) -> Result<(), ObjectError> {
        match timeout(self.link.limits.idle, self.try_all(known)).await {
            Ok(tried) => tried,
            Err(_) => {
                tracing::warn!(
                    "nobody knows if the store refuses unsigned requests: it does not answer them"
                );
                Ok(())
            }
        }
    }

    async fn try_all(&self, known: Digest) -> Result<(), ObjectError> {
        let known = BlobKey(known).to_string();
        self.try_one(Method::GET, &self.blobs, &known).await?;
        for place in [&self.blobs, &self.incoming] {
            self.try_one(Method::GET, place, "").await?;
            if let Err(served) = self.try_one(Method::PUT, place, NOBODYS).await {
                let request = Request {
                    method: rusty_s3::Method::Delete,
                    key: NOBODYS,
                    headers: &[],
                    holder: None,
                    grant: None,
                };
                // If this fails, the object is left. It has no bytes, and no key of ours.
                let _removed = self
                    .send("removal of a stranger's object", place, &request)
                    .await;
                return Err(served);
            }
            self.try_one(Method::DELETE, place, NOBODYS).await?;
        }
        Ok(())
    }

    async fn try_one(&self, method: Method, place: &Place, key: &str) -> Result<(), ObjectError> {
        try_one(&self.link, method, place, key).await
    }
}

/// Sends one request. A store that finds no such object has looked for it, and so served it.
pub(crate) async fn try_one(
    link: &Link,
    method: Method,
    place: &Place,
    key: &str,
) -> Result<(), ObjectError> {
    let url = place.unsigned(key);
    let uri: Uri = url.as_str().parse().expect("an unsigned url is a uri");
    let request = format!("{method} {url}");
    let mut headers = HeaderMap::new();
    if method == Method::PUT {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(0));
    }
    for _ in 0..TRIES {
        let http = link.transfer.http();
        let sent = http.send(method.clone(), uri.clone(), headers.clone(), Bytes::new());
        match sent.await.map(|response| response.status()) {
            Ok(status) if status.is_success() || status == StatusCode::NOT_FOUND => {
                let status = status.as_u16();
                return Err(ObjectError::Stranger { request, status });
            }
            Ok(StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                return Ok(());
            }
            Ok(_) | Err(_) => {}
        }
    }
    tracing::warn!(
        request,
        "nobody knows if the store refuses this unsigned request: it says neither yes nor no"
    );
    Ok(())
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

    const REFUSED: &str = "403 Forbidden";

    #[tokio::test]
    async fn la_08_a_store_that_serves_a_stranger_is_found_out() {
        tried(&[REFUSED; 7]).await.unwrap();
        // Each question counts.
        let asked = ["GET", "GET", "PUT", "DELETE", "GET", "PUT", "DELETE"];
        for (place, verb) in asked.into_iter().enumerate() {
            for served in ["200 OK", "404 Not Found"] {
                let mut statuses = [REFUSED; 8];
                statuses[place] = served;
                match tried(&statuses).await {
                    Err(ObjectError::Stranger { request, .. }) => {
                        assert!(request.starts_with(verb), "{request}");
                        assert!(!request.contains('?'), "nothing is signed: {request}");
                    }
                    other => panic!("question {place}: {other:?}"),
                }
            }
        }
    }

    #[tokio::test]
    async fn la_08_an_answer_that_says_neither_yes_nor_no_is_asked_for_again() {
        tried(&[]).await.unwrap();
        let busy = "503 Service Unavailable";
        let open = tried(&[busy, "200 OK"]).await;
        assert!(matches!(open, Err(ObjectError::Stranger { .. })));
        let open = tried(&[busy, busy, "200 OK"]).await;
        assert!(matches!(open, Err(ObjectError::Stranger { .. })));
        tried(&[
            busy, REFUSED, REFUSED, REFUSED, REFUSED, REFUSED, REFUSED, REFUSED,
        ])
        .await
        .unwrap();
    }
}
