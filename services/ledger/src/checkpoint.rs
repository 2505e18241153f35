//! Checkpoints: the states that are kept as objects, and the part of them that a state keeps.
//!
//! One event takes a checkpoint and a later one saves it, since its bytes are written while the
//! state changes. Between the two events the earlier state is kept beside the present one; runs are
//! shared until an event changes them.

use std::sync::Arc;

use schemas::checkpoint::Checkpoint;
use schemas::{ChainSequence, Digest, Millis, UnixMillis};

use crate::error::{ApplyError, out_of_place};
use crate::state::State;

/// Checkpoints whose objects are kept. A start uses the newest, or the one before it where that
/// cannot be used; the one before also serves a start that had read its name when the newest was
/// saved.
pub const CHECKPOINTS_KEPT: usize = 2;
/// Checkpoints that a state names: those that are kept, and the one before them. If a coordinator
/// dies before it deletes that one's object, the next start deletes it.
const CHECKPOINTS_NAMED: usize = CHECKPOINTS_KEPT + 1;
/// Time for which the accepted results of a finished run are kept: a worker repeats a request for
/// minutes at most. They are the larger part of a finished run's state.
const RESULTS_REMEMBERED: Millis = Millis::from_secs(3600);

impl State {
    /// Events folded so far: the position of the next one.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// The state of the last checkpoint that was taken, until that one is saved.
    pub fn taken(&self) -> Option<&Arc<Self>> {
        self.taken.as_ref()
    }

    /// Events since the last checkpoint was taken; all of them before the first.
    pub fn since_taken(&self) -> u64 {
        let saved = || Some(self.saved.last()?.covers.get() + 1);
        let taken = self.taken.as_ref().map(|taken| taken.events);
        self.events - taken.or_else(saved).unwrap_or(0)
    }

    /// Checkpoints that a start can use, oldest first.
    pub fn checkpoints(&self) -> &[Checkpoint] {
        self.saved.split_at(self.outdated()).1
    }

    /// Objects of checkpoints that no start uses any more. An object that a newer checkpoint names
    /// too is not among them.
    pub fn outdated_objects(&self) -> impl Iterator<Item = Digest> {
        let (old, kept) = self.saved.split_at(self.outdated());
        let old = old.iter().map(|checkpoint| checkpoint.object.digest);
        old.filter(|object| kept.iter().all(|kept| kept.object.digest != *object))
    }

    fn outdated(&self) -> usize {
        self.saved.len().saturating_sub(CHECKPOINTS_KEPT)
    }

    /// Keeps this state as that of the checkpoint that is taken now. The event that takes it is
    /// folded in already.
    pub(crate) fn take_checkpoint(&mut self) {
        self.taken = None;
        self.taken = Some(Arc::new(self.clone()));
    }

    /// Drops the parts that finished runs no longer need. Every reader of the chain does so at the
    /// same events.
    pub(crate) fn forget_results(&mut self, now: UnixMillis) {
        for run in self.runs.values_mut() {
            let over = run.completed_at.map(|at| at.until(now));
            if over.is_some_and(|over| over > RESULTS_REMEMBERED) && !run.accepted.is_empty() {
                Arc::make_mut(run).accepted.clear();
            }
        }
    }

    /// Names a checkpoint that was saved. Its bytes are not read here: an auditor compares them
    /// with the kept state.
    pub(crate) fn save_checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<(), ApplyError> {
        let covered = |state: &Arc<Self>| Some(ChainSequence(state.events.checked_sub(1)?));
        if self.taken.as_ref().and_then(covered) != Some(checkpoint.covers) {
            let what = format!("a checkpoint that covers event {}", checkpoint.covers);
            return Err(out_of_place("checkpoint-saved", what));
        }
        self.taken = None;
        self.saved.push(checkpoint.clone());
        let forgotten = self.saved.len().saturating_sub(CHECKPOINTS_NAMED);
        self.saved.drain(..forgotten);
        Ok(())
    }
}
