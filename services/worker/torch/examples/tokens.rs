//! Training speed of a preset on one CPU thread, in tokens a second: the median over steps of 2048 tokens.
//!
//! ```text
//! cargo run --release -p torch --example tokens -- demo
//! ```

#![expect(clippy::print_stdout, reason = "a measurement for a person to read")]

use std::time::Instant;

use anyhow::{Context as _, bail};
use model::{ModelConfig, Preset};
use schemas::Steps;
use schemas::run::{InnerOptimizer, Precision};
use torch::{DeviceChoice, TorchOptions, TorchTrainer};
use trainer::{Batch, StepSettings, Trainer};

const STEPS: usize = 20;
/// Steps that warm caches and are not counted.
const WARMUP_STEPS: usize = 3;
const SEQUENCES: usize = 8;
const SEQUENCE_TOKENS: usize = 256;
const OPTIMIZER: InnerOptimizer = InnerOptimizer {
    learning_rate: 1e-3,
    warmup_steps: Steps(0),
    final_ratio: 1.0,
    beta1: 0.9,
    beta2: 0.95,
    epsilon: 1e-8,
    weight_decay: 0.1,
    clip_norm: 1.0,
};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let name = arguments.first().map_or("demo", String::as_str);
    let threads = arguments.get(1).map_or(Ok(1), |text| text.parse()).context("the number of threads")?;
    let preset =
        Preset::named(name).with_context(|| format!("no preset {name}, expected one of {:?}", model::PRESETS))?;
    let ModelConfig::Llama(config) = &preset.config else { bail!("preset {name} is not for trainer torch") };
    let initial = preset.config.initial(1);
    let mut values = vec![0.0; initial.elements() as usize];
    initial.fill(0, &mut values);
    let count = SEQUENCES * (SEQUENCE_TOKENS + 1);
    let tokens: Vec<u32> = (0..count as u32).map(|i| (i * i * 31 + i * 17) % 251).collect();
    let batch = Batch::new(&tokens, SEQUENCES, SEQUENCE_TOKENS)?;
    for precision in [Precision::Fp32, Precision::Bf16] {
        let options = TorchOptions { device: DeviceChoice::Cpu, precision, threads };
        let mut trainer = TorchTrainer::new(config, options)?;
        trainer.set_parameters(0, &values)?;
        let settings = StepSettings { optimizer: &OPTIMIZER, learning_rate: 1e-3, accumulation: 1 };
        let mut seconds = Vec::with_capacity(STEPS);
        let mut loss = 0.0;
        for step in 0..WARMUP_STEPS + STEPS {
            let start = Instant::now();
            loss = trainer.step(&batch, &settings)?.loss;
            if step >= WARMUP_STEPS {
                seconds.push(start.elapsed().as_secs_f64());
            }
        }
        seconds.sort_by(f64::total_cmp);
        let per_second = batch.predicted() as f64 / seconds[STEPS / 2];
        println!("{name} {} {per_second:.0} tokens/s, loss {loss:.6}", trainer.device());
    }
    Ok(())
}
