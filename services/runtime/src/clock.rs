//! The one clock: everything else gets the time as an argument.
//!
//! It reads the wall clock once, when the process starts, and is a monotonic clock from there on. A
//! step of the wall clock (a wrong answer of a time server, somebody who sets `date`, a machine
//! that slept) moves no deadline and enters no record. [`StepDetector`] reports it, and the next
//! start of the process uses the new time. Small corrections of a time server reach both clocks
//! alike.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use schemas::{Millis, UnixMillis};

/// Least difference between this clock and the wall clock that is reported: far larger than the
/// error of reading one after the other.
const STEP_MIN: Millis = Millis::from_secs(5);

/// The origin of this process's time.
struct Anchor {
    /// Unix milliseconds at `started`.
    at: AtomicU64,
    started: Instant,
}

static ANCHOR: OnceLock<Anchor> = OnceLock::new();

fn anchor() -> &'static Anchor {
    ANCHOR.get_or_init(|| Anchor {
        at: AtomicU64::new(wall().get()),
        started: Instant::now(),
    })
}

/// The time: never goes back, and runs at one pace.
pub fn now() -> UnixMillis {
    let anchor = anchor();
    UnixMillis(anchor.at.load(Ordering::Relaxed)).after(elapsed(anchor))
}

/// Continues from `at` if that is later than now: records of that time exist already.
pub fn continue_from(at: UnixMillis) {
    let anchor = anchor();
    let start = at.get().saturating_sub(elapsed(anchor).get());
    anchor.at.fetch_max(start, Ordering::Relaxed);
}

/// A moment for people: RFC 3339, to the second.
pub fn text(at: UnixMillis) -> String {
    // The last moment that humantime can write.
    const LATEST: u64 = 253_402_300_799_000;
    let moment = UNIX_EPOCH + Duration::from_millis(at.get().min(LATEST));
    humantime::format_rfc3339_seconds(moment).to_string()
}

/// Reports steps of the wall clock, each once.
#[derive(Debug)]
pub struct StepDetector {
    /// Milliseconds by which the wall clock was ahead when the last step was reported.
    told: i64,
}

impl StepDetector {
    /// A detector of steps from now on.
    pub fn new() -> Self {
        Self {
            told: ahead(now(), wall()),
        }
    }

    /// A step since the last call, described in words.
    pub fn look(&mut self) -> Option<String> {
        self.between(now(), wall())
    }

    fn between(&mut self, now: UnixMillis, wall: UnixMillis) -> Option<String> {
        let ahead = ahead(now, wall);
        if ahead.abs_diff(self.told) < STEP_MIN.get() {
            return None;
        }
        let way = if ahead > self.told { "forward" } else { "back" };
        let seconds = ahead.abs_diff(self.told) / 1000;
        self.told = ahead;
        Some(format!(
            "the wall clock was set {way} by {seconds} s, to {}",
            text(wall)
        ))
    }
}

impl Default for StepDetector {
    fn default() -> Self {
        Self::new()
    }
}

fn ahead(now: UnixMillis, wall: UnixMillis) -> i64 {
    wall.get()
        .cast_signed()
        .saturating_sub(now.get().cast_signed())
}

fn elapsed(anchor: &Anchor) -> Millis {
    Millis(u64::try_from(anchor.started.elapsed().as_millis()).unwrap_or(u64::MAX))
}

/// The machine's wall clock. Before 1970 it reads as 0.
fn wall() -> UnixMillis {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_told_once_and_so_is_the_way_back() {
        let mut steps = StepDetector { told: 0 };
        let now = UnixMillis(1_700_000_000_000);
        let hour = Millis::from_secs(3600);
        assert_eq!(steps.between(now, now.after(Millis(4_999))), None);
        let told = steps.between(now, now.after(hour)).expect("an hour");
        assert!(
            told.contains("forward by 3600 s, to 2023-11-14T23:13:20Z"),
            "{told}"
        );
        assert_eq!(
            steps.between(now.after(hour), now.after(hour).after(hour)),
            None,
            "it stands"
        );
        let told = steps.between(now, now).expect("back");
        assert!(told.contains("back by 3600 s"), "{told}");
        assert_eq!(steps.between(now, now), None);
    }
}
