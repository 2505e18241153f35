//! Claims at a fixed rate from scripted workers with real credentials: the time from the moment a
//! claim is due to the signed grant in the worker's hands. Each grant, and each release after it,
//! is an event that the broker syncs to disk before the coordinator goes on.

use std::time::Duration;

use anyhow::{Context as _, Result};
use harness::Scripted;
use schemas::V;
use schemas::lease::{Done, ReleaseRequest};
use schemas::subject::Verb;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use crate::Effort;
use crate::cluster_run::{self, Model, Security, Shape};
use crate::row::{Reach, Row};

const CLAIMS_PER_SECOND: u64 = 100;
/// Number of workers: more than are ever busy when claims are answered in time. A claim that finds
/// none idle waits, and the wait counts. Each worker takes some 40 leases; a coordinator slows a
/// worker down after 64 without a result.
const CLAIMERS: usize = 40;
/// Units of the round: more than workers, so that a claim never waits for one.
const UNITS: u32 = 256;
/// Claims at the beginning that are not counted.
const WARMUP_CLAIMS: usize = 100;
/// Measures the rows of this bench.
pub(crate) async fn measure(effort: Effort) -> Result<Vec<Row>> {
    let counted = if effort == Effort::Full { 1500 } else { 100 };
    let shape = Shape {
        model: Model::Synthetic {
            parameters: 1000,
            step_ms: 0,
        },
        steps: 1,
        step_tokens: 32,
        units: UNITS,
        rounds: 1,
        workers_min: 1,
        snapshot_every: 1,
    };
    let cluster = cluster_run::start(&shape, Security::Usual).await?;
    let (idle, mut waiting) = mpsc::channel(CLAIMERS);
    for index in 0..CLAIMERS {
        let claimer = Scripted::connect(&cluster, &format!("claimer-{index}")).await;
        claimer.join().await;
        idle.try_send(claimer)
            .ok()
            .context("there is room for all")?;
    }
    let (times, mut taken) = mpsc::channel(CLAIMERS);
    let mut ticks = tokio::time::interval(Duration::from_millis(1000 / CLAIMS_PER_SECOND));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let claiming = async {
        for _ in 0..WARMUP_CLAIMS + counted {
            let due = ticks.tick().await;
            let claimer = waiting.recv().await.context("claimers come back")?;
            let (idle, times) = (idle.clone(), times.clone());
            tokio::spawn(async move {
                let taken = claim(&claimer, due).await;
                // The receiver is gone only if an earlier claim failed.
                let _ = times.send(taken).await;
                let _ = idle.send(claimer).await;
            });
        }
        Ok::<_, anyhow::Error>(())
    };
    let reading = async {
        let mut milliseconds = Vec::with_capacity(counted);
        for index in 0..WARMUP_CLAIMS + counted {
            let taken: Result<Duration> = taken.recv().await.context("no claim was made")?;
            let taken = taken.with_context(|| format!("claim {index}"))?;
            if index >= WARMUP_CLAIMS {
                milliseconds.push(taken.as_secs_f64() * 1e3);
            }
        }
        Ok::<_, anyhow::Error>(milliseconds)
    };
    let ((), milliseconds) = tokio::try_join!(claiming, reading)?;
    let row = Row::new(
        format!("lease claim to grant, {CLAIMS_PER_SECOND}/s"),
        "ms",
        milliseconds,
    );
    let tail = Row::new(
        format!("lease claim to grant, {CLAIMS_PER_SECOND}/s, p99"),
        "ms",
        vec![row.quantile(0.99)],
    );
    let note = "sync_interval: always; a release for each grant";
    Ok(vec![
        row.note(note),
        tail.reach(Reach::AtMost(10.0)).note(note),
    ])
}

/// Claims a unit and gives the lease back. Returns the time from `due` to the verified grant.
async fn claim(worker: &Scripted, due: Instant) -> Result<Duration> {
    let manifest = worker.claim().await;
    let taken = due.elapsed();
    let release = ReleaseRequest {
        v: V,
        lease: manifest.lease,
        reason: "measured".to_owned(),
    };
    let _: Done = worker.ask(Verb::Release, &release).await?;
    Ok(taken)
}
