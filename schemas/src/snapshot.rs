//! A full snapshot: fp32 weights and outer state by reference, and its parents. Stored as JSON and
//! hashed as stored; its digest fixes the run's whole history.

use serde::{Deserialize, Serialize};

use crate::lease::{LeaseRef, Weights};
use crate::message::V;
use crate::{Digest, ObjectRef, Round, RunId, Tokens, WorkerId};

/// The manifest of a snapshot; written after everything it names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotManifest {
    /// Version.
    pub v: V<1>,
    /// The run.
    pub run: RunId,
    /// The digest of its settings.
    pub spec: Digest,
    /// The snapshot's round.
    pub round: Round,
    /// The model's `config.json`.
    pub config: ObjectRef,
    /// The layout.
    pub layout: ObjectRef,
    /// The data set it was trained on, which names the tokenizer.
    pub data: ObjectRef,
    /// fp32 weights, one object per chunk.
    pub weights: Vec<ObjectRef>,
    /// Outer momentum, fp32, one object per chunk; empty where the optimizer has none or before the
    /// first step.
    pub momentum: Vec<ObjectRef>,
    /// The copy that workers received.
    pub broadcast: Weights,
    /// The full snapshot before it; none for the first.
    pub parent: Option<Digest>,
    /// The merges since the parent, oldest first: with the parent they give these weights again,
    /// bit for bit.
    pub merges: Vec<MergeRecord>,
}

/// One outer step: what was merged, in the order in which it was added.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MergeRecord {
    /// The round that it closed.
    pub round: Round,
    /// The inputs, ascending by unit.
    pub inputs: Vec<MergeInput>,
    /// The digest over the chunks of the weights it published ([`Weights::digest`]).
    pub broadcast: Digest,
}

/// One contribution in a merge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MergeInput {
    /// The unit's accepted lease.
    pub lease: LeaseRef,
    /// Who made it.
    pub worker: WorkerId,
    /// Its weight in the mean.
    pub tokens: Tokens,
    /// Its chunks.
    pub chunks: Vec<ObjectRef>,
}

impl Weights {
    /// One digest for all chunks: the sha256 over the chunks' digests, in order.
    pub fn digest(&self) -> Digest {
        let mut hasher = crate::Hasher::default();
        for chunk in &self.chunks {
            hasher.update(chunk.digest.as_bytes());
        }
        hasher.finish()
    }
}
