//! Refusals in the ledger: a few at once and then one now and again, so that somebody who is refused cannot fill it.

use schemas::event::LedgerEvent;
use schemas::limits::TEXT_BYTES_MAX;
use schemas::{Code, Millis, Refusal, UnixMillis};

use crate::coordinator::Coordinator;
use crate::input::Peer;

/// Refusals recorded at once after a quiet time.
const DENIALS_AT_ONCE: u64 = 64;
/// How often one more is recorded, with the number of those that were not: some 40,000 events a month, below 1 KiB each.
const DENIAL_EVERY: Millis = Millis::from_secs(60);
/// Longest verb that is recorded; the longest of ours has 20.
const VERB_BYTES_MAX: usize = 64;

/// A token bucket: full at first, one token comes back every [`DENIAL_EVERY`].
#[derive(Debug)]
pub(crate) struct Denials {
    tokens: u64,
    refilled_at: UnixMillis,
    suppressed: u64,
}

impl Default for Denials {
    fn default() -> Self {
        Self { tokens: DENIALS_AT_ONCE, refilled_at: UnixMillis(0), suppressed: 0 }
    }
}

impl Denials {
    /// Whether to record one now, and then how many were not recorded since the last.
    fn admit(&mut self, now: UnixMillis) -> Option<u64> {
        let earned = self.refilled_at.until(now).get() / DENIAL_EVERY.get();
        self.tokens = self.tokens.saturating_add(earned).min(DENIALS_AT_ONCE);
        self.refilled_at = UnixMillis(self.refilled_at.get().saturating_add(earned * DENIAL_EVERY.get()));
        if self.tokens == 0 {
            self.suppressed = self.suppressed.saturating_add(1);
            return None;
        }
        self.tokens -= 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

impl Coordinator {
    /// Records a refusal, unless it only says that there is no work at present, or no run yet, or that the same thing was done
    /// before.
    pub(crate) fn record_denial(&mut self, peer: &Peer, verb: &str, refusal: &Refusal) {
        let benign = [Code::Draining, Code::RunClosed, Code::RunUnknown, Code::NoAnswer, Code::AlreadyCounted];
        if benign.contains(&refusal.code) {
            return;
        }
        let Some(suppressed) = self.denials.admit(self.now) else { return };
        let known = self.state.run(&peer.run).is_some();
        let event = LedgerEvent::RequestDenied {
            account: peer.account.clone(),
            worker: peer.worker.clone(),
            verb: cut(verb, VERB_BYTES_MAX),
            code: refusal.code,
            suppressed,
        };
        self.append(known.then_some(&peer.run), event);
    }
}

/// `text` up to a bound, cut at a character.
pub(crate) fn cut(text: &str, bytes_max: usize) -> String {
    let end = (0..=bytes_max.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text[..end].to_owned()
}

/// Free text for an event.
pub(crate) fn cut_text(text: &str) -> String {
    cut(text, TEXT_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_pass_at_once_then_one_now_and_again_and_the_others_are_counted() {
        let mut denials = Denials::default();
        // A whole number of periods, as the bucket counts them.
        let start = UnixMillis(1_700_000_040_000);
        let passed = (0..80).filter(|_| denials.admit(start).is_some()).count();
        assert_eq!(passed, 64);
        assert_eq!(denials.admit(UnixMillis(start.get() + 59_999)), None);
        assert_eq!(denials.admit(UnixMillis(start.get() + 60_000)), Some(17));
        assert_eq!(denials.admit(UnixMillis(start.get() + 60_000)), None);
        let later = UnixMillis(start.get() + 36_000_000);
        assert_eq!((0..80).filter(|_| denials.admit(later).is_some()).count(), 64);
    }

    #[test]
    fn text_is_cut_at_a_character() {
        assert_eq!(cut("aäb", 2), "a");
        assert_eq!(cut("aäb", 9), "aäb");
    }
}
