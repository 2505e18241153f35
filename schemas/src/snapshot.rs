//! A full snapshot: fp32 weights and outer state by reference, and its parents. Stored as JSON and
//! hashed as stored; its digest fixes the run's whole history.

use serde::{Deserialize, Serialize};

use crate::lease::{LeaseRef, Weights};
use crate::message::V;
use crate::{Digest, Fragment, ObjectRef, Round, RunId, Tokens, Weight, WorkerId};

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
    /// The fragment that it stepped.
    #[serde(default, skip_serializing_if = "Fragment::is_first")]
    pub fragment: Fragment,
    /// The inputs, ascending by unit.
    pub inputs: Vec<MergeInput>,
    /// The digest over the chunks of the weights it published ([`Weights::digest`]).
    pub broadcast: Digest,
}

/// One contribution in a merge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "StoredInput", into = "StoredInput")]
pub struct MergeInput {
    /// The unit's accepted lease.
    pub lease: LeaseRef,
    /// Its maker.
    pub worker: WorkerId,
    /// Tokens that it was trained on.
    pub tokens: Tokens,
    /// How much it counts in the mean.
    pub weight: Weight,
    /// Its chunks.
    pub chunks: Vec<ObjectRef>,
}

/// A merge input as it is stored. The weight is written where it is not that of the tokens, so that
/// snapshots of the time when it always was read back, and keep their digests.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredInput {
    lease: LeaseRef,
    worker: WorkerId,
    tokens: Tokens,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weight: Option<Weight>,
    chunks: Vec<ObjectRef>,
}

impl From<StoredInput> for MergeInput {
    fn from(stored: StoredInput) -> Self {
        let StoredInput {
            lease,
            worker,
            tokens,
            weight,
            chunks,
        } = stored;
        Self {
            lease,
            worker,
            tokens,
            weight: weight.unwrap_or(Weight::of_tokens(tokens)),
            chunks,
        }
    }
}

impl From<MergeInput> for StoredInput {
    fn from(input: MergeInput) -> Self {
        let MergeInput {
            lease,
            worker,
            tokens,
            weight,
            chunks,
        } = input;
        Self {
            lease,
            worker,
            tokens,
            weight: (weight != Weight::of_tokens(tokens)).then_some(weight),
            chunks,
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::{UnitId, UnitKind};
    use crate::{Epoch, UnitIndex};

    #[test]
    fn a_weight_is_stored_where_it_is_not_that_of_the_tokens() {
        let unit = UnitId {
            round: Round(1),
            kind: UnitKind::Train,
            index: UnitIndex(0),
        };
        let input = |weight| MergeInput {
            lease: LeaseRef {
                unit,
                epoch: Epoch(1),
            },
            worker: format!("U{}", "A".repeat(55)).parse().unwrap(),
            tokens: Tokens(32),
            weight: Weight(weight),
            chunks: Vec::new(),
        };
        for (weight, stored) in [(32, false), (8, true), (0, true)] {
            let bytes = rmp_serde::to_vec_named(&input(weight)).unwrap();
            let name = b"weight";
            assert_eq!(bytes.windows(name.len()).any(|part| part == name), stored);
            let again: MergeInput = rmp_serde::from_slice(&bytes).unwrap();
            assert_eq!(again, input(weight));
        }
    }
}
