//! The store is killed while workers use it and started again: the run completes.

use e2e::Recipe;
use harness::{Cluster, Options, PATIENCE};
use schemas::event::LedgerEvent;

#[tokio::test]
async fn a_store_that_is_killed_and_started_again_delays_the_run_at_most() {
    let mut cluster = Cluster::start(Options::default(), 2).await;
    let run = cluster.run().clone();
    let mut evidence = cluster.evidence().await;
    Recipe::reference(3, 2, 60).create(&cluster).await;
    let accepted = |event: &LedgerEvent| matches!(event, LedgerEvent::ContributionAccepted { .. });
    evidence.until_ledger("contribution", &run, accepted).await;
    cluster.kill9("store");
    cluster.restart("store").await;
    let view = cluster.operator().await.until_complete(&run).await;
    assert_eq!(view.round.get(), 3);
    for name in ["worker-0", "worker-1"] {
        let status = cluster.process(name).exit(PATIENCE).await;
        assert!(status.success(), "{name}: {status}");
    }
    for name in ["coordinator", "audit"] {
        assert!(cluster.process(name).ended().is_none(), "{name} did not survive");
    }
    cluster.diloctl_ok(&["audit", "replay", "--run", "demo", "--summary"]).await;
}
