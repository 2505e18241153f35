//! A worker's recorded events, until a head that it has verified covers them. The answer that an
//! event is recorded is the broker's word, and a broker can lose what it has acknowledged; the
//! receipt is the head.

use std::collections::VecDeque;

use schemas::head::ASKED_MAX;
use schemas::{ChainSequence, Millis, UnixMillis};
use serde::{Deserialize, Serialize};

/// Most events that are kept: a worker emits a few in a unit, and a head comes ten seconds after
/// each. The oldest is given up first, and said to be.
const KEPT_MAX: usize = 64;
/// Time after which an event that a verified head does not cover is sent again. Its record takes
/// seconds to reach the log, and a head ten seconds more.
const AGAIN_AFTER: Millis = Millis::from_secs(120);
/// Time after which an event under no head is worth a person's look.
const OVERDUE_AFTER: Millis = Millis::from_secs(600);

/// An event that was recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Waiting {
    pub(crate) sequence: ChainSequence,
    pub(crate) subject: String,
    /// The encoded body, hex.
    pub(crate) body: String,
    /// The time at which its record was confirmed first.
    recorded: UnixMillis,
    /// The time at which it was confirmed last.
    confirmed: UnixMillis,
}

/// The events that wait for a head, the oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Outbox(VecDeque<Waiting>);

impl Outbox {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds an event whose record was confirmed. Returns the oldest one if there was no room.
    pub(crate) fn add(
        &mut self,
        sequence: ChainSequence,
        (subject, body): (String, String),
        now: UnixMillis,
    ) -> Option<Waiting> {
        let full = self.0.len() >= KEPT_MAX;
        let oldest = full.then(|| self.0.pop_front()).flatten();
        self.0.push_back(Waiting {
            sequence,
            subject,
            body,
            recorded: now,
            confirmed: now,
        });
        oldest
    }

    /// The events about which the worker asks next.
    pub(crate) fn asked(&self) -> impl Iterator<Item = &Waiting> {
        self.0.iter().take(ASKED_MAX)
    }

    /// Removes the events that a verified head covers. True if there were any.
    pub(crate) fn cover(&mut self, covered: &[ChainSequence]) -> bool {
        let before = self.0.len();
        self.0.retain(|one| !covered.contains(&one.sequence));
        self.0.len() < before
    }

    /// The oldest event that should have been under the newest head by now: a chain is recorded in
    /// its order, so what was lost is sent again from there.
    pub(crate) fn missing(&self, now: UnixMillis) -> Option<&Waiting> {
        let mut asked = self.asked();
        asked.find(|one| one.confirmed.until(now) >= AGAIN_AFTER)
    }

    /// Notes that an event's record was confirmed again.
    pub(crate) fn confirmed(&mut self, sequence: ChainSequence, now: UnixMillis) {
        for one in &mut self.0 {
            if one.sequence == sequence {
                one.confirmed = now;
            }
        }
    }

    /// The events that wait for too long: how many, and the oldest.
    pub(crate) fn overdue(&self, now: UnixMillis) -> Option<(usize, ChainSequence)> {
        let late = |one: &&Waiting| one.recorded.until(now) >= OVERDUE_AFTER;
        let count = self.0.iter().filter(late).count();
        let oldest = self.0.iter().find(late)?;
        Some((count, oldest.sequence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 1_700_000_000_000;

    fn after(span: Millis) -> UnixMillis {
        UnixMillis(START + span.get())
    }

    fn outbox(count: u64) -> Outbox {
        let mut outbox = Outbox::default();
        for at in 0..count {
            let event = (format!("subject.{at}"), format!("{at:02x}"));
            let gone = outbox.add(ChainSequence(at), event, UnixMillis(START));
            assert_eq!(gone, None, "there is room");
        }
        outbox
    }

    fn sequences(outbox: &Outbox) -> Vec<u64> {
        outbox.asked().map(|one| one.sequence.get()).collect()
    }

    #[test]
    fn ls_04_an_event_stays_until_a_head_covers_it() {
        let mut outbox = outbox(3);
        assert!(!outbox.cover(&[ChainSequence(7)]), "of nobody");
        assert_eq!(sequences(&outbox), [0, 1, 2]);
        assert!(outbox.cover(&[ChainSequence(2), ChainSequence(0)]));
        assert_eq!(sequences(&outbox), [1]);
        assert!(outbox.cover(&[ChainSequence(1)]));
        assert!(outbox.is_empty() && outbox.missing(after(OVERDUE_AFTER)).is_none());
    }

    #[test]
    fn ls_04_what_a_head_should_cover_is_sent_again_from_the_oldest_on() {
        let mut outbox = outbox(3);
        let missing = |outbox: &Outbox, now| outbox.missing(now).map(|one| one.sequence.get());
        let early = Millis(AGAIN_AFTER.get() - 1);
        assert_eq!(missing(&outbox, after(early)), None);
        let now = after(AGAIN_AFTER);
        for expected in [Some(0), Some(1), Some(2), None] {
            assert_eq!(missing(&outbox, now), expected);
            if let Some(sequence) = expected {
                outbox.confirmed(ChainSequence(sequence), now);
            }
        }
        let again = UnixMillis(now.get() + AGAIN_AFTER.get());
        assert_eq!(missing(&outbox, again), Some(0), "it was lost once more");
    }

    /// To be confirmed again is no receipt either.
    #[test]
    fn what_no_head_covers_for_long_is_overdue_however_often_it_is_confirmed() {
        let mut outbox = outbox(2);
        let late = UnixMillis(START + 1000);
        outbox.add(ChainSequence(2), (String::new(), String::new()), late);
        for at in 0..3 {
            outbox.confirmed(ChainSequence(at), after(AGAIN_AFTER));
        }
        let early = Millis(OVERDUE_AFTER.get() - 1);
        assert_eq!(outbox.overdue(after(early)), None);
        let found = Some((2, ChainSequence(0)));
        assert_eq!(outbox.overdue(after(OVERDUE_AFTER)), found);
        outbox.cover(&[ChainSequence(0), ChainSequence(1)]);
        assert_eq!(outbox.overdue(after(OVERDUE_AFTER)), None);
    }

    #[test]
    fn the_oldest_is_given_up_when_there_is_no_room() {
        let mut outbox = outbox(KEPT_MAX as u64);
        let event = ("subject".to_owned(), "00".to_owned());
        let now = UnixMillis(START);
        let gone = outbox.add(ChainSequence(KEPT_MAX as u64), event, now);
        assert_eq!(gone.map(|one| one.sequence), Some(ChainSequence(0)));
        assert_eq!(outbox.0.len(), KEPT_MAX);
        assert_eq!(outbox.asked().count(), ASKED_MAX.min(KEPT_MAX));
    }

    #[test]
    fn it_reads_back_from_its_file() {
        let outbox = outbox(2);
        let text = serde_json::to_string(&outbox).expect("it is JSON");
        let again: Outbox = serde_json::from_str(&text).expect("its own text");
        assert_eq!(again, outbox);
    }
}
