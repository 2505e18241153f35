//! Weights from objects: a full snapshot or the initial weights, and every merge since, each of
//! which must give the broadcast that the ledger names.

use std::sync::Arc;

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use schemas::lease::Weights as Published;
use schemas::run::CodecKind;
use schemas::snapshot::{MergeInput, MergeRecord, SnapshotManifest};
use schemas::{Code, ObjectRef, Refusal, Round};

use crate::context::RunContext;
use crate::store::Store;
use crate::weights::{Part, Piece, Step, Weights};

/// Chunks that are recomputed at a time.
const CHUNKS_AT_A_TIME: usize = 2;
/// Largest manifest of a snapshot: it lists at most 256 chunks a few times, and merges since the
/// one before.
const MANIFEST_BYTES_MAX: u64 = 64 << 20;

/// Where a restore begins.
struct Base {
    round: Round,
    params: Vec<ObjectRef>,
    /// Empty before the first step, and where the optimizer keeps none.
    momentum: Vec<ObjectRef>,
    broadcast: Published,
}

/// One chunk after all merges.
struct Restored {
    piece: Piece,
    /// Its part of each merge's broadcast.
    broadcasts: Vec<ObjectRef>,
}

/// Loads and recomputes.
///
/// # Errors
/// [`Code::ReplayDiverged`] when a merge gives another broadcast than the ledger records; otherwise
/// why an object could not be had.
pub(crate) async fn weights(
    store: &Store,
    context: &Arc<RunContext>,
    snapshot: Option<ObjectRef>,
    merges: &[MergeRecord],
) -> Result<Weights, Refusal> {
    let base = base(store, context, snapshot).await?;
    check_order(&base, merges)?;
    let chunks = (0..context.chunks.len()).map(|index| chunk(store, context, &base, merges, index));
    let chunks: Vec<Restored> = stream::iter(chunks)
        .buffered(CHUNKS_AT_A_TIME)
        .try_collect()
        .await?;
    let mut broadcast = base.broadcast;
    for (place, merge) in merges.iter().enumerate() {
        let chunks = chunks.iter().map(|chunk| chunk.broadcasts[place]).collect();
        broadcast = Published {
            round: merge.round.next(),
            codec: context.spec.download,
            chunks,
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
    let mut weights = Weights {
        round: broadcast.round,
        params: Vec::new(),
        momentum: Vec::new(),
        broadcast,
    };
    for chunk in chunks {
        weights.params.push(chunk.piece.params);
        weights.momentum.extend(chunk.piece.momentum);
    }
    Ok(weights)
}

async fn base(
    store: &Store,
    context: &RunContext,
    snapshot: Option<ObjectRef>,
) -> Result<Base, Refusal> {
    let spec = &context.spec;
    let Some(object) = snapshot else {
        let broadcast = spec.initial_weights();
        let params = broadcast.chunks.clone();
        return Ok(Base {
            round: Round(0),
            params,
            momentum: Vec::new(),
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
    let bytes = store.fetch(object).await?;
    let manifest: SnapshotManifest =
        serde_json::from_slice(&bytes).map_err(|error| invalid(&error))?;
    let count = context.chunks.len();
    let momentum = manifest.momentum.len();
    if manifest.spec != context.spec_digest
        || manifest.weights.len() != count
        || (momentum != 0 && momentum != count)
    {
        return Err(invalid(&"it is of other settings than the run's"));
    }
    let SnapshotManifest {
        round,
        weights,
        momentum,
        broadcast,
        ..
    } = manifest;
    Ok(Base {
        round,
        params: weights,
        momentum,
        broadcast,
    })
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

/// One chunk through every merge.
async fn chunk(
    store: &Store,
    context: &Arc<RunContext>,
    base: &Base,
    merges: &[MergeRecord],
    index: usize,
) -> Result<Restored, Refusal> {
    let elements = context.elements(index);
    let params = exact(store, base.params[index], elements).await?;
    let momentum = match base.momentum.get(index) {
        Some(object) => Some(exact(store, *object, elements).await?),
        None => None,
    };
    let mut first = momentum.is_none();
    let mut piece = Piece { params, momentum };
    let mut broadcasts = Vec::with_capacity(merges.len());
    for merge in merges {
        let parts = parts(store, &merge.inputs, index).await?;
        let step = Step::new(&context.spec, merge.round, first);
        first = false;
        if piece.momentum.is_none() && merge::outer::keeps_momentum(context.spec.outer) {
            piece.momentum = Some(Arc::new(vec![0.0; elements]));
        }
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

async fn parts(store: &Store, inputs: &[MergeInput], index: usize) -> Result<Vec<Part>, Refusal> {
    let mut parts = Vec::with_capacity(inputs.len());
    for input in inputs {
        let object = input.chunks.get(index).copied();
        let missing = || {
            Refusal::new(
                Code::ReplayDiverged,
                format!("{} has no chunk {index}", input.lease),
            )
        };
        parts.push((
            input.weight.get(),
            store.fetch(object.ok_or_else(missing)?).await?,
        ));
    }
    Ok(parts)
}

/// fp32 numbers from an object.
async fn exact(
    store: &Store,
    object: ObjectRef,
    elements: usize,
) -> Result<Arc<Vec<f32>>, Refusal> {
    let bytes = store.fetch(object).await?;
    let mut values = vec![0.0; elements];
    merge::codec::decode(CodecKind::Fp32, &bytes, &mut values)
        .map_err(|error| Refusal::new(Code::SizeMismatch, format!("{}: {error}", object.digest)))?;
    Ok(Arc::new(values))
}
