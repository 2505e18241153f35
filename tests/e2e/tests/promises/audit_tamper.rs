//! The record notices what is done to it: events that disappear, and events that nobody signed. What a worker puts into its
//! own account puts nothing else in doubt.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream;
use e2e::{Recipe, Scripted};
use harness::{Cluster, Options, PATIENCE};
use runtime::exit::{EXIT_CONFLICT, EXIT_TAMPERED};
use schemas::Code;
use schemas::permission::Role;
use schemas::subject::{AUDIT_STREAM, LEDGER_STREAM, ledger_subject, worker_event_subject};

/// A cluster with a completed run.
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
    for (role, stream) in [(Role::LedgerProvisioner, LEDGER_STREAM), (Role::AuditProvisioner, AUDIT_STREAM)] {
        let provisioner = cluster.connect(role, role.name()).await;
        let jetstream = jetstream::new(provisioner.client().clone());
        let mut config = jetstream.get_stream(stream).await.unwrap().cached_info().config.clone();
        // The one way that a stream's own protection leaves open to whoever may alter streams.
        config.max_messages = 5;
        config.discard = jetstream::stream::DiscardPolicy::Old;
        jetstream.update_stream(config).await.expect("the broker lets a provisioner do this");
        if stream == LEDGER_STREAM {
            // What was copied before is whole.
            cluster.diloctl_ok(&["audit", "replay", "--summary"]).await;
        }
    }
    let replay = cluster.diloctl(&["audit", "replay", "--summary"]).await;
    assert_eq!(replay.status.code(), Some(i32::from(EXIT_TAMPERED)), "{}{}", replay.stdout, replay.stderr);
    // Nor does a coordinator lead on such a ledger.
    cluster.kill9("coordinator");
    cluster.spawn_coordinator("successor");
    let status = cluster.process("successor").exit(PATIENCE).await;
    assert_eq!(status.code(), Some(i32::from(EXIT_TAMPERED)), "{status}");
    assert!(cluster.process("successor").log().contains(&Code::LedgerBroken.to_string()));
}

#[tokio::test]
async fn fg_07_an_event_that_the_coordinator_did_not_sign_stops_it_and_does_not_verify() {
    let mut cluster = trained().await;
    let thief = cluster.connect(Role::LedgerWriter, "ledger-writer").await;
    let key = cluster.domain().trust().audit_keys[0].clone();
    let subject = ledger_subject(None, &key, "coordinator-stopped");
    // The connection's credential was stolen; the key that signs events was not.
    let stored = thief.request_raw(&subject, HeaderMap::new(), "forged".into(), Duration::from_secs(10)).await;
    stored.expect("the broker stores what this role may publish");
    let replay = cluster.diloctl(&["audit", "replay", "--summary"]).await;
    assert_eq!(replay.status.code(), Some(i32::from(EXIT_TAMPERED)), "{}{}", replay.stdout, replay.stderr);

    // Anything that changes state: the coordinator sees that it is not alone and stands down.
    let upload = schemas::control::OperatorObjects { v: schemas::V, objects: vec![schemas::ObjectRef::of(b"x")] };
    let operator = cluster.operator().await;
    let asked = operator.ask::<_, schemas::lease::Done>(schemas::subject::ControlVerb::BlobCommit, &upload);
    let (_, status) = tokio::join!(asked, cluster.process("coordinator").exit(PATIENCE));
    assert_eq!(status.code(), Some(i32::from(EXIT_CONFLICT)), "{status}");
    assert!(cluster.process("audit").ended().is_none(), "the audit service goes on");
}

#[tokio::test]
async fn a_worker_that_writes_nonsense_is_named_and_the_ledger_is_whole() {
    const WORKERS_FAULTY: i32 = 12;
    let cluster = trained().await;
    let liar = Scripted::connect(&cluster, "worker-0").await;
    let subject = worker_event_subject(cluster.run(), &liar.worker, "joined");
    let stored = liar.bus.request_raw(&subject, HeaderMap::new(), "nonsense".into(), Duration::from_secs(10)).await;
    stored.expect("the stream takes what the worker may publish");
    for arguments in [&["audit", "replay", "--summary"][..], &["audit", "replay", "--run", "demo"]] {
        let replay = cluster.diloctl(arguments).await;
        let said = format!("{}{}", replay.stdout, replay.stderr);
        assert_eq!(replay.status.code(), Some(WORKERS_FAULTY), "{said}");
        assert!(said.contains("ledger whole, 1 worker chain with faults"), "{said}");
        assert!(said.contains(liar.worker.as_str()) && said.contains(&Code::AuditRejected.to_string()), "{said}");
    }
}
