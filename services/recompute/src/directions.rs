//! The comparison of the directions of a round's contributions, before it is sealed. This is a pass
//! over all their bytes beside that of the merge: the merge needs to know who is left out.

use bytes::Bytes;
use futures::stream::{self, StreamExt as _};
use merge::Directions;
use schemas::run::{CodecKind, RunSpec};
use schemas::snapshot::MergeInput;
use schemas::sync::ComparedInput;
use schemas::voice::{Voice, voices};
use schemas::{Code, Refusal};

use crate::context::RunContext;
use crate::inputs::{self, Input};
use crate::objects::Objects;
use crate::restore::CHUNKS_AT_A_TIME;

/// Compares the directions of `inputs`, all with a norm. The cosines come in the same order.
///
/// # Errors
/// An object cannot be read, or is no contribution of the run.
pub async fn compare(
    objects: &dyn Objects,
    context: &RunContext,
    inputs: &[MergeInput],
) -> Result<Vec<ComparedInput>, Refusal> {
    let voices = voices(&context.spec.policy.comparison, inputs);
    let mut sums = Directions::default();
    for window in inputs::windows(inputs.len(), context.chunks.len()) {
        let named = inputs::read(objects, inputs, &window).await?;
        let chunks = window.map(|index| chunk(objects, context, &named, &voices, index));
        let mut chunks = stream::iter(chunks).buffered(CHUNKS_AT_A_TIME);
        while let Some(chunk) = chunks.next().await {
            sums.add(&chunk?);
        }
    }
    let cosines = spread(&voices, &sums).into_iter().zip(inputs);
    let compared = cosines.map(|(cosine, input)| ComparedInput {
        unit: input.lease.unit.index,
        epoch: input.lease.epoch,
        cosine,
    });
    Ok(compared.collect())
}

/// The cosines of inputs whose directions were compared, in their order: each has that of its
/// worker's voice.
pub fn cosines(spec: &RunSpec, inputs: &[MergeInput], sums: &Directions) -> Vec<f32> {
    let compared = inputs.iter().filter(|input| input.cosine.is_some());
    spread(&voices(&spec.policy.comparison, compared), sums)
}

fn spread(voices: &[Voice], sums: &Directions) -> Vec<f32> {
    let of_voices = voices.iter().zip(sums.cosines());
    let each =
        of_voices.flat_map(|(voice, cosine)| voice.inputs.iter().map(move |at| (*at, cosine)));
    let mut each: Vec<(usize, f32)> = each.collect();
    each.sort_unstable_by_key(|(at, _)| *at);
    each.into_iter().map(|(_, cosine)| cosine).collect()
}

/// The sums of one chunk of the contributions that are compared, in the order in which `voices`
/// counts them.
pub(crate) fn sums(
    codec: CodecKind,
    voices: &[Voice],
    parts: &[Bytes],
    elements: usize,
) -> Result<Directions, merge::codec::CodecError> {
    let voice = |voice: &Voice| merge::Voice {
        contributions: voice.inputs.iter().map(|at| &parts[*at][..]).collect(),
        scale: voice.scale,
        votes: voice.votes,
    };
    let voices: Vec<_> = voices.iter().map(voice).collect();
    merge::directions(codec, &voices, elements)
}

/// The sums of chunk `index`.
async fn chunk(
    objects: &dyn Objects,
    context: &RunContext,
    inputs: &[Input],
    voices: &[Voice],
    index: usize,
) -> Result<Directions, Refusal> {
    let mut parts = Vec::with_capacity(inputs.len());
    for input in inputs {
        let missing = || {
            let detail = format!("{} has no chunk {index}", input.lease);
            Refusal::new(Code::LayoutMismatch, detail)
        };
        let object = input.chunk(index).ok_or_else(missing)?;
        parts.push(objects.fetch(object).await?);
    }
    let (codec, elements) = (context.spec.upload.kind, context.elements(index));
    let voices = voices.to_vec();
    let work = tokio::task::spawn_blocking(move || sums(codec, &voices, &parts, elements));
    let sums = work
        .await
        .map_err(|error| Refusal::new(Code::Internal, format!("comparison: {error}")))?;
    sums.map_err(|error| {
        let detail = format!("comparison of chunk {index}: {error}");
        Refusal::new(Code::SizeMismatch, detail)
    })
}
