//! The end of one request of a transfer, and the log lines about it.

use std::time::Duration;

use http::StatusCode;
use schemas::{Code, Digest};
use tokio::time::Instant;

use crate::client;
use crate::error::ObjectError;
use crate::lanes::Ended;
use crate::stall::{BYTES_PER_SECOND_MIN, Slow};

/// Time between two log lines that say one transfer is slow.
const SLOW_TOLD_EVERY: Duration = Duration::from_secs(30);

/// The end of one request that did not succeed.
pub(super) enum Failure {
    /// The URL is no good any more: ask for another.
    Url(Reason),
    /// The store is busy; the same request may be repeated.
    Busy(Reason, Option<Duration>),
    /// The connection failed or broke; for an upload nobody knows if it succeeded.
    Broken(Reason),
    /// Another try cannot help.
    Final(ObjectError),
}

pub(super) struct Reason {
    pub(super) text: String,
    pub(super) status: Option<(u16, String)>,
    /// True if the line stood still.
    pub(super) stalled: bool,
    /// True if the next URL will be refused too.
    pub(super) for_good: bool,
}

impl Reason {
    pub(super) fn broken(text: impl Into<String>) -> Failure {
        Failure::Broken(Self {
            text: text.into(),
            status: None,
            stalled: false,
            for_good: false,
        })
    }

    /// A request that failed before it was answered.
    pub(super) fn broken_by(error: &(dyn std::error::Error + 'static)) -> Failure {
        match ObjectError::certificate("connecting to the store", error) {
            Some(refused) => Failure::Final(refused),
            None => Self::broken(client::describe(error)),
        }
    }

    pub(super) const fn stalled(text: String) -> Failure {
        Failure::Broken(Self {
            text,
            status: None,
            stalled: true,
            for_good: false,
        })
    }

    pub(super) fn crawling() -> Failure {
        Self::stalled(format!(
            "less than {BYTES_PER_SECOND_MIN} bytes a second moved"
        ))
    }

    /// Logs the failure. A line that stands still needs somebody's attention, once for all
    /// transfers that stood still together. Other failures pass, or are reported in the end.
    pub(super) fn log(&self, digest: Digest, verb: &str, is_news: bool) {
        if self.stalled && is_news {
            let code = Code::LineStalled;
            tracing::warn!(%code, cause = verb, %digest, reason = self.text, "given up and tried again, with fewer at a time");
        } else {
            tracing::debug!(%digest, verb, reason = self.text, "attempt failed");
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.status
            .as_ref()
            .is_some_and(|(status, _)| *status == StatusCode::INSUFFICIENT_STORAGE.as_u16())
    }

    pub(super) fn gave_up(self, digest: Digest, verb: &str, sent_blind: bool) -> ObjectError {
        let during = format!("{verb} of {digest}");
        match self.status {
            _ if sent_blind => ObjectError::Uncertain {
                digest,
                reason: self.text,
            },
            Some((507, _)) => ObjectError::Full { during },
            Some((status, code)) => ObjectError::Refused {
                during,
                status,
                code,
                for_good: self.for_good,
            },
            None => ObjectError::Unreachable {
                during,
                reason: self.text,
            },
        }
    }
}

/// Logs now and then that a transfer is slow.
pub(super) struct Teller {
    digest: Digest,
    verb: &'static str,
    told: Option<Instant>,
}

impl Teller {
    pub(super) const fn new(digest: Digest, verb: &'static str) -> Self {
        Self {
            digest,
            verb,
            told: None,
        }
    }

    pub(super) fn tell(
        &mut self,
        Slow {
            bytes_per_second,
            bytes_left,
            expected,
        }: Slow,
    ) {
        if self
            .told
            .is_some_and(|told| told.elapsed() < SLOW_TOLD_EVERY)
        {
            return;
        }
        self.told = Some(Instant::now());
        let (code, digest, expected_s) = (Code::LineSlow, self.digest, expected.as_secs());
        tracing::warn!(%code, cause = self.verb, %digest, bytes_per_second, bytes_left, expected_s, "an object moves slowly");
    }
}

/// The end of an attempt, as far as it says something about the line.
pub(super) fn ended<T>(outcome: &Result<T, Failure>, bytes: u64, took: Duration) -> Ended {
    match outcome {
        Ok(_) => Ended::Well { bytes, took },
        Err(Failure::Broken(reason)) if reason.stalled => Ended::Stalled,
        Err(_) => Ended::Otherwise,
    }
}
