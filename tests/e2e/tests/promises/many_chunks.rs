//! A model with more chunks than an event can name: lists in objects name them, and the model is
//! trained, recomputed after a crash, verified and exported like any other.

use e2e::Recipe;
use harness::{Cluster, Options};
use schemas::event::LedgerEvent;
use schemas::limits::NAMED_CHUNKS_MAX;

const ROUNDS: u64 = 2;
const UNITS: u32 = 2;
/// 9.5 thousand parameters: some three hundred chunks of 32.
const MODEL: &str = r#"{"vocabulary":256,"context":4,"embedding":8,"hidden":24}"#;

#[tokio::test]
async fn a_model_of_more_chunks_than_an_event_names_is_trained_and_recomputed_after_a_crash() {
    let mut cluster = Cluster::start(Options::default(), 2).await;
    let run = cluster.run().clone();
    let mut evidence = cluster.evidence().await;
    let config = cluster.path("config.json");
    std::fs::write(&config, MODEL).unwrap();
    // No snapshot is saved before the end, so a new coordinator has only the lists.
    Recipe::reference(ROUNDS, UNITS, 20)
        .model(&config)
        .set("model.chunk_elements=32")
        .set("policy.lease=20s")
        .set("schedule.snapshot_every=2")
        .create(&cluster)
        .await;
    evidence.until_contribution(&run, 1).await;
    cluster.kill9("coordinator");
    cluster.restart("coordinator").await;
    let operator = cluster.operator().await;
    let view = operator.until_complete(&run).await;
    let (_, loss) = view.held_out_loss.expect("the last snapshot was evaluated");
    assert!(loss.is_finite());
    let spec = operator.run(&run).await.unwrap().spec;
    let initial = spec.model.initial.listed().expect("its chunks are listed");
    assert!(initial.chunks as usize > NAMED_CHUNKS_MAX);
    cluster.record_verifies().await;
    let to = cluster.path("pulled");
    let to = to.to_str().expect("a path of ours");
    cluster
        .diloctl_ok(&["snapshot", "pull", run.as_str(), "--to", to])
        .await;
    assert!(cluster.path("pulled").join("model.safetensors").exists());
    cluster.end_well(&["worker-0", "worker-1"]).await;
    let recorded = cluster.evidence().await.everything().await;
    let mut counted = 0;
    for one in &recorded {
        let chunks = match one.ledger() {
            Some(LedgerEvent::ContributionAccepted { contribution, .. }) => &contribution.chunks,
            Some(LedgerEvent::RoundClosed { broadcast, .. }) => &broadcast.chunks,
            _ => continue,
        };
        let listed = chunks.listed().expect("a run lists all its chunks");
        assert_eq!(listed.chunks, initial.chunks);
        counted += 1;
    }
    assert_eq!(counted, ROUNDS * u64::from(UNITS) + ROUNDS);
}
