//! `diloctl run freeze` keeps the weights of a run as they are while its workers and its
//! coordinator go on, also through the death of the coordinator; `run unfreeze` lets it go on where
//! it was.

use e2e::Recipe;
use harness::{Cluster, Evidence, Options, PATIENCE, Recorded};
use schemas::RunId;
use schemas::event::LedgerEvent;

const UNITS: u32 = 3;

#[tokio::test]
async fn a_frozen_run_keeps_its_weights_until_it_is_let_go_on() {
    let mut cluster = Cluster::start(Options::default(), 2).await;
    let run = cluster.run().clone();
    let mut evidence = cluster.evidence().await;
    Recipe::reference(6, UNITS, 20).create(&cluster).await;
    evidence.until_contribution(&run, 0).await;

    let refused = cluster.diloctl(&["run", "freeze", "demo"]).await;
    assert!(!refused.status.success(), "an order without a reason");
    let freeze = ["run", "freeze", "demo", "--reason", "a strange loss"];
    let shown = cluster.diloctl_ok(&freeze).await;
    assert!(shown.contains("placed; this is in the ledger"), "{shown}");
    let again = cluster.diloctl_ok(&freeze).await;
    assert!(again.contains("stands already"), "{again}");
    until_nothing_is_left_but_the_merge(&cluster, &run).await;
    let listed = cluster.diloctl_ok(&["run", "ls"]).await;
    assert!(listed.contains("merges on hold"), "{listed}");

    cluster.kill9("coordinator");
    cluster.restart("coordinator").await;
    until_nothing_is_left_but_the_merge(&cluster, &run).await;

    let unfreeze = ["run", "unfreeze", "demo", "--reason", "it was the data"];
    let shown = cluster.diloctl_ok(&unfreeze).await;
    assert!(shown.contains("lifted; this is in the ledger"), "{shown}");
    cluster.operator().await.until_complete(&run).await;
    cluster.stop_well(&["audit"]).await;
    cluster.record_verifies().await;
    nothing_was_merged_meanwhile(cluster.evidence().await).await;
}

/// Waits until the round that is open has all its contributions, while the run is frozen.
async fn until_nothing_is_left_but_the_merge(cluster: &Cluster, run: &RunId) {
    let operator = cluster.operator().await;
    let view = operator
        .until(run, PATIENCE, |view| {
            view.units_done == UNITS && view.holds.len() == 1
        })
        .await;
    assert_eq!(view.leases, 0);
}

async fn nothing_was_merged_meanwhile(evidence: Evidence) {
    let all = evidence.everything().await;
    let place = |wanted: fn(&LedgerEvent) -> bool| {
        let found = all.iter().position(|one| one.ledger().is_some_and(wanted));
        found.expect("the order is in the ledger")
    };
    let placed = place(|event| matches!(event, LedgerEvent::HoldPlaced { .. }));
    let lifted = place(|event| matches!(event, LedgerEvent::HoldLifted { .. }));
    let merges = |one: &Recorded| {
        matches!(
            one.ledger(),
            Some(LedgerEvent::RoundSealed { .. } | LedgerEvent::RoundClosed { .. })
        )
    };
    assert!(!all[placed..lifted].iter().any(merges));
    assert!(all[lifted..].iter().any(merges));
    let orders = all.iter().filter(|one| {
        matches!(
            one.ledger(),
            Some(LedgerEvent::HoldPlaced { .. } | LedgerEvent::HoldLifted { .. })
        )
    });
    assert_eq!(
        orders.count(),
        2,
        "an order that changed nothing is not written"
    );
}
