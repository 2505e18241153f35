//! DiLoCo in one process, without bus or store: workers as threads, their contributions encoded,
//! merged and broadcast as a run does it. The example helps to choose settings, and gives the
//! outcome that a run over the bus should have.
//!
//! ```text
//! cargo run --release -p torch --example diloco -- corpus=~/.cargo/registry/src preset=demo rounds=10 steps=50
//! ```
//!
//! `upload=e3m0 feedback=on` sends contributions in 4 bits, and adds the residual of each to the
//! next one. `benches/codecs.sh` compares codecs over several seeds this way.

#![expect(clippy::print_stdout, reason = "a measurement for a person to read")]

use std::collections::BTreeMap;
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, bail};
use data::{HeldOut, ImportOptions, Source, TextTokenizer, TokenShard, UnitSampler, import};
use merge::{
    Broadcast, ContributionChunk, FeedbackChunk, Momentum, SeededRounding, codec,
    encode_with_feedback, merge_chunk_and_encode,
};
use model::{ModelConfig, Preset};
use schemas::data::Shard;
use schemas::run::{CodecKind, InnerOptimizer, OuterOptimizer, Precision};
use schemas::{Bytes, ObjectRef, Steps};
use torch::{DeviceChoice, TorchOptions, TorchTrainer};
use trainer::{Batch, StepSettings, Trainer, inner_rate};

struct Settings {
    preset: String,
    corpus: String,
    budget_mib: u64,
    workers: usize,
    rounds: u64,
    steps: u64,
    sequences: usize,
    sequence_tokens: usize,
    evaluation_sequences: usize,
    device: DeviceChoice,
    precision: Precision,
    inner: InnerOptimizer,
    outer: OuterOptimizer,
    upload: CodecKind,
    feedback: bool,
    seed: u64,
}

/// The codec in which the weights travel.
const DOWNLOAD: CodecKind = CodecKind::Bf16;

fn settings() -> anyhow::Result<Settings> {
    let mut given: BTreeMap<String, String> = BTreeMap::new();
    for argument in std::env::args().skip(1) {
        let (key, value) = argument
            .split_once('=')
            .with_context(|| format!("{argument} is not key=value"))?;
        given.insert(key.to_owned(), value.to_owned());
    }
    let mut text =
        |key: &str, default: &str| given.remove(key).unwrap_or_else(|| default.to_owned());
    let precision = match text("precision", "bf16").as_str() {
        "bf16" => Precision::Bf16,
        "fp32" => Precision::Fp32,
        other => bail!("precision is {other}, expected bf16 or fp32"),
    };
    let name = text("upload", "bf16");
    let upload = CodecKind::ALL.iter().find(|codec| codec.name() == name);
    let upload = *upload.with_context(|| format!("upload is {name}, which is no codec"))?;
    let feedback = match text("feedback", "off").as_str() {
        "on" => true,
        "off" => false,
        other => bail!("feedback is {other}, expected on or off"),
    };
    let outer = match text("rule", "nesterov").as_str() {
        "average" => OuterOptimizer::Average,
        "nesterov" => OuterOptimizer::Nesterov {
            learning_rate: text("outer", "0.7").parse()?,
            momentum: text("momentum", "0.9").parse()?,
        },
        other => bail!("rule is {other}, expected average or nesterov"),
    };
    let home = std::env::var("HOME").unwrap_or_default();
    let settings = Settings {
        preset: text("preset", "demo"),
        corpus: text("corpus", &format!("{home}/.cargo/registry/src")),
        budget_mib: text("mib", "32").parse()?,
        workers: text("workers", "2").parse()?,
        rounds: text("rounds", "10").parse()?,
        steps: text("steps", "40").parse()?,
        sequences: text("sequences", "8").parse()?,
        sequence_tokens: text("tokens", "256").parse()?,
        evaluation_sequences: text("evaluation", "128").parse()?,
        device: text("device", "cpu").parse().map_err(anyhow::Error::msg)?,
        precision,
        inner: InnerOptimizer {
            learning_rate: text("rate", "2e-3").parse()?,
            warmup_steps: Steps(text("warmup", "40").parse()?),
            final_ratio: 0.1,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            weight_decay: 0.1,
            clip_norm: 1.0,
        },
        outer,
        upload,
        feedback,
        seed: text("seed", "1").parse()?,
    };
    match given.keys().next() {
        Some(key) => bail!("unknown key {key}"),
        None => Ok(settings),
    }
}

struct Worker {
    trainer: TorchTrainer,
    sampler: UnitSampler,
    /// The part of its contributions that the codec took; zeros without feedback.
    residual: Vec<f32>,
}

impl Worker {
    /// A unit: inner steps from the global weights; the mean loss of the steps.
    fn train(&mut self, settings: &Settings, global: &[f32], before: u64) -> anyhow::Result<f64> {
        self.trainer.set_parameters(0, global)?;
        let total = Steps(settings.rounds * settings.steps);
        let mut tokens = Vec::new();
        let mut loss = 0.0;
        for step in before..before + settings.steps {
            self.sampler.next_batch(settings.sequences, &mut tokens);
            let batch = Batch::new(&tokens, settings.sequences, settings.sequence_tokens)?;
            let learning_rate = inner_rate(Steps(step), total, &settings.inner);
            let step = StepSettings {
                optimizer: &settings.inner,
                learning_rate,
                accumulation: 1,
            };
            loss += self.trainer.step(&batch, &step)?.loss / settings.steps as f64;
        }
        Ok(loss)
    }

    /// The contribution of the unit that was just trained from `global`.
    fn contribution(&mut self, settings: &Settings, global: &[f32]) -> anyhow::Result<Vec<u8>> {
        let mut out = vec![0; codec::encoded_bytes(settings.upload, global.len())];
        let mut left = vec![0.0; global.len()];
        let owed = FeedbackChunk {
            base: global,
            local: self.trainer.parameters()?,
            residual: &self.residual,
        };
        let nearest = SeededRounding::NEAREST;
        encode_with_feedback(settings.upload, owed, nearest, &mut out, &mut left)?;
        if settings.feedback {
            self.residual = left;
        }
        Ok(out)
    }
}

fn main() -> anyhow::Result<()> {
    let settings = settings()?;
    let start = Instant::now();
    let mut options = ImportOptions::new(Source::RustSources(settings.corpus.clone().into()));
    options.limit = Bytes::mebi(settings.budget_mib);
    let imported = import(&options)?;
    let manifest = &imported.manifest;
    println!(
        "corpus: {} documents, {} bytes, unigram {:.4}, bigram {:.4} nats, {:.1} s",
        imported.documents,
        imported.counts.text_bytes,
        manifest.entropy.unigram,
        manifest.entropy.bigram,
        start.elapsed().as_secs_f64()
    );
    let stored: BTreeMap<ObjectRef, &Vec<u8>> = imported
        .objects
        .iter()
        .map(|bytes| (ObjectRef::of(bytes), bytes))
        .collect();
    let read = |shards: &mut dyn Iterator<Item = &Shard>| -> anyhow::Result<Vec<TokenShard>> {
        shards
            .map(|shard| {
                Ok(TokenShard::decode(
                    stored[&shard.object].clone(),
                    manifest.vocabulary,
                )?)
            })
            .collect()
    };
    let preset = Preset::named(&settings.preset).context("no such preset")?;
    let ModelConfig::Llama(config) = &preset.config else {
        bail!("{} is not for trainer torch", preset.name)
    };
    let initial = preset.config.initial(settings.seed);
    let mut global = vec![0.0; initial.elements() as usize];
    initial.fill(0, &mut global);
    let options = TorchOptions {
        device: settings.device,
        precision: settings.precision,
        threads: 1,
    };
    let mut workers = Vec::new();
    for index in 0..settings.workers {
        let mut own = manifest.train.iter().skip(index).step_by(settings.workers);
        let sampler = UnitSampler::new(
            read(&mut own)?,
            settings.seed << 8 | index as u64,
            settings.sequence_tokens,
        )?;
        workers.push(Worker {
            trainer: TorchTrainer::new(config, options)?,
            sampler,
            residual: vec![0.0; global.len()],
        });
    }
    let held_out = read(&mut manifest.held_out.iter())?;
    let held_out = HeldOut::new(
        held_out,
        settings.evaluation_sequences,
        settings.sequence_tokens,
    )?;
    train(&settings, workers, &held_out, &mut global)
}

fn train(
    settings: &Settings,
    mut workers: Vec<Worker>,
    held_out: &HeldOut,
    global: &mut Vec<f32>,
) -> anyhow::Result<()> {
    let (mut params, mut momentum) = (global.clone(), vec![0.0; global.len()]);
    let (mut tokens, mut trained) = (Vec::new(), 0.0);
    held_out.batch(0..held_out.sequences(), &mut tokens);
    let batch = Batch::new(&tokens, held_out.sequences(), settings.sequence_tokens)?;
    let start = Instant::now();
    for round in 0..settings.rounds {
        let round_start = Instant::now();
        let before = round * settings.steps;
        let losses = thread::scope(|scope| {
            let global = &*global;
            let unit =
                |worker| scope.spawn(move || Worker::train(worker, settings, global, before));
            let units: Vec<_> = workers.iter_mut().map(unit).collect();
            units
                .into_iter()
                .map(|unit| unit.join().expect("no panic"))
                .collect::<anyhow::Result<Vec<f64>>>()
        })?;
        step(
            settings,
            &mut workers,
            round,
            &mut params,
            &mut momentum,
            global,
        )?;
        trained += round_start.elapsed().as_secs_f64();
        let evaluator = &mut workers[0].trainer;
        evaluator.set_parameters(0, global)?;
        let loss = evaluator
            .evaluate(&batch)?
            .mean()
            .context("no held-out text")?;
        let inner = losses.iter().sum::<f64>() / losses.len() as f64;
        println!(
            "round {:2}: train {inner:.4}, held-out {loss:.4} nats, {:.1} s",
            round + 1,
            start.elapsed().as_secs_f64()
        );
    }
    let count = settings.rounds
        * settings.steps
        * (settings.workers * settings.sequences * settings.sequence_tokens) as u64;
    println!(
        "{count} tokens, {:.0} tokens/s over all workers",
        count as f64 / trained
    );
    let prompt = TextTokenizer::Byte.encode("pub fn ")?;
    let text = workers[0].trainer.generate(&prompt, 300, 0.7, 1)?;
    println!("pub fn {}", TextTokenizer::Byte.decode(&text)?);
    Ok(())
}

/// Merges the contributions into the weights, and leaves in `global` the weights that workers get.
fn step(
    settings: &Settings,
    workers: &mut [Worker],
    round: u64,
    params: &mut [f32],
    momentum: &mut [f32],
    global: &mut [f32],
) -> anyhow::Result<()> {
    let contributions: Vec<Vec<u8>> = workers
        .iter_mut()
        .map(|worker| worker.contribution(settings, global))
        .collect::<anyhow::Result<_>>()?;
    let chunks: Vec<ContributionChunk<'_>> = contributions
        .iter()
        .map(|bytes| ContributionChunk {
            weight: 1,
            codec: settings.upload,
            bytes,
        })
        .collect();
    let state = match (settings.outer, round) {
        (OuterOptimizer::Nesterov { .. }, 0) => Momentum::First(momentum),
        (OuterOptimizer::Nesterov { .. }, _) => Momentum::Running(momentum),
        (OuterOptimizer::Average | OuterOptimizer::Sgd { .. }, _) => Momentum::Absent,
    };
    let mut out = vec![0; codec::encoded_bytes(DOWNLOAD, params.len())];
    let broadcast = Broadcast {
        codec: DOWNLOAD,
        rounding: SeededRounding::NEAREST,
        out: &mut out,
    };
    let merged = merge_chunk_and_encode(&chunks, settings.outer, params, state, broadcast)?;
    if !merged.is_finite() {
        bail!("the weights are no numbers after round {round}");
    }
    Ok(codec::decode(DOWNLOAD, &out, global)?)
}
