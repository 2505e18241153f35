//! Facts that hold for a whole run: its settings, and how its parameters are cut into chunks.

use schemas::layout::{Chunk, Layout};
use schemas::run::RunSpec;
use schemas::{Code, Digest, Message as _, ObjectRef, Refusal};

use crate::store::Store;

/// A run's settings and layout.
#[derive(Debug)]
pub(crate) struct RunContext {
    pub(crate) spec: RunSpec,
    pub(crate) spec_digest: Digest,
    pub(crate) chunks: Vec<Chunk>,
}

impl RunContext {
    /// Fetches the layout, and cuts it into chunks as the settings say.
    pub(crate) async fn load(store: &Store, spec: RunSpec) -> Result<Self, Refusal> {
        let layout = layout(store, spec.model.layout).await?;
        Self::new(&layout, spec)
    }

    /// Cuts a valid layout into chunks as the settings say.
    pub(crate) fn new(layout: &Layout, spec: RunSpec) -> Result<Self, Refusal> {
        let chunks = layout.chunks(spec.model.chunk_elements);
        let chunks = chunks.map_err(|error| Refusal::new(Code::SpecInvalid, error.to_string()))?;
        let (expected, got) = (chunks.len(), spec.model.initial.count());
        if expected != got {
            let detail = format!(
                "model.initial has {got} chunks, layout and model.chunk_elements give {expected}"
            );
            return Err(Refusal::new(Code::SpecInvalid, detail));
        }
        let spec_digest = spec.to_object().1;
        Ok(Self {
            spec,
            spec_digest,
            chunks,
        })
    }

    /// Elements of chunk `index`.
    pub(crate) fn elements(&self, index: usize) -> usize {
        self.chunks[index].range().len()
    }
}

/// Fetches and checks a layout.
pub(crate) async fn layout(store: &Store, object: ObjectRef) -> Result<Layout, Refusal> {
    let bytes = store.fetch(object).await?;
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
