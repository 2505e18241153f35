//! Transfers through granted URLs: what a worker uses, and the engine under the coordinator's own access.
//!
//! An upload is one PUT of bytes held in memory. A download hashes as it reads, resumes by range where it broke, and
//! returns nothing until the digest matches. Retries go on until the caller's deadline, with jittered exponential
//! pauses; a refused or used-up URL is replaced through [`Regrant`].

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{CONTENT_RANGE, HeaderMap, HeaderName, HeaderValue, RANGE};
use http::{StatusCode, Uri};
use schemas::blob::{Grant, HttpAction, Method};
use schemas::{Code, Digest, Refusal};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use url::Url;

use crate::client::{self, Client, Response};
use crate::endpoint::Trust;
use crate::error::ObjectError;
use crate::sink::Sink;

/// Slowest upload that is waited for; below it an attempt is given up and repeated.
const UPLOAD_BYTES_PER_SECOND_MIN: u64 = 64 << 10;
/// So many times an upload hears that the store has no room; room that uploads in progress take comes back at once, other room
/// when somebody makes it, and the caller can say so.
const FULL_ANSWERS_MAX: u32 = 4;
/// Longest `Retry-After` that is obeyed.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);

/// Bounds of a [`Transfer`]; how long a whole transfer may take is the caller's deadline.
#[derive(Clone, Debug)]
pub struct TransferLimits {
    /// Longest silence while bytes are expected, and longest wait for an answer.
    pub idle: Duration,
    /// Longest wait for a connection.
    pub connect: Duration,
    /// The first pause after a failure; doubled each time.
    pub pause_first: Duration,
    /// The longest pause.
    pub pause_max: Duration,
    /// Idle connections kept for reuse.
    pub connections_max: usize,
}

/// Who grants another URL when one was refused, has expired, or may have been used.
#[async_trait]
pub trait Regrant: Send + Sync {
    /// Another grant for `digest`; without an action when the store has the object by now.
    ///
    /// # Errors
    /// The refusal. [`Code::NoAnswer`], [`Code::Draining`] and [`Code::AskedTooMuch`] are asked again until the deadline, others
    /// end the transfer.
    async fn regrant(&self, digest: Digest) -> Result<Grant, Refusal>;
}

/// How an upload ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// These bytes were sent and accepted.
    Now,
    /// The store had the object.
    Before,
}

/// A client for granted URLs. Cheap to clone; clones share connections.
#[derive(Clone, Debug)]
pub struct Transfer {
    http: Client,
    trust: Trust,
    limits: TransferLimits,
}

/// How one request ended when it did not succeed.
enum Failure {
    /// The URL is no good (any more): ask for another.
    Url(Reason),
    /// Busy; the same request may be repeated.
    Busy(Reason, Option<Duration>),
    /// The connection failed or broke; for an upload nobody knows whether it happened.
    Broken(Reason),
    /// Repeating cannot help.
    Final(ObjectError),
}

struct Reason {
    text: String,
    status: Option<(u16, String)>,
}

impl Default for TransferLimits {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(20),
            connect: Duration::from_secs(10),
            pause_first: Duration::from_millis(100),
            pause_max: Duration::from_secs(5),
            connections_max: 16,
        }
    }
}

impl Transfer {
    /// A client that trusts `trust` alone.
    ///
    /// # Errors
    /// The authority's certificates are not usable.
    pub fn new(trust: &Trust, limits: TransferLimits) -> Result<Self, ObjectError> {
        Ok(Self { http: Client::new(trust, &limits)?, trust: trust.clone(), limits })
    }

    pub(crate) const fn http(&self) -> &Client {
        &self.http
    }

    /// Uploads `bytes` under `grant`. The store checks the digest; it is not computed again here.
    ///
    /// # Errors
    /// [`ObjectError::Uncertain`] when the deadline passes after an answer was lost; otherwise why it was not stored.
    pub async fn put(
        &self,
        grant: &Grant,
        bytes: Bytes,
        regrant: &dyn Regrant,
        deadline: Instant,
    ) -> Result<Stored, ObjectError> {
        let digest = grant.digest;
        let Some(mut action) = grant.action.clone() else { return Ok(Stored::Before) };
        let mut pace = Pace::new(&self.limits, deadline);
        let mut sent_blind = false;
        let mut full_answers = 0;
        loop {
            let failure = match self.put_once(digest, &action, &bytes, deadline).await {
                Ok(stored) => return Ok(stored),
                Err(failure) => failure,
            };
            // After a broken connection the coordinator is asked instead of guessing: it can look at the store.
            let (ask, reason, wait) = match failure {
                Failure::Final(error) => return Err(error),
                Failure::Url(reason) => (true, reason, None),
                Failure::Busy(reason, wait) => (false, reason, wait),
                Failure::Broken(reason) => {
                    sent_blind = true;
                    (true, reason, None)
                }
            };
            tracing::debug!(%digest, reason = reason.text, "upload attempt failed");
            full_answers += u32::from(reason.is_full());
            if full_answers == FULL_ANSWERS_MAX || !pace.pause(wait).await {
                return Err(reason.gave_up(digest, "upload", sent_blind));
            }
            if ask {
                match another(regrant, digest, &mut pace).await?.action {
                    Some(granted) => action = granted,
                    None => return Ok(Stored::Before),
                }
            }
        }
    }

    /// Downloads and verifies an object of at most `bytes_max` bytes into memory.
    ///
    /// # Errors
    /// Why there are no verified bytes.
    pub async fn get(
        &self,
        grant: &Grant,
        bytes_max: schemas::Bytes,
        regrant: &dyn Regrant,
        deadline: Instant,
    ) -> Result<Bytes, ObjectError> {
        let mut sink = Sink::new(grant.digest, bytes_max);
        self.download(grant, &mut sink, regrant, deadline).await?;
        sink.into_bytes()
    }

    async fn put_once(
        &self,
        digest: Digest,
        action: &HttpAction,
        bytes: &Bytes,
        deadline: Instant,
    ) -> Result<Stored, Failure> {
        let (uri, headers) = self.prepared(digest, action, Method::Put)?;
        let length = headers.get("content-length").and_then(|value| value.to_str().ok());
        if length.is_some_and(|length| length != bytes.len().to_string()) {
            let reason = format!("it is for {} bytes, the object has {}", length.unwrap_or_default(), bytes.len());
            return Err(Failure::Final(ObjectError::GrantInvalid { digest, reason }));
        }
        let patience = self.limits.idle + Duration::from_secs(bytes.len() as u64 / UPLOAD_BYTES_PER_SECOND_MIN);
        let sending = self.http.send(http::Method::PUT, uri, headers, bytes.clone());
        let response = self.answered(sending, deadline.min(Instant::now() + patience)).await?;
        match response.status() {
            status if status.is_success() => Ok(Stored::Now),
            StatusCode::PRECONDITION_FAILED => Ok(Stored::Before),
            _ => Err(self.refused(digest, response).await),
        }
    }

    async fn download(
        &self,
        grant: &Grant,
        sink: &mut Sink,
        regrant: &dyn Regrant,
        deadline: Instant,
    ) -> Result<(), ObjectError> {
        let digest = grant.digest;
        let missing = || ObjectError::GrantInvalid { digest, reason: "it has no url to read from".to_owned() };
        let mut action = grant.action.clone().ok_or_else(missing)?;
        let mut pace = Pace::new(&self.limits, deadline);
        loop {
            let before = sink.len();
            let failure = match self.get_once(digest, &action, sink, deadline).await {
                Ok(()) => return Ok(()),
                Err(failure) => failure,
            };
            if sink.len() > before {
                pace.restart();
            }
            let (ask, reason, wait) = match failure {
                Failure::Final(error) => return Err(error),
                Failure::Url(reason) => (true, reason, None),
                Failure::Busy(reason, wait) => (false, reason, wait),
                Failure::Broken(reason) => (false, reason, None),
            };
            tracing::debug!(%digest, at = sink.len(), reason = reason.text, "download attempt failed");
            if !pace.pause(wait).await {
                return Err(reason.gave_up(digest, "download", false));
            }
            if ask {
                action = another(regrant, digest, &mut pace).await?.action.ok_or_else(missing)?;
            }
        }
    }

    async fn get_once(
        &self,
        digest: Digest,
        action: &HttpAction,
        sink: &mut Sink,
        deadline: Instant,
    ) -> Result<(), Failure> {
        let (uri, mut headers) = self.prepared(digest, action, Method::Get)?;
        if sink.len() > 0 {
            let range = HeaderValue::from_str(&format!("bytes={}-", sink.len())).expect("digits are a header value");
            headers.insert(RANGE, range);
        }
        let sending = self.http.send(http::Method::GET, uri, headers, Bytes::new());
        let mut response = self.answered(sending, deadline.min(Instant::now() + self.limits.idle)).await?;
        let mut skip = match (response.status(), client::length(&response)) {
            (StatusCode::OK, Some(total)) => {
                sink.expect(total).map_err(Failure::Final)?;
                sink.len()
            }
            (StatusCode::PARTIAL_CONTENT, _) => {
                let (first, total) =
                    content_range(response.headers()).ok_or_else(|| Reason::broken("no Content-Range"))?;
                sink.expect(total).map_err(Failure::Final)?;
                if first != sink.len() {
                    return Err(Reason::broken(format!("a range from {first} instead of {}", sink.len())));
                }
                0
            }
            (StatusCode::OK, None) => return Err(Reason::broken("no Content-Length")),
            _ => return Err(self.refused(digest, response).await),
        };
        while !sink.is_complete() {
            let step = timeout_at(deadline, timeout(self.limits.idle, client::piece(&mut response))).await;
            let piece = match step {
                Ok(Ok(Ok(Some(piece)))) => piece,
                Ok(Ok(Ok(None))) => return Err(Reason::broken(format!("the answer ended at {}", sink.len()))),
                Ok(Ok(Err(error))) => return Err(Reason::broken(client::describe(&error))),
                Ok(Err(_)) | Err(_) => return Err(Reason::broken(format!("silence at {}", sink.len()))),
            };
            // A server that ignores ranges starts anew; what was hashed already is passed over.
            let known = skip.min(piece.len() as u64);
            skip -= known;
            let fresh = piece.slice(usize::try_from(known).expect("no more than the piece's length")..);
            sink.take(&fresh).map_err(Failure::Final)?;
        }
        Ok(())
    }

    fn prepared(&self, digest: Digest, action: &HttpAction, method: Method) -> Result<(Uri, HeaderMap), Failure> {
        let invalid = |reason: String| Failure::Final(ObjectError::GrantInvalid { digest, reason });
        if action.method != method {
            return Err(invalid(format!("it is for {:?}, not {method:?}", action.method)));
        }
        let url = Url::parse(&action.href).map_err(|error| invalid(format!("its url does not parse: {error}")))?;
        self.trust.permits(&url).map_err(|error| invalid(error.to_string()))?;
        let uri = url.as_str().parse().map_err(|error| invalid(format!("its url does not parse: {error}")))?;
        let mut headers = HeaderMap::with_capacity(action.headers.len());
        for (name, value) in &action.headers {
            let parsed = name.parse::<HeaderName>().ok().zip(HeaderValue::from_str(value).ok());
            let (parsed, value) = parsed.ok_or_else(|| invalid(format!("its header {name:?} does not parse")))?;
            headers.insert(parsed, value);
        }
        Ok((uri, headers))
    }

    async fn answered(
        &self,
        sending: impl Future<Output = Result<Response, hyper_util::client::legacy::Error>>,
        until: Instant,
    ) -> Result<Response, Failure> {
        match timeout_at(until, sending).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(Reason::broken(client::describe(&error))),
            Err(_) => Err(Reason::broken("no answer")),
        }
    }

    async fn refused(&self, digest: Digest, response: Response) -> Failure {
        let status = response.status();
        let wait = client::retry_after(response.headers());
        let code = client::s3_code(response, self.limits.idle).await;
        let reason = Reason { text: format!("{status} {code}"), status: Some((status.as_u16(), code.clone())) };
        match status {
            StatusCode::BAD_REQUEST
                if matches!(code.as_str(), "BadDigest" | "InvalidDigest" | "XAmzContentSHA256Mismatch") =>
            {
                let reason = format!("the store answered {code}; hash the local copy again");
                Failure::Final(ObjectError::Mismatch { digest, reason })
            }
            StatusCode::BAD_REQUEST | StatusCode::FORBIDDEN => Failure::Url(reason),
            StatusCode::NOT_FOUND => Failure::Final(ObjectError::Missing { what: digest.to_string() }),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::CONFLICT | StatusCode::REQUEST_TIMEOUT => {
                Failure::Busy(reason, wait)
            }
            status if status.is_server_error() => Failure::Busy(reason, wait),
            status => Failure::Final(ObjectError::Refused {
                during: format!("transfer of {digest}"),
                status: status.as_u16(),
                code,
            }),
        }
    }
}

impl Reason {
    fn broken(text: impl Into<String>) -> Failure {
        Failure::Broken(Self { text: text.into(), status: None })
    }

    fn is_full(&self) -> bool {
        self.status.as_ref().is_some_and(|(status, _)| *status == StatusCode::INSUFFICIENT_STORAGE.as_u16())
    }

    fn gave_up(self, digest: Digest, verb: &str, sent_blind: bool) -> ObjectError {
        let during = format!("{verb} of {digest}");
        match self.status {
            _ if sent_blind => ObjectError::Uncertain { digest, reason: self.text },
            Some((507, _)) => ObjectError::Full { during },
            Some((status, code)) => ObjectError::Refused { during, status, code },
            None => ObjectError::Unreachable { during, reason: self.text },
        }
    }
}

/// The pauses between attempts of one transfer.
pub(crate) struct Pace {
    first: Duration,
    max: Duration,
    next: Duration,
    deadline: Instant,
}

impl Pace {
    pub(crate) const fn new(limits: &TransferLimits, deadline: Instant) -> Self {
        Self { first: limits.pause_first, max: limits.pause_max, next: limits.pause_first, deadline }
    }

    /// Progress was made: pauses start small again.
    const fn restart(&mut self) {
        self.next = self.first;
    }

    /// Waits before another attempt, `asked` long when the store said so; false when the deadline does not allow it.
    pub(crate) async fn pause(&mut self, asked: Option<Duration>) -> bool {
        let pause = self.step(asked, random_fraction());
        if Instant::now() + pause >= self.deadline {
            return false;
        }
        sleep(pause).await;
        true
    }

    /// The next pause; `jitter` is between 0 and 1.
    fn step(&mut self, asked: Option<Duration>, jitter: f64) -> Duration {
        let half = self.next / 2;
        let pause = asked.map_or(half, |asked| asked.min(RETRY_AFTER_MAX)) + half.mul_f64(jitter);
        self.next = (self.next * 2).min(self.max);
        pause
    }
}

async fn another(regrant: &dyn Regrant, digest: Digest, pace: &mut Pace) -> Result<Grant, ObjectError> {
    loop {
        let asked = timeout_at(pace.deadline, regrant.regrant(digest)).await;
        let silent = || Refusal::new(Code::NoAnswer, format!("no url for {digest} before the deadline"));
        match asked {
            Ok(Ok(grant)) if grant.digest == digest => return Ok(grant),
            Ok(Ok(grant)) => {
                let reason = format!("asked for {digest}, granted {}", grant.digest);
                return Err(ObjectError::GrantInvalid { digest, reason });
            }
            Ok(Err(refusal)) if matches!(refusal.code, Code::NoAnswer | Code::Draining | Code::AskedTooMuch) => {
                if !pace.pause(None).await {
                    return Err(ObjectError::Denied(refusal));
                }
            }
            Ok(Err(refusal)) => return Err(ObjectError::Denied(refusal)),
            Err(_) => return Err(ObjectError::Denied(silent())),
        }
    }
}

/// First byte and total length of a `Content-Range: bytes first-last/total`.
fn content_range(headers: &HeaderMap) -> Option<(u64, u64)> {
    let value = headers.get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?;
    let (range, total) = value.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()?))
}

/// Between 0 and 1, different each time: pauses of many workers must not coincide.
pub fn random_fraction() -> f64 {
    let random = RandomState::new().hash_one(0_u8);
    f64::from(u32::try_from(random >> 32).expect("32 bits remain")) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace() -> Pace {
        Pace::new(&TransferLimits::default(), Instant::now() + Duration::from_secs(10))
    }

    #[test]
    fn pauses_double_up_to_their_limit() {
        let mut pace = pace();
        let pauses: Vec<u128> = (0..8).map(|_| pace.step(None, 1.0).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        pace.restart();
        assert_eq!(pace.step(None, 0.0), Duration::from_millis(50));
    }

    #[test]
    fn a_store_that_asks_for_patience_gets_it_within_bounds() {
        assert_eq!(pace().step(Some(Duration::from_secs(7)), 0.0), Duration::from_secs(7));
        assert_eq!(pace().step(Some(Duration::from_secs(3600)), 0.0), RETRY_AFTER_MAX);
    }

    #[tokio::test]
    async fn no_pause_passes_the_deadline() {
        assert!(!pace().pause(Some(Duration::from_secs(20))).await);
    }

    #[test]
    fn jitter_differs_and_is_a_fraction() {
        let drawn: Vec<f64> = (0..20).map(|_| random_fraction()).collect();
        assert!(drawn.iter().all(|part| (0.0..=1.0).contains(part)));
        assert!(drawn.windows(2).any(|pair| (pair[0] - pair[1]).abs() > f64::EPSILON));
    }

    #[test]
    fn content_ranges_are_read() {
        let header = |text: &'static str| HeaderMap::from_iter([(CONTENT_RANGE, HeaderValue::from_static(text))]);
        assert_eq!(content_range(&header("bytes 5-9/10")), Some((5, 10)));
        assert_eq!(content_range(&header("bytes */10")), None);
        assert_eq!(content_range(&HeaderMap::new()), None);
    }
}
