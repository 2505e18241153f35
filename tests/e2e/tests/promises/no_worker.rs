//! A run never stands still in silence: a unit that fails with every worker halts it, and a run
//! without workers says why they left.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use e2e::{Recipe, Scripted};
use harness::{Cluster, Options, PATIENCE};
use schemas::Code;
use schemas::event::{Departure, LedgerEvent};
use schemas::view::RunPhase;

/// Checks that the reason stands everywhere a person looks.
async fn shown(cluster: &Cluster, code: Code, says: &str) {
    let said = cluster.diloctl_ok(&["run", "get", "demo"]).await;
    assert!(
        said.contains(&code.to_string()) && said.contains(says),
        "{said}"
    );
}

#[tokio::test]
async fn a_unit_that_fails_with_every_worker_halts_the_run_with_their_reason() {
    let mut cluster = Cluster::start(Options::default(), 0).await;
    Recipe::reference(2, 1, 5).create(&cluster).await;
    let run = cluster.run().clone();
    // The tokens are lost unnoticed: each worker finds that out for itself, since the coordinator
    // holds none of them.
    let spec = cluster.operator().await.run(&run).await.unwrap().spec;
    let named = [spec.data, spec.model.config, spec.model.layout];
    let kept: Vec<String> = named
        .iter()
        .chain(spec.model.initial.objects())
        .map(|object| object.digest.hex())
        .collect();
    remove_others(&cluster.path("store").join("blobs"), &kept);
    let started = Instant::now();
    for name in ["worker-0", "worker-1"] {
        cluster.start_worker(name, &[]).await;
    }
    let waits = cluster.diloctl(&["run", "wait", "demo"]).await;
    assert!(
        started.elapsed() < Duration::from_secs(60),
        "within a minute, not after {:?}",
        started.elapsed()
    );
    assert!(
        !waits.status.success() && waits.stderr.contains(&Code::UnitFails.to_string()),
        "{}",
        waits.stderr
    );
    let view = cluster
        .operator()
        .await
        .until(&run, PATIENCE, |view| view.phase == RunPhase::Halted)
        .await;
    let halted = view.halted.unwrap();
    assert_eq!(halted.code, Code::UnitFails);
    assert!(
        halted.detail.contains(&Code::ObjectMissing.to_string()),
        "the workers' own reason: {}",
        halted.detail
    );
    shown(&cluster, Code::UnitFails, "halted").await;
}

/// Removes all files below a folder but those of these names.
fn remove_others(folder: &Path, kept: &[String]) {
    for entry in fs::read_dir(folder).unwrap().filter_map(Result::ok) {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if path.is_dir() {
            remove_others(&path, kept);
        } else if !kept.contains(&name) {
            fs::remove_file(&path).unwrap();
        }
    }
}

#[tokio::test]
async fn a_run_whose_workers_are_gone_says_why_and_a_removed_worker_ends() {
    let mut cluster = Cluster::start(Options::default(), 0).await;
    Recipe::reference(2, 1, 5)
        .set("policy.strikes_max=1")
        .create(&cluster)
        .await;
    let run = cluster.run().clone();
    // A scripted worker with this name hands in malformed results, and is removed.
    let scripted = Scripted::connect(&cluster, "worker-0").await;
    let spec = scripted.join().await;
    let lease = scripted.claim().await.lease;
    let mut contribution = Scripted::contribution(&spec, Vec::new());
    contribution.steps = schemas::Steps(1);
    assert!(scripted.submit(&spec, lease, contribution).await.is_err());
    let mut evidence = cluster.evidence().await;
    let removed = |event: &LedgerEvent| {
        matches!(
            event,
            LedgerEvent::WorkerLeft {
                cause: Departure::Removed,
                ..
            }
        )
    };
    evidence.until_ledger("removal", &run, removed).await;
    shown(&cluster, Code::NoWorkerLeft, "1 were removed").await;
    // `run wait` prints the reason at once, and goes on waiting for the time that it was given.
    let waits = cluster
        .diloctl(&["run", "wait", "demo", "--nobody-for", "1s"])
        .await;
    assert!(!waits.status.success(), "{}", waits.stdout);
    for said in [
        "held up",
        &Code::NoWorkerLeft.to_string(),
        &Code::TokensMismatch.to_string(),
    ] {
        assert!(waits.stderr.contains(said), "{said}: {}", waits.stderr);
    }
    // The real process with this name, started by hand, ends as well instead of waiting.
    drop(scripted);
    cluster.spawn_worker("worker-0", &[]);
    let status = cluster.process("worker-0").exit(PATIENCE).await;
    let log = cluster.process("worker-0").log();
    assert_eq!(status.code(), Some(64), "{log}");
    assert!(
        log.contains(&Code::WorkerRemoved.to_string()) && log.contains("diloctl auth issue"),
        "{log}"
    );
    // Another worker continues.
    cluster.start_worker("worker-1", &[]).await;
    cluster.operator().await.until_complete(&run).await;
}
