//! Transfers through granted URLs, for workers and for the coordinator's own access.
//!
//! An upload is one PUT of bytes held in memory. A download hashes as it reads, resumes by range
//! where it broke, and returns nothing until the digest matches. An attempt lasts as long as bytes
//! move, however slowly; further ones begin until the caller's deadline, with jittered exponential
//! pauses, and fewer run in parallel after one stood still. A refused or used-up URL is replaced
//! through [`Regrant`]; an object that was uploaded is not sent again.

mod download;
mod ending;
#[cfg(test)]
mod tests;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{DATE, HeaderMap, HeaderName, HeaderValue};
use http::{StatusCode, Uri};
use schemas::blob::{Grant, HttpAction, Method};
use schemas::limits::URL_LIFE;
use schemas::{Code, Digest, Refusal};
use tokio::time::{Instant, timeout, timeout_at};
use url::Url;

use crate::buckets::local_now;
use crate::client::{self, Client, Response, Watch};
use crate::endpoint::Trust;
use crate::error::ObjectError;
use crate::lanes::{Lane, Lanes};
use crate::limits::TransferLimits;
use crate::line::Line;
use crate::pace::Pace;
use crate::presign::StoreClock;
use crate::stall::{Going, Progress};
use ending::{Failure, Reason, SlowLog, ended};

/// Time between two looks at a transfer under way. The first look is at once, since many transfers
/// are complete by then.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const LOOK_FIRST: Duration = Duration::from_millis(20);
/// Longest silence of an attempt that goes on after the deadline.
const GRACE: Duration = Duration::from_secs(2);
/// Longest exchange that is used to measure the store's clock.
const CLOCK_EXCHANGE_MAX: Duration = Duration::from_secs(5);
/// Give up an upload after this many "no room" answers. Space held by uploads in progress frees up
/// in moments; anything else needs an operator, so report it instead of retrying.
const FULL_ANSWERS_MAX: u32 = 4;
/// Give up after this many refusals for good. One alone may be due to a URL that was damaged on its
/// way; then the next URL works.
const REFUSED_FOR_GOOD_MAX: u32 = 2;

/// Grants another URL when one was refused, has expired, or may have been used.
#[async_trait]
pub trait Regrant: Send + Sync {
    /// Another grant for `digest`. It holds no action if the store has the object by now.
    ///
    /// # Errors
    /// The refusal. [`Code::NoAnswer`], [`Code::Draining`] and [`Code::AskedTooMuch`] are asked
    /// again until the deadline, others end the transfer.
    async fn regrant(&self, digest: Digest) -> Result<Grant, Refusal>;
}

/// The outcome of a successful upload.
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
    up: Lanes,
    down: Lanes,
    moved: Moved,
    /// The store's clock, which the signer of URLs uses; this client measures it.
    clock: Option<StoreClock>,
}

/// Bytes of objects that went over the line, including transfers under way and failed attempts.
/// Clones count together.
#[derive(Clone, Debug, Default)]
pub struct Moved {
    /// To the store.
    pub up: Arc<AtomicU64>,
    /// From it.
    pub down: Arc<AtomicU64>,
    /// Failed attempts; most of them are repeated.
    pub failures: Arc<AtomicU64>,
}

impl Moved {
    fn bytes(&self) -> u64 {
        self.up
            .load(Ordering::Relaxed)
            .saturating_add(self.down.load(Ordering::Relaxed))
    }
}

impl Transfer {
    /// A client that trusts `trust` alone.
    ///
    /// # Errors
    /// The authority's certificates are not usable.
    pub fn new(trust: &Trust, limits: TransferLimits) -> Result<Self, ObjectError> {
        let (up, down) = (
            Lanes::new(limits.parallel_max),
            Lanes::new(limits.parallel_max),
        );
        let http = Client::new(trust, &limits)?;
        Ok(Self {
            http,
            trust: trust.clone(),
            limits,
            up,
            down,
            moved: Moved::default(),
            clock: None,
        })
    }

    /// The same client, which also measures the store's clock for `clock`.
    pub(crate) fn with_clock(self, clock: StoreClock) -> Self {
        Self {
            clock: Some(clock),
            ..self
        }
    }

    /// The bytes moved so far.
    pub fn moved(&self) -> Moved {
        self.moved.clone()
    }

    pub(crate) const fn http(&self) -> &Client {
        &self.http
    }

    /// Uploads `bytes` under `grant`. The store checks the digest; it is not computed again here.
    ///
    /// # Errors
    /// [`ObjectError::Uncertain`] when the deadline passes after an answer was lost; otherwise why
    /// it was not stored.
    pub async fn put(
        &self,
        grant: &Grant,
        bytes: Bytes,
        regrant: &dyn Regrant,
        deadline: Instant,
    ) -> Result<Stored, ObjectError> {
        let digest = grant.digest;
        let Some(mut action) = grant.action.clone() else {
            return Ok(Stored::Before);
        };
        let mut pace = Pace::new(&self.limits, deadline);
        let mut sent_blind = false;
        let (mut full_answers, mut refused_for_good) = (0, 0);
        loop {
            let (lane, is_stale) = self.lane(&self.up, &mut pace).await;
            if is_stale {
                match another(regrant, digest, &mut pace).await?.action {
                    Some(granted) => action = granted,
                    None => return Ok(Stored::Before),
                }
            }
            let begun = Instant::now();
            let outcome = self
                .put_once(digest, &action, &bytes, pace.deadline())
                .await;
            let is_news = lane.leave(ended(&outcome, bytes.len() as u64, begun.elapsed()));
            let failure = match outcome {
                Ok(stored) => return Ok(stored),
                Err(failure) => failure,
            };
            // After a broken connection the coordinator is asked, since it can ask the store.
            let (ask, reason, wait) = match failure {
                Failure::Final(error) => return Err(error),
                Failure::Url(reason) => (true, reason, None),
                Failure::Busy(reason, wait) => (false, reason, wait),
                Failure::Broken(reason) => {
                    sent_blind = true;
                    (true, reason, None)
                }
            };
            self.failed(&reason, digest, "upload", is_news);
            full_answers += u32::from(reason.is_full());
            refused_for_good += u32::from(reason.for_good);
            let hopeless =
                full_answers == FULL_ANSWERS_MAX || refused_for_good == REFUSED_FOR_GOOD_MAX;
            if hopeless || !pace.pause(wait).await {
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

    async fn put_once(
        &self,
        digest: Digest,
        action: &HttpAction,
        bytes: &Bytes,
        deadline: Instant,
    ) -> Result<Stored, Failure> {
        let (uri, headers) = self.prepared(digest, action, Method::Put)?;
        let length = headers
            .get("content-length")
            .and_then(|value| value.to_str().ok());
        if length.is_some_and(|length| length != bytes.len().to_string()) {
            let reason = format!(
                "it is for {} bytes, the object has {}",
                length.unwrap_or_default(),
                bytes.len()
            );
            return Err(Failure::Final(ObjectError::GrantInvalid { digest, reason }));
        }
        let (sending, watch) = self
            .http
            .start(http::Method::PUT, uri, headers, bytes.clone());
        let response = self
            .answered(
                sending,
                &watch,
                Expected {
                    digest,
                    bytes: bytes.len() as u64,
                    deadline,
                },
            )
            .await?;
        match response.status() {
            status if status.is_success() => Ok(Stored::Now),
            StatusCode::PRECONDITION_FAILED => Ok(Stored::Before),
            _ => Err(self.refused(digest, response).await),
        }
    }

    fn prepared(
        &self,
        digest: Digest,
        action: &HttpAction,
        method: Method,
    ) -> Result<(Uri, HeaderMap), Failure> {
        let invalid = |reason: String| Failure::Final(ObjectError::GrantInvalid { digest, reason });
        if action.method != method {
            return Err(invalid(format!(
                "it is for {:?}, not {method:?}",
                action.method
            )));
        }
        let url = Url::parse(&action.href)
            .map_err(|error| invalid(format!("its url does not parse: {error}")))?;
        self.trust
            .permits(&url)
            .map_err(|error| invalid(error.to_string()))?;
        let uri = url
            .as_str()
            .parse()
            .map_err(|error| invalid(format!("its url does not parse: {error}")))?;
        let mut headers = HeaderMap::with_capacity(action.headers.len());
        for (name, value) in &action.headers {
            let parsed = name
                .parse::<HeaderName>()
                .ok()
                .zip(HeaderValue::from_str(value).ok());
            let (parsed, value) =
                parsed.ok_or_else(|| invalid(format!("its header {name:?} does not parse")))?;
            headers.insert(parsed, value);
        }
        Ok((uri, headers))
    }

    /// Waits for a place among the transfers of one direction. Also returns true if the wait was so
    /// long that the URL may be too old by now.
    async fn lane(&self, lanes: &Lanes, pace: &mut Pace) -> (Lane, bool) {
        let (begun, moved) = (Instant::now(), self.moved.bytes());
        let lane = lanes.enter().await;
        let waited = begun.elapsed();
        if self.moved.bytes() > moved {
            pace.waited(waited);
        }
        (lane, is_old(waited))
    }

    /// Waits for the answer as long as the request's body moves.
    async fn answered(
        &self,
        sending: impl Future<Output = Result<Response, hyper_util::client::legacy::Error>>,
        watch: &Watch,
        Expected {
            digest,
            bytes,
            deadline,
        }: Expected,
    ) -> Result<Response, Failure> {
        let (begun, sent) = (Instant::now(), local_now());
        let mut sending = pin!(sending);
        let mut progress = Progress::new(self.limits.idle, bytes);
        let mut slow_log = SlowLog::new(digest, "upload");
        let (mut look, mut counted) = (LOOK_FIRST, 0);
        loop {
            let answered = timeout(look, sending.as_mut()).await;
            let line = watch.line();
            let moved = line.as_ref().map_or(0, Line::moved_since_settled);
            match answered {
                Ok(Ok(response)) => {
                    self.moved
                        .up
                        .fetch_add(bytes.saturating_sub(counted), Ordering::Relaxed);
                    self.read_clock(&response, sent, begun);
                    line.inspect(Line::settle);
                    return Ok(response);
                }
                Ok(Err(error)) => return Err(Reason::broken_by(&error)),
                Err(_) => look = look_every(self.limits.idle),
            }
            self.moved
                .up
                .fetch_add(moved.min(bytes).saturating_sub(counted), Ordering::Relaxed);
            counted = counted.max(moved.min(bytes));
            match progress.judge(begun.elapsed(), moved) {
                Going::Well => {}
                Going::Slowly(slow) => slow_log.log(Instant::now(), slow),
                Going::Silent(silence) => {
                    let text = format!(
                        "nothing moved for {} s after {counted} of {bytes} bytes",
                        silence.as_secs()
                    );
                    return Err(Reason::stalled(text));
                }
                Going::Crawling => return Err(Reason::crawling()),
            }
            if Instant::now() >= deadline
                && progress.silence(begun.elapsed()) >= GRACE.min(self.limits.idle)
            {
                return Err(Reason::broken("no answer"));
            }
        }
    }

    /// Counts and logs a failed attempt.
    fn failed(&self, reason: &Reason, digest: Digest, verb: &str, is_news: bool) {
        self.moved.failures.fetch_add(1, Ordering::Relaxed);
        reason.log(digest, verb, is_news);
    }

    fn read_clock(&self, response: &Response, sent: schemas::UnixMillis, begun: Instant) {
        let date = response
            .headers()
            .get(DATE)
            .and_then(|value| value.to_str().ok());
        if let (Some(clock), Some(date)) = (&self.clock, date)
            && shows_clock(begun.elapsed())
        {
            clock.observe(date, sent, local_now());
        }
    }

    async fn refused(&self, digest: Digest, response: Response) -> Failure {
        let status = response.status();
        let wait = client::retry_after(response.headers());
        let client::S3Answer { code, for_good, .. } =
            client::s3_answer(response, self.limits.idle).await;
        let answer = Some((status.as_u16(), code.clone()));
        let reason = Reason {
            text: format!("{status} {code}"),
            status: answer,
            stalled: false,
            for_good,
        };
        match status {
            StatusCode::BAD_REQUEST
                if matches!(
                    code.as_str(),
                    "BadDigest" | "InvalidDigest" | "XAmzContentSHA256Mismatch"
                ) =>
            {
                let reason = format!("the store answered {code}; hash the local copy again");
                Failure::Final(ObjectError::Mismatch { digest, reason })
            }
            StatusCode::BAD_REQUEST | StatusCode::FORBIDDEN => Failure::Url(reason),
            StatusCode::NOT_FOUND => Failure::Final(ObjectError::Missing {
                what: digest.to_string(),
            }),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::CONFLICT | StatusCode::REQUEST_TIMEOUT => {
                Failure::Busy(reason, wait)
            }
            status if status.is_server_error() => Failure::Busy(reason, wait),
            status => Failure::Final(ObjectError::Refused {
                during: format!("transfer of {digest}"),
                status: status.as_u16(),
                code,
                for_good: true,
            }),
        }
    }
}

/// True for a URL that was granted so long ago that it may expire on its way to the store.
fn is_old(age: Duration) -> bool {
    age >= URL_LIFE.as_duration() / 2
}

/// Time between two looks at a transfer that may be silent for `idle`: several looks fit into it.
fn look_every(idle: Duration) -> Duration {
    LOOK_EVERY.min(idle / 4)
}

/// True for an exchange so short that its answer tells the time of the store.
fn shows_clock(took: Duration) -> bool {
    took < CLOCK_EXCHANGE_MAX
}

/// An answer that is awaited, to a request with a body of this many bytes.
struct Expected {
    digest: Digest,
    bytes: u64,
    deadline: Instant,
}

async fn another(
    regrant: &dyn Regrant,
    digest: Digest,
    pace: &mut Pace,
) -> Result<Grant, ObjectError> {
    loop {
        let asked = timeout_at(pace.deadline(), regrant.regrant(digest)).await;
        let silent = || {
            Refusal::new(
                Code::NoAnswer,
                format!("no url for {digest} before the deadline"),
            )
        };
        match asked {
            Ok(Ok(grant)) if grant.digest == digest => return Ok(grant),
            Ok(Ok(grant)) => {
                let reason = format!("asked for {digest}, granted {}", grant.digest);
                return Err(ObjectError::GrantInvalid { digest, reason });
            }
            Ok(Err(refusal)) if refusal.code.passes() => {
                if !pace.pause(None).await {
                    return Err(ObjectError::Denied(refusal));
                }
            }
            Ok(Err(refusal)) => return Err(ObjectError::Denied(refusal)),
            Err(_) => return Err(ObjectError::Denied(silent())),
        }
    }
}
