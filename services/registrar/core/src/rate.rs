//! The rate at which one holder may ask.

use schemas::{Millis, UnixMillis};

/// Questions of one holder in quick succession: each connection of a process may ask for itself,
/// and a process that is started again and again asks again.
pub const QUESTIONS_BURST: u64 = 16;
/// Time in which one more may be asked: processes ask five times a second at most, and only in the
/// last seconds of tokens that live for seconds.
pub const QUESTION_EVERY: Millis = Millis(200);

/// The questions that a holder may still ask now, as time that it has saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    saved: Millis,
    at: UnixMillis,
}

const FULL: Millis = Millis(QUESTIONS_BURST * QUESTION_EVERY.get());

impl Rate {
    pub(crate) const fn full(at: UnixMillis) -> Self {
        Self { saved: FULL, at }
    }

    fn at(self, now: UnixMillis) -> Self {
        // A clock that goes back adds nothing.
        let saved = Millis(self.saved.get() + self.at.until(now).get()).min(FULL);
        Self { saved, at: now }
    }

    /// True if it may be forgotten.
    pub(crate) fn is_full(self, now: UnixMillis) -> bool {
        self.at(now).saved == FULL
    }

    /// Takes one question; false if there is none left.
    pub(crate) fn take(&mut self, now: UnixMillis) -> bool {
        *self = self.at(now);
        let enough = self.saved >= QUESTION_EVERY;
        if enough {
            self.saved = Millis(self.saved.get() - QUESTION_EVERY.get());
        }
        enough
    }
}
