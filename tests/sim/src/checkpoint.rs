//! Checkpoints of the ledger: the coordinator writes them to the store while it goes on, and a
//! coordinator that starts reads one.

use coordinator_core::{Coordinator, Input, Settings};
use ledger::{CHECKPOINTS_KEPT, FORMAT, State};
use schemas::checkpoint::Checkpoint;
use schemas::event::{Event, LedgerEvent};
use schemas::{Digest, ObjectRef, Refusal};

use crate::world::World;

/// Events between two checkpoints: few, so that every run has some checkpoints.
pub(crate) const CHECKPOINT_EVERY: u64 = 19;

impl World {
    /// Starts a coordinator from the newest checkpoint that the ledger names, and reads the events
    /// after it.
    pub(crate) fn resume(&mut self, settings: Settings) -> Coordinator {
        let saved = self.journal.iter().filter_map(|body| match &body.event {
            Event::Ledger(LedgerEvent::CheckpointSaved { checkpoint }) => Some(checkpoint),
            _ => None,
        });
        let saved: Vec<&Checkpoint> = saved.collect();
        for kept in saved.iter().rev().take(CHECKPOINTS_KEPT) {
            let found = self.store.checkpoints.contains_key(&kept.object.digest);
            assert!(found, "a checkpoint that a start needs is gone");
        }
        let Some(newest) = saved.last() else {
            return Coordinator::replay(settings, &self.journal).expect("the ledger is replayed");
        };
        self.resumed += 1;
        let bytes = &self.store.checkpoints[&newest.object.digest];
        let mut state = State::from_checkpoint(bytes).expect("these bytes are a checkpoint");
        assert_eq!(state.events(), newest.covers.get() + 1, "of another event");
        for body in &self.journal[newest.covers.get() as usize + 1..] {
            state.follow(body).expect("the ledger goes on from it");
        }
        let mut whole = State::default();
        for body in &self.journal {
            whole.follow(body).expect("the ledger can be replayed");
        }
        assert!(
            state == whole,
            "a checkpoint gives another state than all events"
        );
        assert_eq!(state.to_checkpoint(), whole.to_checkpoint());
        Coordinator::new(settings, state)
    }

    /// Tells the coordinator that the bytes of its checkpoint are in the store, or that writing
    /// failed.
    pub(crate) fn checkpoint_written(&mut self, bytes: Vec<u8>, failed: Option<Refusal>) {
        let takes = |event: &Event| *event == Event::Ledger(LedgerEvent::CheckpointTaken);
        let taken = self.journal.iter().rev().find(|body| takes(&body.event));
        let covers = taken.expect("it was taken").sequence;
        let object = ObjectRef::of(&bytes);
        let outcome = failed.map_or(Ok(()), Err).map(|()| {
            self.store.checkpoints.insert(object.digest, bytes);
            Checkpoint {
                covers,
                head: Digest::of(&covers.get().to_be_bytes()),
                stream_sequence: covers.get() + 1,
                format: FORMAT.into(),
                object,
            }
        });
        let most = self.store.checkpoints.len();
        assert!(
            most <= CHECKPOINTS_KEPT + 2,
            "{most} checkpoints are in the store: some are never deleted"
        );
        self.tell_coordinator(Input::CheckpointWritten { outcome });
    }
}
