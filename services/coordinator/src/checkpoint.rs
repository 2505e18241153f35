//! Checkpoints of the ledger as objects: written beside the loop, and read at a start. An unusable
//! one costs time, but never prevents a start: the ledger holds everything.

use std::sync::Arc;

use ledger::{FORMAT, State};
use runtime::Failure;
use schemas::checkpoint::{CHECKPOINT_BYTES_MAX, Checkpoint};
use schemas::{Bytes, Code, Digest, Refusal};

use crate::ledger::{Ledger, Named, Place};
use crate::store::{Store, refusal};

/// Writes the bytes of a checkpoint, and checks that the store has them. `taken` is the event that
/// took the checkpoint.
pub(crate) async fn write(
    store: &Store,
    state: Arc<State>,
    taken: Place,
) -> Result<Checkpoint, Refusal> {
    let unsaved = |reason: String| Refusal::new(Code::CheckpointUnsaved, reason);
    let bytes = tokio::task::spawn_blocking(move || state.to_checkpoint()).await;
    let bytes = bytes.map_err(|error| unsaved(error.to_string()))?;
    let length = Bytes(bytes.len() as u64);
    if length > CHECKPOINT_BYTES_MAX {
        return Err(unsaved(format!(
            "the state takes {length} bytes, a checkpoint at most {CHECKPOINT_BYTES_MAX}"
        )));
    }
    let _permit = store.transfer().await;
    let object = store.publish(bytes.into()).await?;
    let found = store.buckets.exists(object.digest).await;
    if found.map_err(|error| refusal(&error))? != Some(length) {
        return Err(unsaved(format!("{} is not in the store", object.digest)));
    }
    Ok(Checkpoint {
        covers: taken.sequence,
        head: taken.digest,
        stream_sequence: taken.stream_sequence,
        format: FORMAT.into(),
        object,
    })
}

/// Logs why a checkpoint was not saved.
pub(crate) fn tell_unsaved(refusal: &Refusal) {
    let (code, reason) = (Code::CheckpointUnsaved, refusal);
    tracing::warn!(%code, next = code.next_step(), %reason, "a checkpoint of the ledger was not saved");
}

/// Deletes the object of an outdated checkpoint. If that fails, the next start tries again.
pub(crate) async fn discard(store: &Store, object: Digest) {
    if let Err(error) = store.buckets.delete(object).await {
        tracing::warn!(code = %error.code(), %error, "the object of an outdated checkpoint was not deleted");
    }
}

/// The state of the newest checkpoint that can be used, from which the ledger is then read on: the
/// last that was saved, or the one before it. Without one, the empty state: then the ledger is read
/// from its first event.
///
/// # Errors
/// The stream cannot be read.
pub(crate) async fn begin(ledger: &mut Ledger, store: &Store) -> Result<State, Failure> {
    let newest = ledger.newest_checkpoint().await?;
    if let Some(state) = take_up(ledger, store, newest, "the one before it is tried").await {
        return Ok(state);
    }
    let older = ledger.older_checkpoint().await?;
    let state = take_up(ledger, store, older, ALL_EVENTS).await;
    Ok(state.unwrap_or_default())
}

/// The state of a checkpoint. None when there is no checkpoint, or when it cannot be used; that is
/// told, and what is done `instead`.
async fn take_up(ledger: &mut Ledger, store: &Store, named: Named, instead: &str) -> Option<State> {
    let loaded = match named {
        Named::None => {
            tracing::info!("the ledger names no checkpoint");
            return None;
        }
        Named::Unfit(reason) => Err(reason),
        Named::Checkpoint(checkpoint, emitter) => load(store, &checkpoint)
            .await
            .map(|state| (checkpoint, emitter, state)),
    };
    match loaded {
        Ok((checkpoint, emitter, state)) => {
            tracing::info!(
                events = state.events(),
                object = %checkpoint.object.digest,
                "the ledger is read from a checkpoint on"
            );
            ledger.continue_from(&checkpoint, &emitter);
            Some(state)
        }
        Err(reason) => {
            tell_unusable(&reason, instead);
            None
        }
    }
}

/// Done where no checkpoint can be used.
pub(crate) const ALL_EVENTS: &str = "all events are read";

/// Tells why a checkpoint is not used, and what is done instead.
pub(crate) fn tell_unusable(reason: &str, instead: &str) {
    let code = Code::CheckpointUnusable;
    tracing::warn!(%code, next = code.next_step(), reason, "a checkpoint of the ledger is not used; {instead}");
}

async fn load(store: &Store, checkpoint: &Checkpoint) -> Result<State, String> {
    let Checkpoint {
        covers,
        format,
        object,
        ..
    } = checkpoint;
    if *format != u16::from(FORMAT) {
        return Err(format!(
            "it has form {format}, this release reads form {FORMAT}"
        ));
    }
    if object.bytes > CHECKPOINT_BYTES_MAX {
        return Err(format!(
            "it says that it has {} bytes, at most {CHECKPOINT_BYTES_MAX} are read",
            object.bytes
        ));
    }
    let bytes = store.fetch(*object).await;
    let bytes = bytes.map_err(|refusal| refusal.to_string())?;
    let decoded = tokio::task::spawn_blocking(move || State::from_checkpoint(&bytes)).await;
    let decoded = decoded.map_err(|error| error.to_string())?;
    let state = decoded.map_err(|error| error.to_string())?;
    if state.events() != covers.get() + 1 {
        return Err(format!(
            "it holds the state of {} events, and says that it covers event {covers}",
            state.events()
        ));
    }
    Ok(state)
}
