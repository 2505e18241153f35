//! The start of a large round: as many workers as units wait with a claim each until the last worker
//! joins, which opens the round. The time from its join to the last verified manifest holds the
//! grants' append, the signatures of all manifests, and their way over the bus.

use anyhow::{Context as _, Result};
use futures::future::{join_all, try_join_all};
use harness::Scripted;
use schemas::lease::Manifest;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::Effort;
use crate::cluster_run::{self, Model, Shape};
use crate::row::{Reach, Row};

/// Connections that are opened at the same time. Each takes a TLS handshake on both sides, and a
/// client gives up on one that waits too long for a core.
const CONNECTING_MAX: usize = 50;

/// Measures the rows of this bench.
pub(crate) async fn measure(effort: Effort) -> Result<Vec<Row>> {
    let (workers, repetitions) = match effort {
        Effort::Full => (1000, 3),
        Effort::Quick => (50, 1),
    };
    let mut seconds = Vec::with_capacity(repetitions);
    for _ in 0..repetitions {
        seconds.push(open(workers).await?);
    }
    let name = format!("{workers} waiting claims, from the last join to the last manifest");
    Ok(vec![
        Row::new(name, "s", seconds)
            .reach(Reach::AtMost(1.0))
            .note("the claims' senders run on the same cores"),
    ])
}

/// Opens one round for `workers` and returns the seconds until all hold their manifests.
async fn open(workers: usize) -> Result<f64> {
    let shape = Shape {
        model: Model::Synthetic {
            parameters: 1000,
            step_ms: 0,
        },
        steps: 1,
        step_tokens: 32,
        units: workers.try_into().context("a round has few units")?,
        rounds: 1,
        workers_min: workers,
        snapshot_every: 1,
    };
    let cluster = cluster_run::start(&shape).await?;
    let mut crowd = Vec::with_capacity(workers);
    while crowd.len() < workers {
        let more = CONNECTING_MAX.min(workers - crowd.len());
        let names = (crowd.len()..).take(more);
        let connecting = names.map(|index| {
            let cluster = &cluster;
            async move { Scripted::connect(cluster, &format!("worker-{index}")).await }
        });
        crowd.extend(join_all(connecting).await);
    }
    let last = crowd.pop().context("a round has workers")?;
    join_all(crowd.iter().map(Scripted::join)).await;
    let (sent, mut arrived) = mpsc::channel(workers);
    let waiting: Vec<_> = crowd
        .into_iter()
        .map(|worker| claim(worker, sent.clone()))
        .collect();
    for _ in &waiting {
        arrived.recv().await.context("a claim was not sent")?;
    }
    let started = Instant::now();
    last.join().await;
    let mut manifests = try_join_all(waiting).await?;
    manifests.push(last.manifest().await);
    let taken = started.elapsed().as_secs_f64();
    manifests.sort_by_key(|manifest| manifest.lease);
    manifests.dedup_by_key(|manifest| manifest.lease);
    anyhow::ensure!(manifests.len() == workers, "two workers hold one lease");
    Ok(taken)
}

/// Claims until there is work, and tells `sent` once the broker has the claim.
fn claim(worker: Scripted, sent: mpsc::Sender<()>) -> JoinHandle<Manifest> {
    tokio::spawn(async move {
        // The broker takes what comes over one connection in order.
        let passed = async {
            worker.bus.round_trip().await.expect("the broker answers");
            sent.send(()).await.expect("the bench waits for all claims");
        };
        let (manifest, ()) = tokio::join!(biased; worker.manifest(), passed);
        manifest
    })
}
