//! A history compared with a slow one that keeps every digest.

use std::collections::BTreeMap;

use chain::{End, History, REMEMBERED, Relation};
use proptest::prelude::*;
use schemas::event::{Event, EventBody, LedgerEvent};
use schemas::{ChainSequence, Digest, UnixMillis, V};

/// Everything that was added, with nothing left out.
#[derive(Default)]
struct Slow {
    next: u64,
    head: Option<Digest>,
    known: BTreeMap<u64, Digest>,
}

impl Slow {
    fn relation(&self, body: &EventBody, digest: Digest) -> Relation {
        let at = body.sequence.get();
        let from = ChainSequence(self.next);
        match self.known.get(&at) {
            Some(known) if *known == digest => Relation::Repeated,
            Some(_) => Relation::Taken,
            None if at < self.next => Relation::Late,
            None if at > self.next => Relation::Gap { from },
            None if body.previous == self.head => Relation::Next,
            None => Relation::OtherPast {
                named: body.previous,
                expected: self.head,
            },
        }
    }

    fn add(&mut self, at: u64, digest: Digest) {
        self.known.insert(at, digest);
        if at >= self.next {
            (self.next, self.head) = (at + 1, Some(digest));
        }
    }
}

fn body(at: u64, previous: Option<Digest>) -> EventBody {
    EventBody {
        v: V,
        known: None,
        emitter: format!("U{}", "A".repeat(55)).parse().expect("a key"),
        sequence: ChainSequence(at),
        previous,
        time: UnixMillis(at),
        run: None,
        event: Event::Ledger(LedgerEvent::RunCompleted),
    }
}

proptest! {
    /// Events in any order, with copies, forks and gaps, as a lenient reader adds them.
    #[test]
    fn a_history_is_as_good_as_keeping_everything(
        events in prop::collection::vec((0_u64..24, 0_u8..3, any::<bool>()), 0..60),
    ) {
        let (mut history, mut slow) = (History::default(), Slow::default());
        for (back, variant, honest) in events {
            let at = (slow.next + 2).saturating_sub(back);
            let previous = if honest { slow.head } else { Some(Digest::of(b"x")) };
            let body = body(at, previous);
            let digest = Digest::of(&[at as u8, variant]);
            let relation = history.relation(&body, digest);
            prop_assert_eq!(relation, slow.relation(&body, digest), "at {} of {}", at, slow.next);
            if !matches!(relation, Relation::Repeated | Relation::Taken) {
                history.add(body.sequence, digest);
                slow.add(at, digest);
            }
            prop_assert_eq!(history.end().next.get(), slow.next);
            prop_assert_eq!(history.end().previous, slow.head);
        }
    }
}

#[test]
fn behind_a_gap_only_what_is_near_is_remembered() {
    let mut history = History::default();
    let digest = |at: u64| Digest::of(&at.to_be_bytes());
    let newest = 3 * REMEMBERED;
    for at in 10..=newest {
        history.add(ChainSequence(at), digest(at));
    }
    let relation = |at: u64| history.relation(&body(at, None), digest(at));
    assert_eq!(relation(newest), Relation::Repeated);
    assert_eq!(relation(newest + 1 - REMEMBERED), Relation::Repeated);
    // Too old to tell a copy from another event: the reader assumes the worse.
    assert_eq!(relation(newest - REMEMBERED), Relation::Taken);
    assert_eq!(relation(3), Relation::Taken);
}

/// Events from before the chain was followed are unknown: a reader that has not read them cannot
/// call an event a copy of one, or another event in its place.
#[test]
fn a_chain_that_is_followed_from_an_end_on_says_nothing_of_what_came_before() {
    let digest = |at: u64| Digest::of(&at.to_be_bytes());
    let next = ChainSequence(5);
    let end = End {
        next,
        previous: Some(digest(4)),
    };
    let mut history = History::behind(end);
    assert_eq!(history.end(), end);
    let relation = |history: &History, at: u64, digest: Digest| {
        let previous = history.end().previous;
        history.relation(&body(at, previous), digest)
    };
    assert_eq!(relation(&history, 4, digest(4)), Relation::Repeated);
    assert_eq!(relation(&history, 4, digest(9)), Relation::Taken);
    assert_eq!(relation(&history, 3, digest(3)), Relation::Passed { next });
    assert_eq!(relation(&history, 5, digest(5)), Relation::Next);
    let newest = 5 + 2 * REMEMBERED;
    for at in 5..=newest {
        history.add(ChainSequence(at), digest(at));
    }
    let next = ChainSequence(newest + 1);
    for at in [3, 4] {
        assert_eq!(
            relation(&history, at, digest(at)),
            Relation::Passed { next }
        );
    }
    // From there on every event is known, however old.
    for at in [5, 6, newest] {
        assert_eq!(
            relation(&history, at, digest(at)),
            Relation::Repeated,
            "{at}"
        );
        assert_eq!(relation(&history, at, digest(3)), Relation::Taken, "{at}");
    }
}
