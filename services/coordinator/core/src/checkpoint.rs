//! Checkpoints of the ledger: the times at which one is taken, and the events that follow once its
//! bytes are in the store.
//!
//! To take one costs an event and a reference to the state, so it delays nobody. The shell writes
//! the bytes beside the loop; only when they are in the store does another event name them. A
//! process that dies in between leaves a checkpoint that was taken and not saved: its successor
//! comes to the same state at the same event, and saves the same bytes.

use std::sync::Arc;

use schemas::Refusal;
use schemas::checkpoint::Checkpoint;
use schemas::event::LedgerEvent;

use crate::coordinator::Coordinator;
use crate::effect::Effect;

/// Take a checkpoint after this many events. A start then reads at most this many, and those that
/// came while the last checkpoint was written, which takes a few tenths of a second. A checkpoint
/// of an old deployment has some MB, so it is small beside the events since the last one.
pub const CHECKPOINT_EVERY: u64 = 8192;

/// The state of this process's work on checkpoints.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Checkpoints {
    /// True while the bytes of a checkpoint are being written.
    writing: bool,
    /// Number of events in the ledger at the last attempt to write.
    tried_at: u64,
}

impl Coordinator {
    /// Continues the work on checkpoints at a start: saves a checkpoint that was taken and not
    /// saved, and has the objects of outdated ones deleted, since the process before may have died
    /// before it did.
    pub(crate) fn take_up_checkpoints(&mut self) {
        if self.state.taken().is_some() {
            self.write_checkpoint();
        }
        self.discard_checkpoints();
    }

    /// Takes a checkpoint when enough events came since the last one, or tries again to save it.
    /// One at a time, so that no object is left that no event names.
    pub(crate) fn checkpoint_if_due(&mut self) {
        let every = self.settings.checkpoint_every;
        if self.checkpoints.writing || self.stopped {
            return;
        }
        if self.state.taken().is_some() {
            if self.state.events() - self.checkpoints.tried_at >= every {
                self.write_checkpoint();
            }
        } else if self.state.since_taken() >= every {
            self.append(None, LedgerEvent::CheckpointTaken);
            self.write_checkpoint();
        }
    }

    fn write_checkpoint(&mut self) {
        let state = self.state.taken();
        let state = Arc::clone(state.expect("a checkpoint is written after it was taken"));
        self.checkpoints = Checkpoints {
            writing: true,
            tried_at: self.state.events(),
        };
        self.out.push(Effect::WriteCheckpoint { state });
    }

    /// Handles the outcome of writing a checkpoint. If its bytes could not be written, they are
    /// tried again after as many events as lie between two checkpoints.
    pub(crate) fn checkpoint_written(&mut self, outcome: Result<Checkpoint, Refusal>) {
        self.checkpoints.writing = false;
        if let Ok(checkpoint) = outcome {
            self.append(None, LedgerEvent::CheckpointSaved { checkpoint });
            self.discard_checkpoints();
        }
    }

    fn discard_checkpoints(&mut self) {
        let outdated = self.state.outdated_objects();
        let discard = outdated.map(|object| Effect::DiscardCheckpoint { object });
        self.out.extend(discard);
    }
}
