//! What of refused messages is logged: the first ones of a sender in full, then one line for many. Whoever may send may be
//! refused as often as it likes, and a log that it fills helps nobody.

use std::collections::BTreeMap;
use std::time::Duration;

use schemas::Code;
use tokio::time::Instant;

/// Refusals of one sender that are logged in full before they are counted instead.
const FULL_MAX: u32 = 5;
/// How often what was counted is logged; a sender that was quiet for as long begins anew.
pub(crate) const SUMMARY_EVERY: Duration = Duration::from_secs(10);
/// Senders that are told apart; further ones are counted together.
const SENDERS_MAX: usize = 1024;
/// The name under which further ones are counted.
const OTHERS: &str = "others";

/// What was refused lately, by sender.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    senders: BTreeMap<String, Lately>,
}

#[derive(Debug)]
struct Lately {
    since: Instant,
    full: u32,
    counted: u64,
    last: Code,
}

/// Refusals of one sender that were not logged one by one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Many {
    pub(crate) sender: String,
    pub(crate) count: u64,
    /// Why the newest of them was refused.
    pub(crate) last: Code,
}

impl Refusals {
    /// Notes a refusal; whether it is to be logged in full.
    pub(crate) fn note(&mut self, sender: &str, code: Code, now: Instant) -> bool {
        let known = self.senders.contains_key(sender) || self.senders.len() < SENDERS_MAX;
        let sender = if known { sender } else { OTHERS };
        let fresh = Lately { since: now, full: 0, counted: 0, last: code };
        let lately = self.senders.entry(sender.to_owned()).or_insert(fresh);
        if lately.full < FULL_MAX {
            lately.full += 1;
            return true;
        }
        lately.counted = lately.counted.saturating_add(1);
        lately.last = code;
        false
    }

    /// What is to be logged of the senders whose interval has ended. Those that were quiet in it are forgotten.
    pub(crate) fn summaries(&mut self, now: Instant) -> Vec<Many> {
        let mut found = Vec::new();
        self.senders.retain(|sender, lately| {
            if now.duration_since(lately.since) < SUMMARY_EVERY {
                return true;
            }
            let count = std::mem::take(&mut lately.counted);
            lately.since = now;
            if count > 0 {
                found.push(Many { sender: sender.clone(), count, last: lately.last });
            }
            count > 0
        });
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_a_few_lines_and_then_one_for_each_interval() {
        let start = Instant::now();
        let mut refusals = Refusals::default();
        let flood = |refusals: &mut Refusals, at| {
            (0..1000).filter(|_| refusals.note("worker", Code::MessageInvalid, at)).count()
        };
        assert_eq!(flood(&mut refusals, start), 5);
        assert!(refusals.note("another", Code::IdentityMismatch, start), "others are logged beside it");
        assert!(refusals.summaries(start + SUMMARY_EVERY / 2).is_empty());
        let many = |count| Many { sender: "worker".to_owned(), count, last: Code::MessageInvalid };
        assert_eq!(refusals.summaries(start + SUMMARY_EVERY), [many(995)]);
        assert_eq!(flood(&mut refusals, start + SUMMARY_EVERY), 0, "it goes on");
        assert_eq!(refusals.summaries(start + 2 * SUMMARY_EVERY), [many(1000)]);
        assert!(refusals.summaries(start + 3 * SUMMARY_EVERY).is_empty(), "nothing new");
        assert_eq!(flood(&mut refusals, start + 3 * SUMMARY_EVERY), 5, "it was quiet and begins anew");
    }

    #[test]
    fn senders_without_end_take_bounded_room_and_bounded_lines() {
        let start = Instant::now();
        let mut refusals = Refusals::default();
        let full = (0..100_000).filter(|n| refusals.note(&format!("sender {n}"), Code::MessageInvalid, start)).count();
        assert_eq!(full, SENDERS_MAX + FULL_MAX as usize);
        assert!(refusals.senders.len() <= SENDERS_MAX + 1);
        let many = refusals.summaries(start + SUMMARY_EVERY);
        assert_eq!(many.len(), 1);
        assert_eq!((many[0].sender.as_str(), many[0].count), (OTHERS, (100_000 - full) as u64));
    }
}
