//! Weights from objects: a full snapshot or the initial weights, and every merge since then. Each
//! merge must give the broadcast that the ledger names.

use std::ops::Range;
use std::sync::Arc;

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use schemas::lease::Weights as Published;
use schemas::snapshot::MergeRecord;
use schemas::{Code, ObjectRef, Refusal, Round};

use crate::again::Again;
use crate::base::Base;
use crate::context::RunContext;
use crate::inputs;
use crate::objects::Objects;
use crate::weights::{Piece, Weights};

/// Chunks that are recomputed at the same time.
pub const CHUNKS_AT_A_TIME: usize = 2;

/// One chunk after all merges.
struct Restored {
    piece: Piece,
    /// This chunk in the broadcast of each merge.
    broadcasts: Vec<ObjectRef>,
}

/// The weights to start from: a full snapshot, and the version that its weights have. Without a
/// restore by an operator that is the snapshot's own round.
pub type Origin = (Round, ObjectRef);

/// Loads the weights and recomputes the merges.
///
/// # Errors
/// [`Code::ReplayDiverged`] when a merge gives another broadcast than the ledger records; otherwise
/// the reason why an object cannot be read.
pub async fn weights(
    objects: &dyn Objects,
    context: &Arc<RunContext>,
    snapshot: Option<Origin>,
    merges: &[MergeRecord],
) -> Result<Weights, Refusal> {
    let manifest = snapshot.map(|(_, manifest)| manifest);
    let version = snapshot.map_or(Round(0), |(version, _)| version);
    let base = Base::read(objects, context, manifest).await?;
    let base = base.as_version(version)?;
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

async fn steps(
    objects: &dyn Objects,
    merges: &[MergeRecord],
    window: &Range<usize>,
) -> Result<Vec<Again>, Refusal> {
    let mut steps = Vec::with_capacity(merges.len());
    for merge in merges {
        steps.push(Again::read(objects, merge, window).await?);
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
    context: &RunContext,
    base: &Base,
    merges: &[Again],
    index: usize,
) -> Result<Restored, Refusal> {
    let mut piece = base.piece(objects, context, index).await?;
    let mut first = piece.is_first();
    let mut broadcasts = Vec::with_capacity(merges.len());
    for merge in merges {
        let merged = merge.chunk(objects, context, index, piece, first).await?;
        first = false;
        piece = merged.piece;
        broadcasts.push(merged.broadcast);
    }
    Ok(Restored { piece, broadcasts })
}
