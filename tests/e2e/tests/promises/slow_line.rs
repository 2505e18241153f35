//! A worker behind a slow line finishes its unit under one lease and sends every chunk once. A
//! worker whose line goes dead says so, and finishes when the line is back.

use e2e::Recipe;
use harness::{Cluster, Evidence, Line, Options, PATIENCE, Quality};
use schemas::Code;
use schemas::contribution::Contribution;
use schemas::event::LedgerEvent;

/// At this rate a contribution takes half a minute, far longer than the longest silence that a
/// transfer survives.
const UP_BYTES_PER_SECOND: u64 = 30_000;
/// 0.37 M parameters: eight chunks of 100 KB in bf16.
const MODEL: &str = r#"{"vocabulary":256,"context":6,"embedding":16,"hidden":1024}"#;

/// A cluster whose services reach the store over the line, with a run of one unit and no worker
/// yet.
async fn over_a_line() -> (Cluster, Line, Evidence) {
    let mut cluster = Cluster::broker(Options::default()).await;
    cluster.start_store().await;
    let line = cluster.reach_store_over(Quality::Good);
    cluster.start_coordinator("coordinator").await;
    let config = cluster.path("config.json");
    std::fs::write(&config, MODEL).unwrap();
    Recipe::reference(1, 1, 1)
        .model(&config)
        .set("model.chunk_elements=50000")
        .create(&cluster)
        .await;
    let evidence = cluster.evidence().await;
    (cluster, line, evidence)
}

/// Checks that the contribution of the only unit came under the first lease.
async fn accepted(cluster: &Cluster, evidence: &mut Evidence) -> Contribution {
    let accepted = |event: &LedgerEvent| matches!(event, LedgerEvent::ContributionAccepted { .. });
    let event = evidence
        .until_ledger("the contribution is accepted", cluster.run(), accepted)
        .await;
    let Some(LedgerEvent::ContributionAccepted {
        lease,
        contribution,
        ..
    }) = event.ledger()
    else {
        unreachable!()
    };
    assert_eq!(lease.epoch.get(), 1, "the first lease of the unit");
    (**contribution).clone()
}

#[tokio::test]
async fn a_unit_is_finished_under_one_lease_over_a_slow_line_and_no_chunk_is_sent_twice() {
    let (mut cluster, line, mut evidence) = over_a_line().await;
    line.set(Quality::Slow {
        up: UP_BYTES_PER_SECOND,
        down: 0,
    });
    let before = line.bytes_up();
    cluster.start_worker("worker-0", &[]).await;
    let contribution = accepted(&cluster, &mut evidence).await;
    let sent = line.bytes_up() - before;
    let bytes = contribution.chunks.total().get();
    assert!(
        contribution.chunks.count() == 8 && bytes > 700_000,
        "{bytes} bytes in {}",
        contribution.chunks.count()
    );
    // Requests, handshakes and TLS take some bytes too; one more chunk would add an eighth.
    assert!(
        sent < bytes + bytes / 10,
        "{sent} bytes were sent for {bytes}"
    );
}

/// The cable is pulled out in the middle of an upload, for a little longer than the longest silence
/// that a transfer survives.
#[tokio::test]
async fn a_line_that_goes_dead_in_mid_upload_is_told_once_and_the_unit_is_finished_when_it_is_back()
{
    let (mut cluster, line, mut evidence) = over_a_line().await;
    line.set(Quality::Slow {
        up: UP_BYTES_PER_SECOND,
        down: 0,
    });
    let before = line.bytes_up();
    cluster.start_worker("worker-0", &[]).await;
    // All parallel uploads have begun, and none is complete.
    line.until_up(before + 200_000, std::future::pending::<()>())
        .await;
    line.set(Quality::Dead);
    let stalled = Code::LineStalled.to_string();
    cluster
        .process("worker-0")
        .until_logged(PATIENCE, |log| log.contains(&stalled))
        .await;
    line.set(Quality::Good);
    accepted(&cluster, &mut evidence).await;
    let log = cluster.process("worker-0").log();
    let told: Vec<&str> = log.lines().filter(|line| line.contains(&stalled)).collect();
    assert_eq!(told.len(), 1, "{log}");
    assert!(
        told[0].contains("nothing moved for") && told[0].contains("upload"),
        "{}",
        told[0]
    );
}
