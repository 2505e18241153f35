//! One hostile worker of four, on real text: the held-out loss that is left under the default
//! screening and under each rule of combination. All in one process: contributions are made,
//! judged, merged and broadcast as a run does it, without bus or store.
//!
//! `SECURITY.md` has a table of all attacks and rules, which was measured with this code.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "clippy does not take helpers of tests for tests; the table is for a person to read"
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

use data::{HeldOut, ImportOptions, Imported, Source, TokenShard, UnitSampler, import};
use merge::{ContributionChunk, Momentum, Rule, SeededRounding, codec, tensor_pieces};
use model::{LlamaConfig, ModelConfig};
use schemas::data::Shard;
use schemas::run::{
    CodecKind, Combination, Comparison, InnerOptimizer, OuterOptimizer, Precision, TrainerKind,
};
use schemas::{Bytes, Digest, ObjectRef, Steps};
use torch::{DeviceChoice, TorchOptions, TorchTrainer};
use trainer::{Batch, StepSettings, Trainer, inner_rate};

const WORKERS: usize = 4;
const ROUNDS: u64 = 6;
const STEPS: u64 = 12;
const SEQUENCES: usize = 8;
const SEQUENCE_TOKENS: usize = 48;
const HELD_OUT_SEQUENCES: usize = 256;
/// Each loss is the mean over runs with these seeds.
const SEEDS: [u64; 2] = [1, 2];
const INNER: InnerOptimizer = InnerOptimizer {
    warmup_steps: Steps(10),
    final_ratio: 0.1,
    ..InnerOptimizer::adamw(2e-3)
};
/// The default of `policy.norm_ratio_max`.
const NORM_RATIO_MAX: f64 = Comparison::NORM_RATIO_MAX;
/// The default of `policy.cosine_min`.
const COSINE_MIN: f32 = Comparison::COSINE_MIN as f32;

/// The work of the hostile worker, which is the last.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Attack {
    /// None: it is honest.
    None,
    /// It pulls in the other direction.
    Flip,
    /// It pulls a hundred times as far.
    HundredTimes,
    /// The same in the other direction.
    FlipHundredTimes,
    /// Noise of the length of an honest contribution.
    Noise,
    /// Noise, a hundred times as long.
    HundredTimesNoise,
    /// It trains from the weights of the round before.
    StaleBase,
    /// It hands in the first worker's contribution to the round before.
    LazyCopy,
}

/// The protection of a run.
#[derive(Clone, Copy, Debug)]
struct Protection {
    screened: bool,
    combination: Combination,
}

const UNPROTECTED: Protection = Protection {
    screened: false,
    combination: Combination::Mean,
};
const DEFAULT: Protection = Protection {
    screened: true,
    combination: Combination::Mean,
};

fn config() -> LlamaConfig {
    let json = r#"{"model_type": "llama", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 64, "tie_word_embeddings": true}"#;
    match ModelConfig::parse(TrainerKind::Torch, json.as_bytes()) {
        Ok(ModelConfig::Llama(config)) => config,
        other => panic!("{other:?}"),
    }
}

struct Worker {
    trainer: TorchTrainer,
    sampler: UnitSampler,
}

impl Worker {
    /// Trains a unit from `base`, and returns base minus local.
    fn contribution(&mut self, base: &[f32], round: u64) -> Vec<f32> {
        self.trainer.set_parameters(0, base).unwrap();
        let mut tokens = Vec::new();
        for step in round * STEPS..(round + 1) * STEPS {
            self.sampler.next_batch(SEQUENCES, &mut tokens);
            let batch = Batch::new(&tokens, SEQUENCES, SEQUENCE_TOKENS).unwrap();
            let step = StepSettings {
                optimizer: &INNER,
                learning_rate: inner_rate(Steps(step), Steps(ROUNDS * STEPS), &INNER),
                accumulation: 1,
            };
            self.trainer.step(&batch, &step).unwrap();
        }
        let local = self.trainer.parameters().unwrap();
        base.iter()
            .zip(local)
            .map(|(base, local)| base - local)
            .collect()
    }
}

/// The text, the model and the shards that all runs share.
struct Scene {
    imported: Imported,
}

/// The texts that the workers train on.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Texts {
    /// The same for all.
    Same,
    /// Another for each: sources, English prose, JSON, and numbers in order.
    Different,
}

impl Scene {
    /// The sources of this project as text.
    fn new() -> Self {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut options = ImportOptions::new(Source::RustSources(sources));
        options.limit = Bytes::mebi(1);
        Self {
            imported: import(&options).unwrap(),
        }
    }

    fn shards<'a>(&self, shards: impl Iterator<Item = &'a Shard>) -> Vec<TokenShard> {
        let objects = self.imported.objects.iter();
        let stored: BTreeMap<ObjectRef, &Vec<u8>> =
            objects.map(|bytes| (ObjectRef::of(bytes), bytes)).collect();
        let vocabulary = self.imported.manifest.vocabulary;
        shards
            .map(|shard| TokenShard::decode(stored[&shard.object].clone(), vocabulary).unwrap())
            .collect()
    }

    /// The text of a worker of its own.
    fn text(&self, index: usize) -> Vec<TokenShard> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
        let read = |names: &[&str]| -> Vec<u8> {
            let read = names
                .iter()
                .map(|name| std::fs::read(root.join(name)).unwrap());
            read.collect::<Vec<_>>().concat()
        };
        let bytes = match index {
            0 => return self.shards(self.imported.manifest.train.iter()),
            1 => read(&[
                "ARCHITECTURE.md",
                "SECURITY.md",
                "README.md",
                "CHANGELOG.md",
            ]),
            2 => read(&["docs/asyncapi.json"]),
            _ => (0..50_000)
                .map(|n| format!("{n}\n"))
                .collect::<String>()
                .into_bytes(),
        };
        vec![TokenShard::decode(bytes, self.imported.manifest.vocabulary).unwrap()]
    }

    fn workers(&self, seed: u64, texts: Texts) -> Vec<Worker> {
        let options = TorchOptions {
            device: DeviceChoice::Cpu,
            precision: Precision::Fp32,
            threads: 1,
        };
        let worker = |index: usize| Worker {
            trainer: TorchTrainer::new(&config(), options).unwrap(),
            sampler: UnitSampler::new(
                match texts {
                    Texts::Same => self.shards(self.imported.manifest.train.iter()),
                    Texts::Different => self.text(index),
                },
                seed << 8 | index as u64,
                SEQUENCE_TOKENS,
            )
            .unwrap(),
        };
        (0..WORKERS).map(worker).collect()
    }

    /// The held-out loss after a whole run.
    fn loss(&self, attack: Attack, protection: Protection) -> f64 {
        let losses = SEEDS.map(|seed| self.run(seed, Texts::Same, attack, protection).0);
        losses.iter().sum::<f64>() / SEEDS.len() as f64
    }

    /// The held-out loss after a whole run, and the cosines of each round.
    fn run(
        &self,
        seed: u64,
        texts: Texts,
        attack: Attack,
        protection: Protection,
    ) -> (f64, Vec<Vec<f32>>) {
        let initial = ModelConfig::Llama(config()).initial(seed);
        let mut weights = vec![0.0; initial.elements() as usize];
        initial.fill(0, &mut weights);
        let (mut workers, mut judge) = (self.workers(seed, texts), Judge::default());
        let mut before = (weights.clone(), Vec::new());
        for round in 0..ROUNDS {
            let honest: Vec<Vec<f32>> = workers
                .iter_mut()
                .enumerate()
                .map(|(index, worker)| match attack {
                    Attack::StaleBase if index == WORKERS - 1 => {
                        worker.contribution(&before.0, round)
                    }
                    _ => worker.contribution(&weights, round),
                })
                .collect();
            let mut given: Vec<Vec<u8>> = honest.iter().map(|values| encoded(values)).collect();
            let hostile = attacked(attack, &honest[WORKERS - 1], round);
            given[WORKERS - 1] = match attack {
                Attack::LazyCopy if round > 0 => before.1,
                _ => encoded(&hostile),
            };
            before = (weights.clone(), given[0].clone());
            merge(protection, &mut judge, &given, &mut weights);
        }
        let loss = self.held_out(&mut workers[0].trainer, &weights);
        (loss, judge.cosines)
    }

    fn held_out(&self, trainer: &mut TorchTrainer, weights: &[f32]) -> f64 {
        let shards = self.shards(self.imported.manifest.held_out.iter());
        let held_out = HeldOut::new(shards, HELD_OUT_SEQUENCES, SEQUENCE_TOKENS).unwrap();
        let mut tokens = Vec::new();
        held_out.batch(0..held_out.sequences(), &mut tokens);
        let batch = Batch::new(&tokens, held_out.sequences(), SEQUENCE_TOKENS).unwrap();
        trainer.set_parameters(0, weights).unwrap();
        trainer.evaluate(&batch).unwrap().mean().unwrap()
    }
}

fn encoded(values: &[f32]) -> Vec<u8> {
    let mut out = vec![0; codec::encoded_bytes(CodecKind::Bf16, values.len())];
    codec::encode(CodecKind::Bf16, values, SeededRounding::NEAREST, &mut out).unwrap();
    out
}

/// What the hostile worker makes of its honest contribution.
fn attacked(attack: Attack, honest: &[f32], round: u64) -> Vec<f32> {
    let times = |factor: f32| honest.iter().map(|value| factor * value).collect();
    match attack {
        Attack::None | Attack::StaleBase | Attack::LazyCopy => honest.to_vec(),
        Attack::Flip => times(-1.0),
        Attack::HundredTimes => times(100.0),
        Attack::FlipHundredTimes => times(-100.0),
        Attack::Noise => noise(norm(honest), honest.len(), round),
        Attack::HundredTimesNoise => noise(100.0 * norm(honest), honest.len(), round),
    }
}

fn norm(values: &[f32]) -> f64 {
    values
        .iter()
        .map(|value| f64::from(*value).powi(2))
        .sum::<f64>()
        .sqrt()
}

fn noise(norm: f64, count: usize, seed: u64) -> Vec<f32> {
    let mut word = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (word >> 40) as f64 / (1_u64 << 23) as f64 - 1.0
    };
    // A uniform number from -1 to 1 has the variance 1 / 3.
    let scale = norm / (count as f64 / 3.0).sqrt();
    (0..count).map(|_| (scale * next()) as f32).collect()
}

/// The memory of the default screening.
#[derive(Default)]
struct Judge {
    older: Vec<f64>,
    last: Vec<Digest>,
    /// The cosines of each round.
    cosines: Vec<Vec<f32>>,
}

impl Judge {
    /// The weight of each contribution.
    fn weights(&mut self, given: &[Vec<u8>], norms: &[f64]) -> Vec<u64> {
        let chunks: Vec<Digest> = given.iter().map(|bytes| Digest::of(bytes)).collect();
        let outliers = ledger::outliers(NORM_RATIO_MAX, norms, &self.older);
        let compared: Vec<usize> = (0..given.len()).filter(|index| !outliers[*index]).collect();
        let cosines = cosines(given, norms, &compared);
        let judged = cosines.iter().map(|cosine| ledger::Judged {
            falls: *cosine < COSINE_MIN,
            votes: true,
        });
        let against = ledger::minority(&judged.collect::<Vec<_>>()).unwrap_or_default();
        let against: Vec<usize> = against.into_iter().map(|at| compared[at]).collect();
        self.cosines.push(cosines);
        let stays = |index: usize| {
            !outliers[index] && !self.last.contains(&chunks[index]) && !against.contains(&index)
        };
        let weights: Vec<u64> = (0..given.len())
            .map(|index| u64::from(stays(index)))
            .collect();
        let counting = weights.iter().zip(norms).filter(|(weight, _)| **weight > 0);
        self.older.extend(counting.map(|(_, norm)| *norm));
        self.last = chunks;
        weights
    }
}

/// The cosines of contributions of as many workers.
fn cosines(given: &[Vec<u8>], norms: &[f64], compared: &[usize]) -> Vec<f32> {
    let parts: Vec<_> = compared
        .iter()
        .map(|index| merge::Voice {
            contributions: vec![&given[*index][..]],
            scale: 1.0 / f64::from(norms[*index] as f32),
            votes: true,
        })
        .collect();
    let elements = given[0].len() / 2;
    let found = merge::directions(CodecKind::Bf16, &parts, elements);
    found.unwrap().cosines()
}

fn merge(protection: Protection, judge: &mut Judge, given: &[Vec<u8>], weights: &mut [f32]) {
    let kind = CodecKind::Bf16;
    let norms: Vec<f64> = given
        .iter()
        .map(|bytes| merge::screen(kind, bytes, weights.len()).unwrap().norm())
        .collect();
    let shares = match protection.screened {
        true => judge.weights(given, &norms),
        false => vec![1; given.len()],
    };
    let chunks: Vec<ContributionChunk<'_>> = given
        .iter()
        .zip(shares)
        .map(|(bytes, weight)| ContributionChunk {
            weight,
            codec: kind,
            bytes,
        })
        .collect();
    let norms: Vec<f32> = norms.iter().map(|norm| *norm as f32).collect();
    let layout = ModelConfig::Llama(config()).layout();
    let rule = Rule {
        combination: protection.combination,
        norms: &norms,
        tensors: &tensor_pieces(&layout, 0..weights.len() as u64),
    };
    let average = OuterOptimizer::Average;
    let merged = merge::merge_chunk_by(&rule, &chunks, average, weights, Momentum::Absent, None);
    assert!(merged.unwrap().is_finite());
}

/// The text and the loss of four honest workers, for all tests.
fn scene() -> &'static (Scene, f64) {
    static SCENE: OnceLock<(Scene, f64)> = OnceLock::new();
    SCENE.get_or_init(|| {
        let scene = Scene::new();
        let clean = scene.loss(Attack::None, UNPROTECTED);
        (scene, clean)
    })
}

/// The part by which an attack raises the held-out loss.
fn harm(attack: Attack, protection: Protection) -> f64 {
    let (scene, clean) = scene();
    let harm = scene.loss(attack, protection) / clean - 1.0;
    println!("{attack:?}, {protection:?}: {:+.1} %", 100.0 * harm);
    harm
}

/// The cosines of each round of whole runs under the default screening.
fn compared(texts: Texts, attack: Attack) -> Vec<Vec<f32>> {
    let (scene, _) = scene();
    let runs = SEEDS.map(|seed| scene.run(seed, texts, attack, DEFAULT).1);
    runs.concat()
}

/// The default bound leaves out no honest worker, also where each trains on a text of another kind
/// and one flips the sign.
#[test]
fn the_default_bound_of_directions_keeps_honest_workers() {
    for texts in [Texts::Same, Texts::Different] {
        let honest = compared(texts, Attack::None);
        let honest = honest.iter().flatten().copied().fold(1.0, f32::min);
        let flipped = compared(texts, Attack::Flip);
        let others = flipped.iter().flat_map(|round| &round[..WORKERS - 1]);
        let others = others.copied().fold(1.0, f32::min);
        println!("{texts:?}: honest from {honest:.3}, beside one flipped from {others:.3}");
        assert!(COSINE_MIN < honest.min(others), "{texts:?}");
    }
}

/// Where the workers train on the same text. Where contributions have little to do with each other,
/// a flipped sign points against nobody, and may pass.
#[test]
fn the_default_bound_of_directions_keeps_no_flipped_sign_where_all_train_on_one_text() {
    let flipped = compared(Texts::Same, Attack::Flip);
    let hostile = flipped.iter().map(|round| round[WORKERS - 1]);
    let hostile = hostile.fold(-1.0, f32::max);
    println!("flipped to {hostile:.3}");
    assert!(hostile < COSINE_MIN);
}

#[test]
fn the_default_screening_stops_what_is_long_copied_or_flipped() {
    for attack in [
        Attack::HundredTimes,
        Attack::FlipHundredTimes,
        Attack::HundredTimesNoise,
        Attack::LazyCopy,
        Attack::Flip,
    ] {
        assert!(harm(attack, DEFAULT) < 0.02, "{attack:?}");
    }
    // Without it one such contribution is enough.
    assert!(harm(Attack::FlipHundredTimes, UNPROTECTED) > 1.0);
    // Stale weights do little harm. Noise of the usual length points nowhere, and costs some
    // percent; for that there are the robust rules.
    assert!(harm(Attack::Noise, DEFAULT) < 0.05);
    assert!(harm(Attack::StaleBase, DEFAULT) < 0.02);
}

#[test]
fn the_trimmed_mean_withstands_every_attack() {
    let protection = Protection {
        screened: true,
        combination: Combination::Trimmed { each_end: 1 },
    };
    for attack in [
        Attack::None,
        Attack::Flip,
        Attack::HundredTimes,
        Attack::FlipHundredTimes,
        Attack::Noise,
        Attack::HundredTimesNoise,
        Attack::StaleBase,
        Attack::LazyCopy,
    ] {
        assert!(harm(attack, protection) < 0.02, "{attack:?}");
    }
}
