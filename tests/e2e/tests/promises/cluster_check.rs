//! `diloctl cluster check` compares the live streams with their declarations, and `init` makes what is missing.

use async_nats::jetstream;
use harness::{Cluster, Options};
use schemas::Code;
use schemas::permission::Role;
use schemas::subject::WORK_STREAM;

#[tokio::test]
async fn a_stream_that_differs_or_is_missing_is_reported_and_only_the_missing_one_is_made() {
    let cluster = Cluster::broker(Options::default()).await;
    cluster.diloctl_ok(&["cluster", "check"]).await;
    let provisioner = cluster.connect(Role::Provisioner, "provisioner").await;
    let jetstream = jetstream::new(provisioner.client().clone());
    let mut config = jetstream.get_stream(WORK_STREAM).await.unwrap().cached_info().config.clone();
    let declared = config.max_bytes;
    config.max_bytes = 12_345_678;
    jetstream.update_stream(config).await.unwrap();
    for command in ["check", "init"] {
        let output = cluster.diloctl(&["cluster", command]).await;
        let told = output.stderr.contains(&Code::StreamDrift.to_string()) && output.stderr.contains("12345678");
        assert!(!output.status.success() && told, "{command}: {}{}", output.stdout, output.stderr);
    }
    let live = jetstream.get_stream(WORK_STREAM).await.unwrap().cached_info().config.max_bytes;
    assert_eq!(live, 12_345_678, "nothing was altered behind anyone's back");

    jetstream.delete_stream(WORK_STREAM).await.unwrap();
    let output = cluster.diloctl(&["cluster", "check"]).await;
    assert_eq!(output.status.code(), Some(3), "{}{}", output.stdout, output.stderr);
    cluster.diloctl_ok(&["cluster", "init"]).await;
    cluster.diloctl_ok(&["cluster", "check"]).await;
    let live = jetstream.get_stream(WORK_STREAM).await.unwrap().cached_info().config.max_bytes;
    assert_eq!(live, declared);
}
