//! Downloads: started, resumed where they broke off, and hashed as they are read.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::StatusCode;
use http::header::{CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use schemas::Digest;
use schemas::blob::{Grant, HttpAction, Method};
use tokio::time::{Instant, timeout};

use super::ending::{Failure, Reason, SlowLog, ended};
use super::{Expected, GRACE, REFUSED_FOR_GOOD_MAX, Regrant, Transfer, another};
use crate::client;
use crate::error::ObjectError;
use crate::pace::Pace;
use crate::sink::Sink;
use crate::stall::{Going, Progress};

impl Transfer {
    /// Downloads and verifies an object of at most `bytes_max` bytes into memory.
    ///
    /// # Errors
    /// The object was not read, or its bytes do not hash to its digest.
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

    async fn download(
        &self,
        grant: &Grant,
        sink: &mut Sink,
        regrant: &dyn Regrant,
        deadline: Instant,
    ) -> Result<(), ObjectError> {
        let digest = grant.digest;
        let missing = || ObjectError::GrantInvalid {
            digest,
            reason: "it has no url to read from".to_owned(),
        };
        let mut action = grant.action.clone().ok_or_else(missing)?;
        let mut pace = Pace::new(&self.limits, deadline);
        let mut refused_for_good = 0;
        loop {
            let (lane, is_stale) = self.lane(&self.down, &mut pace).await;
            if is_stale {
                action = another(regrant, digest, &mut pace)
                    .await?
                    .action
                    .ok_or_else(missing)?;
            }
            let (before, begun) = (sink.len(), Instant::now());
            let outcome = self.get_once(digest, &action, sink, pace.deadline()).await;
            let is_news = lane.leave(ended(&outcome, sink.since(before), begun.elapsed()));
            let failure = match outcome {
                Ok(()) => return Ok(()),
                Err(failure) => failure,
            };
            if sink.since(before) > 0 {
                pace.restart();
            }
            let (ask, reason, wait) = match failure {
                Failure::Final(error) => return Err(error),
                Failure::Url(reason) => (true, reason, None),
                Failure::Busy(reason, wait) => (false, reason, wait),
                Failure::Broken(reason) => (false, reason, None),
            };
            self.failed(&reason, digest, "download", is_news);
            refused_for_good += u32::from(reason.for_good);
            if refused_for_good == REFUSED_FOR_GOOD_MAX || !pace.pause(wait).await {
                return Err(reason.gave_up(digest, "download", false));
            }
            if ask {
                action = another(regrant, digest, &mut pace)
                    .await?
                    .action
                    .ok_or_else(missing)?;
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
            let range = HeaderValue::from_str(&format!("bytes={}-", sink.len()))
                .expect("digits are a header value");
            headers.insert(RANGE, range);
        }
        let (sending, watch) = self
            .http
            .start(http::Method::GET, uri, headers, Bytes::new());
        let mut response = self
            .answered(
                sending,
                &watch,
                Expected {
                    digest,
                    bytes: 0,
                    deadline,
                },
            )
            .await?;
        let mut skip = match (response.status(), client::length(&response)) {
            (StatusCode::OK, Some(total)) => {
                sink.expect(total).map_err(Failure::Final)?;
                sink.len()
            }
            (StatusCode::PARTIAL_CONTENT, _) => {
                let (first, total) = content_range(response.headers())
                    .ok_or_else(|| Reason::broken("no Content-Range"))?;
                sink.expect(total).map_err(Failure::Final)?;
                if first != sink.len() {
                    return Err(Reason::broken(format!(
                        "a range from {first} instead of {}",
                        sink.len()
                    )));
                }
                0
            }
            (StatusCode::OK, None) => return Err(Reason::broken("no Content-Length")),
            _ => return Err(self.refused(digest, response).await),
        };
        let (begun, start) = (Instant::now(), sink.len());
        let mut progress = Progress::new(self.limits.idle, client::length(&response).unwrap_or(0));
        let mut slow_log = SlowLog::new(digest, "download");
        while !sink.is_complete() {
            // After the deadline a short silence ends the transfer; before it, only the longest one
            // does.
            let left = deadline
                .saturating_duration_since(Instant::now())
                .max(GRACE);
            let piece =
                match timeout(self.limits.idle.min(left), client::piece(&mut response)).await {
                    Ok(Ok(Some(piece))) => piece,
                    Ok(Ok(None)) => {
                        return Err(Reason::broken(format!(
                            "the answer ended at {}",
                            sink.len()
                        )));
                    }
                    Ok(Err(error)) => return Err(Reason::broken_by(&error)),
                    Err(_) => return Err(Reason::stalled(format!("silence at {}", sink.len()))),
                };
            self.moved
                .down
                .fetch_add(piece.len() as u64, Ordering::Relaxed);
            // A server that ignores ranges starts from the beginning; bytes that are hashed already
            // are skipped.
            let known = skip.min(piece.len() as u64);
            skip -= known;
            let fresh =
                piece.slice(usize::try_from(known).expect("no more than the piece's length")..);
            sink.take(&fresh).map_err(Failure::Final)?;
            match progress.judge(begun.elapsed(), sink.since(start)) {
                Going::Slowly(slow) => slow_log.log(Instant::now(), slow),
                Going::Crawling => return Err(Reason::crawling()),
                Going::Well | Going::Silent(_) => {}
            }
        }
        if let Some(line) = watch.line() {
            line.settle();
        }
        Ok(())
    }
}

/// First byte and total length of a `Content-Range: bytes first-last/total`.
fn content_range(headers: &HeaderMap) -> Option<(u64, u64)> {
    let value = headers
        .get(CONTENT_RANGE)?
        .to_str()
        .ok()?
        .strip_prefix("bytes ")?;
    let (range, total) = value.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read() {
        let header = |text: &'static str| {
            HeaderMap::from_iter([(CONTENT_RANGE, HeaderValue::from_static(text))])
        };
        assert_eq!(content_range(&header("bytes 5-9/10")), Some((5, 10)));
        assert_eq!(content_range(&header("bytes */10")), None);
        assert_eq!(content_range(&HeaderMap::new()), None);
    }
}
