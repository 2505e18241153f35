//! The pointer to a run's newest full snapshot, moved by compare and set and never back. The ledger
//! is the truth; the pointer is for whoever does not read the ledger.

use async_nats::jetstream::kv::{CreateErrorKind, Store as Bucket, UpdateErrorKind};
use async_nats::jetstream::{self};
use runtime::{Bus, Failure};
use schemas::subject::{STATE_BUCKET, snapshot_key};
use schemas::{Code, ObjectRef, Refusal, Round, RunId};
use serde::{Deserialize, Serialize};

/// Tries against other writers; there is one at most, on its way out.
const TRIES_MAX: u32 = 5;

/// The value of a run's pointer (JSON).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotPointer {
    /// The round that starts from the snapshot.
    pub round: Round,
    /// Its manifest.
    pub manifest: ObjectRef,
}

/// Writes pointers.
#[derive(Clone, Debug)]
pub(crate) struct Pointer(Bucket);

impl Pointer {
    pub(crate) async fn open(bus: &Bus) -> Result<Self, Failure> {
        let jetstream = jetstream::new(bus.client().clone());
        let bucket = jetstream.get_key_value(STATE_BUCKET).await;
        let missing = |error| {
            Failure::new(
                Code::StreamMissing,
                format!("key-value bucket {STATE_BUCKET}: {error}"),
            )
        };
        bucket.map(Self).map_err(missing)
    }

    /// Moves the pointer of `run` to a snapshot, unless it stands at a later one.
    pub(crate) async fn advance(
        &self,
        run: &RunId,
        round: Round,
        manifest: ObjectRef,
    ) -> Result<(), Refusal> {
        let key = snapshot_key(run);
        let failed = |reason: &dyn std::fmt::Display| {
            Refusal::new(
                Code::LedgerUnwritable,
                format!("pointer {key} to round {round}: {reason}"),
            )
        };
        let value = serde_json::to_vec(&SnapshotPointer { round, manifest })
            .map_err(|error| failed(&error))?;
        for _ in 0..TRIES_MAX {
            let entry = self
                .0
                .entry(key.as_str())
                .await
                .map_err(|error| failed(&error))?;
            let present = entry
                .as_ref()
                .and_then(|entry| serde_json::from_slice::<SnapshotPointer>(&entry.value).ok());
            if present.is_some_and(|present| present.round >= round) {
                return Ok(());
            }
            let moved = match entry {
                Some(entry) => match self
                    .0
                    .update(&key, value.clone().into(), entry.revision)
                    .await
                {
                    Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => continue,
                    moved => moved.map(|_| ()).map_err(|error| failed(&error)),
                },
                None => match self.0.create(&key, value.clone().into()).await {
                    Err(error) if error.kind() == CreateErrorKind::AlreadyExists => continue,
                    moved => moved.map(|_| ()).map_err(|error| failed(&error)),
                },
            };
            return moved;
        }
        Err(failed(&format_args!(
            "others moved it {TRIES_MAX} times meanwhile"
        )))
    }
}
