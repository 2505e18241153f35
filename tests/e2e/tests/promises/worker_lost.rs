//! A worker is killed in the middle of a unit: the unit is issued again under a later epoch, and
//! the run completes.

use e2e::Recipe;
use harness::{Cluster, Options};
use schemas::WorkerId;
use schemas::event::{Event, LedgerEvent, WorkerEvent};
use schemas::lease::UnitKind;

#[tokio::test]
async fn fg_06_the_unit_of_a_killed_worker_is_issued_again_and_the_run_completes() {
    let mut cluster = Cluster::start(Options::default(), 2).await;
    let mut evidence = cluster.evidence().await;
    // A unit takes seconds, and nothing but the event that says its start is waited for.
    Recipe::reference(2, 2, 1000).create(&cluster).await;
    let run = cluster.run().clone();
    let started = evidence
        .until("start of a unit of training", |recorded| {
            matches!(&recorded.body.event, Event::Worker(WorkerEvent::Started { lease }) if lease.unit.kind == UnitKind::Train)
        })
        .await;
    let Event::Worker(WorkerEvent::Started { lease }) = started.body.event else {
        unreachable!("it was waited for")
    };
    // The broker holds a worker to its own key in the subject.
    let holder: WorkerId = started.subject.split('.').nth(4).unwrap().parse().unwrap();
    let name = cluster.worker_named(&holder);
    cluster.kill9(&name);

    let ended = |event: &LedgerEvent| matches!(event, LedgerEvent::LeaseEnded { lease: ended, .. } if *ended == lease);
    evidence
        .until_ledger("end of the lost lease", &run, ended)
        .await;
    let again = |event: &LedgerEvent| match event {
        LedgerEvent::LeaseGranted {
            lease: granted,
            worker,
        } => granted.unit == lease.unit && granted.epoch > lease.epoch && *worker != holder,
        _ => false,
    };
    evidence
        .until_ledger("second grant of the unit", &run, again)
        .await;
    let view = cluster.operator().await.until_complete(&run).await;
    assert_eq!(view.round.get(), 2);
    cluster.record_verifies().await;
    for recorded in cluster.evidence().await.everything().await {
        if let Some(LedgerEvent::ContributionAccepted { worker, .. }) = recorded.ledger() {
            assert_ne!(*worker, holder, "the killed worker handed nothing in");
        }
    }
}
