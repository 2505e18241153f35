//! The comparison of the directions of a round's contributions, before it is sealed. This is a pass
//! over all their bytes beside that of the merge: the merge needs to know who is left out.

use futures::stream::{self, StreamExt as _};
use merge::Directions;
use schemas::snapshot::MergeInput;
use schemas::sync::ComparedInput;
use schemas::{Code, Refusal};

use crate::context::RunContext;
use crate::inputs::{self, Input};
use crate::objects::Objects;
use crate::restore::CHUNKS_AT_A_TIME;

/// The factor that gives a contribution with this norm the length 1. The ledger records the norm,
/// so that everybody who compares scales alike.
pub(crate) fn scale(norm: Option<f32>) -> f64 {
    match norm {
        Some(norm) if norm > 0.0 && norm.is_finite() => 1.0 / f64::from(norm),
        _ => 0.0,
    }
}

/// Compares the directions of `inputs`, all with a norm. The cosines come in the same order.
///
/// # Errors
/// An object cannot be read, or is no contribution of the run.
pub async fn compare(
    objects: &dyn Objects,
    context: &RunContext,
    inputs: &[MergeInput],
) -> Result<Vec<ComparedInput>, Refusal> {
    let mut sums = Directions::default();
    for window in inputs::windows(inputs.len(), context.chunks.len()) {
        let named = inputs::read(objects, inputs, &window).await?;
        let chunks = window.map(|index| chunk(objects, context, &named, index));
        let mut chunks = stream::iter(chunks).buffered(CHUNKS_AT_A_TIME);
        while let Some(chunk) = chunks.next().await {
            sums.add(&chunk?);
        }
    }
    let cosines = sums.cosines().into_iter().zip(inputs);
    let compared = cosines.map(|(cosine, input)| ComparedInput {
        unit: input.lease.unit.index,
        epoch: input.lease.epoch,
        cosine,
    });
    Ok(compared.collect())
}

/// The sums of chunk `index`.
async fn chunk(
    objects: &dyn Objects,
    context: &RunContext,
    inputs: &[Input],
    index: usize,
) -> Result<Directions, Refusal> {
    let mut parts = Vec::with_capacity(inputs.len());
    for input in inputs {
        let missing = || {
            let detail = format!("{} has no chunk {index}", input.lease);
            Refusal::new(Code::LayoutMismatch, detail)
        };
        let object = input.chunk(index).ok_or_else(missing)?;
        parts.push((objects.fetch(object).await?, scale(input.norm)));
    }
    let (codec, elements) = (context.spec.upload.kind, context.elements(index));
    let work = tokio::task::spawn_blocking(move || {
        let parts: Vec<_> = parts
            .iter()
            .map(|(bytes, scale)| (&bytes[..], *scale))
            .collect();
        merge::directions(codec, &parts, elements)
    });
    let sums = work
        .await
        .map_err(|error| Refusal::new(Code::Internal, format!("comparison: {error}")))?;
    sums.map_err(|error| {
        let detail = format!("comparison of chunk {index}: {error}");
        Refusal::new(Code::SizeMismatch, detail)
    })
}
