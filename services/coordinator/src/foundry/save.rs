//! Full snapshots, off the critical path: fp32 chunks, their lists, then the manifest that names
//! them, then the signed statement of their provenance.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use identity::AuditKey;
use schemas::foundry::Saved;
use schemas::provenance::{self, Provenance};
use schemas::run::RunSpec;
use schemas::snapshot::{MergeRecord, Slot, SnapshotManifest};
use schemas::{Chunks, Code, Digest, ObjectRef, Refusal, V};
use serde::Serialize;

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

/// The coordinator as the maker of snapshots: it signs a statement about each.
#[derive(Clone, Debug)]
pub(crate) struct Maker {
    /// The trust domain, as text.
    pub(crate) domain: String,
    /// The key that signs the ledger too.
    pub(crate) key: Arc<AuditKey>,
    /// The release of this program.
    pub(crate) release: String,
}

impl Maker {
    /// The signed statement about a snapshot, in its envelope. A process that saves the snapshot
    /// again makes the same bytes.
    fn statement(&self, manifest: &SnapshotManifest, stored: ObjectRef) -> Result<Bytes, Refusal> {
        let maker = provenance::Maker {
            domain: &self.domain,
            key: self.key.public(),
            release: &self.release,
        };
        let statement = Provenance::of_snapshot(manifest, stored, maker);
        let text = json(&statement)?;
        Ok(self.key.seal_provenance(&text).into())
    }
}

/// Writes all objects, then the manifest that names them, then the statement about it. Each chunk
/// is freed once it is stored. The ledger names manifest and statement in one event, so a process
/// that dies in between leaves a snapshot that does not exist yet, and the next one saves it again.
pub(crate) async fn save(
    store: &Store,
    maker: &Maker,
    snapshot: Snapshot,
) -> Result<Saved, Refusal> {
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
    let object = store.publish(json(&manifest)?.into()).await?;
    let statement = store.publish(maker.statement(&manifest, object)?).await?;
    tracing::info!(
        run = %spec.run,
        round = round.get(),
        manifest = %object.digest,
        statement = %statement.digest,
        "full snapshot saved"
    );
    Ok(Saved {
        manifest: object,
        statement,
    })
}

fn json<T: Serialize>(value: &T) -> Result<Vec<u8>, Refusal> {
    serde_json::to_vec(value).map_err(|error| Refusal::new(Code::Internal, error.to_string()))
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

#[cfg(test)]
mod tests {
    use identity::dsse::open_provenance;
    use schemas::Round;

    use super::*;

    /// The statement is part of no ledger before it is stored, so a process that dies in between
    /// leaves it to the next one, which makes the same bytes.
    #[test]
    fn tl_19_a_statement_that_is_made_again_has_the_same_bytes_and_names_the_manifest() {
        let spec = kit::run_spec().build();
        let key = AuditKey::generate();
        let maker = || Maker {
            domain: "a-domain".to_owned(),
            key: Arc::new(AuditKey::from_seed(&key.seed()).expect("its own seed")),
            release: "1.2.3".to_owned(),
        };
        let manifest = SnapshotManifest {
            v: V,
            run: spec.run.clone(),
            spec: spec.to_object().1,
            round: Round(0),
            config: spec.model.config,
            layout: spec.model.layout,
            data: spec.data,
            weights: spec.model.initial.clone(),
            slots: BTreeMap::new(),
            broadcast: spec.initial_weights(),
            parent: None,
            merges: Vec::new(),
        };
        let stored = ObjectRef::of(&json(&manifest).expect("JSON"));
        let first = maker().statement(&manifest, stored).expect("it is made");
        let again = maker().statement(&manifest, stored).expect("it is made");
        assert_eq!(first, again);
        let (text, by) = open_provenance(&first, [key.public()]).expect("it is signed");
        let statement: Provenance = serde_json::from_slice(&text).expect("JSON");
        assert_eq!(&by, key.public());
        let named = &statement.subject[0].digest["sha256"];
        assert_eq!(*named, stored.digest.hex());
    }
}
