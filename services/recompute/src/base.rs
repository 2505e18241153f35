//! The weights before the first merge: those of a full snapshot, or the initial ones.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use merge::SeededRounding;
use schemas::lease::Weights as Published;
use schemas::run::CodecKind;
use schemas::snapshot::{Slot, SnapshotManifest};
use schemas::{Code, ObjectRef, Refusal, Round};

use crate::context::RunContext;
use crate::objects::Objects;
use crate::weights::Piece;

/// Largest manifest of a snapshot: it names at most 256 chunks a few times, or lists of chunks, and
/// the merges since the snapshot before.
const MANIFEST_BYTES_MAX: u64 = 64 << 20;

/// Weights by reference: fp32 parameters and outer state, one object a chunk.
#[derive(Debug)]
pub struct Base {
    /// The round that starts from them.
    pub round: Round,
    /// The parameters.
    pub params: Vec<ObjectRef>,
    /// Outer state by slot.
    pub slots: BTreeMap<Slot, Vec<ObjectRef>>,
    /// The copy that workers received.
    pub broadcast: Published,
}

impl Base {
    /// Reads a snapshot's manifest, or takes the initial weights if there is none.
    ///
    /// # Errors
    /// An object cannot be read; or [`Code::ReplayDiverged`]: it is no snapshot of this run.
    pub async fn read(
        objects: &dyn Objects,
        context: &RunContext,
        snapshot: Option<ObjectRef>,
    ) -> Result<Self, Refusal> {
        let spec = &context.spec;
        let Some(object) = snapshot else {
            let broadcast = spec.initial_weights();
            let params = objects.chunks(&broadcast.chunks).await?;
            return Ok(Self {
                round: Round(0),
                params,
                slots: BTreeMap::new(),
                broadcast,
            });
        };
        let SnapshotManifest {
            round,
            weights,
            slots,
            broadcast,
            ..
        } = manifest(objects, context, object).await?;
        let mut outer = BTreeMap::new();
        for (slot, chunks) in &slots {
            outer.insert(*slot, objects.chunks(chunks).await?);
        }
        Ok(Self {
            round,
            params: objects.chunks(&weights).await?,
            slots: outer,
            broadcast,
        })
    }

    /// The same weights under the version that they have since an operator restored them. Without a
    /// restore that is their own round.
    ///
    /// # Errors
    /// [`Code::ReplayDiverged`]: the version is before the snapshot's own round.
    pub fn as_version(mut self, version: Round) -> Result<Self, Refusal> {
        if version < self.round {
            let detail = format!("a snapshot of round {} as version {version}", self.round);
            return Err(Refusal::new(Code::ReplayDiverged, detail));
        }
        self.round = version;
        self.broadcast.round = version;
        Ok(self)
    }

    /// Reads one chunk.
    ///
    /// # Errors
    /// An object cannot be read, or [`Code::SizeMismatch`].
    pub async fn piece(
        &self,
        objects: &dyn Objects,
        context: &RunContext,
        index: usize,
    ) -> Result<Piece, Refusal> {
        let elements = context.elements(index);
        let params = exact(objects, self.params[index], elements).await?;
        let mut slots = BTreeMap::new();
        for (slot, chunks) in &self.slots {
            slots.insert(*slot, exact(objects, chunks[index], elements).await?);
        }
        Ok(Piece { params, slots })
    }
}

/// Reads a manifest, and checks that it is of this run's settings.
async fn manifest(
    objects: &dyn Objects,
    context: &RunContext,
    object: ObjectRef,
) -> Result<SnapshotManifest, Refusal> {
    let invalid = |reason: &dyn std::fmt::Display| {
        Refusal::new(
            Code::ReplayDiverged,
            format!(
                "snapshot {} of run {}: {reason}",
                object.digest, context.spec.run
            ),
        )
    };
    if object.bytes.get() > MANIFEST_BYTES_MAX {
        return Err(invalid(&format_args!(
            "a manifest of {} bytes",
            object.bytes
        )));
    }
    let bytes = objects.fetch(object).await?;
    let manifest: SnapshotManifest =
        serde_json::from_slice(&bytes).map_err(|error| invalid(&error))?;
    let count = context.chunks.len();
    let vectors = || manifest.slots.values().chain([&manifest.weights]);
    if manifest.spec != context.spec_digest || vectors().any(|chunks| chunks.count() != count) {
        return Err(invalid(&"it is of other settings than the run's"));
    }
    Ok(manifest)
}

/// Fp32 numbers as the bytes of an object.
pub fn encode(values: &[f32]) -> Bytes {
    let mut bytes = vec![0; merge::codec::encoded_bytes(CodecKind::Fp32, values.len())];
    let encoded =
        merge::codec::encode(CodecKind::Fp32, values, SeededRounding::NEAREST, &mut bytes);
    encoded.expect("the buffer has the size of the encoding");
    bytes.into()
}

/// Reads fp32 numbers from an object.
async fn exact(
    objects: &dyn Objects,
    object: ObjectRef,
    elements: usize,
) -> Result<Arc<Vec<f32>>, Refusal> {
    let bytes = objects.fetch(object).await?;
    let mut values = vec![0.0; elements];
    merge::codec::decode(CodecKind::Fp32, &bytes, &mut values)
        .map_err(|error| Refusal::new(Code::SizeMismatch, format!("{}: {error}", object.digest)))?;
    Ok(Arc::new(values))
}
