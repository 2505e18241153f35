//! Timers: the times at which the core wants to be called again. A timer only says "look now"; the
//! lease or run that it names holds its own due time, which may have moved on meanwhile. So nothing
//! is ever cancelled: a renewal costs no timer, and a timer that finds nothing due is dropped or
//! set to the present due time.

use std::collections::BTreeSet;

use schemas::lease::UnitId;
use schemas::{RunId, UnixMillis, WorkerId};

/// A part of the coordinator that has to be looked at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// A part of a run.
    Room(RunId, RunTimer),
    /// The drain may have lasted long enough.
    Drain,
}

/// A part of a run's room that has to be looked at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum RunTimer {
    /// A lease may have expired.
    Lease(UnitId),
    /// A worker may be silent for too long.
    Silence(WorkerId),
    /// A held claim may have waited long enough.
    Claim(WorkerId),
    /// An offer may have to be kept from being delivered again.
    Offer(UnitId),
    /// Weights may have to be loaded, merged or saved once more.
    Weights,
    /// The status may have to be published.
    Status,
}

/// The timers, by time.
#[derive(Debug, Default)]
pub(crate) struct Timers(BTreeSet<(UnixMillis, Timer)>);

impl Timers {
    pub(crate) fn set(&mut self, at: UnixMillis, timer: Timer) {
        self.0.insert((at, timer));
    }

    /// Takes one timer that is due.
    pub(crate) fn take_due(&mut self, now: UnixMillis) -> Option<Timer> {
        if self.0.first()?.0 > now {
            return None;
        }
        self.0.pop_first().map(|(_, timer)| timer)
    }

    pub(crate) fn next(&self) -> Option<UnixMillis> {
        self.0.first().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn due_timers_come_in_order_of_time_and_the_others_stay() {
        let mut timers = Timers::default();
        let run: RunId = "a".parse().unwrap();
        timers.set(UnixMillis(30), Timer::Drain);
        timers.set(UnixMillis(20), Timer::Room(run.clone(), RunTimer::Status));
        timers.set(UnixMillis(10), Timer::Room(run.clone(), RunTimer::Weights));
        assert_eq!(timers.next(), Some(UnixMillis(10)));
        assert_eq!(
            timers.take_due(UnixMillis(20)),
            Some(Timer::Room(run.clone(), RunTimer::Weights))
        );
        assert_eq!(
            timers.take_due(UnixMillis(20)),
            Some(Timer::Room(run, RunTimer::Status))
        );
        assert_eq!(timers.take_due(UnixMillis(20)), None);
        assert_eq!(timers.next(), Some(UnixMillis(30)));
    }
}
