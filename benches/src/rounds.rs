//! The cost of a round besides its work: rounds of one step of 64 tokens of the smallest model,
//! over the real broker, store, coordinator and workers.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::Effort;
use crate::cluster_run::{self, Model, Security, Shape};
use crate::row::{Reach, Row};
use crate::timeline::Timeline;

/// Rounds at the beginning that warm connections and caches, and are not counted.
const WARMUP_ROUNDS: u64 = 10;
/// Longest time for all rounds; far above what a busy machine needs.
const PATIENCE: Duration = Duration::from_secs(300);

/// Measures the rows of this bench.
pub(crate) async fn measure(workers: usize, effort: Effort) -> Result<Vec<Row>> {
    let counted = if effort == Effort::Full { 300 } else { 30 };
    let last = WARMUP_ROUNDS + counted;
    let shape = Shape {
        model: Model::Preset("reference"),
        steps: 1,
        step_tokens: 64,
        units: u32::try_from(workers).context("few workers")?,
        // One round more, which ends the last counted sync.
        rounds: last + 1,
        workers_min: workers,
        snapshot_every: 1_000_000,
    };
    let mut cluster = cluster_run::start(&shape, Security::Usual).await?;
    let names: Vec<String> = (0..workers)
        .map(|index| format!("worker-{index}"))
        .collect();
    for name in &names {
        cluster.start_worker(name, &[]).await;
    }
    let run = cluster.run().clone();
    let operator = cluster.operator().await;
    operator
        .until(&run, PATIENCE, |view| view.round.get() > last)
        .await;
    let mut timeline = Timeline::default();
    timeline.read(&cluster.process("coordinator").log());
    for name in &names {
        timeline.read(&cluster.process(name).log());
    }
    let periods = timeline.periods(WARMUP_ROUNDS..last);
    let syncs = timeline.syncs(WARMUP_ROUNDS..last, workers);
    ensure!(
        2 * periods.len() as u64 > counted && 2 * syncs.len() as u64 > counted,
        "{} of {counted} rounds were seen in the logs",
        periods.len().min(syncs.len())
    );
    let stage = |name: &str, of: fn(&crate::timeline::Sync) -> f64| {
        let samples = syncs.iter().map(|sync| 1e3 * of(sync)).collect();
        Row::new(format!("round x{workers}{name}"), "ms", samples)
    };
    let whole = periods.iter().map(|seconds| 1e3 * seconds).collect();
    let whole = Row::new(format!("round x{workers}"), "ms", whole);
    let whole = match workers {
        2 => whole.reach(Reach::AtMost(15.0)),
        4 => whole.reach(Reach::AtMost(25.0)),
        _ => whole,
    };
    let rows = vec![
        whole.note("from merge to merge; trainer reference, one step of 64 tokens"),
        stage(": sync", crate::timeline::Sync::total),
        stage(": encode + upload", |sync| sync.upload),
        stage(": screen", |sync| sync.screen),
        stage(": merge + publish", |sync| sync.merge),
        stage(": lease", |sync| sync.open),
        stage(": download + decode", |sync| sync.download),
    ];
    for name in cluster.names() {
        cluster.kill9(&name);
    }
    Ok(rows)
}
