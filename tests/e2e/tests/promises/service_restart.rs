//! The broker or the store is killed in the middle of a round and started again: the run completes.

use e2e::Recipe;
use harness::{Cluster, Options};
use schemas::event::LedgerEvent;

/// Trains with two workers, and kills `service` in the middle of the run.
async fn survives_a_crash_of(service: &str) {
    let mut cluster = Cluster::start(Options::default(), 2).await;
    let run = cluster.run().clone();
    let mut evidence = cluster.evidence().await;
    Recipe::reference(3, 2, 60).create(&cluster).await;
    let accepted = |event: &LedgerEvent| matches!(event, LedgerEvent::ContributionAccepted { .. });
    evidence.until_ledger("contribution", &run, accepted).await;
    cluster.kill9(service);
    cluster.restart(service).await;
    let view = cluster.operator().await.until_complete(&run).await;
    assert_eq!(view.round.get(), 3);
    cluster.end_well(&["worker-0", "worker-1"]).await;
    for name in ["coordinator", "audit"] {
        assert!(
            cluster.process(name).ended().is_none(),
            "{name} did not survive"
        );
    }
    cluster.record_verifies().await;
}

#[tokio::test]
async fn a_broker_that_is_killed_and_started_again_delays_the_run_at_most() {
    survives_a_crash_of("broker").await;
}

#[tokio::test]
async fn a_store_that_is_killed_and_started_again_delays_the_run_at_most() {
    survives_a_crash_of("store").await;
}
