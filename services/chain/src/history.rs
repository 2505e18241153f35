//! The whole of a chain so far, in a few bytes an event.

use std::collections::BTreeMap;

use schemas::event::EventBody;
use schemas::{ChainSequence, Digest};

use crate::end::{End, Relation};

/// Number of newest events after a gap whose digests are kept. With these, an event that comes
/// after its successors can be told from one whose position is taken.
pub const REMEMBERED: u64 = 1024;

/// A chain as far as it was read.
#[derive(Clone, Debug, Default)]
pub struct History {
    end: End,
    /// The position of the first event that is known: 0, unless the chain is followed from a later
    /// one on.
    base: u64,
    /// The first bytes of every digest, by position from `base` on, as far as the chain has no gap.
    /// A process that may write to the stream can copy an event of any age, and a copy is no fault
    /// of its emitter. An event with other bytes at a taken position is a fork. At eight bytes an
    /// event, a long run takes a few MB.
    marks: Vec<u64>,
    /// The digests of the newest events after a gap.
    behind_gap: BTreeMap<ChainSequence, Digest>,
}

impl History {
    /// A chain that is followed from `end` on. Of the events up to there, only the last is known.
    pub fn behind(end: End) -> Self {
        Self {
            end,
            base: end.next.get(),
            ..Self::default()
        }
    }

    /// The end of the chain.
    pub const fn end(&self) -> End {
        self.end
    }

    /// The relation of an event, whose body has `digest`, to the chain. Adds nothing.
    /// [`Relation::Passed`] is an event from before the chain was followed.
    pub fn relation(&self, body: &EventBody, digest: Digest) -> Relation {
        match self.end.relation(body.sequence, body.previous, digest) {
            Relation::Passed { next } if body.sequence.get() < self.base => {
                Relation::Passed { next }
            }
            Relation::Taken | Relation::Passed { .. } => self.look_back(body.sequence, digest),
            relation => relation,
        }
    }

    /// Adds an event. The chain continues from it, even if it does not fit the events before it, so
    /// that one fault of an emitter gives one finding. A strict reader adds only events that are
    /// [`Relation::Next`].
    pub fn add(&mut self, sequence: ChainSequence, digest: Digest) {
        if sequence >= self.end.next {
            self.end = End::after(sequence, digest);
        }
        if sequence.get() == self.base + self.marks.len() as u64 && self.behind_gap.is_empty() {
            self.marks.push(mark(digest));
            return;
        }
        self.behind_gap.insert(sequence, digest);
        let oldest = ChainSequence(self.oldest());
        while let Some(first) = self.behind_gap.first_entry()
            && *first.key() < oldest
        {
            first.remove();
        }
    }

    /// The relation of an event at a position that the chain has passed.
    fn look_back(&self, sequence: ChainSequence, digest: Digest) -> Relation {
        let place = sequence.get().checked_sub(self.base);
        let place = place.and_then(|place| usize::try_from(place).ok());
        let marked = place.and_then(|place| self.marks.get(place));
        let same = marked.map(|known| *known == mark(digest));
        let behind_gap = || Some(*self.behind_gap.get(&sequence)? == digest);
        match same.or_else(behind_gap) {
            Some(true) => Relation::Repeated,
            Some(false) => Relation::Taken,
            None if sequence.get() >= self.oldest().max(self.base) => Relation::Late,
            None => Relation::Taken,
        }
    }

    fn oldest(&self) -> u64 {
        self.end.next.get().saturating_sub(REMEMBERED)
    }
}

fn mark(digest: Digest) -> u64 {
    let first = digest.as_bytes().first_chunk();
    u64::from_be_bytes(*first.expect("a digest has 32 bytes"))
}
