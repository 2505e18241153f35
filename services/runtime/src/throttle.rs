//! One warning per cause: the first lines of a cause in full, then one line for many, at growing
//! intervals. A fault that repeats with every unit, object, second or retry, or that a stranger
//! repeats at will, must not bury other lines.
//!
//! [`Throttle`] is the rule: no clock, no output. [`crate::log`] applies it to every line of level
//! warning or above, and to every line with a field `code` or `cause`, so no call has to ask for
//! it. The fields of [`CAUSE_FIELDS`] distinguish causes of the same line in the source.

use std::collections::BTreeMap;
use std::time::Duration;

mod layer;

pub(crate) use layer::{SharedThrottle, ThrottleLayer};

/// Lines of one cause that are logged in full: enough to see what it is about and that it repeats.
pub const FULL_MAX: u32 = 3;
/// Time until the held-back lines of a cause are summed up for the first time. It doubles each
/// time, since a cause that goes on is no longer news.
pub const INTERVAL_FIRST: Duration = Duration::from_secs(10);
/// Longest time between two sums. A cause that was quiet for this long begins anew.
pub const INTERVAL_MAX: Duration = Duration::from_secs(600);
/// Most causes of one line in the source that are counted apart; further ones are counted together.
/// Each line has its own count, so that a sender who makes up names without end hides only lines
/// about such names.
pub const CAUSES_MAX: usize = 256;
/// The cause under which further ones are counted.
pub const OTHERS: &str = "others";
/// Most bytes of a line that are kept to show the newest one.
pub(crate) const NEWEST_BYTES_MAX: usize = 512;
/// Fields whose values tell causes apart. Fields that differ with each unit, object or try are not
/// among them.
pub const CAUSE_FIELDS: &[&str] = &[
    "code", "cause", "sender", "layer", "finding", "place", "kind", "peer", "run", "signal",
];

/// Recent lines, logged and held back, by their line in the source and by cause.
#[derive(Debug, Default)]
pub struct Throttle {
    sites: BTreeMap<&'static str, BTreeMap<String, RecentLines>>,
}

/// Lines of one cause that were not logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldBackLines {
    /// Their line in the source.
    pub site: &'static str,
    /// Their cause.
    pub cause: String,
    /// Their number.
    pub count: u64,
    /// The time in which they came.
    pub within: Duration,
    /// The newest of them.
    pub newest: String,
}

#[derive(Debug)]
struct RecentLines {
    full: u32,
    count: u64,
    newest: String,
    /// Start of the count.
    since: Duration,
    interval: Duration,
    last: Duration,
}

impl Throttle {
    /// Counts a line, and returns true if it is to be logged. `newest` makes the line's text, which
    /// is needed only if it is held back. `now` is the time since any fixed moment.
    pub fn note(
        &mut self,
        site: &'static str,
        cause: &str,
        now: Duration,
        newest: impl FnOnce() -> String,
    ) -> bool {
        let causes = self.sites.entry(site).or_default();
        let known = causes.contains_key(cause) || causes.len() < CAUSES_MAX;
        let cause = if known { cause } else { OTHERS };
        let fresh = || RecentLines {
            full: 0,
            count: 0,
            newest: String::new(),
            since: now,
            interval: INTERVAL_FIRST,
            last: now,
        };
        let lately = causes.entry(cause.to_owned()).or_insert_with(fresh);
        if lately.count == 0 && now.saturating_sub(lately.last) >= INTERVAL_MAX {
            *lately = fresh();
        }
        lately.last = now;
        if lately.full < FULL_MAX {
            lately.full += 1;
            return true;
        }
        if lately.count == 0 {
            lately.since = now;
        }
        lately.count = lately.count.saturating_add(1);
        lately.newest = newest();
        false
    }

    /// The sums that are due now. Forgets causes that were quiet for long.
    pub fn due(&mut self, now: Duration) -> Vec<HeldBackLines> {
        let mut told = Vec::new();
        for (site, causes) in &mut self.sites {
            causes.retain(|cause, lately| {
                if lately.count > 0 && now.saturating_sub(lately.since) >= lately.interval {
                    told.push(lately.tell(site, cause, now));
                    lately.interval = (lately.interval * 2).min(INTERVAL_MAX);
                }
                lately.count > 0 || now.saturating_sub(lately.last) < INTERVAL_MAX
            });
        }
        self.sites.retain(|_, causes| !causes.is_empty());
        told
    }

    /// The sums of everything held back and not reported yet, so that a process that ends leaves no
    /// count behind.
    pub fn rest(&mut self, now: Duration) -> Vec<HeldBackLines> {
        let held = self
            .sites
            .iter_mut()
            .flat_map(|(site, causes)| causes.iter_mut().map(move |entry| (*site, entry)));
        held.filter(|(_, (_, lately))| lately.count > 0)
            .map(|(site, (cause, lately))| lately.tell(site, cause, now))
            .collect()
    }
}

impl RecentLines {
    fn tell(&mut self, site: &'static str, cause: &str, now: Duration) -> HeldBackLines {
        HeldBackLines {
            site,
            cause: cause.to_owned(),
            count: std::mem::take(&mut self.count),
            within: now.saturating_sub(self.since),
            newest: std::mem::take(&mut self.newest),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(1000);

    fn flood(throttle: &mut Throttle, cause: &str, at: Duration) -> u32 {
        (0..1000)
            .map(|n| u32::from(throttle.note("line", cause, at, || format!("number {n}"))))
            .sum()
    }

    #[test]
    fn a_flood_is_a_few_lines_and_then_one_for_each_growing_interval() {
        let mut throttle = Throttle::default();
        assert_eq!(flood(&mut throttle, "a", START), FULL_MAX);
        assert!(
            throttle.note("line", "b", START, String::new),
            "another cause is logged beside it"
        );
        assert!(
            throttle.note("another", "a", START, String::new),
            "and another line"
        );
        assert!(throttle.due(START + INTERVAL_FIRST / 2).is_empty());
        let told = throttle.due(START + INTERVAL_FIRST);
        let many = HeldBackLines {
            site: "line",
            cause: "a".to_owned(),
            count: 1000 - u64::from(FULL_MAX),
            within: INTERVAL_FIRST,
            newest: "number 999".to_owned(),
        };
        assert_eq!(told, [many]);
        let mut at = START + INTERVAL_FIRST;
        assert_eq!(flood(&mut throttle, "a", at), 0, "it goes on");
        assert!(
            throttle.due(at + INTERVAL_FIRST).is_empty(),
            "and is told half as often"
        );
        at += 2 * INTERVAL_FIRST;
        assert_eq!(throttle.due(at)[0].count, 1000);
        assert_eq!(
            flood(&mut throttle, "a", at + INTERVAL_MAX),
            FULL_MAX,
            "it was quiet and begins anew"
        );
    }

    #[test]
    fn what_repeats_slowly_is_a_handful_of_lines_too() {
        let mut throttle = Throttle::default();
        let (mut lines, mut told) = (0, 0);
        // One line in twelve seconds for eight minutes, as with a fault of each unit.
        for n in 0..40 {
            let at = START + n * Duration::from_secs(12);
            lines += u32::from(throttle.note("line", "a", at, String::new));
            told += throttle.due(at).iter().map(|many| many.count).sum::<u64>();
        }
        told += throttle
            .rest(START)
            .iter()
            .map(|many| many.count)
            .sum::<u64>();
        assert_eq!((lines, told), (FULL_MAX, 40 - u64::from(FULL_MAX)));
    }

    #[test]
    fn senders_without_end_take_bounded_room_and_hide_no_other_line() {
        let mut throttle = Throttle::default();
        let full = (0..100_000)
            .filter(|n| throttle.note("line", &format!("sender {n}"), START, String::new))
            .count();
        assert_eq!(full, CAUSES_MAX + FULL_MAX as usize);
        assert_eq!(throttle.sites["line"].len(), CAUSES_MAX + 1);
        assert!(throttle.note("another", "sender", START, String::new));
        let many = throttle.due(START + INTERVAL_FIRST);
        assert_eq!(many.len(), 1);
        assert_eq!(
            (many[0].cause.as_str(), many[0].count),
            (OTHERS, (100_000 - full) as u64)
        );
        assert!(throttle.due(START + INTERVAL_MAX).is_empty());
        assert!(throttle.sites.is_empty(), "the quiet are forgotten");
    }
}
