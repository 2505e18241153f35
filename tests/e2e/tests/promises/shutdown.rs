//! `diloctl control shutdown` drains over the bus: every process ends in order with status 0, and
//! the run continues after a restart.

use e2e::Recipe;
use harness::{Cluster, Options, PATIENCE};
use schemas::event::LedgerEvent;

#[tokio::test]
async fn a_shutdown_over_the_bus_drains_and_a_restart_goes_on() {
    let mut cluster = Cluster::start(Options::default(), 2).await;
    let run = cluster.run().clone();
    let mut evidence = cluster.evidence().await;
    Recipe::reference(40, 2, 60).create(&cluster).await;
    // The coordinator tells its members; a worker that is still joining waits for the next
    // coordinator.
    cluster
        .operator()
        .await
        .until(&run, PATIENCE, |view| view.workers == 2)
        .await;
    let second_round = |event: &LedgerEvent| matches!(event, LedgerEvent::LeaseGranted { lease, .. } if lease.unit.round.get() == 1);
    evidence
        .until_ledger("lease in round 1", &run, second_round)
        .await;

    let refused = cluster.diloctl(&["control", "shutdown"]).await;
    assert!(
        !refused.status.success(),
        "without --yes and without a terminal nobody can agree: {}",
        refused.stdout
    );
    cluster
        .drain("20s", &["worker-0", "worker-1", "coordinator"])
        .await;
    let stopped = |event: &LedgerEvent| matches!(event, LedgerEvent::CoordinatorStopped { .. });
    let stopped = evidence
        .until("stop", |recorded| recorded.ledger().is_some_and(stopped))
        .await;
    cluster.stop_well(&["audit", "store"]).await;
    cluster.record_verifies().await;
    let before = cluster.evidence().await.everything().await;
    let ordered = before
        .iter()
        .any(|one| matches!(one.ledger(), Some(LedgerEvent::ControlReceived { verb, .. }) if verb == "shutdown"));
    assert!(ordered, "the order and who gave it are in the ledger");

    for name in ["store", "coordinator", "worker-0", "worker-1"] {
        cluster.restart(name).await;
    }
    let closed = |event: &LedgerEvent| matches!(event, LedgerEvent::RoundClosed { .. });
    evidence
        .until("round closed after the restart", |recorded| {
            recorded.sequence > stopped.sequence && recorded.ledger().is_some_and(closed)
        })
        .await;
}
