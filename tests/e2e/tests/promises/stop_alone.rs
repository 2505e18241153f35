//! A process that is told to stop while the bus is away stops nevertheless.

use std::time::Duration;

use e2e::Recipe;
use harness::{Cluster, Options};
use schemas::event::LedgerEvent;

/// Longest time until a process ends while the bus is away. Work that needs the bus stays undone,
/// and the process ends before a service manager would kill it (90 s with systemd).
const STOP_MAX: Duration = Duration::from_secs(45);

#[tokio::test]
async fn every_process_stops_without_the_bus() {
    let mut cluster = Cluster::start(Options::default(), 1).await;
    let run = cluster.run().clone();
    let mut evidence = cluster.evidence().await;
    Recipe::reference(50, 1, 60).create(&cluster).await;
    let granted = |event: &LedgerEvent| matches!(event, LedgerEvent::LeaseGranted { .. });
    evidence.until_ledger("lease", &run, granted).await;
    cluster.kill9("broker");
    // Each process notices the absence in this time, and has something to send that it cannot send.
    tokio::time::sleep(Duration::from_secs(3)).await;

    let names = ["worker-0", "coordinator", "audit", "store"];
    for name in names {
        cluster.process(name).terminate();
    }
    for name in names {
        let status = cluster.process(name).exit(STOP_MAX).await;
        // A coordinator that was about to append reports that it could not.
        let in_order = status.success() || (name == "coordinator" && status.code().is_some());
        assert!(in_order, "{name}: {status}");
    }
}
