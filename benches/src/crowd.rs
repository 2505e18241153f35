//! The start of a large round: all workers but one wait with a claim each until the last one joins,
//! which opens the round, and claims too. The time from its join to the last verified manifest
//! holds the join and its answer, the appends of the grants, the signatures of all manifests, and
//! their way over the bus. The process needs a file descriptor for each worker.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::future::{join_all, try_join_all};
use harness::Scripted;
use schemas::lease::Manifest;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::Effort;
use crate::cluster_run::{self, Model, Security, Shape};
use crate::row::{Reach, Row};

/// Connections that are opened at the same time. Each takes a TLS handshake on both sides, and a
/// client gives up on one that waits too long for a core.
const CONNECTING_MAX: usize = 50;
/// Longest time until all claims are sent: less than the coordinator lets a claim wait, so that
/// none ends before the round opens.
const SENDING_MAX: Duration = Duration::from_secs(4);

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
    let name = format!("{workers} workers, from the last join to the last manifest");
    let row = Row::new(name, "s", seconds).note("the workers' connections are on the same cores");
    Ok(vec![match effort {
        Effort::Full => row.reach(Reach::AtMost(1.0)),
        Effort::Quick => row,
    }])
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
    let cluster = cluster_run::start(&shape, Security::Usual).await?;
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
    let sending = Instant::now();
    let waiting: Vec<_> = crowd
        .into_iter()
        .map(|worker| claim(worker, sent.clone()))
        .collect();
    drop(sent);
    for _ in &waiting {
        arrived.recv().await.context("a claim was not sent")?;
    }
    let took = sending.elapsed();
    ensure!(took < SENDING_MAX, "the claims were sent in {took:?}");
    let started = Instant::now();
    let joins = async {
        last.join().await;
        last.manifest().await
    };
    let (manifests, own) = tokio::join!(try_join_all(waiting), joins);
    let mut manifests = manifests?;
    manifests.push(own);
    let taken = started.elapsed().as_secs_f64();
    manifests.sort_by_key(|manifest| manifest.lease);
    manifests.dedup_by_key(|manifest| manifest.lease);
    ensure!(manifests.len() == workers, "two workers hold one lease");
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
