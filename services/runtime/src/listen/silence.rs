//! Times in which a listener had no connection: what was sent then was not heard, and the process
//! can say so.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use schemas::UnixMillis;

/// The times without a connection, as their listener notes them. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Silence(Arc<Mutex<Times>>);

#[derive(Debug, Default)]
struct Times {
    /// Since when there is no connection; none while there is one.
    since: Option<UnixMillis>,
    /// What is over and was not taken yet.
    over: Option<Gap>,
}

/// A time in which there was no connection, once or several times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The first loss.
    pub from: UnixMillis,
    /// The last return.
    pub until: UnixMillis,
    /// The number of losses.
    pub times: u64,
}

impl Silence {
    /// Notes that there is no connection.
    pub fn begin(&self, now: UnixMillis) {
        self.lock().since.get_or_insert(now);
    }

    /// Notes that there is one.
    pub fn end(&self, now: UnixMillis) {
        let mut times = self.lock();
        let Some(from) = times.since.take() else {
            return;
        };
        let before = times.over;
        times.over = Some(Gap {
            from: before.map_or(from, |before| before.from),
            until: now.max(from),
            times: before.map_or(0, |before| before.times).saturating_add(1),
        });
    }

    /// Takes what is over.
    pub fn take(&self) -> Option<Gap> {
        self.lock().over.take()
    }

    fn lock(&self) -> MutexGuard<'_, Times> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_one_gap_from_the_first_to_the_last_return() {
        let silence = Silence::default();
        let at = UnixMillis;
        silence.end(at(1));
        assert_eq!(silence.take(), None, "nothing was lost");
        silence.begin(at(2));
        silence.begin(at(3));
        assert_eq!(silence.take(), None, "it is not over");
        silence.end(at(5));
        silence.end(at(6));
        silence.begin(at(7));
        silence.end(at(9));
        let gap = Gap {
            from: at(2),
            until: at(9),
            times: 2,
        };
        assert_eq!((silence.take(), silence.take()), (Some(gap), None));
        silence.begin(at(20));
        silence.end(at(10));
        let gap = silence.take().expect("it is over");
        assert_eq!(
            (gap.from, gap.until),
            (at(20), at(20)),
            "no clock goes back"
        );
    }
}
