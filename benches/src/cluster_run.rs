//! A run on a cluster of this build's programs, and the processor time and memory of its processes.

use std::fs;

use anyhow::{Context as _, Result};
use harness::Cluster;
use model::{ModelConfig, SyntheticConfig};
use schemas::Millis;

/// Bytes of the text that workers read: enough for training shards and held-out shards.
const CORPUS_BYTES: usize = 512 << 10;

/// The model that is trained.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Model {
    /// A synthetic model with this many parameters, whose steps take this long.
    Synthetic { parameters: u64, step_ms: u64 },
    /// A preset, trained for real.
    Preset(&'static str),
}

/// The size of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) model: Model,
    pub(crate) steps: u64,
    /// Tokens of a step, which is one sequence.
    pub(crate) step_tokens: u64,
    pub(crate) units: u32,
    pub(crate) rounds: u64,
    pub(crate) workers_min: usize,
    /// Rounds between two full snapshots.
    pub(crate) snapshot_every: u64,
}

/// What stands between the processes, and what watches them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Security {
    /// TLS; no audit service, and no registrar.
    Usual,
    /// Mutual TLS, an audit service that records and logs, and tokens that a registrar renews.
    Whole,
    /// No TLS, no audit service, no registrar. Identities and signatures stay: nothing runs
    /// without.
    Plaintext,
}

/// Starts everything but workers: broker, store and coordinator, with a run that waits for its
/// workers.
///
/// # Errors
/// A file cannot be written. A failure of a process panics with its log.
pub(crate) async fn start(shape: &Shape, security: Security) -> Result<Cluster> {
    let options = harness::Options {
        mutual_tls: security == Security::Whole,
        plaintext: security == Security::Plaintext,
        token_lifetime: (security == Security::Whole).then_some(Millis::from_secs(3600)),
        ..harness::Options::default()
    };
    let mut cluster = Cluster::broker(options).await;
    if security == Security::Whole {
        cluster.start_registrar().await;
    }
    cluster.start_store().await;
    cluster.start_coordinator("coordinator").await;
    if security == Security::Whole {
        cluster.start_audit().await;
    }
    let (model, trainer) = match shape.model {
        Model::Preset(name) => (name, None),
        Model::Synthetic {
            parameters,
            step_ms,
        } => {
            let config = ModelConfig::Synthetic(SyntheticConfig {
                parameters,
                step_ms,
            });
            write(&cluster, "model.json", &config.to_json())?;
            ("model.json", Some("model.trainer=synthetic".to_owned()))
        }
    };
    write(&cluster, "corpus.txt", corpus().as_bytes())?;
    cluster
        .diloctl_ok(&[
            "data",
            "import",
            "--text",
            "corpus.txt",
            "--limit",
            "512KiB",
        ])
        .await;
    let run = cluster.run().to_string();
    let (rounds, units, steps) = (
        shape.rounds.to_string(),
        shape.units.to_string(),
        shape.steps.to_string(),
    );
    let mut arguments = vec!["run", "new", &run, "--model", model, "--rounds", &rounds];
    arguments.extend(["--units", &units, "--steps", &steps]);
    let settings = [
        "schedule.batch_sequences=1".to_owned(),
        format!("schedule.sequence_tokens={}", shape.step_tokens),
        "schedule.evaluation_every=0".to_owned(),
        format!("schedule.snapshot_every={}", shape.snapshot_every),
        format!("policy.workers_min={}", shape.workers_min),
    ];
    for setting in trainer.iter().chain(&settings) {
        arguments.extend(["--set", setting]);
    }
    cluster.diloctl_ok(&arguments).await;
    Ok(cluster)
}

fn write(cluster: &Cluster, name: &str, bytes: &[u8]) -> Result<()> {
    let path = cluster.path(name);
    fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// Text in which no two passages are alike.
fn corpus() -> String {
    let mut state = 1_u64;
    let mut text = String::with_capacity(CORPUS_BYTES + 16);
    while text.len() < CORPUS_BYTES {
        // Knuth's MMIX generator; its upper bits are good enough for letters.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        for shift in [33, 38, 43, 48, 53] {
            text.push(char::from(b'a' + ((state >> shift) & 31) as u8 % 26));
        }
        text.push(if text.len() % 4096 < 6 { '\n' } else { ' ' });
    }
    text
}

/// Processor seconds, user and system, that a process has used so far.
///
/// # Errors
/// The process does not run.
pub(crate) fn processor_seconds(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    // The name is in parentheses and may hold anything; utime and stime are the 12th and 13th
    // fields after it.
    let fields: Vec<&str> = text
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let ticks = |index: usize| {
        fields
            .get(index)
            .and_then(|field| field.parse::<f64>().ok())
    };
    let ticks = ticks(11)
        .zip(ticks(12))
        .map(|(user, system)| user + system)
        .with_context(|| path.clone())?;
    // SAFETY: `sysconf` reads a constant of the system.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Ok(ticks / per_second as f64)
}

/// The most memory that a process has held so far, in bytes.
///
/// # Errors
/// The process does not run.
pub(crate) fn peak_bytes(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .with_context(|| path.clone())?;
    let kibibytes: f64 = line
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .parse()
        .with_context(|| path.clone())?;
    Ok(kibibytes * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_time_and_memory() {
        let pid = std::process::id();
        let start = std::time::Instant::now();
        let mut sum = 0_u64;
        while start.elapsed().as_millis() < 50 {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(processor_seconds(pid).expect("it runs") > 0.0);
        assert!(peak_bytes(pid).expect("it runs") > 1e6);
        assert!(processor_seconds(0).is_err() && peak_bytes(0).is_err());
    }

    #[test]
    fn the_text_does_not_repeat() {
        let text = corpus();
        let passages: std::collections::BTreeSet<&[u8]> = text.as_bytes().chunks(64).collect();
        assert_eq!(passages.len(), text.len().div_ceil(64));
    }
}
