//! `diloctl cluster check` compares the live streams with their declarations, and `init` creates
//! missing ones.

use async_nats::jetstream::{self, message::StreamMessage, stream};
use e2e::Recipe;
use harness::{Cluster, Options};
use schemas::Code;
use schemas::permission::Role;
use schemas::subject::{AUDIT_STREAM, LEDGER_STREAM, WORK_STREAM, events_stream};

#[tokio::test]
async fn a_stream_that_differs_or_is_missing_is_reported_and_only_the_missing_one_is_made() {
    let cluster = Cluster::broker(Options::default()).await;
    cluster.diloctl_ok(&["cluster", "check"]).await;
    let provisioner = cluster.connect(Role::Provisioner, "provisioner").await;
    let jetstream = jetstream::new(provisioner.client().clone());
    let mut config = jetstream
        .get_stream(WORK_STREAM)
        .await
        .unwrap()
        .cached_info()
        .config
        .clone();
    let declared = config.max_bytes;
    config.max_bytes = 12_345_678;
    jetstream.update_stream(config).await.unwrap();
    for command in ["check", "init"] {
        let output = cluster.diloctl(&["cluster", command]).await;
        let told = output.stderr.contains(&Code::StreamDrift.to_string())
            && output.stderr.contains("12345678");
        assert!(
            !output.status.success() && told,
            "{command}: {}{}",
            output.stdout,
            output.stderr
        );
    }
    let live = jetstream
        .get_stream(WORK_STREAM)
        .await
        .unwrap()
        .cached_info()
        .config
        .max_bytes;
    assert_eq!(live, 12_345_678, "nothing was altered behind anyone's back");

    jetstream.delete_stream(WORK_STREAM).await.unwrap();
    let output = cluster.diloctl(&["cluster", "check"]).await;
    assert_eq!(
        output.status.code(),
        Some(3),
        "{}{}",
        output.stdout,
        output.stderr
    );
    cluster.diloctl_ok(&["cluster", "init"]).await;
    cluster.diloctl_ok(&["cluster", "check"]).await;
    let live = jetstream
        .get_stream(WORK_STREAM)
        .await
        .unwrap()
        .cached_info()
        .config
        .max_bytes;
    assert_eq!(live, declared);
}

/// The ledger of a domain from an earlier release takes no batches.
#[tokio::test]
async fn a_ledger_that_takes_no_batches_learns_to_and_nothing_else_changes() {
    let cluster = Cluster::broker(Options::default()).await;
    let provisioner = cluster.connect(Role::LedgerProvisioner, "ledger-provisioner");
    let jetstream = jetstream::new(provisioner.await.client().clone());
    let live = async || {
        info(&cluster, Role::LedgerProvisioner, LEDGER_STREAM)
            .await
            .config
    };
    let declared = live().await;
    assert!(declared.allow_atomic_publish);
    let older = stream::Config {
        allow_atomic_publish: false,
        max_bytes: 12_345_678,
        ..declared.clone()
    };
    jetstream.update_stream(older.clone()).await.unwrap();
    let output = cluster.diloctl(&["cluster", "check"]).await;
    let told = output
        .stderr
        .contains("allow_atomic is false, declared true");
    assert!(!output.status.success() && told, "{}", output.stderr);
    assert!(!live().await.allow_atomic_publish, "a check alters nothing");
    let output = cluster.diloctl(&["cluster", "init"]).await;
    assert!(
        output.stderr.contains("max_bytes is 12345678"),
        "{}",
        output.stderr
    );
    let widened = stream::Config {
        allow_atomic_publish: true,
        ..older
    };
    assert_eq!(live().await, widened);
    jetstream.update_stream(declared.clone()).await.unwrap();
    cluster.diloctl_ok(&["cluster", "check"]).await;
}

/// Bytes that the broker counts for a message in addition to subject, headers and payload.
const OVERHEAD_BYTES: usize = 34;

async fn info(cluster: &Cluster, role: Role, name: &str) -> stream::Info {
    let jetstream = jetstream::new(cluster.connect(role, role.name()).await.client().clone());
    jetstream
        .get_stream(name)
        .await
        .unwrap()
        .cached_info()
        .clone()
}

/// Length of a message as the broker stores it.
fn length(message: &StreamMessage) -> usize {
    let headers: usize = message
        .headers
        .iter()
        .flat_map(|(name, values)| {
            values
                .iter()
                .map(|value| name.to_string().len() + value.as_str().len() + 4)
        })
        .sum();
    message.subject.len()
        + "NATS/1.0\r\n\r\n".len()
        + headers
        + message.payload.len()
        + OVERHEAD_BYTES
}

/// The readers' stream holds the ledger and the events of all tenants even when all of these are
/// full, and the broker has room for it.
#[tokio::test]
async fn the_readers_copy_has_room_for_the_ledger_and_every_tenants_events() {
    let cluster = Cluster::start(
        Options {
            second_tenant: true,
            ..Options::default()
        },
        1,
    )
    .await;
    Recipe::reference(6, 2, 5).create(&cluster).await;
    cluster.operator().await.until_complete(cluster.run()).await;
    cluster.copied().await;
    let tenants = cluster.domain().trust().tenants.clone();
    let ledger = info(&cluster, Role::LedgerProvisioner, LEDGER_STREAM).await;
    let mut sources = vec![("diloco.ledger.", ledger)];
    for tenant in &tenants {
        sources.push((
            "diloco.record.",
            info(&cluster, Role::EventsProvisioner, &events_stream(tenant)).await,
        ));
    }
    let audit = info(&cluster, Role::AuditProvisioner, AUDIT_STREAM).await;
    let room: i64 = sources
        .iter()
        .map(|(_, source)| source.config.max_bytes)
        .sum();
    assert!(
        tenants.len() == 2 && audit.config.max_bytes * 4 >= room * 5,
        "{:?} for {room}",
        audit.config
    );

    let there: u64 = sources.iter().map(|(_, source)| source.state.bytes).sum();
    assert!(
        audit.state.bytes * 4 <= there * 5,
        "{} bytes are a copy of {there}",
        audit.state.bytes
    );
    // Checked for each of the two by itself, since one may be full while the other is nearly empty.
    let jetstream = jetstream::new(
        cluster
            .connect(Role::AuditProvisioner, "audit-provisioner")
            .await
            .client()
            .clone(),
    );
    let copy = jetstream.get_stream(AUDIT_STREAM).await.unwrap();
    let mut copied = std::collections::BTreeMap::<&str, usize>::new();
    for at in 1..=audit.state.last_sequence {
        let message = copy.get_raw_message(at).await.unwrap();
        let (lane, _) = sources
            .iter()
            .find(|(lane, _)| message.subject.starts_with(lane))
            .unwrap();
        *copied.entry(lane).or_default() += length(&message);
    }
    assert!(
        copied.values().sum::<usize>() as u64 >= audit.state.bytes,
        "each is counted as long as it is"
    );
    // Nothing was recorded for the second tenant, so its stream adds nothing.
    for (lane, source) in &sources[..2] {
        let (copied, there) = (copied[lane] as u64, source.state.bytes);
        assert!(
            copied * 4 <= there * 5,
            "{lane}: {copied} bytes are a copy of {there}"
        );
    }
}
