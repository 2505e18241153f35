//! The order in which merges are made again: from one full snapshot to the next.

use schemas::lease::Weights;
use schemas::{Code, ObjectRef, Refusal, Round};

use super::merges::{Merges, Recorded, Wanted};

/// A full snapshot that the ledger names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Saved {
    /// The round that starts from it.
    pub round: Round,
    /// Its manifest.
    pub manifest: ObjectRef,
}

/// A full snapshot whose weights an operator made a later version of the run's weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Restored {
    /// The snapshot's own round.
    pub of: Round,
    /// The weights that the ledger names for workers since the restore.
    pub weights: Weights,
}

/// Merges that follow on each other, with the weights before the first.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    /// The snapshot that they start from; none for the initial weights.
    pub base: Option<Saved>,
    /// The restore that made this snapshot the base, if one did.
    pub restored: Option<Restored>,
    /// The merges, oldest first; at least one.
    pub merges: Vec<Recorded>,
    /// The snapshot that was saved of their outcome, if there is one.
    pub end: Option<Saved>,
}

impl Merges {
    /// Plans the recomputation of the wanted rounds. A snapshot begins a new segment: if objects of
    /// one segment are gone, the next can still be made again.
    ///
    /// # Errors
    /// [`Code::RoundNotMerged`]: the ledger has no merge of a round that is wanted.
    pub fn plan(self) -> Result<Vec<Segment>, Refusal> {
        let Self {
            run,
            wanted,
            merges,
            snapshots,
            mut restored,
            closed,
            ..
        } = self;
        let there = match wanted {
            Wanted::All => !merges.is_empty(),
            Wanted::One(round) => merges.contains_key(&round),
        };
        if !there {
            let what = match wanted {
                Wanted::All => "run".to_owned(),
                Wanted::One(round) => format!("round {round} of run"),
            };
            let detail = format!("{what} {run}: the ledger has {closed} merged rounds");
            return Err(Refusal::new(Code::RoundNotMerged, detail));
        }
        let saved = |round: Round| {
            let manifest = snapshots.get(&round).copied();
            manifest.map(|manifest| Saved { round, manifest })
        };
        let mut segments: Vec<Segment> = Vec::new();
        for (round, merge) in merges {
            let base = saved(round);
            match segments.last_mut().filter(|_| base.is_none()) {
                Some(segment) => segment.merges.push(merge),
                None => segments.push(Segment {
                    base,
                    restored: restored.remove(&round),
                    merges: vec![merge],
                    end: None,
                }),
            }
        }
        for segment in &mut segments {
            segment.end = saved(segment.after());
        }
        Ok(segments)
    }
}

impl Segment {
    /// The version of the weights before the first merge.
    pub fn start(&self) -> Round {
        self.base.map_or(Round(0), |base| base.round)
    }

    /// The version of the weights after the last merge.
    pub fn after(&self) -> Round {
        let last = self.merges.last().expect("a segment has merges");
        last.record.round.next()
    }
}
