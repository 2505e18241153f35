//! A worker behind a slow line finishes its unit under one lease, and sends every chunk once.

use e2e::Recipe;
use harness::{Cluster, Options, Quality};
use schemas::event::LedgerEvent;

/// A contribution takes half a minute at this rate, far longer than any silence that is borne.
const UP_BYTES_PER_SECOND: u64 = 30_000;
/// 0.37 M parameters: eight chunks of 100 KB in bf16.
const MODEL: &str = r#"{"vocabulary":256,"context":6,"embedding":16,"hidden":1024}"#;

#[tokio::test]
async fn a_unit_is_finished_under_one_lease_over_a_slow_line_and_no_chunk_is_sent_twice() {
    let mut cluster = Cluster::broker(Options::default()).await;
    cluster.start_store().await;
    let line = cluster.reach_store_over(Quality::Good);
    cluster.start_coordinator("coordinator").await;
    let config = cluster.path("config.json");
    std::fs::write(&config, MODEL).unwrap();
    Recipe::reference(1, 1, 1).model(&config).set("model.chunk_elements=50000").create(&cluster).await;
    let mut evidence = cluster.evidence().await;
    line.set(Quality::Slow { up: UP_BYTES_PER_SECOND, down: 0 });
    let before = line.bytes_up();
    cluster.start_worker("worker-0", &[]).await;
    let run = cluster.run().clone();
    let accepted = |event: &LedgerEvent| matches!(event, LedgerEvent::ContributionAccepted { .. });
    let event = evidence.until_ledger("the contribution is accepted", &run, accepted).await;
    let sent = line.bytes_up() - before;
    let Some(LedgerEvent::ContributionAccepted { lease, contribution, .. }) = event.ledger() else { unreachable!() };
    assert_eq!(lease.epoch.get(), 1, "the first lease of the unit");
    let bytes: u64 = contribution.chunks.iter().map(|chunk| chunk.bytes.get()).sum();
    assert!(contribution.chunks.len() == 8 && bytes > 700_000, "{bytes} bytes in {}", contribution.chunks.len());
    // Requests, handshakes and TLS take some too; one more chunk would be an eighth.
    assert!(sent < bytes + bytes / 10, "{sent} bytes were sent for {bytes}");
    let log = cluster.process("worker-0").log();
    assert!(log.contains("DL0311"), "it says that the line is slow: {log}");
}
