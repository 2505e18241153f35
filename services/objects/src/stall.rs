//! The rule for giving up an attempt to transfer an object. Time counts from the last byte that
//! moved, however long the whole transfer takes.

use std::time::Duration;

/// Slowest transfer that is continued, averaged over [`CRAWL_WINDOWS`] windows of silence. Each of
/// eight that share a line of 40 KB/s has five times as much; one byte a minute is no transfer. The
/// store waits for slower ones.
pub(crate) const BYTES_PER_SECOND_MIN: u64 = 1 << 10;
/// Number of windows that are judged together, each as long as the longest silence: a slow line has
/// pauses.
const CRAWL_WINDOWS: u32 = 3;
/// Most bytes that machines between us and the store may hold after they have acknowledged them; a
/// slow line takes some time to move these.
const UNDERWAY_BYTES_MAX: u64 = 256 << 10;
/// Longest time that is allowed for these bytes.
const UNDERWAY_MAX: Duration = Duration::from_secs(60);
/// Age at which an attempt is logged as slow, if it will take this long again, or is slower than
/// any usable line.
const SLOW_AFTER: Duration = Duration::from_secs(10);
const SLOW_REST_MIN: Duration = Duration::from_secs(20);
const SLOW_BYTES_PER_SECOND: u64 = 32 << 10;

/// The state of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Going {
    Well,
    /// It goes on, but will take long.
    Slowly(Slow),
    /// Nothing has moved for this long.
    Silent(Duration),
    /// Bytes move, but too slowly to ever finish.
    Crawling,
}

/// The numbers to log about a slow transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slow {
    pub(crate) bytes_per_second: u64,
    pub(crate) bytes_left: u64,
    pub(crate) expected: Duration,
}

/// One attempt's progress. Times count from its start.
#[derive(Debug)]
pub(crate) struct Progress {
    idle: Duration,
    /// Bytes to move.
    bytes: u64,
    moved: u64,
    last: Duration,
    /// The start of the present window, and the bytes that had moved by then.
    window: (Duration, u64),
}

impl Progress {
    pub(crate) const fn new(idle: Duration, bytes: u64) -> Self {
        Self {
            idle,
            bytes,
            moved: 0,
            last: Duration::ZERO,
            window: (Duration::ZERO, 0),
        }
    }

    /// Takes the number of bytes that have moved by `now`, and judges the attempt.
    pub(crate) fn judge(&mut self, now: Duration, moved: u64) -> Going {
        if moved > self.moved {
            (self.moved, self.last) = (moved, now);
        }
        let silence = now.saturating_sub(self.last);
        let rate = self.bytes_per_second();
        if silence >= self.idle + self.underway(rate) {
            return Going::Silent(silence);
        }
        let (begin, at_begin) = self.window;
        if now.saturating_sub(begin) >= self.idle * CRAWL_WINDOWS {
            let least = BYTES_PER_SECOND_MIN.saturating_mul((now - begin).as_secs());
            if self.moved < self.bytes && self.moved - at_begin < least {
                return Going::Crawling;
            }
            self.window = (now, self.moved);
        }
        let bytes_left = self.bytes.saturating_sub(self.moved);
        let expected = Duration::from_secs(bytes_left / rate.max(1));
        let is_slow = expected >= SLOW_REST_MIN || rate < SLOW_BYTES_PER_SECOND;
        if now >= SLOW_AFTER && bytes_left > 0 && is_slow {
            return Going::Slowly(Slow {
                bytes_per_second: rate,
                bytes_left,
                expected,
            });
        }
        Going::Well
    }

    /// Time since the last byte moved.
    pub(crate) fn silence(&self, now: Duration) -> Duration {
        now.saturating_sub(self.last)
    }

    fn bytes_per_second(&self) -> u64 {
        let ms = u64::try_from(self.last.as_millis())
            .unwrap_or(u64::MAX)
            .max(1);
        self.moved.saturating_mul(1000) / ms
    }

    /// Time that bytes may still travel after all of them were acknowledged.
    fn underway(&self, rate: u64) -> Duration {
        if self.moved < self.bytes || self.bytes == 0 {
            return Duration::ZERO;
        }
        Duration::from_secs(self.bytes.min(UNDERWAY_BYTES_MAX) / rate.max(1)).min(UNDERWAY_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(20);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_slow_transfer_may_take_hours_and_is_told() {
        let mut progress = Progress::new(IDLE, 100 << 20);
        let rate = 5 << 10;
        assert_eq!(
            progress.judge(at(9), 9 * rate),
            Going::Well,
            "it may yet become faster"
        );
        for second in 10..(100 << 20) / rate {
            let going = progress.judge(at(second), second * rate);
            assert!(
                matches!(going, Going::Slowly(_) | Going::Well),
                "{going:?} after {second} s"
            );
        }
        let mut progress = Progress::new(IDLE, 100 << 20);
        let slow = Slow {
            bytes_per_second: rate,
            bytes_left: (100 << 20) - 100 * rate,
            expected: at(20_380),
        };
        assert_eq!(progress.judge(at(100), 100 * rate), Going::Slowly(slow));
    }

    #[test]
    fn time_counts_from_the_last_byte_that_moved() {
        let mut progress = Progress::new(IDLE, 1 << 20);
        assert!(matches!(progress.judge(at(19), 1 << 19), Going::Slowly(_)));
        assert!(!matches!(progress.judge(at(38), 1 << 19), Going::Silent(_)));
        assert_eq!(progress.judge(at(39), 1 << 19), Going::Silent(IDLE));
    }

    #[test]
    fn a_byte_now_and_then_is_no_transfer() {
        let mut progress = Progress::new(IDLE, 1 << 20);
        let crawling = (1..100).find(|n| progress.judge(at(10 * n), *n) == Going::Crawling);
        assert_eq!(crawling, Some(6), "after three windows of silence");
    }

    #[test]
    fn the_slowest_that_is_a_transfer_is_measured_anew_in_each_window() {
        let least = 60 * BYTES_PER_SECOND_MIN;
        let mut progress = Progress::new(IDLE, 1 << 20);
        let going = [15, 30, 45].map(|second| progress.judge(at(second), second));
        assert!(!going.contains(&Going::Crawling));
        assert_ne!(progress.judge(at(60), least), Going::Crawling);
        for second in [75, 90, 105] {
            let going = progress.judge(at(second), least + second);
            assert_ne!(going, Going::Crawling);
        }
        assert_eq!(progress.judge(at(120), least + 120), Going::Crawling);
    }

    #[test]
    fn what_has_moved_whole_does_not_crawl() {
        let bytes = 256 << 10;
        let mut progress = Progress::new(IDLE, bytes);
        progress.judge(at(19), 100);
        progress.judge(at(38), 200);
        for second in [52, 60, 120] {
            let going = progress.judge(at(second), bytes);
            assert_eq!(going, Going::Well, "after {second} s");
        }
    }

    #[test]
    fn a_transfer_is_told_below_a_rate_or_with_much_ahead_of_it() {
        let going = |rate: u64, left: u64| {
            let mut progress = Progress::new(IDLE, 10 * rate + left);
            matches!(progress.judge(at(10), 10 * rate), Going::Slowly(_))
        };
        assert!(!going(SLOW_BYTES_PER_SECOND, 3 * SLOW_BYTES_PER_SECOND));
        assert!(going(SLOW_BYTES_PER_SECOND - 1, 3 * SLOW_BYTES_PER_SECOND));
        let fast = 2 * SLOW_BYTES_PER_SECOND;
        assert!(going(fast, 20 * fast));
        assert!(!going(fast, 20 * fast - 1));
    }

    #[test]
    fn an_answer_over_a_slow_line_is_waited_for_longer() {
        // All bytes were acknowledged within 50 s, at 5 KiB/s; the last of them may still lie in a
        // machine on the way.
        let (bytes, rate) = (250 << 10, 5 << 10);
        let mut slow = Progress::new(IDLE, bytes);
        assert!(!matches!(slow.judge(at(50), bytes), Going::Silent(_)));
        assert_eq!(
            slow.judge(at(50 + 20 + bytes / rate - 1), bytes),
            Going::Well
        );
        assert!(matches!(
            slow.judge(at(50 + 20 + bytes / rate), bytes),
            Going::Silent(_)
        ));
        let mut fast = Progress::new(IDLE, bytes);
        assert_eq!(fast.judge(at(1), bytes), Going::Well);
        assert!(
            matches!(fast.judge(at(22), bytes), Going::Silent(_)),
            "a fast one has nothing underway"
        );
    }
}
