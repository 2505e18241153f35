//! Full snapshots, off the critical path: fp32 chunks, their lists, then the manifest that names
//! them.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemas::run::RunSpec;
use schemas::snapshot::{MergeRecord, Slot, SnapshotManifest};
use schemas::{Chunks, Code, Digest, ObjectRef, Refusal, V};

use crate::store::Store;
use recompute::RunContext;
use recompute::Weights;
use recompute::base::encode;

/// A snapshot that is being saved.
pub(crate) struct Snapshot {
    pub(crate) context: Arc<RunContext>,
    pub(crate) weights: Weights,
    pub(crate) parent: Option<Digest>,
    pub(crate) merges: Vec<MergeRecord>,
}

/// Writes all objects and returns the reference of the manifest. Each chunk is freed once it is
/// stored.
pub(crate) async fn save(store: &Store, snapshot: Snapshot) -> Result<ObjectRef, Refusal> {
    let Snapshot {
        context,
        weights,
        parent,
        merges,
    } = snapshot;
    let Weights {
        round,
        pieces,
        broadcast,
    } = weights;
    let spec = &context.spec;
    let mut params = Vec::with_capacity(pieces.len());
    let mut outer: BTreeMap<Slot, Vec<_>> = BTreeMap::new();
    for piece in pieces {
        params.push(piece.params);
        for (slot, values) in piece.slots {
            outer.entry(slot).or_default().push(values);
        }
    }
    let weights = chunks(store, spec, params).await?;
    let mut slots = BTreeMap::new();
    for (slot, values) in outer {
        slots.insert(slot, chunks(store, spec, values).await?);
    }
    let manifest = SnapshotManifest {
        v: V,
        run: spec.run.clone(),
        spec: context.spec_digest,
        round,
        config: spec.model.config,
        layout: spec.model.layout,
        data: spec.data,
        weights,
        slots,
        broadcast,
        parent,
        merges,
    };
    let text = serde_json::to_vec(&manifest)
        .map_err(|error| Refusal::new(Code::Internal, error.to_string()))?;
    let object = store.publish(text.into()).await?;
    tracing::info!(run = %spec.run, round = round.get(), manifest = %object.digest, "full snapshot saved");
    Ok(object)
}

async fn chunks(
    store: &Store,
    spec: &RunSpec,
    chunks: Vec<Arc<Vec<f32>>>,
) -> Result<Chunks, Refusal> {
    let mut objects = Vec::with_capacity(chunks.len());
    for chunk in chunks {
        // One chunk at a time: a save may last until the next one, and memory for its copies is
        // short.
        let _permit = store.transfer().await;
        let encoded = tokio::task::spawn_blocking(move || encode(&chunk)).await;
        let encoded =
            encoded.map_err(|error| Refusal::new(Code::Internal, format!("save: {error}")))?;
        objects.push(store.publish(encoded).await?);
    }
    store.name_chunks(spec, objects).await
}
