//! Two workers train a small decoder on libtorch.

use e2e::Recipe;
use harness::{Cluster, Options};

#[tokio::test]
async fn two_workers_train_a_decoder_and_it_can_be_pulled() {
    let mut cluster = Cluster::start(Options::default(), 2).await;
    Recipe::torch(2, 2, 8).create(&cluster).await;
    let run = cluster.run().clone();
    let operator = cluster.operator().await;
    let view = operator.until_complete(&run).await;
    let first = operator.rounds(&run).await[0].held_out_loss.expect("the initial weights were evaluated");
    let (_, last) = view.held_out_loss.expect("the last snapshot was evaluated");
    assert!(last + 0.3 < first, "held-out loss went from {first} to {last}");
    cluster.end_well(&["worker-0", "worker-1"]).await;
    cluster.diloctl_ok(&["snapshot", "pull", "demo", "--to", "model"]).await;
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(cluster.path("model/config.json")).unwrap()).unwrap();
    assert_eq!(config["vocab_size"], 256);
    let weights = std::fs::metadata(cluster.path("model/model.safetensors")).unwrap().len();
    assert!(weights > 4 * 200_000, "{weights} bytes of weights");
}
