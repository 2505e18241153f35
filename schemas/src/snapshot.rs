//! A full snapshot: fp32 weights and outer state by reference, and its parents. Stored as JSON and
//! hashed as stored; its digest fixes the run's whole history.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::lease::{LeaseRef, Weights};
use crate::masking::Unmasking;
use crate::message::V;
use crate::{Chunks, Digest, Fragment, ObjectRef, Round, RunId, Tokens, Weight, WorkerId};

/// A vector of outer state, beside the parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Slot {
    /// The outer optimizer's momentum.
    Momentum,
}

/// The manifest of a snapshot, which is written after everything that it names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "StoredManifest")]
pub struct SnapshotManifest {
    /// Version.
    pub v: V<3>,
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
    /// fp32 weights.
    pub weights: Chunks,
    /// Outer state by slot, fp32. A slot is missing if the optimizer does not use it, or before its
    /// first step.
    pub slots: BTreeMap<Slot, Chunks>,
    /// The copy that workers received.
    pub broadcast: Weights,
    /// The full snapshot before it; none for the first.
    pub parent: Option<Digest>,
    /// The merges since the parent, oldest first: together with the parent they give these weights
    /// again, bit for bit.
    pub merges: Vec<MergeRecord>,
}

/// A manifest of any version that can be read. Version 1 had one vector of outer state, and before
/// version 3 all chunks were named.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredManifest {
    v: u64,
    run: RunId,
    spec: Digest,
    round: Round,
    config: ObjectRef,
    layout: ObjectRef,
    data: ObjectRef,
    weights: Chunks,
    momentum: Option<Vec<ObjectRef>>,
    slots: Option<BTreeMap<Slot, Chunks>>,
    broadcast: Weights,
    parent: Option<Digest>,
    merges: Vec<MergeRecord>,
}

impl TryFrom<StoredManifest> for SnapshotManifest {
    type Error = String;

    fn try_from(stored: StoredManifest) -> Result<Self, String> {
        let slots = match (stored.v, stored.momentum, stored.slots) {
            (1, Some(momentum), None) if momentum.is_empty() => BTreeMap::new(),
            (1, Some(momentum), None) => {
                BTreeMap::from([(Slot::Momentum, Chunks::Named(momentum))])
            }
            (2 | 3, None, Some(slots)) => slots,
            (1..=3, ..) => return Err(format!("outer state is not as in version {}", stored.v)),
            (other, ..) => {
                return Err(format!("unknown version {other}, this build reads 1 to 3"));
            }
        };
        let manifest = Self {
            v: V,
            run: stored.run,
            spec: stored.spec,
            round: stored.round,
            config: stored.config,
            layout: stored.layout,
            data: stored.data,
            weights: stored.weights,
            slots,
            broadcast: stored.broadcast,
            parent: stored.parent,
            merges: stored.merges,
        };
        if stored.v < 3 && manifest.chunks().any(|chunks| chunks.listed().is_some()) {
            return Err(format!("version {} knew no lists of chunks", stored.v));
        }
        Ok(manifest)
    }
}

impl SnapshotManifest {
    /// All parts that consist of chunks.
    fn chunks(&self) -> impl Iterator<Item = &Chunks> {
        let inputs = self.merges.iter().flat_map(|merge| &merge.inputs);
        [&self.weights, &self.broadcast.chunks]
            .into_iter()
            .chain(self.slots.values())
            .chain(inputs.map(|input| &input.chunks))
    }
}

/// One outer step: the inputs of its merge, in the order in which they were added.
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
    /// What takes the masks from the sum of the inputs, in a run with secure aggregation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unmasking: Option<Unmasking>,
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
    /// Its weight in the mean.
    pub weight: Weight,
    /// Its Euclidean norm, in a run whose rule of combination needs it. As `f32`, it reads back
    /// from JSON as it was.
    pub norm: Option<f32>,
    /// The cosine of its direction to the mean direction of the others in its round, in a run that
    /// compares directions; none if it was not compared.
    pub cosine: Option<f32>,
    /// Its chunks.
    pub chunks: Chunks,
}

/// A merge input as it is stored. Its weight is written only if it differs from the tokens, and its
/// norm and cosine only if there are any, so that older snapshots read back and keep their digests.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredInput {
    lease: LeaseRef,
    worker: WorkerId,
    tokens: Tokens,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weight: Option<Weight>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    norm: Option<f32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cosine: Option<f32>,
    chunks: Chunks,
}

impl From<StoredInput> for MergeInput {
    fn from(stored: StoredInput) -> Self {
        let StoredInput {
            lease,
            worker,
            tokens,
            weight,
            norm,
            cosine,
            chunks,
        } = stored;
        Self {
            lease,
            worker,
            tokens,
            weight: weight.unwrap_or(Weight::of_tokens(tokens)),
            norm,
            cosine,
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
            norm,
            cosine,
            chunks,
        } = input;
        Self {
            lease,
            worker,
            tokens,
            weight: (weight != Weight::of_tokens(tokens)).then_some(weight),
            norm,
            cosine,
            chunks,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::{UnitId, UnitKind};
    use crate::{Epoch, UnitIndex};

    /// A manifest of an earlier release, whose snapshots are still in stores.
    fn first(momentum: &str) -> String {
        let object = |name: &str| serde_json::to_string(&ObjectRef::of(name.as_bytes()));
        let object = |name: &str| object(name).expect("an object is JSON");
        let digest = serde_json::to_string(&Digest::of(b"spec")).expect("a digest is JSON");
        let one = object("one");
        format!(
            r#"{{"v":1,"run":"demo","spec":{digest},"round":3,"config":{one},"layout":{one},
            "data":{one},"weights":[{one}],"momentum":[{momentum}],"broadcast":{{"round":3,
            "codec":{{"kind":"bf16","rounding":"nearest"}},"chunks":[{one}]}},"parent":null,
            "merges":[]}}"#
        )
    }

    fn read(json: &[u8]) -> Result<SnapshotManifest, serde_json::Error> {
        serde_json::from_slice(json)
    }

    #[test]
    fn a_manifest_of_the_version_before_is_read_with_its_momentum_as_a_slot() {
        let one = ObjectRef::of(b"one");
        let text = serde_json::to_string(&one).expect("an object is JSON");
        let with = read(first(&text).as_bytes()).expect("it reads");
        let momentum = Chunks::Named(vec![one]);
        assert_eq!(with.slots, BTreeMap::from([(Slot::Momentum, momentum)]));
        let without = read(first("").as_bytes()).expect("it reads");
        assert_eq!((without.slots.len(), without.round), (0, Round(3)));
        // A written manifest has the present version, and reads back.
        let json = serde_json::to_vec(&with).expect("a manifest is JSON");
        assert!(json.starts_with(br#"{"v":3,"#));
        assert_eq!(read(&json).expect("it reads"), with);
        let text = String::from_utf8(json).expect("text");
        // Version 2 named its chunks in the same form.
        let second = text.replacen("3", "2", 1);
        assert_eq!(read(second.as_bytes()).expect("it reads"), with);
        let later = text.replacen("3", "4", 1);
        let error = read(later.as_bytes()).expect_err("a later one");
        assert!(error.to_string().contains("unknown version 4"), "{error}");
    }

    #[test]
    fn lists_of_chunks_are_of_the_newest_version_only() {
        let one = ObjectRef::of(b"one");
        let text = serde_json::to_string(&one).expect("an object is JSON");
        let mut manifest = read(first(&text).as_bytes()).expect("it reads");
        (manifest.broadcast.chunks, _) = Chunks::listing(&[one]);
        let json = serde_json::to_string(&manifest).expect("a manifest is JSON");
        assert_eq!(read(json.as_bytes()).expect("it reads"), manifest);
        let second = json.replacen("3", "2", 1);
        let error = read(second.as_bytes()).expect_err("a list in an older one");
        assert!(error.to_string().contains("knew no lists"), "{error}");
    }

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
            norm: None,
            cosine: None,
            chunks: Chunks::Named(Vec::new()),
        };
        for (weight, stored) in [(32, false), (8, true), (0, true)] {
            let bytes = rmp_serde::to_vec_named(&input(weight)).unwrap();
            let name = b"weight";
            assert_eq!(bytes.windows(name.len()).any(|part| part == name), stored);
            let again: MergeInput = rmp_serde::from_slice(&bytes).unwrap();
            assert_eq!(again, input(weight));
        }
    }

    #[test]
    fn a_norm_reads_back_from_both_forms_as_it_was() {
        let unit = UnitId {
            round: Round(1),
            kind: UnitKind::Train,
            index: UnitIndex(0),
        };
        let mut input = MergeInput {
            lease: LeaseRef {
                unit,
                epoch: Epoch(1),
            },
            worker: format!("U{}", "A".repeat(55)).parse().unwrap(),
            tokens: Tokens(32),
            weight: Weight(32),
            norm: None,
            cosine: None,
            chunks: Chunks::Named(Vec::new()),
        };
        for bits in (0..0x7f80_0000_u32).step_by(7_919_113) {
            input.norm = Some(f32::from_bits(bits));
            let json = serde_json::to_vec(&input).unwrap();
            let read: MergeInput = serde_json::from_slice(&json).unwrap();
            assert_eq!(read.norm.map(f32::to_bits), Some(bits));
            let packed = rmp_serde::to_vec_named(&input).unwrap();
            let read: MergeInput = rmp_serde::from_slice(&packed).unwrap();
            assert_eq!(read, input);
        }
    }
}
