//! One emitter's chain in the auditor's books: a fault is a finding, and the chain continues after
//! it.

use chain::{History, Relation};
use schemas::event::EventBody;
use schemas::{ChainSequence, Digest, UnixMillis};

use crate::finding::Finding;

/// The state of a chain as far as it was read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chain {
    history: History,
    /// The emitter's own time in its newest event.
    pub(crate) time: UnixMillis,
    /// Number of events that were its own and new, whatever else was wrong with them.
    pub(crate) events: u64,
    /// True if anything was wrong so far.
    pub(crate) broken: bool,
}

/// The relation of an event to its chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    /// It is the next event.
    Follows,
    /// It repeats an earlier event, byte for byte.
    Repeats,
    /// It does not follow. The chain continues from it, so that one fault gives one finding.
    Breaks(Finding),
}

impl Chain {
    /// The position after the newest one that was read.
    pub(crate) const fn next(&self) -> ChainSequence {
        self.history.end().next
    }

    /// True if the chain has this event, byte for byte.
    pub(crate) fn holds(&self, body: &EventBody, digest: Digest) -> bool {
        self.history.relation(body, digest) == Relation::Repeated
    }

    /// The chain as another key goes on with it. What was counted here stays here.
    pub(crate) fn pass_on(&mut self) -> Self {
        Self {
            history: std::mem::take(&mut self.history),
            time: self.time,
            ..Self::default()
        }
    }

    /// Takes the next event of this emitter, whose body has this digest.
    pub(crate) fn link(&mut self, body: &EventBody, digest: Digest) -> Link {
        let sequence = body.sequence;
        let relation = self.history.relation(body, digest);
        let finding = match relation {
            Relation::Repeated => return Link::Repeats,
            Relation::Next => None,
            Relation::Gap { from } => Some(Finding::Gap {
                from,
                to: ChainSequence(sequence.get() - 1),
            }),
            Relation::OtherPast { .. } => Some(Finding::WrongHash { sequence }),
            Relation::Late => Some(Finding::Displaced { sequence }),
            Relation::Taken | Relation::Passed { .. } => Some(Finding::Reused { sequence }),
        };
        // An event in another's place is not part of the chain.
        if !matches!(relation, Relation::Taken | Relation::Passed { .. }) {
            self.history.add(sequence, digest);
            self.events += 1;
        }
        if !matches!(
            relation,
            Relation::Late | Relation::Taken | Relation::Passed { .. }
        ) {
            self.time = body.time;
        }
        self.broken |= finding.is_some();
        finding.map_or(Link::Follows, Link::Breaks)
    }
}

#[cfg(test)]
mod tests {
    use chain::REMEMBERED;
    use schemas::V;
    use schemas::event::{Event, LedgerEvent};

    use super::*;

    fn body(sequence: u64, previous: Option<&[u8]>) -> EventBody {
        EventBody {
            v: V,
            known: None,
            emitter: format!("U{}", "A".repeat(55)).parse().unwrap(),
            sequence: ChainSequence(sequence),
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
                sequence: ChainSequence(0)
            })
        );
        let late = Chain::default().link(&body(2, Some(b"x")), Digest::of(b"2"));
        assert_eq!(
            late,
            Link::Breaks(Finding::Gap {
                from: ChainSequence(0),
                to: ChainSequence(1)
            })
        );
    }

    #[test]
    fn one_fault_is_one_finding() {
        let mut chain = Chain::default();
        assert_eq!(chain.link(&body(0, None), Digest::of(b"0")), Link::Follows);
        let gap = Link::Breaks(Finding::Gap {
            from: ChainSequence(1),
            to: ChainSequence(1),
        });
        assert_eq!(chain.link(&body(2, Some(b"1")), Digest::of(b"2")), gap);
        assert!(chain.broken);
        assert_eq!(
            chain.link(&body(3, Some(b"2")), Digest::of(b"3")),
            Link::Follows
        );
        let displaced = Link::Breaks(Finding::Displaced {
            sequence: ChainSequence(1),
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
            sequence: ChainSequence(3),
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
        assert_eq!(
            chain.link(&body(0, None), Digest::of(&0u64.to_be_bytes())),
            Link::Repeats
        );
        let other = chain.link(&body(0, None), Digest::of(b"other"));
        assert_eq!(
            other,
            Link::Breaks(Finding::Reused {
                sequence: ChainSequence(0)
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
                from: ChainSequence(0),
                to: ChainSequence(u64::MAX - 1)
            })
        );
    }
}
