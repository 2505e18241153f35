//! Refusals in the ledger. Of each sender, a few are recorded at once and then one now and again,
//! and the same holds for all senders together. So a sender that is refused again and again can
//! neither fill the ledger nor use up the share of the others.

use std::collections::BTreeMap;

use schemas::event::LedgerEvent;
use schemas::limits::TEXT_BYTES_MAX;
use schemas::{AccountId, Class, Code, Millis, Refusal, UnixMillis, WorkerId};

use crate::coordinator::Coordinator;
use crate::input::Peer;

/// Refusals of one sender: this many are recorded at once after a quiet time, and then one in each
/// period, with the number of those that were left out. That is enough to see what the sender does.
const OF_ONE: Rate = Rate {
    at_once: 16,
    every: Millis::from_secs(480),
};
/// The same for all senders together. Sixty senders that are refused without end do not keep the
/// others out of the record. At worst that is some 350,000 events a month, each below half a KiB.
const OF_ALL: Rate = Rate {
    at_once: 1024,
    every: Millis(7_500),
};
/// Longest verb that is recorded; the longest of ours has 20.
const VERB_BYTES_MAX: usize = 64;

/// The rate at which denials are recorded.
#[derive(Clone, Copy, Debug)]
struct Rate {
    at_once: u64,
    every: Millis,
}

/// A token bucket: full at first, and one token comes back in each period.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: u64,
    refilled_at: UnixMillis,
}

impl Bucket {
    fn full(rate: Rate) -> Self {
        Self {
            tokens: rate.at_once,
            refilled_at: UnixMillis(0),
        }
    }

    /// Takes a token if there is one.
    fn take(&mut self) -> bool {
        let there = self.tokens > 0;
        self.tokens -= u64::from(there);
        there
    }

    fn refill(&mut self, rate: Rate, now: UnixMillis) {
        let earned = self.refilled_at.until(now).get() / rate.every.get();
        self.tokens = self.tokens.saturating_add(earned).min(rate.at_once);
        self.refilled_at = UnixMillis(
            self.refilled_at
                .get()
                .saturating_add(earned * rate.every.get()),
        );
    }
}

/// The budgets for recording denials.
#[derive(Debug)]
pub(crate) struct Denials {
    all: Bucket,
    senders: BTreeMap<(AccountId, WorkerId), Bucket>,
    suppressed: u64,
}

impl Default for Denials {
    fn default() -> Self {
        Self {
            all: Bucket::full(OF_ALL),
            senders: BTreeMap::new(),
            suppressed: 0,
        }
    }
}

impl Denials {
    /// Decides if a refusal of this sender is to be recorded now. If so, returns how many refusals,
    /// of any sender, were left out since the last recorded one.
    fn admit(&mut self, peer: &Peer, now: UnixMillis) -> Option<u64> {
        self.all.refill(OF_ALL, now);
        if self.all.tokens > 0 && self.of_sender(peer, now).take() {
            self.all.tokens -= 1;
            return Some(std::mem::take(&mut self.suppressed));
        }
        self.suppressed = self.suppressed.saturating_add(1);
        None
    }

    /// The bucket of the sender. A new sender replaces the senders whose bucket is full again. Each
    /// token that the others lack was taken from [`OF_ALL`] too, so that it bounds their number.
    fn of_sender(&mut self, peer: &Peer, now: UnixMillis) -> &mut Bucket {
        let key = (peer.account.clone(), peer.worker.clone());
        if !self.senders.contains_key(&key) {
            self.senders.retain(|_, bucket| {
                bucket.refill(OF_ONE, now);
                bucket.tokens < OF_ONE.at_once
            });
        }
        let own = self
            .senders
            .entry(key)
            .or_insert_with(|| Bucket::full(OF_ONE));
        own.refill(OF_ONE, now);
        own
    }
}

/// True for refusals that say nothing about the asker: there is no work at present, there is no run
/// yet, or the same thing was done before.
fn is_benign(code: Code) -> bool {
    matches!(code.class(), Class::Away | Class::NotNow) || code == Code::AlreadyCounted
}

impl Coordinator {
    /// Records a refusal, unless it says nothing about the asker, or too many were recorded lately.
    /// Those left out are counted, and the next recorded one carries the count.
    pub(crate) fn record_denial(&mut self, peer: &Peer, verb: &str, refusal: &Refusal) {
        if !is_benign(refusal.code)
            && let Some(suppressed) = self.denials.admit(peer, self.now)
        {
            let known = self.state.run(&peer.run).is_some();
            let event = LedgerEvent::RequestDenied {
                account: peer.account.clone(),
                worker: peer.worker.clone(),
                verb: cut(verb, VERB_BYTES_MAX),
                code: refusal.code,
                suppressed,
            };
            self.append(known.then_some(&peer.run), event);
            self.tell(&peer.run, |room, turn| room.mark_changed(turn));
        }
    }
}

/// Cuts `text` to at most `bytes_max` bytes, at the end of a character.
pub(crate) fn cut(text: &str, bytes_max: usize) -> String {
    let end = (0..=bytes_max.min(text.len()))
        .rev()
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(0);
    text[..end].to_owned()
}

/// Cuts free text to the length that an event may hold.
pub(crate) fn cut_text(text: &str) -> String {
    cut(text, TEXT_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::peer;

    /// A whole number of periods, as the buckets count them.
    const START: UnixMillis = UnixMillis(1_700_000_160_000);

    fn later(ms: u64) -> UnixMillis {
        UnixMillis(START.get() + ms)
    }

    #[test]
    fn of_one_sender_some_pass_at_once_then_one_now_and_again_and_the_others_are_counted() {
        let mut denials = Denials::default();
        let loud = peer(1);
        let passed = (0..80)
            .filter(|_| denials.admit(&loud, START).is_some())
            .count();
        assert_eq!(passed, 16);
        assert_eq!(denials.admit(&loud, later(479_999)), None);
        assert_eq!(denials.admit(&loud, later(480_000)), Some(65));
        assert_eq!(denials.admit(&loud, later(480_000)), None);
        assert_eq!(
            (0..80)
                .filter(|_| denials.admit(&loud, later(36_000_000)).is_some())
                .count(),
            16
        );
    }

    #[test]
    fn who_is_refused_without_end_keeps_nobody_else_from_the_record() {
        let mut denials = Denials::default();
        for number in 1..=60 {
            for _ in 0..1000 {
                let _recorded = denials.admit(&peer(number), START);
            }
        }
        assert!(denials.admit(&peer(61), START).is_some());
        // One day: all sixty go on, and a sender that was refused once a day ago is recorded.
        for minute in 1..1440 {
            for number in 1..=60 {
                let _recorded = denials.admit(&peer(number), later(minute * 60_000));
            }
        }
        assert!(denials.admit(&peer(61), later(86_400_000)).is_some());
    }

    #[test]
    fn all_together_are_bounded_and_so_is_what_is_remembered() {
        let mut denials = Denials::default();
        let passed = (0..6000)
            .filter(|number| denials.admit(&peer(*number), START).is_some())
            .count();
        assert_eq!(passed, 1024);
        assert_eq!(denials.admit(&peer(9000), later(7_500)), Some(6000 - 1024));
        // New names without end, each at the moment when one more refusal of all may be recorded.
        let every = |number: u64| later(1_000_000 + 7_500 * number);
        assert!((0..5000).all(|number| {
            denials
                .admit(&peer(10_000 + number as u32), every(number))
                .is_some()
        }));
        assert!(denials.senders.len() < 1200, "{}", denials.senders.len());
    }

    #[test]
    fn a_sender_that_spent_its_share_is_remembered_while_others_come_and_go() {
        let mut denials = Denials::default();
        while denials.admit(&peer(1), START).is_some() {}
        for number in 2..100 {
            assert!(denials.admit(&peer(number), START).is_some());
            assert_eq!(denials.admit(&peer(1), START), None, "after {number}");
        }
    }

    #[test]
    fn text_is_cut_at_a_character() {
        assert_eq!(cut("aäb", 2), "a");
        assert_eq!(cut("aäb", 9), "aäb");
    }
}
