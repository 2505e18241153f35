//! Measures how long the steps of a sync hold the training thread: making and encoding the
//! difference and bringing it to this machine's memory, decoding the broadcast, reading the
//! parameters, and copying the inner state.
//!
//! ```text
//! cargo run --release -p torch --example card -- cuda:0 110m 1b
//! ```

#![expect(clippy::print_stdout, reason = "a measurement for a person to read")]

use std::ops::{ControlFlow, Range};
use std::time::Instant;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use merge::SeededRounding;
use merge::codec::encoded_bytes;
use model::{LlamaConfig, ModelConfig, Preset};
use schemas::limits::CHUNKS_MAX;
use schemas::run::{CodecKind, Precision, Rounding};
use torch::{DeviceChoice, TorchOptions, TorchTrainer};
use trainer::{Arrival, InnerState, Trainer};

/// Elements of a chunk. If a model has too many chunks of this size, larger ones are used.
const CHUNK_ELEMENTS: usize = 1 << 20;
/// Measurements of each kind; the first one also pays for fresh memory.
const REPEATS: usize = 5;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let device = arguments.next().context("name a device, such as cuda:0")?;
    let device: DeviceChoice = device.parse().map_err(anyhow::Error::msg)?;
    for size in arguments {
        measure(&size, device)?;
    }
    Ok(())
}

/// Decoders of 0.9 M, 110 M and 1.04 B parameters.
fn config(size: &str) -> anyhow::Result<LlamaConfig> {
    let ModelConfig::Llama(demo) = Preset::named("demo").context("a preset")?.config else {
        bail!("the preset demo is for libtorch");
    };
    let (hidden, intermediate, layers, vocabulary) = match size {
        "1m" => (128, 384, 4, 256),
        "110m" => (768, 2048, 12, 32_000),
        "1b" => (2048, 5632, 19, 32_000),
        other => bail!("size is {other}, expected 1m, 110m or 1b"),
    };
    let heads = hidden / 64;
    Ok(LlamaConfig {
        vocabulary,
        hidden,
        intermediate,
        layers,
        heads,
        key_value_heads: heads,
        head: 64,
        ..demo
    })
}

fn measure(size: &str, device: DeviceChoice) -> anyhow::Result<()> {
    let options = TorchOptions {
        device,
        precision: Precision::Fp32,
        threads: 1,
    };
    let mut trainer = TorchTrainer::new(&config(size)?, options)?;
    let elements = usize::try_from(trainer.layout().elements())?;
    println!("{elements} parameters on {}", trainer.device());
    let values: Vec<f32> = (0..elements).map(|at| (at % 8191) as f32 * 1e-5).collect();
    row("write the parameters", || {
        Ok(trainer.set_parameters(0, &values)?)
    })?;
    drop(values);
    row("read the parameters", || {
        trainer.parameters()?;
        Ok(())
    })?;
    let mut state = InnerState::default();
    row(
        "copy the moments",
        || Ok(trainer.capture_inner(&mut state)?),
    )?;
    drop(state);
    codecs(&mut trainer, elements)
}

/// Encodes and decodes with every codec.
fn codecs(trainer: &mut TorchTrainer, elements: usize) -> anyhow::Result<()> {
    let mut chunk = CHUNK_ELEMENTS;
    while elements.div_ceil(chunk) > CHUNKS_MAX {
        chunk *= 2;
    }
    let pieces: Vec<Range<usize>> = (0..elements)
        .step_by(chunk)
        .map(|start| start..(start + chunk).min(elements))
        .collect();
    let stochastic = SeededRounding {
        rule: Rounding::Stochastic,
        seed: 1,
        first_element: 0,
    };
    for codec in CodecKind::ALL.iter().copied() {
        let bytes: Vec<Vec<u8>> = pieces
            .iter()
            .map(|piece| vec![0; encoded_bytes(codec, piece.len())])
            .collect();
        row(&format!("decode {}", codec.name()), || {
            let mut weights = trainer.weights()?;
            for (piece, bytes) in pieces.iter().zip(&bytes) {
                weights.load(codec, piece.clone(), bytes, Arrival::Waits)?;
            }
            Ok(weights.settle()?)
        })?;
        for (name, rounding) in [("", SeededRounding::NEAREST), (", stochastic", stochastic)] {
            row(&format!("encode {}{name}", codec.name()), || {
                let mut chunks: Vec<Bytes> = Vec::with_capacity(pieces.len());
                trainer
                    .weights()?
                    .encode(codec, rounding, &pieces, &mut |chunk| {
                        chunks.push(chunk);
                        ControlFlow::Continue(())
                    })?;
                Ok(())
            })?;
        }
    }
    feedback(trainer, &pieces)
}

/// Encodes with error feedback, and keeps what was left over.
fn feedback(trainer: &mut TorchTrainer, pieces: &[Range<usize>]) -> anyhow::Result<()> {
    row("encode and keep e3m0, feedback", || {
        let mut chunks: Vec<Bytes> = Vec::with_capacity(pieces.len());
        let mut values = trainer.feedback()?;
        values.encode(
            CodecKind::E3m0,
            SeededRounding::NEAREST,
            pieces,
            &mut |chunk| {
                chunks.push(chunk);
                ControlFlow::Continue(())
            },
        )?;
        for piece in pieces {
            values.keep(piece.clone())?;
        }
        Ok(())
    })?;
    let mut memory = Vec::new();
    row("copy the residual", || {
        Ok(trainer.feedback()?.copy_owed(&mut memory)?)
    })
}

/// Prints the first time and the median of the others.
fn row(name: &str, mut work: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut seconds = Vec::with_capacity(REPEATS);
    for _ in 0..REPEATS {
        let begun = Instant::now();
        work()?;
        seconds.push(begun.elapsed().as_secs_f64());
    }
    let first = seconds.remove(0);
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    println!("  {name:<30} {median:>8.4} s   (first {first:.4} s)");
    Ok(())
}
