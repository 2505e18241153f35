//! The merges of one run, collected while the ledger is folded. The fold itself forgets a merge
//! once a full snapshot contains it.

use std::collections::BTreeMap;

use ledger::State;
use schemas::event::LedgerEvent;
use schemas::lease::Weights;
use schemas::run::RunSpec;
use schemas::snapshot::MergeRecord;
use schemas::{ChainSequence, ObjectRef, Round, RunId, Tokens};

use super::plan::Restored;
use crate::record::StreamSequence;

/// The rounds that are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Every round that was merged.
    All,
    /// One round. Only the merges that lead to it are kept.
    One(Round),
}

/// One merge, as the ledger records it.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded {
    /// The position of its `round-closed` in the stream.
    pub at: StreamSequence,
    /// Its round, its inputs with their weights, and the digest of what it published.
    pub record: MergeRecord,
    /// The weights that it published.
    pub broadcast: Weights,
    /// The norm of the mean contribution.
    pub norm: f64,
    /// Tokens of its inputs.
    pub tokens: Tokens,
    /// The event by which a collection gave up the objects of its round.
    pub given_up: Option<ChainSequence>,
}

/// The merges and full snapshots of one run.
#[derive(Clone, Debug)]
pub struct Merges {
    pub(crate) run: RunId,
    pub(crate) wanted: Wanted,
    spec: Option<Box<RunSpec>>,
    pub(crate) merges: BTreeMap<Round, Recorded>,
    pub(crate) snapshots: BTreeMap<Round, ObjectRef>,
    /// Those that an operator restored, by the version that their weights have since.
    pub(crate) restored: BTreeMap<Round, Restored>,
    /// Rounds that were merged, wanted or not.
    pub(crate) closed: u64,
}

impl Merges {
    /// Nothing of `run` yet.
    pub const fn new(run: RunId, wanted: Wanted) -> Self {
        Self {
            run,
            wanted,
            spec: None,
            merges: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            restored: BTreeMap::new(),
            closed: 0,
        }
    }

    /// The run.
    pub const fn run(&self) -> &RunId {
        &self.run
    }

    /// The settings of the run; none if no event created it.
    pub fn spec(&self) -> Option<&RunSpec> {
        self.spec.as_deref()
    }

    /// Notes an event that the state has just taken.
    pub(crate) fn note(
        &mut self,
        at: StreamSequence,
        run: Option<&RunId>,
        event: &LedgerEvent,
        state: &State,
    ) {
        if run != Some(&self.run) {
            return;
        }
        match event {
            LedgerEvent::RunCreated { spec, .. } => self.spec = Some(spec.clone()),
            LedgerEvent::RoundClosed {
                round,
                broadcast,
                norm,
                tokens,
                ..
            } => {
                self.closed += 1;
                if self.reaches(*round) {
                    let run = state.run(&self.run).expect("its round was just closed");
                    let record = run
                        .merges
                        .last()
                        .expect("a closed round is a merge")
                        .clone();
                    let recorded = Recorded {
                        at,
                        record,
                        broadcast: broadcast.clone(),
                        norm: *norm,
                        tokens: *tokens,
                        given_up: None,
                    };
                    self.merges.insert(*round, recorded);
                }
            }
            LedgerEvent::SnapshotSaved {
                round, manifest, ..
            } => self.saved(*round, *manifest),
            LedgerEvent::SnapshotRestored {
                snapshot,
                manifest,
                weights,
                ..
            } => {
                let restored = Restored {
                    of: *snapshot,
                    weights: weights.clone(),
                };
                self.restored.insert(weights.round, restored);
                self.saved(weights.round, *manifest);
            }
            LedgerEvent::ObjectsGivenUp { through, .. } => {
                let run = state.run(&self.run).expect("it was just collected");
                let by = run.given_up.last().map(|last| last.sequence);
                let gone = self.merges.range_mut(..*through);
                gone.for_each(|(_, merge)| merge.given_up = merge.given_up.or(by));
            }
            _ => {}
        }
    }

    /// True if the merge of a round is wanted, or leads to one that is.
    fn reaches(&self, round: Round) -> bool {
        match self.wanted {
            Wanted::All => true,
            Wanted::One(one) => round <= one,
        }
    }

    /// Keeps a snapshot, and drops what a wanted round can do without: merges before a snapshot
    /// from which it can be made again.
    fn saved(&mut self, round: Round, manifest: ObjectRef) {
        match self.wanted {
            Wanted::One(one) if round > one.next() => return,
            Wanted::One(one) if round <= one => {
                self.merges = self.merges.split_off(&round);
                self.snapshots.clear();
            }
            Wanted::One(_) | Wanted::All => {}
        }
        self.snapshots.insert(round, manifest);
    }
}
