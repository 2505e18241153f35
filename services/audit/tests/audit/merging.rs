//! Merges of a small model that are made again from objects. The record is written here as an
//! honest coordinator writes it, straight with `merge`; then one thing in it is changed.
//! More than 600 lines: one scene, and each thing that may be wrong in it.

use std::collections::BTreeMap;
use std::sync::Mutex;

use async_trait::async_trait;
use bytes::Bytes;
use diloco_audit::recompute::{
    Difference, Fault, NORM_TOLERANCE, Recorded, RoundOutcome, Saved, Segment,
};
use diloco_audit::{Recomputation, StreamSequence};
use merge::{
    Broadcast, ContributionChunk, Momentum, Rule, SeededRounding, broadcast_seed, merge_chunk_by,
};
use recompute::Objects;
use recompute::base::encode;
use schemas::layout::{Layout, TensorSpec};
use schemas::lease::Weights;
use schemas::run::{CodecKind, RunSpec};
use schemas::snapshot::{MergeInput, MergeRecord, Slot, SnapshotManifest};
use schemas::{
    Chunks, Code, Digest, Fragment, Listed, Message as _, ObjectRef, Refusal, Round, Tokens, V,
    Weight,
};

/// Elements of each chunk of the model.
const CHUNKS: [usize; 2] = [8, 5];
const ROUNDS: u64 = 3;
/// The version of which a full snapshot is saved.
const SAVED: u64 = 2;

/// Objects in memory.
#[derive(Default)]
struct Kept(Mutex<BTreeMap<Digest, Bytes>>);

impl Kept {
    fn put(&self, bytes: impl Into<Bytes>) -> ObjectRef {
        let bytes = bytes.into();
        let object = ObjectRef::of(&bytes);
        self.0.lock().unwrap().insert(object.digest, bytes);
        object
    }

    fn remove(&self, object: ObjectRef) {
        let gone = self.0.lock().unwrap().remove(&object.digest);
        assert!(gone.is_some(), "it was there");
    }

    /// Swaps an object's bytes for others under its name.
    fn alter(&self, object: ObjectRef) {
        let mut kept = self.0.lock().unwrap();
        let bytes = kept.get_mut(&object.digest).expect("it was there");
        let mut other = bytes.to_vec();
        other[0] ^= 1;
        *bytes = other.into();
    }
}

#[async_trait]
impl Objects for Kept {
    async fn fetch(&self, object: ObjectRef) -> Result<Bytes, Refusal> {
        let found = self.0.lock().unwrap().get(&object.digest).cloned();
        let name = object.digest.to_string();
        let bytes = found.ok_or_else(|| Refusal::new(Code::ObjectMissing, name.clone()))?;
        match ObjectRef::of(&bytes) == object {
            true => Ok(bytes),
            false => Err(Refusal::new(Code::ObjectMismatch, name)),
        }
    }
}

/// A run that was recorded honestly, in two segments: to the snapshot, and from it.
struct Scene {
    objects: Kept,
    spec: RunSpec,
    segments: Vec<Segment>,
}

/// Numbers that differ by seed.
fn numbers(seed: usize, count: usize) -> Vec<f32> {
    let number = |i: usize| ((i * 7 + seed * 13) % 101) as f32 * 1e-2 - 0.5;
    (0..count).map(number).collect()
}

/// Names chunks as the run does, and stores their list if it has lists.
fn name(objects: &Kept, listed: bool, chunks: Vec<ObjectRef>) -> Chunks {
    if listed {
        let (listed, bytes) = Listed::of(&chunks);
        objects.put(bytes);
        Chunks::Listed(listed)
    } else {
        Chunks::Named(chunks)
    }
}

impl Scene {
    fn new(listed: bool) -> Self {
        Self::of(listed, kit::run_spec())
    }

    fn of(listed: bool, settings: kit::RunSpecBuilder) -> Self {
        let objects = Kept::default();
        let layout = Layout {
            v: V,
            tensors: vec![TensorSpec {
                name: "weights".to_owned(),
                shape: vec![CHUNKS.iter().sum::<usize>() as u64],
                fragment: 0,
            }],
        };
        let initial = CHUNKS.map(|elements| numbers(elements, elements));
        let chunks = initial.iter().map(|values| objects.put(encode(values)));
        let initial_chunks = name(&objects, listed, chunks.collect());
        let spec = settings
            .layout(objects.put(layout.encode()))
            .chunk_elements(CHUNKS[0] as u64)
            .initial(initial_chunks)
            .rounds(ROUNDS)
            .build();
        let mut coordinator = Honest {
            objects: &objects,
            spec: &spec,
            listed,
            params: initial.to_vec(),
            momenta: CHUNKS.map(|elements| vec![0.0; elements]).to_vec(),
        };
        let mut segments = Vec::new();
        let mut segment = Segment {
            base: None,
            restored: None,
            merges: Vec::new(),
            end: None,
        };
        for round in (0..ROUNDS).map(Round) {
            segment.merges.push(coordinator.merge(round));
            if round.next() == Round(SAVED) {
                let broadcast = &segment.merges.last().unwrap().broadcast;
                let manifest = coordinator.save(round.next(), broadcast.clone());
                let saved = Saved {
                    round: round.next(),
                    manifest,
                };
                segment.end = Some(saved);
                let next = Segment {
                    base: Some(saved),
                    restored: None,
                    merges: Vec::new(),
                    end: None,
                };
                segments.push(std::mem::replace(&mut segment, next));
            }
        }
        segments.push(segment);
        Self {
            objects,
            spec,
            segments,
        }
    }

    /// The faults by round.
    async fn faults(&self) -> Vec<Option<Fault>> {
        let recomputation = Recomputation::new(&self.objects, self.spec.clone(), &|| ()).await;
        let mut outcomes: Vec<RoundOutcome> = Vec::new();
        for segment in &self.segments {
            outcomes.extend(recomputation.segment(segment).await);
        }
        let rounds = outcomes.iter().map(|outcome| outcome.round);
        assert!(rounds.eq((0..ROUNDS).map(Round)), "an outcome a round");
        outcomes.into_iter().map(|outcome| outcome.fault).collect()
    }

    fn merge(&mut self, round: usize) -> &mut Recorded {
        let mut merges = self.segments.iter_mut().flat_map(|of| &mut of.merges);
        merges.nth(round).expect("a round of the run")
    }

    /// A chunk of a contribution.
    fn input(&mut self, round: usize, unit: usize, chunk: usize) -> ObjectRef {
        named(&self.merge(round).record.inputs[unit].chunks)[chunk]
    }
}

fn named(chunks: &Chunks) -> &[ObjectRef] {
    match chunks {
        Chunks::Named(chunks) => chunks,
        Chunks::Listed(_) => panic!("a run that names its chunks"),
    }
}

struct Honest<'a> {
    objects: &'a Kept,
    spec: &'a RunSpec,
    listed: bool,
    params: Vec<Vec<f32>>,
    momenta: Vec<Vec<f32>>,
}

impl Honest<'_> {
    fn merge(&mut self, round: Round) -> Recorded {
        let (mut inputs, mut norms) = (Vec::new(), Vec::new());
        let mut bodies: Vec<Vec<Vec<u8>>> = Vec::new();
        let combination = self.spec.combination;
        for unit in 0..2_u32 {
            let seed = 10 + round.get() as usize * 2 + unit as usize;
            let encoded: Vec<Vec<u8>> = CHUNKS.iter().map(|e| bf16(&numbers(seed, *e))).collect();
            let chunks = encoded.iter().map(|body| self.objects.put(body.clone()));
            let chunks = name(self.objects, self.listed, chunks.collect());
            let norm = combination.needs_norms().then(|| norm(&encoded));
            norms.extend(norm);
            inputs.push(MergeInput {
                lease: kit::lease(kit::train(round.get(), unit), 1),
                worker: kit::worker(unit),
                tokens: Tokens(32),
                weight: Weight(32),
                norm,
                cosine: None,
                chunks,
            });
            bodies.push(encoded);
        }
        let (mut start, mut sum, mut published) = (0, 0.0, Vec::new());
        for (index, elements) in CHUNKS.into_iter().enumerate() {
            let parts: Vec<ContributionChunk<'_>> = bodies
                .iter()
                .map(|body| ContributionChunk {
                    weight: 32,
                    codec: CodecKind::Bf16,
                    bytes: &body[index],
                })
                .collect();
            let mut out = vec![0; 2 * elements];
            let broadcast = Broadcast {
                codec: CodecKind::Bf16,
                rounding: SeededRounding {
                    rule: self.spec.download.rounding,
                    seed: broadcast_seed(self.spec.seed, round),
                    first_element: start,
                },
                out: &mut out,
            };
            let momentum = match round {
                Round(0) => Momentum::First(&mut self.momenta[index]),
                _ => Momentum::Running(&mut self.momenta[index]),
            };
            let rule = Rule {
                combination,
                norms: &norms,
                tensors: &[],
            };
            let params = &mut self.params[index];
            let (outer, broadcast) = (self.spec.outer, Some(broadcast));
            let merged = merge_chunk_by(&rule, &parts, outer, params, momentum, broadcast).unwrap();
            assert!(merged.is_finite());
            sum += merged.sum_of_squares;
            published.push(self.objects.put(out));
            start += elements as u64;
        }
        let broadcast = Weights {
            round: round.next(),
            codec: self.spec.download,
            chunks: name(self.objects, self.listed, published),
        };
        Recorded {
            at: StreamSequence(round.get() + 1),
            record: MergeRecord {
                round,
                fragment: Fragment::FIRST,
                inputs,
                broadcast: broadcast.digest(),
                unmasking: None,
            },
            broadcast,
            norm: sum.sqrt(),
            tokens: Tokens(64),
            given_up: None,
        }
    }

    fn save(&self, round: Round, broadcast: Weights) -> ObjectRef {
        let vector = |vectors: &[Vec<f32>]| {
            let chunks = vectors
                .iter()
                .map(|values| self.objects.put(encode(values)));
            name(self.objects, self.listed, chunks.collect())
        };
        let manifest = SnapshotManifest {
            v: V,
            run: self.spec.run.clone(),
            spec: self.spec.to_object().1,
            round,
            config: self.spec.model.config,
            layout: self.spec.model.layout,
            data: self.spec.data,
            weights: vector(&self.params),
            slots: BTreeMap::from([(Slot::Momentum, vector(&self.momenta))]),
            broadcast,
            parent: None,
            merges: Vec::new(),
        };
        self.objects.put(serde_json::to_vec(&manifest).unwrap())
    }
}

/// The norm of a contribution, chunk by chunk in bf16.
fn norm(encoded: &[Vec<u8>]) -> f32 {
    let squares = encoded.iter().map(|body| {
        let found = merge::screen(CodecKind::Bf16, body, body.len() / 2);
        found.unwrap().sum_of_squares
    });
    squares.sum::<f64>().sqrt() as f32
}

fn bf16(values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; 2 * values.len()];
    let rounding = SeededRounding::NEAREST;
    merge::codec::encode(CodecKind::Bf16, values, rounding, &mut bytes).unwrap();
    bytes
}

fn follows_on(fault: &Option<Fault>, round: u64) -> bool {
    let text = format!("it follows on round {round}");
    matches!(fault, Some(Fault::Unproven(detail)) if detail.starts_with(&text))
}

#[tokio::test]
async fn tl_04_an_honest_record_is_verified_with_its_snapshots() {
    for listed in [false, true] {
        assert_eq!(Scene::new(listed).faults().await, [None, None, None]);
    }
}

#[tokio::test]
async fn tl_04_a_changed_digest_of_weights_is_named_with_its_chunk() {
    let mut scene = Scene::new(false);
    let other = scene.objects.put(bf16(&numbers(99, CHUNKS[1])));
    let broadcast = &mut scene.merge(0).broadcast;
    let mut chunks = named(&broadcast.chunks).to_vec();
    let honest = std::mem::replace(&mut chunks[1], other);
    broadcast.chunks = chunks.into();
    let faults = scene.faults().await;
    let expected = Difference::Chunk {
        index: 1,
        expected: other,
        got: honest,
    };
    assert_eq!(faults[0], Some(Fault::Differs(expected)));
    assert!(follows_on(&faults[1], 0), "{:?}", faults[1]);
    assert_eq!(faults[2], None, "its snapshot is whole");
}

#[tokio::test]
async fn tl_04_weights_whose_list_is_gone_are_compared_as_a_whole() {
    let mut scene = Scene::new(true);
    let list = scene.merge(1).broadcast.chunks.listed().unwrap().list;
    scene.objects.remove(list);
    let faults = scene.faults().await;
    let gone = matches!(&faults[1], Some(Fault::Unproven(text)) if text.contains("list"));
    assert!(
        gone && faults[0].is_none() && faults[2].is_none(),
        "{faults:?}"
    );
    let (other, _) = Listed::of(&[kit::sized("a", 16), kit::sized("b", 10)]);
    scene.merge(1).broadcast.chunks = Chunks::Listed(other);
    let faults = scene.faults().await;
    let expected = Difference::Weights {
        expected: other.list.digest,
        got: list.digest,
    };
    assert_eq!(faults[1], Some(Fault::Differs(expected)));
}

#[tokio::test]
async fn tl_04_an_input_that_was_left_out_or_weighed_otherwise_is_found() {
    let mut scene = Scene::new(false);
    scene.merge(2).record.inputs.pop();
    scene.merge(2).tokens = Tokens(32);
    let changed = scene.faults().await;
    let mut scene = Scene::new(false);
    scene.merge(2).record.inputs[1].weight = Weight(33);
    for faults in [changed, scene.faults().await] {
        assert_eq!(faults[..2], [None, None]);
        let first = matches!(
            faults[2],
            Some(Fault::Differs(Difference::Chunk { index: 0, .. }))
        );
        assert!(first, "{:?}", faults[2]);
    }
}

/// The cosines that decide who is left out come from the contributions, whatever the ledger says.
#[tokio::test]
async fn tl_04_a_false_cosine_is_found_and_a_true_one_is_not() {
    let compared = schemas::run::Comparison::of_norms(4.0);
    let mut scene = Scene::of(false, kit::run_spec().comparison(compared));
    let bodies = [0, 1].map(|unit| {
        let seed = 10 + 2 + unit;
        CHUNKS.map(|elements| bf16(&numbers(seed, elements)))
    });
    let norms = bodies.clone().map(|body| norm(&body));
    let mut sums = merge::Directions::default();
    for (index, elements) in CHUNKS.into_iter().enumerate() {
        let parts = [0, 1].map(|unit: usize| merge::Voice {
            contributions: vec![&bodies[unit][index][..]],
            scale: 1.0 / f64::from(norms[unit]),
            votes: true,
        });
        let found = merge::directions(CodecKind::Bf16, &parts, elements);
        sums.add(&found.expect("they fit"));
    }
    let cosines = sums.cosines();
    assert!(
        cosines.iter().all(|cosine| cosine.abs() < 0.999),
        "{cosines:?}"
    );
    let inputs = &mut scene.merge(1).record.inputs;
    for (input, (norm, cosine)) in inputs.iter_mut().zip(norms.into_iter().zip(&cosines)) {
        (input.norm, input.cosine) = (Some(norm), Some(*cosine));
    }
    assert_eq!(scene.faults().await, [None, None, None]);
    scene.merge(1).record.inputs[1].cosine = Some(cosines[1].next_up());
    let faults = scene.faults().await;
    let found = matches!(faults[1], Some(Fault::Differs(Difference::Cosine { .. })));
    assert!(found, "{:?}", faults[1]);
    assert_eq!(
        (&faults[0], &faults[2]),
        (&None, &None),
        "no other round is spoilt"
    );
}

#[tokio::test]
async fn tl_04_another_outer_step_than_the_settings_say_is_found() {
    let mut scene = Scene::new(false);
    scene.spec.outer = schemas::run::OuterOptimizer::Nesterov {
        learning_rate: 0.7,
        momentum: 0.8,
    };
    let faults = scene.faults().await;
    let differs = matches!(
        faults[0],
        Some(Fault::Differs(Difference::Chunk { index: 0, .. }))
    );
    assert!(differs, "{:?}", faults[0]);
    // The snapshot names the settings that it was made with.
    assert_eq!(
        faults[2].as_ref().map(Fault::code),
        Some(Code::SnapshotDiverged)
    );
}

#[tokio::test]
async fn tl_04_figures_that_do_not_agree_are_found_and_spoil_no_later_round() {
    let mut scene = Scene::new(false);
    scene.merge(0).norm *= 1.0 + 3.0 * NORM_TOLERANCE;
    scene.merge(1).tokens = Tokens(63);
    scene.merge(2).norm *= 1.0 + 0.3 * NORM_TOLERANCE;
    let faults = scene.faults().await;
    let norm = matches!(faults[0], Some(Fault::Differs(Difference::Norm { .. })));
    assert!(norm, "{:?}", faults[0]);
    let tokens = Difference::Tokens {
        expected: Tokens(63),
        got: Tokens(64),
    };
    assert_eq!(faults[1], Some(Fault::Differs(tokens)));
    assert_eq!(faults[2], None, "another order of the sum");
}

#[tokio::test]
async fn tl_04_a_rule_of_combination_is_followed_and_the_norms_that_it_uses_are_checked() {
    let combination = schemas::run::Combination::Clipped { norm_ratio: 1.0 };
    let mut scene = Scene::of(false, kit::run_spec().combination(combination));
    assert_eq!(scene.faults().await, [None, None, None]);
    // With another norm the merge comes out otherwise, so the record must lie twice.
    let input = &mut scene.merge(2).record.inputs[1];
    input.norm = input.norm.map(|norm| norm * 1e6);
    let found = scene.faults().await;
    assert!(matches!(found[2], Some(Fault::Differs(_))), "{found:?}");
    // A rule that clips nothing gives the same weights with a norm that is a little too small.
    let generous = schemas::run::Combination::Clipped { norm_ratio: 1e6 };
    let mut scene = Scene::of(false, kit::run_spec().combination(generous));
    let input = &mut scene.merge(2).record.inputs[1];
    input.norm = input.norm.map(|norm| norm * 0.999);
    let found = scene.faults().await;
    let named = matches!(
        found[2],
        Some(Fault::Differs(Difference::InputNorm { lease, .. })) if lease.unit.index.get() == 1
    );
    assert!(named, "{found:?}");
}

#[tokio::test]
async fn tl_04_a_removed_input_leaves_no_verdict_and_an_altered_one_is_evidence() {
    let mut scene = Scene::new(false);
    let input = scene.input(0, 1, 1);
    scene.objects.remove(input);
    let faults = scene.faults().await;
    assert_eq!(faults[0], Some(Fault::Unproven(input.digest.to_string())));
    assert!(follows_on(&faults[1], 0), "{:?}", faults[1]);
    assert_eq!(faults[2], None, "it needs nothing from before the snapshot");
    let codes = faults[..2].iter().flatten().map(Fault::code);
    assert!(codes.eq([Code::RoundUnproven; 2]));

    let mut scene = Scene::new(false);
    let input = scene.input(2, 0, 0);
    scene.objects.alter(input);
    let faults = scene.faults().await;
    assert_eq!(faults[..2], [None, None]);
    assert_eq!(faults[2], Some(Fault::Altered(input.digest.to_string())));
}

#[tokio::test]
async fn tl_04_published_weights_that_are_gone_or_altered_are_not_verified() {
    let mut scene = Scene::new(false);
    let [gone, altered] = [0, 1].map(|round| named(&scene.merge(round).broadcast.chunks)[0]);
    scene.objects.remove(gone);
    scene.objects.alter(altered);
    let faults = scene.faults().await;
    let missing = matches!(&faults[0], Some(Fault::Unproven(text)) if text.contains(&gone.digest.to_string()));
    assert!(missing, "{:?}", faults[0]);
    let found = Some(Fault::Altered(altered.digest.to_string()));
    assert_eq!(faults[1..], [found, None], "no other round needs them");
    // Evidence comes before what is only missing.
    let mut scene = Scene::new(false);
    let chunks = named(&scene.merge(0).broadcast.chunks).to_vec();
    scene.objects.remove(chunks[0]);
    scene.objects.alter(chunks[1]);
    let found = Some(Fault::Altered(chunks[1].digest.to_string()));
    assert_eq!(scene.faults().await, [found, None, None]);
}

#[tokio::test]
async fn tl_04_a_snapshot_of_which_a_chunk_is_gone_leaves_its_round_without_a_verdict() {
    let scene = Scene::new(false);
    let saved = scene.segments[0].end.unwrap();
    let bytes = scene.objects.fetch(saved.manifest).await.unwrap();
    let manifest: SnapshotManifest = serde_json::from_slice(&bytes).unwrap();
    let gone = named(&manifest.slots.values().next().unwrap().clone())[0];
    scene.objects.remove(gone);
    let faults = scene.faults().await;
    assert_eq!(
        faults[1].as_ref().map(Fault::code),
        Some(Code::RoundUnproven)
    );
}

#[tokio::test]
async fn tl_04_a_snapshot_of_other_weights_is_found_though_its_successors_agree_with_it() {
    let mut scene = Scene::new(false);
    let saved = scene.segments[0].end.unwrap();
    let bytes = scene.objects.fetch(saved.manifest).await.unwrap();
    let mut manifest: SnapshotManifest = serde_json::from_slice(&bytes).unwrap();
    let mut chunks = named(&manifest.weights).to_vec();
    chunks[1] = scene.objects.put(encode(&numbers(5, CHUNKS[1])));
    manifest.weights = chunks.into();
    let manifest = scene.objects.put(serde_json::to_vec(&manifest).unwrap());
    let saved = Some(Saved { manifest, ..saved });
    (scene.segments[0].end, scene.segments[1].base) = (saved, saved);
    let faults = scene.faults().await;
    assert_eq!(faults[0], None);
    let fault = faults[1].as_ref().expect("it is found");
    assert_eq!(fault.code(), Code::SnapshotDiverged);
    let text = fault.to_string();
    assert!(
        text.starts_with("snapshot 2: chunk 1 of its weights"),
        "{text}"
    );
}

#[tokio::test]
async fn tl_04_momentum_that_a_snapshot_leaves_out_is_found() {
    let mut scene = Scene::new(false);
    let saved = scene.segments[0].end.unwrap();
    let bytes = scene.objects.fetch(saved.manifest).await.unwrap();
    let mut manifest: SnapshotManifest = serde_json::from_slice(&bytes).unwrap();
    manifest.slots.clear();
    let manifest = scene.objects.put(serde_json::to_vec(&manifest).unwrap());
    scene.segments[0].end = Some(Saved { manifest, ..saved });
    let faults = scene.faults().await;
    assert_eq!(
        faults[1].as_ref().map(Fault::code),
        Some(Code::SnapshotDiverged)
    );
}

#[tokio::test]
async fn tl_04_without_the_layout_no_round_has_a_verdict() {
    let scene = Scene::new(false);
    scene.objects.remove(scene.spec.model.layout);
    for fault in scene.faults().await {
        assert_eq!(fault.map(|fault| fault.code()), Some(Code::RoundUnproven));
    }
}

#[tokio::test]
async fn tl_04_a_contribution_that_fits_no_layout_is_evidence() {
    let mut scene = Scene::new(false);
    let short = scene.objects.put(bf16(&numbers(3, CHUNKS[0] - 1)));
    let input = &mut scene.merge(0).record.inputs[0];
    let mut chunks = named(&input.chunks).to_vec();
    chunks[0] = short;
    input.chunks = chunks.into();
    let faults = scene.faults().await;
    let unmergeable = matches!(
        faults[0],
        Some(Fault::Differs(Difference::Unmergeable { .. }))
    );
    assert!(unmergeable, "{:?}", faults[0]);
}
