//! A merge that is made again, chunk by chunk.

use std::ops::Range;
use std::sync::Arc;

use merge::Directions;
use schemas::masking::Unmasking;
use schemas::run::{CodecKind, RunSpec};
use schemas::snapshot::MergeRecord;
use schemas::voice::{Voice, voices};
use schemas::{Code, ObjectRef, Refusal, Round};

use crate::context::RunContext;
use crate::directions;
use crate::inputs::{self, Input};
use crate::masked::unmasked;
use crate::objects::Objects;
use crate::weights::{Part, Piece, Step};

/// A merge to make again: its round, and its inputs one by one, of which a window of chunks is
/// named.
#[derive(Debug)]
pub struct Again {
    /// The round that it closed.
    pub round: Round,
    inputs: Vec<Input>,
    /// The voices of its inputs, if their directions are compared again.
    voices: Arc<[Voice]>,
    /// What takes the masks from their sum, in a run with secure aggregation.
    unmasking: Option<Arc<Unmasking>>,
}

/// One chunk after a merge.
#[derive(Debug)]
pub struct Merged {
    /// The chunk of the weights and of the outer state.
    pub piece: Piece,
    /// The chunk as it would be published.
    pub broadcast: ObjectRef,
    /// The sum of squares of the mean contribution.
    pub sum_of_squares: f64,
    /// The sum of squares of each input, in their order; empty unless the run's rule of combination
    /// goes by the norms of its inputs.
    pub squares: Vec<f64>,
    /// The directions of the inputs that were compared, if they are compared again.
    pub directions: Directions,
    /// True if every new parameter is a number.
    pub finite: bool,
}

impl Again {
    /// Reads the names of the chunks of a window.
    ///
    /// # Errors
    /// A list of chunks cannot be read, or is none.
    pub async fn read(
        objects: &dyn Objects,
        merge: &MergeRecord,
        window: &Range<usize>,
    ) -> Result<Self, Refusal> {
        Ok(Self {
            round: merge.round,
            inputs: inputs::read(objects, &merge.inputs, window).await?,
            voices: Arc::default(),
            unmasking: merge.unmasking.clone().map(Arc::new),
        })
    }

    /// Has the directions of those inputs compared again that the record compares. This decides
    /// nothing about the weights, so a restore does without.
    #[must_use]
    pub fn comparing(mut self, spec: &RunSpec, merge: &MergeRecord) -> Self {
        let compared = merge.inputs.iter().filter(|input| input.cosine.is_some());
        self.voices = voices(&spec.policy.comparison, compared).into();
        self
    }

    /// Fetches chunk `index` of each input, and makes the outer step on this chunk of the weights.
    ///
    /// # Errors
    /// An object cannot be read; or [`Code::ReplayDiverged`]: the inputs cannot be merged.
    pub async fn chunk(
        &self,
        objects: &dyn Objects,
        context: &RunContext,
        index: usize,
        mut piece: Piece,
        first: bool,
    ) -> Result<Merged, Refusal> {
        let parts = self.parts(objects, index).await?;
        let step = Step::new(&context.spec, self.round, first);
        let place = context.place(index);
        let (codec, elements) = (context.spec.upload.kind, context.elements(index));
        let (spec, unmasking) = (context.spec.clone(), self.unmasking.clone());
        let voices = Arc::clone(&self.voices);
        let work = tokio::task::spawn_blocking(move || {
            let parts = unmasked(&spec, unmasking.as_deref(), place.start, elements, parts);
            let parts = parts.map_err(|refusal| refusal.detail)?;
            let stepped = step.run(&mut piece, &parts, &place);
            let stepped = stepped.map_err(|error| error.to_string())?;
            Ok::<_, String>(Merged {
                piece,
                broadcast: ObjectRef::of(&stepped.broadcast),
                sum_of_squares: stepped.sum_of_squares,
                squares: squares(&parts, codec, elements)?,
                directions: compared(&voices, &parts, codec, elements)?,
                finite: stepped.finite,
            })
        });
        let done = work
            .await
            .map_err(|error| Refusal::new(Code::Internal, format!("merge again: {error}")))?;
        done.map_err(|error| {
            Refusal::new(
                Code::ReplayDiverged,
                format!("round {} chunk {index}: {error}", self.round),
            )
        })
    }

    async fn parts(&self, objects: &dyn Objects, index: usize) -> Result<Vec<Part>, Refusal> {
        let mut parts = Vec::with_capacity(self.inputs.len());
        for input in &self.inputs {
            let object = input.chunk(index);
            let missing = || {
                Refusal::new(
                    Code::ReplayDiverged,
                    format!("{} has no chunk {index}", input.lease),
                )
            };
            parts.push(Part {
                weight: input.weight,
                norm: input.norm,
                cosine: input.cosine,
                bytes: objects.fetch(object.ok_or_else(missing)?).await?,
            });
        }
        Ok(parts)
    }
}

/// The sum of squares of each part with a norm.
fn squares(parts: &[Part], codec: CodecKind, elements: usize) -> Result<Vec<f64>, String> {
    let normed = parts.iter().filter(|part| part.norm.is_some());
    let screened = normed.map(|part| merge::screen(codec, &part.bytes, elements));
    let squares = screened.map(|found| found.map(|found| found.sum_of_squares));
    squares
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())
}

/// The directions of the parts with a cosine, if there are voices to compare.
fn compared(
    voices: &[Voice],
    parts: &[Part],
    codec: CodecKind,
    elements: usize,
) -> Result<Directions, String> {
    if voices.is_empty() {
        return Ok(Directions::default());
    }
    let compared = parts.iter().filter(|part| part.cosine.is_some());
    let compared: Vec<_> = compared.map(|part| part.bytes.clone()).collect();
    let found = directions::sums(codec, voices, &compared, elements);
    found.map_err(|error| error.to_string())
}
