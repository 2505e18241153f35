//! A second coordinator takes over; the first learns that from the ledger and stands down.

use e2e::Recipe;
use harness::{Cluster, Options, PATIENCE};
use runtime::exit::EXIT_CONFLICT;
use schemas::Code;
use schemas::event::LedgerEvent;

#[tokio::test]
async fn the_second_coordinator_leads_and_the_first_stands_down() {
    let mut cluster = Cluster::start(Options::default(), 1).await;
    let run = cluster.run().clone();
    let mut evidence = cluster.evidence().await;
    Recipe::reference(3, 2, 60).create(&cluster).await;
    let accepted = |event: &LedgerEvent| matches!(event, LedgerEvent::ContributionAccepted { .. });
    evidence.until_ledger("contribution", &run, accepted).await;
    cluster.start_coordinator("successor").await;

    let status = cluster.process("coordinator").exit(PATIENCE).await;
    assert_eq!(status.code(), Some(i32::from(EXIT_CONFLICT)), "{status}");
    let log = cluster.process("coordinator").log();
    assert!(log.contains(&Code::LedgerFenced.to_string()), "{log}");
    cluster.operator().await.until_complete(&run).await;
    assert!(
        cluster.process("successor").ended().is_none(),
        "the successor leads on"
    );
    cluster.record_verifies().await;
}
