//! The number of transfers that run in parallel. A good line needs many; on a poor one they would
//! slow each other down until all time out, and then all would start again. So the number is halved
//! after a time-out, and grows by one after each success.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

/// Transfers at first: a good line soon gets more, and an unknown line is not flooded.
const FIRST: usize = 4;
/// A transfer that took less time is no reason against one more, however small it was.
const QUICK: Duration = Duration::from_secs(2);
/// A transfer at this rate or above has a good line, which may have room for one more.
const GOOD_BYTES_PER_SECOND: u64 = 64 << 10;
/// A transfer below this rate, that took [`LONG`] or more, shares its line with too many.
const POOR_BYTES_PER_SECOND: u64 = 16 << 10;
const LONG: Duration = Duration::from_secs(10);

/// The end of one transfer, as far as it says something about the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It succeeded: it moved this many bytes in this time.
    Well { bytes: u64, took: Duration },
    /// Nothing moved any more.
    Stalled,
    /// It ended in a way that says nothing about the line.
    Otherwise,
}

/// The rule for how many transfers may run.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Width {
    now: usize,
    max: usize,
    /// Number of halvings. Transfers that run at the same time stall together, which is one reason
    /// to halve and not many.
    halvings: u64,
}

impl Width {
    fn new(max: usize) -> Self {
        let max = max.max(1);
        Self {
            now: FIRST.min(max),
            max,
            halvings: 0,
        }
    }

    /// Learns from the end of a transfer that began when `began` halvings had happened. Returns
    /// true if this halved the number.
    fn learn(&mut self, began: u64, ended: Ended) -> bool {
        match ended {
            Ended::Stalled if began == self.halvings => {
                self.now = (self.now / 2).max(1);
                self.halvings += 1;
                return true;
            }
            Ended::Well { bytes, took } => {
                let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX).max(1);
                let rate = bytes.saturating_mul(1000) / ms;
                if took < QUICK || rate >= GOOD_BYTES_PER_SECOND {
                    self.now = (self.now + 1).min(self.max);
                } else if took >= LONG && rate < POOR_BYTES_PER_SECOND {
                    self.now = (self.now - 1).max(1);
                }
            }
            Ended::Stalled | Ended::Otherwise => {}
        }
        false
    }
}

/// The lanes of one direction. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Lanes(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    freed: Notify,
}

#[derive(Debug)]
struct State {
    width: Width,
    busy: usize,
}

/// A place for one attempt; dropping it gives the place back.
pub(crate) struct Lane {
    lanes: Lanes,
    began: u64,
}

impl Lanes {
    pub(crate) fn new(max: usize) -> Self {
        let state = Mutex::new(State {
            width: Width::new(max),
            busy: 0,
        });
        Self(Arc::new(Shared {
            state,
            freed: Notify::new(),
        }))
    }

    /// Waits for a place.
    pub(crate) async fn enter(&self) -> Lane {
        loop {
            let freed = self.0.freed.notified();
            let mut freed = std::pin::pin!(freed);
            // From here on, a place that is given back is noticed, even before the waiting begins.
            freed.as_mut().enable();
            if let Some(lane) = self.try_enter() {
                return lane;
            }
            freed.await;
        }
    }

    fn try_enter(&self) -> Option<Lane> {
        let mut state = self.lock();
        if state.busy >= state.width.now {
            return None;
        }
        state.busy += 1;
        Some(Lane {
            lanes: self.clone(),
            began: state.width.halvings,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The two numbers are valid after a panic too.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lane {
    /// Gives the place back and tells the lanes how the transfer ended. Returns true when this
    /// halved their number. When several transfers stall together, the lanes halve
    /// once, and only the first of them gets true.
    pub(crate) fn leave(self, ended: Ended) -> bool {
        let mut state = self.lanes.lock();
        let is_news = state.width.learn(self.began, ended);
        // Dropping `self` gives the place back.
        drop(state);
        is_news
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.lanes.lock().busy -= 1;
        self.lanes.0.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICKLY: Ended = Ended::Well {
        bytes: 1 << 20,
        took: Duration::from_secs(1),
    };

    #[test]
    fn time_outs_halve_down_to_one_and_successes_grow_by_one() {
        let mut width = Width::new(8);
        (0..9).for_each(|_| assert!(!width.learn(width.halvings, QUICKLY)));
        assert_eq!(width.now, 8);
        let widths: Vec<usize> = (0..5)
            .map(|_| {
                width.learn(width.halvings, Ended::Stalled);
                width.now
            })
            .collect();
        assert_eq!(widths, [4, 2, 1, 1, 1]);
        width.learn(width.halvings, QUICKLY);
        width.learn(width.halvings, Ended::Otherwise);
        assert_eq!(width.now, 2);
    }

    #[test]
    fn those_that_stall_together_halve_once() {
        let mut width = Width::new(8);
        (0..9).for_each(|_| assert!(!width.learn(width.halvings, QUICKLY)));
        let began = width.halvings;
        let news: Vec<bool> = (0..8).map(|_| width.learn(began, Ended::Stalled)).collect();
        assert_eq!(width.now, 4);
        assert_eq!(
            news,
            [true, false, false, false, false, false, false, false],
            "and the first is told"
        );
    }

    #[test]
    fn a_poor_line_has_fewer_before_anything_times_out() {
        // A line of 40 KB/s, shared by all that run.
        let mut width = Width::new(8);
        width.now = 8;
        for _ in 0..50 {
            let rate = 40_000 / width.now as u64;
            let bytes = 300_000;
            width.learn(
                width.halvings,
                Ended::Well {
                    bytes,
                    took: Duration::from_millis(bytes * 1000 / rate),
                },
            );
        }
        assert_eq!(width.now, 2, "20 KB/s each is neither good nor poor");
        let mut small = Width::new(8);
        (0..9).for_each(|_| {
            assert!(!small.learn(
                0,
                Ended::Well {
                    bytes: 100,
                    took: Duration::from_millis(80)
                }
            ))
        });
        assert_eq!(small.now, 8, "small objects take a round trip, not a line");
    }

    #[test]
    fn a_long_transfer_is_judged_by_its_rate() {
        let after = |bytes_per_second: u64, seconds: u64| {
            let mut width = Width {
                now: 4,
                max: 8,
                halvings: 0,
            };
            width.learn(
                0,
                Ended::Well {
                    bytes: bytes_per_second * seconds,
                    took: Duration::from_secs(seconds),
                },
            );
            width.now
        };
        assert_eq!(
            after(GOOD_BYTES_PER_SECOND, 100),
            5,
            "a good line has room for one more"
        );
        assert_eq!(after(GOOD_BYTES_PER_SECOND - 1, 100), 4);
        assert_eq!(after(POOR_BYTES_PER_SECOND, 10), 4);
        assert_eq!(after(1, 1), 5, "it was over before it told anything");
        assert_eq!(after(1, 2), 4);
        assert_eq!(
            after(POOR_BYTES_PER_SECOND - 1, 10),
            3,
            "a poor one is shared by too many"
        );
        assert_eq!(
            after(POOR_BYTES_PER_SECOND - 1, 9),
            4,
            "it was not looked at for long enough"
        );
    }

    #[tokio::test]
    async fn who_waits_gets_the_place_that_is_given_back() {
        let lanes = Lanes::new(1);
        let lane = lanes.enter().await;
        assert!(lanes.try_enter().is_none());
        let waiting = tokio::spawn({
            let lanes = lanes.clone();
            async move { drop(lanes.enter().await) }
        });
        tokio::task::yield_now().await;
        lane.leave(QUICKLY);
        waiting.await.unwrap();
        let dropped = lanes.enter().await;
        drop(dropped);
        assert!(lanes.try_enter().is_some());
    }
}
