//! Assets: the objects that a worker reads once for a run, namely the model's configuration and
//! layout, and the manifest of the data set. The run's settings name all of them by digest, and
//! they are compared with each other before memory is allocated.

use std::ops::Range;

use model::ModelConfig;
use schemas::data::{DataManifest, Shard};
use schemas::layout::{Chunk, Layout};
use schemas::lease::Work;
use schemas::run::{CodecKind, RunSpec};
use schemas::{Chunks, Code, Fragment, Message as _, ObjectRef, Refusal};

use crate::object_client::ObjectClient;

/// The run's fixed objects.
#[derive(Clone, Debug)]
pub(crate) struct Assets {
    pub(crate) model: ModelConfig,
    pub(crate) chunks: Vec<Chunk>,
    pub(crate) data: DataManifest,
}

impl Assets {
    /// Fetches and checks the objects.
    ///
    /// # Errors
    /// An object cannot be fetched or parsed, or the objects do not fit together.
    pub(crate) async fn fetch(
        object_client: &ObjectClient,
        spec: &RunSpec,
    ) -> Result<Self, Refusal> {
        let objects = object_client
            .keep(&[spec.model.config, spec.model.layout, spec.data])
            .await?;
        let model = ModelConfig::parse(spec.model.trainer, &objects[0])
            .map_err(|error| Refusal::new(Code::ModelInvalid, error.to_string()))?;
        let mismatch = |detail: String| Refusal::new(Code::LayoutMismatch, detail);
        let layout = Layout::decode(&objects[1]).map_err(|error| mismatch(error.to_string()))?;
        let chunks = check_layout(&layout, &model, spec)?;
        let data = data::parse_manifest(&objects[2])?;
        // The coordinator checks the data more closely before it creates a run; this check covers
        // what a trainer would fail on.
        model.check_sequence(&spec.schedule)?;
        model.check_vocabulary(data.vocabulary)?;
        Ok(Self {
            model,
            chunks,
            data,
        })
    }

    /// The elements of each fragment.
    pub(crate) fn fragments(&self) -> Vec<Range<usize>> {
        let mut fragments: Vec<Range<usize>> = Vec::new();
        for chunk in &self.chunks {
            let range = chunk.range();
            match fragments.get_mut(chunk.fragment as usize) {
                Some(fragment) => fragment.end = range.end,
                None => fragments.push(range),
            }
        }
        fragments
    }

    /// The numbers of the fragments.
    pub(crate) fn fragment_numbers(&self) -> impl Iterator<Item = Fragment> + use<> {
        let last = self.chunks.last().expect("a layout has parameters");
        (0..=last.fragment).map(Fragment)
    }

    /// The entries of the data set that a lease's work reads.
    ///
    /// # Errors
    /// The work names an entry that the data set does not have for its purpose: training text is
    /// never used for evaluation, nor the reverse.
    pub(crate) fn shards(&self, work: &Work) -> Result<Vec<Shard>, Refusal> {
        let (wanted, known) = match work {
            Work::Train { shards, .. } => (shards, &self.data.train),
            Work::Evaluate { shards, .. } => (shards, &self.data.held_out),
        };
        let find = |object: &ObjectRef| {
            let found = known.iter().find(|shard| shard.object == *object).copied();
            let digest = object.digest;
            found.ok_or_else(|| {
                Refusal::new(
                    Code::ManifestInvalid,
                    format!("the data set has no such shard {digest}"),
                )
            })
        };
        wanted.iter().map(find).collect()
    }
}

/// Checks that the layout is the model's, and that its chunks are those of the initial weights.
fn check_layout(
    layout: &Layout,
    model: &ModelConfig,
    spec: &RunSpec,
) -> Result<Vec<Chunk>, Refusal> {
    let mismatch = |detail: String| Refusal::new(Code::LayoutMismatch, detail);
    layout
        .validate()
        .map_err(|error| mismatch(error.to_string()))?;
    model.check_layout(layout)?;
    let chunks = layout
        .chunks(spec.model.chunk_elements)
        .map_err(|error| mismatch(error.to_string()))?;
    let sizes = chunks
        .iter()
        .map(|chunk| CodecKind::Fp32.encoded_bytes(chunk.elements));
    let cut = match &spec.model.initial {
        Chunks::Named(initial) => sizes.eq(initial.iter().map(|object| object.bytes.get())),
        // The chunks' lengths are compared when the list is read.
        Chunks::Listed(listed) => {
            chunks.len() == listed.chunks as usize && sizes.sum::<u64>() == listed.total.get()
        }
    };
    if !cut {
        return Err(mismatch(
            "the initial weights are not cut as the layout is".to_owned(),
        ));
    }
    Ok(chunks)
}
