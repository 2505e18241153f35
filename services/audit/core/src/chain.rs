//! One emitter's chain: every event names its position and the digest of the event before it.

use std::collections::BTreeMap;

use schemas::event::EventBody;
use schemas::{Digest, Sequence, UnixMillis};

use crate::finding::Finding;

/// How far back an event that comes after its successors is told from one whose position is taken.
const REMEMBERED: u64 = 1024;

/// What was seen of a chain so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chain {
    next: Sequence,
    head: Option<Digest>,
    recent: BTreeMap<Sequence, Digest>,
    /// The first bytes of every digest, by position, as far as the chain has no gap: a process that
    /// may write to the stream can copy an event of any age, and a copy is no fault of its emitter.
    /// Eight bytes an event are a few MB for a long run.
    marks: Vec<u64>,
    /// The emitter's own time in its newest event.
    pub(crate) time: UnixMillis,
    /// Events that were its own and new, whatever else was wrong with them.
    pub(crate) events: u64,
    /// Whether anything was wrong so far.
    pub(crate) broken: bool,
}

/// How an event stands to its chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    /// It is the next.
    Follows,
    /// It is an event that was seen before, byte for byte.
    Repeats,
    /// It does not follow. The chain goes on from it, so that one fault is one finding.
    Breaks(Finding),
}

impl Chain {
    /// The position after the newest that was seen.
    pub(crate) const fn next(&self) -> Sequence {
        self.next
    }

    /// Takes the next event of this emitter, whose body has this digest.
    pub(crate) fn link(&mut self, body: &EventBody, digest: Digest) -> Link {
        let sequence = body.sequence;
        if sequence < self.next {
            return self.look_back(sequence, digest);
        }
        let gap = (sequence > self.next).then(|| Finding::Gap {
            from: self.next,
            to: Sequence(sequence.get() - 1),
        });
        // After a gap the event before is unknown, but there must be one.
        let fits = if gap.is_some() {
            body.previous.is_some()
        } else {
            body.previous == self.head
        };
        self.next = sequence.next();
        self.head = Some(digest);
        self.time = body.time;
        self.remember(sequence, digest);
        if sequence.get() == self.marks.len() as u64 {
            self.marks.push(mark(digest));
        }
        self.events += 1;
        let broken = gap.or_else(|| (!fits).then_some(Finding::WrongHash { sequence }));
        self.broken |= broken.is_some();
        broken.map_or(Link::Follows, Link::Breaks)
    }

    /// An event at a position that the chain has passed.
    fn look_back(&mut self, sequence: Sequence, digest: Digest) -> Link {
        let oldest = self.next.get().saturating_sub(REMEMBERED);
        let place = usize::try_from(sequence.get()).ok();
        let copied = place
            .and_then(|place| self.marks.get(place))
            .is_some_and(|known| *known == mark(digest));
        match self.recent.get(&sequence) {
            _ if copied => Link::Repeats,
            Some(known) if *known == digest => Link::Repeats,
            None if sequence.get() >= oldest => {
                self.remember(sequence, digest);
                self.events += 1;
                self.broken = true;
                Link::Breaks(Finding::Displaced { sequence })
            }
            _ => {
                self.broken = true;
                Link::Breaks(Finding::Reused { sequence })
            }
        }
    }

    fn remember(&mut self, sequence: Sequence, digest: Digest) {
        self.recent.insert(sequence, digest);
        let oldest = Sequence(self.next.get().saturating_sub(REMEMBERED));
        while self
            .recent
            .first_key_value()
            .is_some_and(|(first, _)| *first < oldest)
        {
            self.recent.pop_first();
        }
    }
}

fn mark(digest: Digest) -> u64 {
    let (first, _) = digest
        .as_bytes()
        .split_first_chunk()
        .expect("a digest has more than eight bytes");
    u64::from_be_bytes(*first)
}

#[cfg(test)]
mod tests {
    use schemas::V;
    use schemas::event::{Event, LedgerEvent};

    use super::*;

    fn body(sequence: u64, previous: Option<&[u8]>) -> EventBody {
        EventBody {
            v: V,
            emitter: format!("U{}", "A".repeat(55)).parse().unwrap(),
            sequence: Sequence(sequence),
            previous: previous.map(Digest::of),
            time: UnixMillis(sequence),
            run: None,
            event: Event::Ledger(LedgerEvent::RunCompleted),
        }
    }

    #[test]
    fn a_chain_starts_at_zero_with_nothing_before_it() {
        assert_eq!(
            Chain::default().link(&body(0, None), Digest::of(b"0")),
            Link::Follows
        );
        let with_past = Chain::default().link(&body(0, Some(b"x")), Digest::of(b"0"));
        assert_eq!(
            with_past,
            Link::Breaks(Finding::WrongHash {
                sequence: Sequence(0)
            })
        );
        let late = Chain::default().link(&body(2, Some(b"x")), Digest::of(b"2"));
        assert_eq!(
            late,
            Link::Breaks(Finding::Gap {
                from: Sequence(0),
                to: Sequence(1)
            })
        );
    }

    #[test]
    fn one_fault_is_one_finding() {
        let mut chain = Chain::default();
        assert_eq!(chain.link(&body(0, None), Digest::of(b"0")), Link::Follows);
        let gap = Link::Breaks(Finding::Gap {
            from: Sequence(1),
            to: Sequence(1),
        });
        assert_eq!(chain.link(&body(2, Some(b"1")), Digest::of(b"2")), gap);
        assert!(chain.broken);
        assert_eq!(
            chain.link(&body(3, Some(b"2")), Digest::of(b"3")),
            Link::Follows
        );
        let displaced = Link::Breaks(Finding::Displaced {
            sequence: Sequence(1),
        });
        assert_eq!(
            chain.link(&body(1, Some(b"0")), Digest::of(b"1")),
            displaced
        );
        assert_eq!(
            chain.link(&body(1, Some(b"0")), Digest::of(b"1")),
            Link::Repeats
        );
        let reused = Link::Breaks(Finding::Reused {
            sequence: Sequence(3),
        });
        assert_eq!(
            chain.link(&body(3, Some(b"2")), Digest::of(b"other")),
            reused
        );
        assert_eq!(chain.events, 4);
    }

    #[test]
    fn a_copy_of_any_age_is_a_repetition_and_another_event_in_its_place_is_not() {
        let mut chain = Chain::default();
        for sequence in 0..3 * REMEMBERED {
            let previous = sequence.checked_sub(1).map(|at| at.to_be_bytes());
            let link = chain.link(
                &body(sequence, previous.as_ref().map(|b| &b[..])),
                Digest::of(&sequence.to_be_bytes()),
            );
            assert_eq!(link, Link::Follows);
        }
        assert_eq!(chain.recent.len() as u64, REMEMBERED);
        assert_eq!(
            chain.link(&body(0, None), Digest::of(&0u64.to_be_bytes())),
            Link::Repeats
        );
        let other = chain.link(&body(0, None), Digest::of(b"other"));
        assert_eq!(
            other,
            Link::Breaks(Finding::Reused {
                sequence: Sequence(0)
            })
        );
    }

    #[test]
    fn the_largest_sequence_is_a_gap_and_no_panic() {
        let mut chain = Chain::default();
        let link = chain.link(&body(u64::MAX, Some(b"x")), Digest::of(b"max"));
        assert_eq!(
            link,
            Link::Breaks(Finding::Gap {
                from: Sequence(0),
                to: Sequence(u64::MAX - 1)
            })
        );
    }
}
