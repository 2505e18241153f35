//! Facts that hold for a whole run: its settings, and how its parameters are cut into chunks.

use merge::{TensorPiece, tensor_pieces};
use schemas::layout::{Chunk, Layout};
use schemas::run::{Combination, RunSpec};
use schemas::{Code, Digest, Message as _, ObjectRef, Refusal};

use crate::objects::Objects;

/// A run's settings and layout.
#[derive(Debug)]
pub struct RunContext {
    /// Its settings.
    pub spec: RunSpec,
    /// The digest of its settings.
    pub spec_digest: Digest,
    /// The chunks of the layout, in order.
    pub chunks: Vec<Chunk>,
    /// The tensors of each chunk, if the run's rule of combination goes by tensors.
    tensors: Vec<Vec<TensorPiece>>,
}

/// The place of a chunk in the model.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// Its first element in the flat vector.
    pub start: u64,
    /// Its tensors, if the run's rule of combination goes by tensors.
    pub tensors: Vec<TensorPiece>,
}

impl RunContext {
    /// Fetches the layout, and cuts it into chunks as the settings say.
    pub async fn load(objects: &dyn Objects, spec: RunSpec) -> Result<Self, Refusal> {
        let layout = layout(objects, spec.model.layout).await?;
        Self::new(&layout, spec)
    }

    /// Cuts a valid layout into chunks as the settings say.
    pub fn new(layout: &Layout, spec: RunSpec) -> Result<Self, Refusal> {
        let chunks = layout.chunks(spec.model.chunk_elements);
        let chunks = chunks.map_err(|error| Refusal::new(Code::SpecInvalid, error.to_string()))?;
        let (expected, got) = (chunks.len(), spec.model.initial.count());
        if expected != got {
            let detail = format!(
                "model.initial has {got} chunks, layout and model.chunk_elements give {expected}"
            );
            return Err(Refusal::new(Code::SpecInvalid, detail));
        }
        let of_chunk =
            |chunk: &Chunk| tensor_pieces(layout, chunk.start..chunk.start + chunk.elements);
        let tensors = match spec.combination {
            Combination::Radial => chunks.iter().map(of_chunk).collect(),
            _ => Vec::new(),
        };
        let spec_digest = spec.to_object().1;
        Ok(Self {
            spec,
            spec_digest,
            chunks,
            tensors,
        })
    }

    /// The place of chunk `index`.
    pub fn place(&self, index: usize) -> Place {
        Place {
            start: self.chunks[index].start,
            tensors: self.tensors.get(index).cloned().unwrap_or_default(),
        }
    }

    /// Elements of chunk `index`.
    pub fn elements(&self, index: usize) -> usize {
        self.chunks[index].range().len()
    }
}

/// Fetches and checks a layout.
pub async fn layout(objects: &dyn Objects, object: ObjectRef) -> Result<Layout, Refusal> {
    let bytes = objects.fetch(object).await?;
    let invalid = |reason: String| {
        Refusal::new(
            Code::SpecInvalid,
            format!("model.layout {}: {reason}", object.digest),
        )
    };
    let layout = Layout::decode(&bytes).map_err(|error| invalid(error.to_string()))?;
    layout
        .validate()
        .map_err(|error| invalid(error.to_string()))?;
    Ok(layout)
}
