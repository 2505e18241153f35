//! An audit notices every change to the record.

use async_nats::jetstream;
use e2e::Recipe;
use harness::{Cluster, Options, PATIENCE};
use runtime::exit::EXIT_TAMPERED;
use schemas::Code;
use schemas::permission::Role;
use schemas::subject::{AUDIT_STREAM, LEDGER_STREAM};

/// A cluster whose run is complete.
async fn trained() -> Cluster {
    let cluster = Cluster::start(Options::default(), 1).await;
    Recipe::reference(2, 1, 10).create(&cluster).await;
    cluster.operator().await.until_complete(cluster.run()).await;
    cluster.diloctl_ok(&["audit", "replay", "--summary"]).await;
    cluster
}

#[tokio::test]
async fn tl_03_a_stream_that_was_shortened_does_not_verify() {
    let mut cluster = trained().await;
    for (role, stream) in [
        (Role::LedgerProvisioner, LEDGER_STREAM),
        (Role::AuditProvisioner, AUDIT_STREAM),
    ] {
        let provisioner = cluster.connect(role, role.name()).await;
        let jetstream = jetstream::new(provisioner.client().clone());
        let mut config = jetstream
            .get_stream(stream)
            .await
            .unwrap()
            .cached_info()
            .config
            .clone();
        // A stream's own protection leaves one way open to a holder of the right to alter streams.
        config.max_messages = 5;
        config.discard = jetstream::stream::DiscardPolicy::Old;
        jetstream
            .update_stream(config)
            .await
            .expect("the broker lets a provisioner do this");
        if stream == LEDGER_STREAM {
            // The messages that were copied before are whole.
            cluster.diloctl_ok(&["audit", "replay", "--summary"]).await;
        }
    }
    let replay = cluster.diloctl(&["audit", "replay", "--summary"]).await;
    assert_eq!(
        replay.status.code(),
        Some(i32::from(EXIT_TAMPERED)),
        "{}{}",
        replay.stdout,
        replay.stderr
    );
    // A coordinator does not lead on such a ledger either.
    cluster.kill9("coordinator");
    cluster.spawn_coordinator("successor");
    let status = cluster.process("successor").exit(PATIENCE).await;
    assert_eq!(status.code(), Some(i32::from(EXIT_TAMPERED)), "{status}");
    assert!(
        cluster
            .process("successor")
            .log()
            .contains(&Code::LedgerBroken.to_string())
    );
}
