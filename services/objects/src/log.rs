//! Access to the bucket `log`, file by file: the audit service's, which writes there, and that of
//! auditors, whose key reads only. Nothing here knows what the files say.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, DATE, ETAG, HeaderValue};
use http::{Method, StatusCode};
use identity::AccessKey;
use schemas::Digest;
use schemas::limits::URL_LIFE;
use tokio::time::{Instant, timeout_at};

use crate::buckets::{local_now, parts};
use crate::client::{self, Response};
use crate::endpoint::Endpoint;
use crate::error::ObjectError;
use crate::key::BucketName;
use crate::limits::TransferLimits;
use crate::pace::Pace;
use crate::presign::{CHECKSUM, CONTENT_TYPE, Place, Request, StoreClock, checksum};
use crate::transfer::Transfer;

/// Longest file that is read: a full bundle of the longest entries.
const FILE_BYTES_MAX: usize = 32 << 20;

/// The bucket `log`. Cheap to clone; clones share connections.
#[derive(Clone, Debug)]
pub struct LogBucket {
    transfer: Transfer,
    limits: TransferLimits,
    place: Place,
    clock: StoreClock,
    patience: Duration,
}

/// A file with the tag that names this version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tagged {
    /// Its bytes.
    pub bytes: Bytes,
    /// The store's tag; empty if the store has given none.
    pub tag: String,
}

/// The outcome of a conditional write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replaced {
    /// The store has the bytes.
    Yes,
    /// The condition does not hold: another file is there than the caller knows.
    No,
}

impl LogBucket {
    /// Access to the store at `endpoint`. Each operation is retried until `patience` has passed.
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
        let transfer = Transfer::new(endpoint.trust(), limits.clone())?.with_clock(clock.clone());
        Ok(Self {
            place: Place::new(endpoint, BucketName::Log, key.clone())?,
            transfer,
            limits,
            clock,
            patience,
        })
    }

    /// Reads a file; none if it is not there.
    ///
    /// # Errors
    /// The store does not answer, or refuses, or the file is longer than any file of a log.
    pub async fn get(&self, name: &str) -> Result<Option<Tagged>, ObjectError> {
        let during = format!("reading {name} of the log");
        let deadline = Instant::now() + self.patience;
        let mut pace = Pace::new(&self.limits, deadline);
        loop {
            let response = self
                .send(&during, rusty_s3::Method::Get, name, &[], &Bytes::new())
                .await?;
            if !response.status().is_success() {
                let refused = self.refused(&during, response).await;
                return match lacks_file(&refused) {
                    true => Ok(None),
                    false => Err(refused),
                };
            }
            let tag = tag_of(&response);
            match self.body(response).await {
                Ok(Some(bytes)) => return Ok(Some(Tagged { bytes, tag })),
                Ok(None) => {
                    let reason = "it is longer than any file of a log".to_owned();
                    return Err(ObjectError::Unreachable { during, reason });
                }
                Err(reason) if !pace.pause(None).await => {
                    return Err(ObjectError::Unreachable { during, reason });
                }
                Err(_) => {}
            }
        }
    }

    /// Writes a file that is not there yet. A store that does not know the condition overwrites it.
    ///
    /// # Errors
    /// The store does not answer, or refuses for another reason.
    pub async fn create(&self, name: &str, bytes: &Bytes) -> Result<Replaced, ObjectError> {
        self.put(name, bytes, ("if-none-match", "*")).await
    }

    /// Replaces the version of a file that has this tag.
    ///
    /// # Errors
    /// The store does not answer, or refuses for another reason.
    pub async fn replace(
        &self,
        name: &str,
        bytes: &Bytes,
        tag: &str,
    ) -> Result<Replaced, ObjectError> {
        self.put(name, bytes, ("if-match", tag)).await
    }

    /// Deletes a file; it need not be there.
    ///
    /// # Errors
    /// The store does not answer, or refuses.
    pub async fn delete(&self, name: &str) -> Result<(), ObjectError> {
        let during = format!("deletion of {name} of the log");
        let nothing = Bytes::new();
        let response = self
            .send(&during, rusty_s3::Method::Delete, name, &[], &nothing)
            .await?;
        if response.status().is_success() {
            return Ok(());
        }
        let refused = self.refused(&during, response).await;
        match lacks_file(&refused) {
            true => Ok(()),
            false => Err(refused),
        }
    }

    async fn put(
        &self,
        name: &str,
        bytes: &Bytes,
        condition: (&str, &str),
    ) -> Result<Replaced, ObjectError> {
        let during = format!("writing {name} of the log");
        let (length, sum) = (bytes.len().to_string(), checksum(Digest::of(bytes)));
        let headers = [
            (CONTENT_LENGTH.as_str(), length.as_str()),
            ("content-type", CONTENT_TYPE),
            condition,
            (CHECKSUM, &sum),
        ];
        let sent = self.send(&during, rusty_s3::Method::Put, name, &headers, bytes);
        let response = sent.await?;
        match response.status() {
            status if status.is_success() => return Ok(Replaced::Yes),
            StatusCode::PRECONDITION_FAILED => return Ok(Replaced::No),
            _ => {}
        }
        let refused = self.refused(&during, response).await;
        match lacks_file(&refused) {
            // The version that the condition names is gone altogether.
            true if condition.0 == "if-match" => Ok(Replaced::No),
            _ => Err(refused),
        }
    }

    /// Sends a request, again and again while the store is unreachable or busy. It is busy too while
    /// another upload of the name is in progress: that one may break off, so nothing follows from it.
    async fn send(
        &self,
        during: &str,
        method: rusty_s3::Method,
        name: &str,
        headers: &[(&str, &str)],
        body: &Bytes,
    ) -> Result<Response, ObjectError> {
        let deadline = Instant::now() + self.patience;
        let mut pace = Pace::new(&self.limits, deadline);
        let mut corrected = false;
        let request = Request {
            method,
            key: name,
            headers,
            holder: None,
        };
        loop {
            let (sent, offset) = (local_now(), self.clock.offset_ms());
            let url = self.place.sign(&request, self.clock.at(sent), URL_LIFE);
            let (uri, mut headers) = parts(url.as_str(), headers);
            let method: Method = client::method(method);
            if method == Method::DELETE {
                headers.insert(CONTENT_LENGTH, HeaderValue::from(0));
            }
            let sending = self
                .transfer
                .http()
                .send(method, uri, headers, body.clone());
            let until = deadline.min(Instant::now() + self.limits.idle);
            let (status, reason, wait) = match timeout_at(until, sending).await {
                Ok(Ok(response)) => {
                    self.read_clock(&response, sent);
                    let status = response.status();
                    let refused = [StatusCode::FORBIDDEN, StatusCode::BAD_REQUEST];
                    // The first answer shows the store's clock, by which the next one is signed.
                    if !corrected
                        && refused.contains(&status)
                        && self.clock.offset_ms().abs_diff(offset) >= CORRECTION_MIN_MS
                    {
                        corrected = true;
                        continue;
                    }
                    let busy = [
                        StatusCode::CONFLICT,
                        StatusCode::TOO_MANY_REQUESTS,
                        StatusCode::REQUEST_TIMEOUT,
                    ];
                    if !status.is_server_error() && !busy.contains(&status) {
                        return Ok(response);
                    }
                    let wait = client::retry_after(response.headers());
                    (Some(status), status.to_string(), wait)
                }
                Ok(Err(error)) => match ObjectError::certificate(during, &error) {
                    Some(refused) => return Err(refused),
                    None => (None, client::describe(&error), None),
                },
                Err(_) => (None, "no answer".to_owned(), None),
            };
            if !pace.pause(wait).await {
                let during = during.to_owned();
                return Err(match status {
                    Some(StatusCode::INSUFFICIENT_STORAGE) => ObjectError::Full { during },
                    _ => ObjectError::Unreachable { during, reason },
                });
            }
        }
    }

    /// The whole body; none if it is too long. The error is in words.
    async fn body(&self, mut response: Response) -> Result<Option<Bytes>, String> {
        let announced = client::length(&response);
        let mut bytes = Vec::new();
        loop {
            let until = Instant::now() + self.limits.idle;
            let piece = timeout_at(until, client::piece(&mut response)).await;
            let piece = piece.map_err(|_| "the body stands still".to_owned())?;
            let Some(piece) = piece.map_err(|error| client::describe(&error))? else {
                break;
            };
            bytes.extend_from_slice(&piece);
            if bytes.len() > FILE_BYTES_MAX {
                return Ok(None);
            }
        }
        match announced.is_some_and(|length| length != bytes.len() as u64) {
            true => Err("the body is shorter than announced".to_owned()),
            false => Ok(Some(bytes.into())),
        }
    }

    async fn refused(&self, during: &str, response: Response) -> ObjectError {
        let status = response.status().as_u16();
        let answer = client::s3_answer(response, self.limits.idle).await;
        ObjectError::Refused {
            during: during.to_owned(),
            status,
            for_good: answer.for_good,
            code: answer.code,
        }
    }

    fn read_clock(&self, response: &Response, sent: schemas::UnixMillis) {
        let date = response.headers().get(DATE);
        if let Some(date) = date.and_then(|value| value.to_str().ok()) {
            self.clock.observe(date, sent, local_now());
        }
    }
}

/// Least correction of the clock that explains why a signature was refused.
const CORRECTION_MIN_MS: u64 = 2000;

/// True if the store has the bucket and not the file. A store without the bucket has lost the log, or
/// never had one; it says nothing about a file.
fn lacks_file(refused: &ObjectError) -> bool {
    matches!(refused, ObjectError::Refused { status: 404, code, .. } if code == "NoSuchKey")
}

fn tag_of(response: &Response) -> String {
    let tag = response.headers().get(ETAG);
    tag.and_then(|tag| tag.to_str().ok())
        .unwrap_or_default()
        .to_owned()
}

#[cfg(test)]
mod tests;
