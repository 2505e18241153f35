//! The object store, and the merge as a reference model: weights are a digest, and an outer step
//! gives the digest of the weights before it and of the merged inputs, in order. Any other set,
//! order or base gives other weights.

use std::collections::{BTreeMap, BTreeSet};

use schemas::data::DataManifest;
use schemas::lease::Weights;
use schemas::masking::Bytes32;
use schemas::run::RunSpec;
use schemas::snapshot::MergeInput;
use schemas::{Bytes, Chunks, Digest, Hasher, Listed, ObjectRef, Round, Weight};

/// The contents of the store. They survive every crash.
#[derive(Debug, Default)]
pub(crate) struct Store {
    /// Readable objects.
    pub(crate) blobs: BTreeSet<Digest>,
    /// Objects that were uploaded and not screened yet.
    pub(crate) incoming: BTreeSet<Digest>,
    /// Chunks that hold a NaN. Only the screen knows.
    pub(crate) poisoned: BTreeSet<Digest>,
    /// The contents of all lists that were ever made.
    lists: BTreeMap<Digest, Vec<ObjectRef>>,
    /// Checkpoints of the ledger.
    pub(crate) checkpoints: BTreeMap<Digest, Vec<u8>>,
    /// Objects that were written since a collection began.
    pub(crate) written: Option<BTreeSet<Digest>>,
    /// The secrets that workers drew for masks, seed and masking key, by the public masking key.
    pub(crate) drawn: BTreeMap<Bytes32, (Bytes32, Bytes32)>,
    /// The digests of all cohorts in the ledger.
    pub(crate) cohorts: BTreeSet<Digest>,
    /// Full snapshots by their manifest.
    snapshots: BTreeMap<Digest, Model>,
}

/// The global weights of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Model {
    pub(crate) round: Round,
    weights: Digest,
}

impl Store {
    pub(crate) fn new(spec: &RunSpec, data: &DataManifest) -> Self {
        let model = &spec.model;
        let shards = data
            .train
            .iter()
            .chain(&data.held_out)
            .map(|shard| shard.object);
        let named = [model.config, model.layout, spec.data];
        let all = named
            .into_iter()
            .chain(model.initial.objects().iter().copied())
            .chain(shards);
        Self {
            blobs: all.map(|object| object.digest).collect(),
            ..Self::default()
        }
    }

    /// Keeps the contents of the list of these chunks.
    pub(crate) fn note(&mut self, chunks: Vec<ObjectRef>) {
        self.lists.insert(Listed::of(&chunks).0.list.digest, chunks);
    }

    /// The chunks: those that are named, or those in a list that was made here.
    pub(crate) fn chunks<'a>(&'a self, chunks: &'a Chunks) -> &'a [ObjectRef] {
        match chunks {
            Chunks::Named(chunks) => chunks,
            Chunks::Listed(listed) => &self.lists[&listed.list.digest],
        }
    }

    /// Makes these chunks, and their list, readable.
    pub(crate) fn publish(&mut self, chunks: &Chunks) {
        let listed = self.chunks(chunks).iter();
        let all: Vec<Digest> = listed
            .chain(chunks.objects())
            .map(|object| object.digest)
            .collect();
        self.written
            .iter_mut()
            .for_each(|written| written.extend(&all));
        self.blobs.extend(all);
    }

    pub(crate) fn delete(&mut self, object: &Digest) {
        self.blobs.remove(object);
        self.snapshots.remove(object);
    }

    pub(crate) fn manifests(&self) -> impl Iterator<Item = &Digest> {
        self.snapshots.keys()
    }

    pub(crate) fn save(&mut self, model: Model, parent: Option<Digest>) -> ObjectRef {
        let text = format!("snapshot {} {} {parent:?}", model.round, model.weights);
        let manifest = ObjectRef::of(text.as_bytes());
        self.snapshots.insert(manifest.digest, model);
        self.written
            .iter_mut()
            .for_each(|written| _ = written.insert(manifest.digest));
        manifest
    }

    pub(crate) fn snapshot(&self, manifest: &ObjectRef) -> Option<Model> {
        self.snapshots.get(&manifest.digest).copied()
    }
}

impl Model {
    pub(crate) fn initial(spec: &RunSpec) -> Self {
        Self {
            round: Round(0),
            weights: spec.model.initial.digest(),
        }
    }

    /// The same weights under another number.
    pub(crate) fn under(self, round: Round) -> Self {
        Self { round, ..self }
    }

    /// One outer step.
    pub(crate) fn step(&self, inputs: &[MergeInput]) -> Self {
        let merged = inputs.iter().filter(|input| input.weight > Weight(0));
        let chunks = merged.map(|input| input.chunks.digest());
        Self {
            round: self.round.next(),
            weights: digest_of([self.weights].into_iter().chain(chunks)),
        }
    }

    /// The chunks of the copy that workers get.
    pub(crate) fn chunks(&self, spec: &RunSpec) -> Vec<ObjectRef> {
        let chunk = |n: usize| {
            let text = format!("weights {} {} {n}", self.round, self.weights);
            ObjectRef {
                digest: Digest::of(text.as_bytes()),
                bytes: Bytes(16),
            }
        };
        (0..spec.model.initial.count()).map(chunk).collect()
    }

    /// The copy that workers get.
    pub(crate) fn broadcast(&self, spec: &RunSpec) -> Weights {
        Weights {
            round: self.round,
            codec: spec.download,
            chunks: spec.name_chunks(self.chunks(spec)).0,
        }
    }
}

fn digest_of(digests: impl Iterator<Item = Digest>) -> Digest {
    let mut hasher = Hasher::default();
    digests.for_each(|digest| hasher.update(digest.as_bytes()));
    hasher.finish()
}
