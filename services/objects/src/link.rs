//! A link to a store for a process that signs its requests itself, with a key of the store.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::header::{CONTENT_LENGTH, DATE, HeaderValue};
use schemas::UnixMillis;
use schemas::limits::URL_LIFE;
use tokio::time::{Instant, timeout_at};

use crate::buckets::{local_now, parts};
use crate::client::{self, Response};
use crate::endpoint::Endpoint;
use crate::error::ObjectError;
use crate::limits::TransferLimits;
use crate::pace::Pace;
use crate::presign::{Place, Request, StoreClock};
use crate::transfer::Transfer;

/// Least correction of the clock that explains why a signature was refused: much less than a URL's
/// life.
const CORRECTION_MIN: schemas::Millis = schemas::Millis::from_secs(2);

/// A link. Cheap to clone; clones share connections.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) transfer: Transfer,
    pub(crate) limits: TransferLimits,
    pub(crate) clock: StoreClock,
    pub(crate) patience: Duration,
}

impl Link {
    /// A link to the store at `endpoint`. Each request is repeated until `patience` has passed.
    ///
    /// # Errors
    /// The endpoint's authority is not usable.
    pub(crate) fn new(
        endpoint: &Endpoint,
        clock: StoreClock,
        limits: TransferLimits,
        patience: Duration,
    ) -> Result<Self, ObjectError> {
        let transfer = Transfer::new(endpoint.trust(), limits.clone())?.with_clock(clock.clone());
        Ok(Self {
            transfer,
            limits,
            clock,
            patience,
        })
    }

    /// The end of the time for an operation that begins now.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.patience
    }

    /// Sends a request, again and again while the store is unreachable or busy; answers of a status
    /// in `busy` say so too. A request that was refused because the store's clock differs is signed
    /// once more, with the time that the refusal shows.
    ///
    /// # Errors
    /// The store gives no other answer in time, or its certificate is refused.
    pub(crate) async fn send(
        &self,
        during: &str,
        place: &Place,
        request: &Request<'_>,
        body: &Bytes,
        busy: &[StatusCode],
    ) -> Result<Response, ObjectError> {
        let deadline = self.deadline();
        let mut pace = Pace::new(&self.limits, deadline);
        let mut corrected = false;
        // What the store said last. An attempt that the deadline cuts off says less.
        let mut said = None;
        loop {
            let (sent, offset) = (local_now(), self.clock.offset_ms());
            let url = place.sign(request, self.clock.at(sent), URL_LIFE);
            let (uri, mut headers) = parts(url.as_str(), request.headers);
            if matches!(request.method, rusty_s3::Method::Put) && body.is_empty() {
                headers.insert(CONTENT_LENGTH, HeaderValue::from(0));
            }
            let method = client::method(request.method);
            let http = self.transfer.http();
            let sending = http.send(method, uri, headers, body.clone());
            let until = deadline.min(Instant::now() + self.limits.idle);
            let (status, reason, wait) = match timeout_at(until, sending).await {
                Ok(Ok(response)) => {
                    self.read_clock(&response, sent);
                    let status = response.status();
                    let correction = self.clock.offset_ms().abs_diff(offset);
                    if !corrected
                        && matches!(status, StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST)
                        && correction >= CORRECTION_MIN.get()
                    {
                        corrected = true;
                        continue;
                    }
                    let later = status.is_server_error()
                        || status == StatusCode::TOO_MANY_REQUESTS
                        || busy.contains(&status);
                    if !later {
                        return Ok(response);
                    }
                    said = Some(status);
                    let wait = client::retry_after(response.headers());
                    (said, status.to_string(), wait)
                }
                Ok(Err(error)) => match ObjectError::certificate(during, &error) {
                    Some(refused) => return Err(refused),
                    None => (None, client::describe(&error), None),
                },
                Err(_) => {
                    let last = said.map(|status| format!("no answer, and before that {status}"));
                    (said, last.unwrap_or_else(|| "no answer".to_owned()), None)
                }
            };
            tracing::debug!(during, reason, "request to the store failed");
            if !pace.pause(wait).await {
                let during = during.to_owned();
                return Err(match status {
                    Some(StatusCode::INSUFFICIENT_STORAGE) => ObjectError::Full { during },
                    _ => ObjectError::Unreachable { during, reason },
                });
            }
        }
    }

    /// The refusal that an answer is.
    pub(crate) async fn refused(&self, during: &str, response: Response) -> ObjectError {
        let status = response.status().as_u16();
        let answer = client::s3_answer(response, self.limits.idle).await;
        ObjectError::Refused {
            during: during.to_owned(),
            status,
            for_good: answer.for_good,
            code: answer.code,
        }
    }

    fn read_clock(&self, response: &Response, sent: UnixMillis) {
        let date = response.headers().get(DATE);
        if let Some(date) = date.and_then(|value| value.to_str().ok()) {
            self.clock.observe(date, sent, local_now());
        }
    }
}
