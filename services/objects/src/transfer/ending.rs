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
const SLOW_LOGGED_EVERY: Duration = Duration::from_secs(30);

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

/// The log lines that say a transfer is slow.
pub(super) struct SlowLog {
    digest: Digest,
    verb: &'static str,
    /// The time of the last line.
    last: Option<Instant>,
}

impl SlowLog {
    pub(super) const fn new(digest: Digest, verb: &'static str) -> Self {
        Self {
            digest,
            verb,
            last: None,
        }
    }

    /// Logs the numbers, unless the last line is still young at `now`.
    pub(super) fn log(
        &mut self,
        now: Instant,
        Slow {
            bytes_per_second,
            bytes_left,
            expected,
        }: Slow,
    ) {
        let is_young = |last| now.duration_since(last) < SLOW_LOGGED_EVERY;
        if self.last.is_some_and(is_young) {
            return;
        }
        self.last = Some(now);
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

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _};

    use super::*;

    /// A failure of an upload: the store's answer, if there was one.
    fn reason(status: Option<u16>) -> Reason {
        Reason {
            text: "why".to_owned(),
            status: status.map(|status| (status, "Code".to_owned())),
            stalled: false,
            for_good: true,
        }
    }

    #[test]
    fn the_last_failure_decides_which_error_a_transfer_ends_with() {
        let digest = Digest::of(b"x");
        let error = |status, sent_blind| reason(status).gave_up(digest, "upload", sent_blind);
        for status in [None, Some(503), Some(507)] {
            let blind = error(status, true);
            assert!(
                matches!(&blind, ObjectError::Uncertain { reason, .. } if reason == "why"),
                "{blind:?}"
            );
        }
        let full = error(Some(507), false);
        assert!(matches!(full, ObjectError::Full { .. }), "{full:?}");
        let refused = error(Some(503), false).to_string();
        let during = format!("upload of {digest}");
        assert_eq!(
            refused,
            format!("{during}: the store refused with 503 Code, for good")
        );
        let silent = error(None, false).to_string();
        assert_eq!(
            silent,
            format!("{during}: the store did not answer in time: why")
        );
    }

    #[test]
    fn a_success_and_a_line_that_stood_still_tell_something_about_the_line() {
        let took = Duration::from_secs(2);
        let ended = |outcome: Result<(), Failure>| ended(&outcome, 7, took);
        assert_eq!(ended(Ok(())), Ended::Well { bytes: 7, took });
        let still = Reason::stalled("why".to_owned());
        assert_eq!(ended(Err(still)), Ended::Stalled);
        for other in [
            Reason::broken("why"),
            Failure::Url(reason(Some(403))),
            Failure::Busy(reason(Some(503)), None),
        ] {
            assert_eq!(ended(Err(other)), Ended::Otherwise);
        }
    }

    #[test]
    fn only_a_store_without_room_is_full() {
        let full = [Some(507), Some(503), None].map(|status| reason(status).is_full());
        assert_eq!(full, [true, false, false]);
    }

    #[test]
    fn a_slow_transfer_is_logged_at_once_and_then_every_half_minute() {
        let mut file = tempfile::tempfile().unwrap();
        let log = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(file.try_clone().unwrap())
            .finish();
        let _log = tracing::subscriber::set_default(log);
        let mut slow_log = SlowLog::new(Digest::of(b"x"), "download");
        let begun = Instant::now();
        let milli = Duration::from_millis(1);
        let times = [0, 1, 2, 4].map(|half_minutes| begun + half_minutes * SLOW_LOGGED_EVERY);
        for (bytes_left, now) in (1..).zip(times) {
            for now in [now, now + SLOW_LOGGED_EVERY - milli] {
                slow_log.log(
                    now,
                    Slow {
                        bytes_per_second: 5000,
                        bytes_left,
                        expected: Duration::from_secs(20),
                    },
                );
            }
        }
        let mut said = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut said).unwrap();
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines.len(), times.len(), "{said}");
        for (bytes_left, line) in (1..).zip(lines) {
            let numbers = format!("bytes_per_second=5000 bytes_left={bytes_left} expected_s=20");
            assert!(line.contains(&numbers), "{line}");
            assert!(line.contains(&Code::LineSlow.to_string()), "{line}");
        }
    }
}
