//! Access to the bucket `log`, file by file: the audit service's, which writes there, and that of
//! auditors, whose key reads only. Nothing here knows what the files say.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, ETAG};
use http::{Method, StatusCode};
use identity::AccessKey;
use schemas::Digest;
use tokio::time::{Instant, timeout, timeout_at};

use crate::buckets::stranger::{NOBODYS, try_one};
use crate::client::{self, Response};
use crate::endpoint::Endpoint;
use crate::error::ObjectError;
use crate::key::BucketName;
use crate::limits::TransferLimits;
use crate::link::Link;
use crate::pace::Pace;
use crate::presign::{CHECKSUM, CONTENT_TYPE, Place, Request, StoreClock, checksum};

/// Longest file that is read: a full bundle of the longest entries.
const FILE_BYTES_MAX: usize = 32 << 20;

/// Answers of a store that is busy. It gives the first while another upload of the name is in
/// progress: that one may break off, so nothing follows from it.
const BUSY: [StatusCode; 2] = [StatusCode::CONFLICT, StatusCode::REQUEST_TIMEOUT];

/// The bucket `log`. Cheap to clone; clones share connections.
#[derive(Clone, Debug)]
pub struct LogBucket {
    link: Link,
    place: Place,
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
        Ok(Self {
            link: Link::new(endpoint, StoreClock::default(), limits, patience)?,
            place: Place::new(endpoint, BucketName::Log, key.clone())?,
        })
    }

    /// Asks, without a signature, to list the bucket, to read `known` and to delete. Nothing is
    /// written: a log keeps what is in it.
    ///
    /// # Errors
    /// [`ObjectError::Stranger`]: the store did one of these.
    pub async fn refuse_strangers(&self, known: &str) -> Result<(), ObjectError> {
        let tries = async {
            for (method, name) in [
                (Method::GET, known),
                (Method::GET, ""),
                (Method::DELETE, NOBODYS),
            ] {
                try_one(&self.link, method, &self.place, name).await?;
            }
            Ok(())
        };
        let tried = timeout(self.link.limits.idle, tries).await;
        tried.unwrap_or_else(|_| {
            tracing::warn!(
                "nobody knows if the store refuses unsigned requests: it does not answer them"
            );
            Ok(())
        })
    }

    /// Reads a file; none if it is not there.
    ///
    /// # Errors
    /// The store does not answer, or refuses, or the file is longer than any file of a log.
    pub async fn get(&self, name: &str) -> Result<Option<Tagged>, ObjectError> {
        let during = format!("reading {name} of the log");
        let mut pace = Pace::new(&self.link.limits, self.link.deadline());
        loop {
            let response = self
                .send(&during, rusty_s3::Method::Get, name, &[], &Bytes::new())
                .await?;
            if !response.status().is_success() {
                let refused = self.link.refused(&during, response).await;
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
        self.put(name, bytes, Some(("if-none-match", "*"))).await
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
        self.put(name, bytes, Some(("if-match", tag))).await
    }

    /// Writes a file over whatever is there. A log has few that may be written so.
    ///
    /// # Errors
    /// The store does not answer, or refuses.
    pub async fn overwrite(&self, name: &str, bytes: &Bytes) -> Result<(), ObjectError> {
        self.put(name, bytes, None).await.map(drop)
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
        let refused = self.link.refused(&during, response).await;
        match lacks_file(&refused) {
            true => Ok(()),
            false => Err(refused),
        }
    }

    async fn put(
        &self,
        name: &str,
        bytes: &Bytes,
        condition: Option<(&str, &str)>,
    ) -> Result<Replaced, ObjectError> {
        let during = format!("writing {name} of the log");
        let (length, sum) = (bytes.len().to_string(), checksum(Digest::of(bytes)));
        let mut headers = vec![
            (CONTENT_LENGTH.as_str(), length.as_str()),
            ("content-type", CONTENT_TYPE),
        ];
        headers.extend(condition);
        headers.push((CHECKSUM, &sum));
        let sent = self.send(&during, rusty_s3::Method::Put, name, &headers, bytes);
        let response = sent.await?;
        match response.status() {
            status if status.is_success() => return Ok(Replaced::Yes),
            StatusCode::PRECONDITION_FAILED => return Ok(Replaced::No),
            _ => {}
        }
        let refused = self.link.refused(&during, response).await;
        match lacks_file(&refused) {
            // The version that the condition names is gone altogether.
            true if condition.is_some_and(|(name, _)| name == "if-match") => Ok(Replaced::No),
            _ => Err(refused),
        }
    }

    async fn send(
        &self,
        during: &str,
        method: rusty_s3::Method,
        name: &str,
        headers: &[(&str, &str)],
        body: &Bytes,
    ) -> Result<Response, ObjectError> {
        let request = Request {
            method,
            key: name,
            headers,
            holder: None,
            grant: None,
        };
        let sent = self.link.send(during, &self.place, &request, body, &BUSY);
        sent.await
    }

    /// The whole body; none if it is too long. The error is in words.
    async fn body(&self, mut response: Response) -> Result<Option<Bytes>, String> {
        let announced = client::length(&response);
        let mut bytes = Vec::new();
        loop {
            let until = Instant::now() + self.link.limits.idle;
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
}

/// True if the store has the bucket and not the file. A store without the bucket has lost the log,
/// or never had one; it says nothing about a file.
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
