//! The ledger's receipts: which of its events a verified head of the log of all events covers. The
//! broker's acknowledgement is the broker's word; the receipt is the head, as it is for workers.
//!
//! One proof stands for all events before it. Each event names its position and the digest of the
//! one before it, so a log that has an event of the ledger and lacks an earlier one has a gap in
//! the ledger's chain: each verifier of that log finds the gap, under a head that the log's own key
//! has signed. What nobody else can notice is an end of the ledger that the log lacks. So it is
//! enough that newer and newer events are proven to be under heads; the newest of all seldom is,
//! since a head is signed seconds after an event. The events between two questions are one *span*,
//! and its last one is asked about until a head covers it.
//!
//! Nothing has to be sent again: the ledger itself is the outbox, and the audit service reads its
//! stream, from where it stopped.

use std::collections::VecDeque;

use schemas::head::ASKED_MAX;
use schemas::view::LedgerCover;
use schemas::{ChainSequence, Code, Millis, UnixMillis};

/// Longest time that a process, and those that end soon before it, have to see a head over events
/// of an earlier one, before these count as waiting for too long: the last event of a coordinator
/// that ends in peace is under no head that it has seen, and a head is signed, asked for and proven
/// within half of this.
const GRACE: Millis = Millis::from_secs(60);
/// The least that each start counts of that time. Otherwise a process that ends sooner, again and
/// again, would put the warning off for ever.
const START: Millis = Millis::from_secs(10);

/// Which events of the ledger are under a verified head, and since when the others wait.
#[derive(Clone, Debug)]
pub struct Receipts {
    /// The longest time until a head covers an event.
    within: Millis,
    /// The events of the ledger.
    events: u64,
    /// The first so many of them are under a verified head.
    covered: u64,
    /// The others, the oldest first.
    spans: VecDeque<Span>,
    /// The time since which events of an earlier process wait, until the first event of this one.
    waited: Option<UnixMillis>,
    /// How much of [`GRACE`] earlier processes have had, to see a head over these.
    had: Millis,
    /// The time of the first event of this process, while those before it are under no head.
    began: Option<UnixMillis>,
    /// The events under the newest head that was verified; none before there was one.
    head: Option<u64>,
    /// What was said last of the newest head that came, if it was not taken.
    doubted: Option<Code>,
    /// True if it was said that events wait for too long.
    said: bool,
}

/// Events that were appended between two questions.
#[derive(Clone, Debug)]
struct Span {
    /// The last of them.
    last: Sent,
    /// The time at which the first was appended.
    since: UnixMillis,
    /// True once somebody was asked about it: later events are another span.
    asked: bool,
}

/// An event that the ledger holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Its position in the chain.
    pub sequence: ChainSequence,
    /// The message as it was stored.
    pub message: Vec<u8>,
}

/// A change that a person is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Say {
    /// Events wait for too long.
    Overdue {
        /// How many wait.
        count: u64,
        /// The first of them.
        oldest: ChainSequence,
    },
    /// None does any more.
    Covered,
}

impl Receipts {
    /// `covered` events were under the head over `head` events that an earlier process has
    /// verified.
    pub const fn new(within: Millis, covered: u64, head: Option<u64>) -> Self {
        Self {
            within,
            events: covered,
            covered,
            spans: VecDeque::new(),
            waited: None,
            had: Millis(0),
            began: None,
            head,
            doubted: None,
            said: false,
        }
    }

    /// Events behind those that are covered wait since then, by the clock of an earlier process: a
    /// restart gives them no more time than this process needs to see a head. Earlier ones `had` so
    /// much of it, as [`Self::had`] said.
    #[must_use]
    pub const fn waiting(mut self, since: Option<UnixMillis>, had: Millis) -> Self {
        (self.waited, self.had) = (since, had);
        self
    }

    /// Takes note of the newest event of the ledger.
    pub fn appended(&mut self, now: UnixMillis, last: Sent) {
        self.events = last.sequence.next().get();
        if self.covered > self.events {
            // The note is about another ledger, which had more events.
            (self.covered, self.waited) = (0, None);
        }
        let is_first_uncovered = last.sequence.get() == self.covered;
        let waited = self.waited.take().filter(|_| !is_first_uncovered);
        if waited.is_some() {
            self.began = Some(now);
        }
        match self.spans.back_mut() {
            Some(newest) if !newest.asked => newest.last = last,
            _ => {
                self.make_room();
                self.spans.push_back(Span {
                    last,
                    since: waited.map_or(now, |since| since.min(now)),
                    asked: false,
                });
            }
        }
    }

    /// Without room the second span becomes part of the third: one proof stands for both. The
    /// oldest stays as it is, and the newest are asked about one by one. The audit service forgets
    /// old places, and no head covers the very newest, so between the two there must be some.
    fn make_room(&mut self) {
        if self.spans.len() < ASKED_MAX {
            return;
        }
        let joined = self.spans.remove(1);
        if let (Some(joined), Some(next)) = (joined, self.spans.get_mut(1)) {
            next.since = joined.since;
        }
    }

    /// The events about which the audit service is asked now, the oldest first.
    pub fn ask(&mut self) -> Vec<Sent> {
        self.spans.iter_mut().for_each(|span| span.asked = true);
        self.spans.iter().map(|span| span.last.clone()).collect()
    }

    /// A head over `head` events was verified, and these of the ledger's events are under it.
    pub fn verified(&mut self, head: u64, under: &[ChainSequence]) {
        (self.head, self.doubted) = (Some(head), None);
        let Some(newest) = under.iter().max() else {
            return;
        };
        // An event that is there stands for those before it.
        if self.covered < newest.next().get() {
            (self.covered, self.began) = (newest.next().get(), None);
        }
        self.spans.retain(|span| span.last.sequence > *newest);
    }

    /// A head came that was not taken, for this reason. An answer that nobody has signed does not
    /// hide that the log's own key has signed two histories.
    pub fn doubt(&mut self, code: Code) {
        if self.doubted != Some(Code::HeadContradicted) {
            self.doubted = Some(code);
        }
    }

    /// The time since which the oldest event that no head covers waits.
    pub fn oldest(&self) -> Option<UnixMillis> {
        let oldest = self.spans.front().map(|span| span.since);
        oldest.or(self.waited)
    }

    /// How much of its time to see a head over the oldest event that waits was had, by this process
    /// and earlier ones; zero where none of an earlier process waits.
    pub fn had(&self, now: UnixMillis) -> Millis {
        match (self.began, self.waited) {
            (Some(began), _) => {
                let own = began.until(now).max(START);
                GRACE.min(Millis(self.had.get().saturating_add(own.get())))
            }
            (None, Some(_)) => self.had,
            (None, None) => Millis(0),
        }
    }

    /// The first so many events of the ledger that are under a verified head.
    pub const fn covered(&self) -> u64 {
        self.covered
    }

    /// What is to be said now; each change once. Where no head was ever seen nothing is said, since
    /// nobody may have been asked to keep a log.
    pub fn say(&mut self, now: UnixMillis) -> Option<Say> {
        match (self.is_overdue(now), self.said) {
            (true, false) => {
                self.said = true;
                Some(Say::Overdue {
                    count: self.uncovered(),
                    oldest: ChainSequence(self.covered),
                })
            }
            (false, true) => {
                self.said = false;
                Some(Say::Covered)
            }
            _ => None,
        }
    }

    /// The state for people.
    pub fn view(&self, now: UnixMillis) -> LedgerCover {
        let overdue = self.is_overdue(now).then_some(Code::LedgerUncovered);
        LedgerCover {
            events: self.events,
            uncovered: self.uncovered(),
            since: self.spans.front().map(|span| span.since),
            head: self.head,
            code: self.doubted.or(overdue),
        }
    }

    const fn uncovered(&self) -> u64 {
        self.events.saturating_sub(self.covered)
    }

    fn is_overdue(&self, now: UnixMillis) -> bool {
        let late = |span: &Span| span.since.until(now) >= self.within;
        let is_late = self.spans.front().is_some_and(late);
        self.head.is_some() && is_late && !self.has_time(now)
    }

    /// True while this process has had no time to see a head over events of an earlier one.
    fn has_time(&self, now: UnixMillis) -> bool {
        let grace = GRACE.min(self.within).get().saturating_sub(self.had.get());
        self.began
            .is_some_and(|began| now < began.after(Millis(grace)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: UnixMillis = UnixMillis(1_700_000_000_000);
    const WITHIN: Millis = Millis::from_secs(600);

    fn at(sequence: u64) -> Sent {
        let (sequence, message) = (ChainSequence(sequence), sequence.to_be_bytes().to_vec());
        Sent { sequence, message }
    }

    fn after(span: Millis) -> UnixMillis {
        FIRST.after(span)
    }

    fn asked(receipts: &mut Receipts) -> Vec<u64> {
        let asked = receipts.ask();
        asked.iter().map(|sent| sent.sequence.get()).collect()
    }

    /// A coordinator that appends all the time has no newest event under a head, ever.
    #[test]
    fn the_last_event_of_each_span_is_asked_about_until_a_head_covers_it() {
        let mut receipts = Receipts::new(WITHIN, 0, None);
        assert!(asked(&mut receipts).is_empty());
        for (first, last) in [(0, 4), (5, 5), (6, 9)] {
            (first..=last).for_each(|number| receipts.appended(FIRST, at(number)));
            assert_eq!(asked(&mut receipts).last(), Some(&last));
        }
        assert_eq!(asked(&mut receipts), [4, 5, 9]);
        assert_eq!(receipts.view(FIRST).uncovered, 10);
        receipts.verified(70, &[ChainSequence(5), ChainSequence(4)]);
        assert_eq!(asked(&mut receipts), [9]);
        assert_eq!((receipts.covered(), receipts.view(FIRST).uncovered), (6, 4));
        // A proof that comes late takes nothing back.
        receipts.verified(71, &[ChainSequence(4)]);
        assert_eq!(receipts.covered(), 6);
        receipts.verified(72, &[]);
        let view = receipts.view(FIRST);
        let expected = LedgerCover {
            events: 10,
            uncovered: 4,
            since: Some(FIRST),
            head: Some(72),
            code: None,
        };
        assert_eq!(view, expected);
        receipts.verified(73, &[ChainSequence(9)]);
        let view = receipts.view(FIRST);
        assert_eq!((view.uncovered, view.since), (0, None));
    }

    #[test]
    fn events_that_no_head_covers_for_too_long_are_told_once_and_so_is_their_end() {
        let mut receipts = Receipts::new(WITHIN, 0, None);
        receipts.appended(FIRST, at(0));
        receipts.verified(1, &[]);
        receipts.ask();
        let late = after(Millis(WITHIN.get() / 2));
        receipts.appended(late, at(1));
        assert_eq!(receipts.say(after(Millis(WITHIN.get() - 1))), None);
        let overdue = Say::Overdue {
            count: 2,
            oldest: ChainSequence(0),
        };
        assert_eq!(receipts.say(after(WITHIN)), Some(overdue));
        let code = |receipts: &Receipts| receipts.view(after(WITHIN)).code;
        assert_eq!(code(&receipts), Some(Code::LedgerUncovered));
        assert_eq!(receipts.say(after(WITHIN)), None, "it was said");
        // The younger one waits for half of the time.
        receipts.verified(2, &[ChainSequence(0)]);
        assert_eq!(receipts.say(after(WITHIN)), Some(Say::Covered));
        assert_eq!(code(&receipts), None);
        assert_eq!(receipts.say(after(WITHIN)), None);
        let again = late.after(WITHIN);
        let overdue = Say::Overdue {
            count: 1,
            oldest: ChainSequence(1),
        };
        assert_eq!(receipts.say(again), Some(overdue));
    }

    /// A domain without an audit service has no heads.
    #[test]
    fn where_no_head_was_ever_seen_nothing_is_said() {
        let mut receipts = Receipts::new(WITHIN, 0, None);
        receipts.appended(FIRST, at(0));
        assert_eq!(receipts.say(after(WITHIN)), None);
        let view = receipts.view(after(WITHIN));
        assert_eq!((view.uncovered, view.head, view.code), (1, None, None));
        // An earlier process has seen one, and this one gets no more.
        let mut receipts = Receipts::new(WITHIN, 3, Some(40));
        receipts.appended(FIRST, at(7));
        let overdue = Say::Overdue {
            count: 5,
            oldest: ChainSequence(3),
        };
        assert_eq!(receipts.say(after(WITHIN)), Some(overdue));
    }

    #[test]
    fn a_log_that_contradicts_itself_is_shown_until_a_head_is_taken_again() {
        let mut receipts = Receipts::new(WITHIN, 0, Some(4));
        receipts.appended(FIRST, at(0));
        receipts.doubt(Code::HeadContradicted);
        let code = |receipts: &Receipts| receipts.view(FIRST).code;
        assert_eq!(code(&receipts), Some(Code::HeadContradicted));
        receipts.verified(5, &[]);
        assert_eq!(code(&receipts), None);
    }

    /// However long heads stay away, no more is kept than one question has room for, and the oldest
    /// stays as the one that shows since when.
    #[test]
    fn without_room_the_oldest_stays_and_the_newest_are_asked_about_one_by_one() {
        let mut receipts = Receipts::new(WITHIN, 0, Some(4));
        let most = ASKED_MAX as u64;
        for number in 0..2 * most {
            receipts.appended(after(Millis(number)), at(number));
            assert!(asked(&mut receipts).len() <= ASKED_MAX);
        }
        let newest = most + 1..2 * most;
        let expected: Vec<u64> = std::iter::once(0).chain(newest).collect();
        assert_eq!(asked(&mut receipts), expected);
        assert_eq!(receipts.view(FIRST).since, Some(FIRST));
        // The second waits since the first of those of which it became a part.
        receipts.verified(89, &[ChainSequence(0)]);
        assert_eq!(receipts.view(FIRST).since, Some(after(Millis(1))));
        receipts.verified(90, &[ChainSequence(2 * most - 1)]);
        assert_eq!(receipts.view(FIRST).uncovered, 0);
    }

    /// The audit service knows the places of the newest events only, and its head is older than the
    /// newest of all.
    #[test]
    fn heads_that_come_again_cover_events_however_long_they_were_away() {
        let mut receipts = Receipts::new(WITHIN, 0, Some(4));
        let (away, remembered) = (3 * ASKED_MAX as u64, 20);
        for number in 0..away {
            receipts.appended(FIRST, at(number));
            receipts.ask();
        }
        assert!(receipts.say(after(WITHIN)).is_some());
        receipts.appended(after(WITHIN), at(away));
        let asked = asked(&mut receipts).into_iter();
        let known = asked.filter(|number| (away - remembered..away).contains(number));
        let known: Vec<_> = known.map(ChainSequence).collect();
        receipts.verified(5, &known);
        assert_eq!(receipts.view(after(WITHIN)).uncovered, 1);
        assert_eq!(receipts.say(after(WITHIN)), Some(Say::Covered));
    }

    /// A process that found so much on its disk.
    fn restarted(within: Millis, covered: u64, since: Option<UnixMillis>, had: Millis) -> Receipts {
        Receipts::new(within, covered, Some(40)).waiting(since, had)
    }

    /// Each life of a coordinator that ends at once appends an event.
    #[test]
    fn ls_04_starts_one_after_another_do_not_put_the_warning_off() {
        // Lives of so many seconds, and how many of them end before the warning.
        for (life, silent) in [(0, 6), (5, 6), (10, 5), (25, 2), (59, 1), (60, 0), (61, 0)] {
            let (mut had, mut now) = (Millis(0), after(WITHIN));
            let mut lives = 0;
            let warned = loop {
                let mut receipts = restarted(WITHIN, 3, Some(FIRST), had);
                receipts.appended(now, at(4 + lives));
                now = now.after(Millis::from_secs(life));
                if let Some(warned) = receipts.say(now) {
                    break warned;
                }
                assert_eq!(receipts.view(now).code, None);
                had = receipts.had(now);
                assert!(had <= GRACE);
                lives += 1;
                now = now.after(Millis::from_secs(3600));
                assert!(lives < 100, "{life}: it is put off for ever");
            };
            assert_eq!(lives, silent, "{life}");
            let (count, oldest) = (lives + 2, ChainSequence(3));
            assert_eq!(warned, Say::Overdue { count, oldest });
        }
    }

    /// What is left of the time is that of the oldest event, and a later one has its own.
    #[test]
    fn a_head_over_the_oldest_event_ends_the_count_of_the_time_to_see_one() {
        let late = after(WITHIN);
        let had = Millis::from_secs(20);
        let mut receipts = restarted(WITHIN, 3, Some(FIRST), had);
        assert_eq!(receipts.had(late), had, "it has appended nothing");
        receipts.appended(late, at(4));
        assert_eq!(receipts.had(late), Millis::from_secs(30));
        let soon = late.after(Millis::from_secs(15));
        assert_eq!(receipts.had(soon), Millis::from_secs(35));
        // A head that covers nothing more ends nothing.
        receipts.verified(41, &[]);
        receipts.verified(41, &[ChainSequence(2)]);
        assert_eq!(receipts.had(soon), Millis::from_secs(35));
        receipts.ask();
        receipts.appended(soon, at(5));
        receipts.verified(42, &[ChainSequence(4)]);
        assert_eq!(
            (receipts.had(soon), receipts.oldest()),
            (Millis(0), Some(soon))
        );
        // Where nothing of before waits there is nothing to count.
        for (covered, since) in [(3, None), (4, Some(FIRST)), (9, Some(FIRST))] {
            let mut receipts = restarted(WITHIN, covered, since, had);
            receipts.appended(late, at(4));
            assert_eq!(receipts.had(late), Millis(0), "{covered}");
        }
    }

    #[test]
    fn a_restart_gives_events_that_wait_no_whole_time_again() {
        let late = after(WITHIN);
        let waited = Some(FIRST);
        let since = |covered: u64, number: u64, waited, now| {
            let mut receipts = restarted(WITHIN, covered, waited, Millis(0));
            assert_eq!(receipts.oldest(), waited);
            receipts.appended(now, at(number));
            let since = receipts.view(now).since;
            assert_eq!(receipts.oldest(), since);
            since
        };
        assert_eq!(since(3, 4, waited, late), waited);
        assert_eq!(since(3, 4, None, late), Some(late));
        assert_eq!(since(3, 3, waited, late), Some(late), "none waited");
        assert_eq!(since(9, 4, waited, late), Some(late), "another ledger");
        assert_eq!(
            since(3, 4, Some(late), FIRST),
            Some(FIRST),
            "no time of later"
        );
        // The last event of a process that ended in peace is no alarm of the next one, which has a
        // minute to see a head, or less where the limit is less.
        for (within, grace) in [(WITHIN, GRACE), (Millis(5), Millis(5))] {
            let mut receipts = restarted(within, 3, waited, Millis(0));
            receipts.appended(late, at(4));
            let soon = late.after(Millis(grace.get() - 1));
            assert_eq!((receipts.say(soon), receipts.view(soon).code), (None, None));
            assert!(receipts.say(late.after(grace)).is_some());
        }
        // Only the first span is of before.
        let mut receipts = restarted(WITHIN, 3, waited, Millis(0));
        receipts.appended(late, at(4));
        receipts.ask();
        receipts.appended(late, at(5));
        receipts.verified(41, &[ChainSequence(4)]);
        assert_eq!(receipts.view(late).since, Some(late));
    }

    #[test]
    fn an_answer_that_nobody_has_signed_hides_no_contradiction() {
        let mut receipts = Receipts::new(WITHIN, 0, Some(4));
        for (code, shown) in [
            (Code::HeadInvalid, Code::HeadInvalid),
            (Code::HeadContradicted, Code::HeadContradicted),
            (Code::HeadInvalid, Code::HeadContradicted),
        ] {
            receipts.doubt(code);
            assert_eq!(receipts.view(FIRST).code, Some(shown));
        }
    }

    /// What was covered is another ledger's if this one is shorter.
    #[test]
    fn a_note_about_more_events_than_there_are_covers_none() {
        let mut receipts = Receipts::new(WITHIN, 9, Some(40));
        receipts.appended(FIRST, at(4));
        assert_eq!((receipts.covered(), receipts.view(FIRST).uncovered), (0, 5));
    }
}
