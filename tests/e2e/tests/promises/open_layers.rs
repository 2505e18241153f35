//! A cluster whose broker and store speak plaintext by an exception: it trains, and everybody who
//! looks is told what is open, and why.

use e2e::Recipe;
use harness::{Cluster, Options};
use schemas::Code;
use schemas::event::LedgerEvent;
use schemas::member::Layer;

#[tokio::test]
async fn la_03_layers_opened_by_an_exception_are_told_and_recorded_and_nothing_else_is_open() {
    let options = Options {
        plaintext: true,
        ..Options::default()
    };
    let mut cluster = Cluster::start(options, 1).await;
    let run = cluster.run().clone();
    Recipe::reference(2, 1, 5).create(&cluster).await;
    let operator = cluster.operator().await;
    operator.until_complete(&run).await;

    // Each process said so at its start.
    for name in ["coordinator", "store", "audit", "worker-0"] {
        let log = cluster.process(name).log();
        assert!(log.contains(&Code::LayerOpen.to_string()), "{name}: {log}");
    }
    // The record has the posture of the coordinator, and that of the worker that joined.
    let recorded = cluster.evidence().await.everything().await;
    let mut postures = 0;
    for event in recorded.iter().filter_map(|one| one.ledger()) {
        let (LedgerEvent::CoordinatorStarted { posture, .. }
        | LedgerEvent::WorkerJoined { posture, .. }) = event
        else {
            continue;
        };
        postures += 1;
        let open: Vec<_> = posture.open.iter().map(|open| open.layer).collect();
        assert_eq!(open, [Layer::Bus, Layer::Bulk]);
        let mut reasons = posture.open.iter().map(|open| open.reason.as_str());
        assert!(reasons.all(|reason| reason == "a measurement"));
    }
    assert_eq!(postures, 2);
    // Identity does not depend on TLS: without credentials the broker still admits nobody.
    let stranger = cluster
        .diloctl(&["--credentials", "nowhere.creds", "run", "ls"])
        .await;
    assert!(!stranger.status.success(), "{}", stranger.stdout);
    cluster
        .stop_well(&["worker-0", "audit", "coordinator"])
        .await;
}
