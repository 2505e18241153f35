//! Training speed of the demonstration's decoder on one thread, in tokens a second, beside PyTorch
//! eager if `DILOCO_BENCH_PYTHON` names a Python with torch. Each measures in a process of its own,
//! in turns.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use model::{ModelConfig, Preset};
use schemas::run::{InnerOptimizer, Precision};
use serde::{Deserialize, Serialize};
use torch::{DeviceChoice, TorchOptions, TorchTrainer};
use trainer::{Batch, StepSettings, Trainer as _};

use crate::Effort;
use crate::row::{Reach, Row};
use crate::table;

/// Variable that names the Python of the peer.
const PYTHON: &str = "DILOCO_BENCH_PYTHON";
/// The model; `benches/peer/train.py` has the same one, with the same batch and optimizer.
const PRESET: &str = "demo";
const SEQUENCES: usize = 8;
const SEQUENCE_TOKENS: usize = 256;
const STEPS: usize = 20;
/// Steps that warm caches and are not counted.
const WARMUP_STEPS: usize = 3;
const OPTIMIZER: InnerOptimizer = InnerOptimizer::adamw(1e-3);

/// Tokens a second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Speed {
    fp32: f64,
    /// The speed in bf16; none where the processor has no instructions for it.
    bf16: Option<f64>,
}

impl Speed {
    /// The speed in the precision that a run has by default.
    fn default_precision(&self) -> f64 {
        self.bf16.unwrap_or(self.fp32)
    }
}

/// Measures our decoder and the peer's, in turns.
pub(crate) fn measure(effort: Effort) -> Result<Vec<Row>> {
    let turns = if effort == Effort::Full { 5 } else { 1 };
    let python = std::env::var_os(PYTHON).filter(|path| !path.is_empty());
    let (mut ours, mut peers) = (Vec::new(), Vec::new());
    for _ in 0..turns {
        let here = here()?;
        ours.push(here);
        if let Some(python) = &python {
            peers.push(pytorch(Path::new(python), here.bf16.is_some())?);
        }
    }
    let mut rows = rows("fp32", &ours, &peers, |speed| Some(speed.fp32));
    rows.extend(self::rows("bf16", &ours, &peers, |speed| speed.bf16));
    if !peers.is_empty() {
        let ratios = ours
            .iter()
            .zip(&peers)
            .map(|(ours, peer)| ours.default_precision() / peer.fp32)
            .collect();
        let fast = Row::new(
            format!("worker, {PRESET}, default settings beside PyTorch fp32"),
            "ratio",
            ratios,
        );
        rows.push(fast.reach(Reach::AtLeast(1.9)).note(match ours[0].bf16 {
            Some(_) => "bf16 here",
            None => {
                "fp32 is the default here; bf16 would bring the gain, but this processor has no instructions for it"
            }
        }));
    }
    Ok(rows)
}

/// Compares both sides in one precision; no rows where the processor does not have it.
fn rows(dtype: &str, ours: &[Speed], peers: &[Speed], of: fn(&Speed) -> Option<f64>) -> Vec<Row> {
    let of_all = |speeds: &[Speed]| speeds.iter().filter_map(of).collect::<Vec<f64>>();
    let (ours, peers) = (of_all(ours), of_all(peers));
    if ours.is_empty() {
        return Vec::new();
    }
    let name = format!("worker, {PRESET} {dtype}, 1 thread");
    let ratios = ours
        .iter()
        .zip(&peers)
        .map(|(ours, peer)| ours / peer)
        .collect::<Vec<f64>>();
    let row = Row::new(name.clone(), "tokens/s", ours);
    if peers.is_empty() {
        return vec![row.note(format!(
            "no PyTorch here: {PYTHON} is not set, the ratio is not judged"
        ))];
    }
    let peer = Row::new(
        format!("PyTorch eager, {PRESET} {dtype}, 1 thread"),
        "tokens/s",
        peers,
    );
    vec![
        row,
        peer,
        Row::new(format!("{name} beside PyTorch"), "ratio", ratios).reach(Reach::AtLeast(1.0)),
    ]
}

/// Measures in a new process that starts as the worker does: libtorch's libraries read some
/// settings before `main`.
fn here() -> Result<Speed> {
    let program = std::env::current_exe().context("where this program is")?;
    let output = Command::new(program)
        .arg("--tokens-here")
        .output()
        .context("cannot start this program again")?;
    ensure!(
        output.status.success(),
        "tokens: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).context("its answer is no speed")
}

/// Measures in this process and prints the speed.
///
/// # Errors
/// libtorch cannot be used.
pub(crate) fn print_here() -> Result<()> {
    diloco_worker::launch::restart_with_settings();
    torch::init(DeviceChoice::Cpu, 1)?;
    // Without instructions for bf16 its products would be emulated, which nobody would choose.
    let bf16 = torch::processor_has_bf16()
        .then(|| speed(Precision::Bf16))
        .transpose()?;
    let speed = Speed {
        fp32: speed(Precision::Fp32)?,
        bf16,
    };
    table::say(&serde_json::to_string(&speed)?);
    Ok(())
}

fn speed(precision: Precision) -> Result<f64> {
    let preset = Preset::named(PRESET).context("the preset is listed")?;
    let ModelConfig::Llama(config) = &preset.config else {
        bail!("preset {PRESET} is not for trainer torch")
    };
    let initial = preset.config.initial(1);
    let mut values = vec![0.0; initial.elements() as usize];
    initial.fill(0, &mut values);
    let count = SEQUENCES * (SEQUENCE_TOKENS + 1);
    let tokens: Vec<u32> = (0..count as u32)
        .map(|i| (i * i * 31 + i * 17) % 251)
        .collect();
    let batch = Batch::new(&tokens, SEQUENCES, SEQUENCE_TOKENS)?;
    let mut trainer = TorchTrainer::new(
        config,
        TorchOptions {
            device: DeviceChoice::Cpu,
            precision,
            threads: 1,
        },
    )?;
    trainer.set_parameters(0, &values)?;
    let settings = StepSettings {
        optimizer: &OPTIMIZER,
        learning_rate: 1e-3,
        accumulation: 1,
    };
    let mut seconds = Vec::with_capacity(STEPS);
    for step in 0..WARMUP_STEPS + STEPS {
        let start = Instant::now();
        let report = trainer.step(&batch, &settings)?;
        ensure!(
            report.loss.is_finite(),
            "the loss of step {step} is {}",
            report.loss
        );
        if step >= WARMUP_STEPS {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    seconds.sort_by(f64::total_cmp);
    Ok(batch.predicted() as f64 / seconds[STEPS / 2])
}

/// Measures the peer with its default optimizer.
fn pytorch(python: &Path, bf16: bool) -> Result<Speed> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peer/train.py");
    let mut command = Command::new(python);
    command
        .arg(script)
        .args(["--preset", PRESET, "--threads", "1"]);
    if bf16 {
        command.arg("--bf16");
    }
    let output = command
        .output()
        .with_context(|| format!("{PYTHON}: {}", python.display()))?;
    ensure!(
        output.status.success(),
        "{PYTHON}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let fp32 = peer_speed(&text, "fp32").with_context(|| format!("fp32 is not in {text:?}"))?;
    Ok(Speed {
        fp32,
        bf16: peer_speed(&text, "bf16"),
    })
}

/// Reads the speed from a line such as `demo cpu, 1 threads, fp32, default AdamW: 9000 tokens/s,
/// torch 2.11.0`.
fn peer_speed(text: &str, dtype: &str) -> Option<f64> {
    let wanted = format!(", {dtype}, default AdamW: ");
    let line = text.lines().find(|line| line.contains(&wanted))?;
    line.split(&wanted)
        .nth(1)?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peers_lines_are_read() {
        let text = "demo cpu, 1 threads, fp32, default AdamW: 9000 tokens/s, torch 2.11.0\n\
                    demo cpu, 1 threads, fp32, fused AdamW: 9500 tokens/s, torch 2.11.0\n\
                    demo cpu, 1 threads, bf16, default AdamW: 12000 tokens/s, torch 2.11.0\n";
        assert_eq!(
            (peer_speed(text, "fp32"), peer_speed(text, "bf16")),
            (Some(9000.0), Some(12000.0))
        );
        assert_eq!(peer_speed(text, "fp16"), None);
    }
}
