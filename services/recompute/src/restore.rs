//! Weights from objects: a full snapshot or the initial weights, and every merge since then. Each
//! merge must give the broadcast that the ledger names.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use schemas::lease::Weights as Published;
use schemas::run::CodecKind;
use schemas::snapshot::{MergeRecord, Slot, SnapshotManifest};
use schemas::{Code, ObjectRef, Refusal, Round};

use crate::context::RunContext;
use crate::inputs::{self, Input};
use crate::objects::Objects;
use crate::weights::{Part, Piece, Step, Weights};

/// Chunks that are recomputed at the same time.
const CHUNKS_AT_A_TIME: usize = 2;
/// Largest manifest of a snapshot: it names at most 256 chunks a few times, or lists of chunks, and
/// the merges since the snapshot before.
const MANIFEST_BYTES_MAX: u64 = 64 << 20;

/// The snapshot that a restore starts from.
struct Base {
    round: Round,
    params: Vec<ObjectRef>,
    /// Outer state by slot, one object a chunk.
    slots: BTreeMap<Slot, Vec<ObjectRef>>,
    broadcast: Published,
}

/// One chunk after all merges.
struct Restored {
    piece: Piece,
    /// This chunk in the broadcast of each merge.
    broadcasts: Vec<ObjectRef>,
}

/// Loads the weights and recomputes the merges.
///
/// # Errors
/// [`Code::ReplayDiverged`] when a merge gives another broadcast than the ledger records; otherwise
/// the reason why an object cannot be read.
pub async fn weights(
    objects: &dyn Objects,
    context: &Arc<RunContext>,
    snapshot: Option<ObjectRef>,
    merges: &[MergeRecord],
) -> Result<Weights, Refusal> {
    let base = base(objects, context, snapshot).await?;
    check_order(&base, merges)?;
    let inputs = merges.iter().map(|merge| merge.inputs.len()).sum();
    let mut chunks: Vec<Restored> = Vec::with_capacity(context.chunks.len());
    for window in inputs::windows(inputs, context.chunks.len()) {
        let steps = steps(objects, merges, &window).await?;
        let part = window.map(|index| chunk(objects, context, &base, &steps, index));
        let part: Vec<Restored> = stream::iter(part)
            .buffered(CHUNKS_AT_A_TIME)
            .try_collect()
            .await?;
        chunks.extend(part);
    }
    let mut broadcast = base.broadcast;
    for (place, merge) in merges.iter().enumerate() {
        let chunks = chunks.iter().map(|chunk| chunk.broadcasts[place]).collect();
        broadcast = Published {
            round: merge.round.next(),
            codec: context.spec.download,
            // The list is in the store already, since the ledger names it.
            chunks: context.spec.name_chunks(chunks).0,
        };
        let (got, expected) = (broadcast.digest(), merge.broadcast);
        if got != expected {
            let detail = format!(
                "run {} round {}: {got}, the ledger has {expected}",
                context.spec.run, merge.round
            );
            return Err(Refusal::new(Code::ReplayDiverged, detail));
        }
    }
    Ok(Weights {
        round: broadcast.round,
        pieces: chunks.into_iter().map(|chunk| chunk.piece).collect(),
        broadcast,
    })
}

async fn base(
    objects: &dyn Objects,
    context: &RunContext,
    snapshot: Option<ObjectRef>,
) -> Result<Base, Refusal> {
    let spec = &context.spec;
    let Some(object) = snapshot else {
        let broadcast = spec.initial_weights();
        let params = objects.chunks(&broadcast.chunks).await?;
        return Ok(Base {
            round: Round(0),
            params,
            slots: BTreeMap::new(),
            broadcast,
        });
    };
    let invalid = |reason: &dyn std::fmt::Display| {
        Refusal::new(
            Code::ReplayDiverged,
            format!("snapshot {} of run {}: {reason}", object.digest, spec.run),
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
    let SnapshotManifest {
        round,
        weights,
        slots,
        broadcast,
        ..
    } = manifest;
    let mut outer = BTreeMap::new();
    for (slot, chunks) in &slots {
        outer.insert(*slot, objects.chunks(chunks).await?);
    }
    Ok(Base {
        round,
        params: objects.chunks(&weights).await?,
        slots: outer,
        broadcast,
    })
}

/// A merge to do again: its round, and its inputs one by one, of which a window of chunks is named.
struct Again {
    round: Round,
    inputs: Vec<Input>,
}

async fn steps(
    objects: &dyn Objects,
    merges: &[MergeRecord],
    window: &Range<usize>,
) -> Result<Vec<Again>, Refusal> {
    let mut steps = Vec::with_capacity(merges.len());
    for MergeRecord { round, inputs, .. } in merges {
        steps.push(Again {
            round: *round,
            inputs: inputs::read(objects, inputs, window).await?,
        });
    }
    Ok(steps)
}

fn check_order(base: &Base, merges: &[MergeRecord]) -> Result<(), Refusal> {
    let mut round = base.round;
    for merge in merges {
        if merge.round != round {
            let detail = format!(
                "the merge of round {} follows on weights of round {round}",
                merge.round
            );
            return Err(Refusal::new(Code::ReplayDiverged, detail));
        }
        round = round.next();
    }
    Ok(())
}

/// Takes one chunk through every merge.
async fn chunk(
    objects: &dyn Objects,
    context: &Arc<RunContext>,
    base: &Base,
    merges: &[Again],
    index: usize,
) -> Result<Restored, Refusal> {
    let elements = context.elements(index);
    let params = exact(objects, base.params[index], elements).await?;
    let mut slots = BTreeMap::new();
    for (slot, chunks) in &base.slots {
        slots.insert(*slot, exact(objects, chunks[index], elements).await?);
    }
    let mut piece = Piece { params, slots };
    let mut first = piece.is_first();
    let mut broadcasts = Vec::with_capacity(merges.len());
    for merge in merges {
        let parts = parts(objects, &merge.inputs, index).await?;
        let step = Step::new(&context.spec, merge.round, first);
        first = false;
        let start = context.chunks[index].start;
        let work = tokio::task::spawn_blocking(move || {
            let stepped = step.run(&mut piece, &parts, start)?;
            Ok::<_, merge::MergeError>((piece, ObjectRef::of(&stepped.broadcast)))
        });
        let done = work
            .await
            .map_err(|error| Refusal::new(Code::Internal, format!("restore: {error}")))?;
        let (after, broadcast) = done.map_err(|error| {
            Refusal::new(
                Code::ReplayDiverged,
                format!("round {} chunk {index}: {error}", merge.round),
            )
        })?;
        piece = after;
        broadcasts.push(broadcast);
    }
    Ok(Restored { piece, broadcasts })
}

async fn parts(
    objects: &dyn Objects,
    inputs: &[Input],
    index: usize,
) -> Result<Vec<Part>, Refusal> {
    let mut parts = Vec::with_capacity(inputs.len());
    for input in inputs {
        let object = input.chunk(index);
        let missing = || {
            Refusal::new(
                Code::ReplayDiverged,
                format!("{} has no chunk {index}", input.lease),
            )
        };
        parts.push((
            input.weight,
            objects.fetch(object.ok_or_else(missing)?).await?,
        ));
    }
    Ok(parts)
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
