//! The coordinator's key for events is replaced while a run goes on: nobody loses a lease, the
//! ledger stays one chain, and the old key neither writes it nor leads with it.

use std::fs;
use std::path::PathBuf;

use async_nats::HeaderMap;
use e2e::Recipe;
use harness::{Cluster, Evidence, Options, PATIENCE, Recorded};
use identity::{AuditKey, TrustBundle};
use schemas::event::{Event, EventBody, LedgerEvent, WorkerEvent};
use schemas::permission::Role;
use schemas::subject::ledger_subject;
use schemas::{Code, Digest, Epoch, Message as _, PublicKey};

const ROTATE: [&str; 3] = ["auth", "rotate", "events"];

/// Signs the event that would follow on this one, and puts it into the ledger.
async fn put(cluster: &Cluster, key: &AuditKey, last: &EventBody, event: LedgerEvent) {
    let writer = cluster.connect(Role::LedgerWriter, "ledger-writer").await;
    let subject = ledger_subject(None, key.public(), event.kind());
    let body = EventBody {
        emitter: key.public().clone(),
        sequence: last.sequence.next(),
        previous: Some(Digest::of(&last.encode())),
        run: None,
        event: Event::Ledger(event),
        ..last.clone()
    };
    let domain = cluster.domain().trust().domain.to_string();
    let payload = key.sign_event(&domain, body.encode()).encode();
    let stored = writer.request_raw(&subject, HeaderMap::new(), payload.into(), PATIENCE);
    stored.await.expect("the broker stores it");
}

fn names(next: &AuditKey) -> LedgerEvent {
    LedgerEvent::EmitterSucceeded {
        next: next.public().clone(),
    }
}

fn key(cluster: &Cluster) -> AuditKey {
    AuditKey::read(&cluster.domain().layout().coordinator_audit_key()).unwrap()
}

/// The file in which the next key waits.
fn waiting(cluster: &Cluster) -> PathBuf {
    let key = cluster.domain().layout().coordinator_audit_key();
    key.with_extension("nk.next")
}

fn bundle(cluster: &Cluster) -> TrustBundle {
    TrustBundle::read(&cluster.domain().layout().trust()).unwrap()
}

fn started(recorded: &Recorded) -> bool {
    let event = &recorded.body.event;
    matches!(event, Event::Worker(WorkerEvent::Started { .. }))
}

/// Waits for a contribution that the ledger has under this key.
async fn goes_on(evidence: &mut Evidence, key: &PublicKey) {
    let accepted = |recorded: &Recorded| {
        let event = recorded.ledger();
        let accepts = matches!(event, Some(LedgerEvent::ContributionAccepted { .. }));
        accepts && recorded.body.emitter == *key
    };
    evidence
        .until("contribution under the next key", accepted)
        .await;
}

/// Waits until a full snapshot is saved under this key, and returns the digest of its manifest.
async fn saved(evidence: &mut Evidence, key: &PublicKey) -> Digest {
    let saves = |recorded: &Recorded| match recorded.ledger() {
        Some(LedgerEvent::SnapshotSaved { manifest, .. }) if recorded.body.emitter == *key => {
            Some(manifest.digest)
        }
        _ => None,
    };
    let saved = evidence.until("full snapshot", |recorded| saves(recorded).is_some());
    saves(&saved.await).expect("it was just found")
}

/// Stops everybody in order, and checks that no lease was lost and that the events of these keys
/// are one chain. Returns the key that goes on.
async fn ends_as_one_chain(cluster: &mut Cluster, first: &PublicKey) -> PublicKey {
    cluster
        .drain("20s", &["worker-0", "worker-1", "coordinator"])
        .await;
    cluster.record_verifies().await;
    let (mut before, mut present) = (None, first.clone());
    for recorded in cluster.evidence().await.everything().await {
        let Some(event) = recorded.ledger() else {
            continue;
        };
        let body = &recorded.body;
        if body.emitter != present {
            continue;
        }
        if let LedgerEvent::LeaseGranted { lease, .. } = event {
            assert_eq!(lease.epoch, Epoch(1), "{lease} was lost before");
        }
        assert_eq!(body.previous, before, "{} follows", body.sequence);
        before = Some(Digest::of(&body.encode()));
        if let Some(next) = body.event.next_emitter() {
            present = next.clone();
        }
    }
    present
}

#[tokio::test]
async fn tl_28_fg_07_the_event_key_is_replaced_mid_round_and_the_ledger_stays_one_chain() {
    let mut cluster = Cluster::start(Options::default(), 2).await;
    let mut evidence = cluster.evidence().await;
    // More rounds than the test waits for.
    Recipe::reference(1_000, 2, 300).create(&cluster).await;
    evidence.until("start of a unit", started).await;
    let stolen = key(&cluster);
    let snapshot_before = saved(&mut evidence, stolen.public()).await;
    let retire = [&ROTATE[..], &["--retire"]].concat();
    let told = cluster.diloctl(&retire).await;
    let code = Code::EventKeyInUse.to_string();
    assert!(told.stderr.contains(&code), "{}", told.stderr);

    // What waits and cannot be taken is told while the coordinator runs on.
    let waits = waiting(&cluster);
    identity::secret::write_private(&waits, b"no key").unwrap();
    let unfit = |log: &str| log.contains(&Code::EventKeyUnknown.to_string());
    let coordinator = cluster.process("coordinator");
    coordinator.until_logged(PATIENCE, unfit).await;
    fs::remove_file(&waits).unwrap();

    let told = cluster
        .diloctl_ok(&[&ROTATE[..], &["--prepare"]].concat())
        .await;
    let next = bundle(&cluster).audit_keys[1].clone();
    assert!(told.contains(next.as_str()), "{told}");
    let told = cluster.diloctl_ok(&ROTATE).await;
    for key in [stolen.public(), &next] {
        assert!(told.contains(key.as_str()), "{told}");
    }
    let named = |recorded: &Recorded| recorded.body.event.next_emitter() == Some(&next);
    let last = evidence.until("name of the next key", named).await.body;
    assert_eq!(last.emitter, *stolen.public());
    let uses = |log: &str| log.contains("the ledger is signed with a new key");
    let coordinator = cluster.process("coordinator");
    coordinator.until_logged(PATIENCE, uses).await;
    assert_eq!(*key(&cluster).public(), next);

    // A thief with the old key and the right to write goes on with the old chain, and makes a
    // successor of its own. Somebody with that right alone does the same.
    let thief = AuditKey::generate();
    let stopped = LedgerEvent::CoordinatorStopped {
        reason: "a thief said so".to_owned(),
    };
    put(&cluster, &stolen, &last, stopped.clone()).await;
    put(&cluster, &stolen, &last, names(&thief)).await;
    put(&cluster, &thief, &last, names(&thief)).await;
    let refused = |log: &str| {
        let strangers = log.matches("is not the key that goes on with the ledger");
        strangers.count() == 2 && log.contains("is not trusted to write the ledger")
    };
    let audit = cluster.process("audit");
    audit.until_logged(PATIENCE, refused).await;
    goes_on(&mut evidence, &next).await;
    let snapshot_after = saved(&mut evidence, &next).await;

    let told = cluster.diloctl_ok(&retire).await;
    let ended = told.contains(stolen.public().as_str()) && told.contains("ended");
    assert!(ended, "{told}");
    assert_eq!(bundle(&cluster).ended(stolen.public()), Some(last.sequence));
    // One has a statement of the old key, one of the new.
    for snapshot in [snapshot_before, snapshot_after] {
        let digest = snapshot.to_string();
        cluster.diloctl_ok(&["lineage", "show", &digest]).await;
    }
    for name in ["coordinator", "audit"] {
        assert!(cluster.process(name).ended().is_none(), "{name} ended");
    }
    let goes_on = ends_as_one_chain(&mut cluster, stolen.public()).await;
    assert_eq!(goes_on, next);
    let said = cluster
        .diloctl_ok(&["--output", "json", "audit", "replay", "--summary"])
        .await;
    let summary: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(summary["foreign"].as_u64(), Some(3), "{said}");
    assert_eq!(summary["evidence"].as_bool(), Some(false), "{said}");
    assert_eq!(summary["rejected"].as_u64(), Some(0), "{said}");
    cluster.stop_well(&["audit"]).await;
    cluster.diloctl_ok(&["audit", "verify"]).await;

    // A coordinator that has the old key does not lead. The one with the new key does.
    let path = cluster.domain().layout().coordinator_audit_key();
    let kept = fs::read(&path).unwrap();
    stolen.seed().write(&path).unwrap();
    cluster.spawn_coordinator("thief");
    let thief = cluster.process("thief");
    assert!(!thief.exit(PATIENCE).await.success());
    let log = thief.log();
    assert!(log.contains(&Code::EventKeySucceeded.to_string()), "{log}");
    assert!(log.contains("has ended with event"), "{log}");
    identity::secret::write_private(&path, &kept).unwrap();
    cluster.restart("coordinator").await;
    let leads = |recorded: &Recorded| {
        let event = recorded.ledger();
        let leads = matches!(event, Some(LedgerEvent::CoordinatorStarted { .. }));
        leads && recorded.body.emitter == next
    };
    evidence.until("next leader", leads).await;
    cluster.stop_well(&["coordinator"]).await;
}

/// Killed before the event that names the next key, between that and the first use of the key, and
/// after: the next process goes on with the one key whose turn it is.
#[tokio::test]
async fn tl_28_a_coordinator_that_is_killed_at_any_step_of_the_change_goes_on_with_the_next_key() {
    let mut cluster = Cluster::start(Options::default(), 2).await;
    let mut evidence = cluster.evidence().await;
    // Leases outlast the time in which nobody leads.
    let recipe = Recipe::reference(1_000, 2, 300).set("policy.lease=60s");
    recipe.create(&cluster).await;
    evidence.until("start of a unit", started).await;
    let first = key(&cluster);
    let next = |cluster: &Cluster| bundle(cluster).audit_keys.last().unwrap().clone();

    // Before the event. The command makes no second key while one waits, and says so.
    cluster.kill9("coordinator");
    let told = cluster.diloctl_ok(&ROTATE).await;
    assert!(!told.contains("waits already"), "{told}");
    let told = cluster.diloctl_ok(&ROTATE).await;
    assert!(told.contains("waits already"), "{told}");
    assert_eq!(bundle(&cluster).audit_keys.len(), 2);
    cluster.restart("coordinator").await;
    let second = key(&cluster);
    assert_eq!(*second.public(), next(&cluster));
    goes_on(&mut evidence, second.public()).await;

    // The ledger has the event, and the file was not moved.
    cluster.kill9("coordinator");
    cluster.diloctl_ok(&ROTATE).await;
    cluster.copied().await;
    let recorded = cluster.evidence().await.everything().await;
    let ends = recorded.iter().rev().find(|one| one.ledger().is_some());
    let named = LedgerEvent::EmitterSucceeded {
        next: next(&cluster),
    };
    put(&cluster, &second, &ends.unwrap().body, named).await;
    // A former key alone could have done that in a stream that was cut off: no end is noted yet.
    cluster.copied().await;
    let retire = [&ROTATE[..], &["--retire"]].concat();
    let told = cluster.diloctl(&retire).await;
    let code = Code::EventKeyInUse.to_string();
    assert!(told.stderr.contains(&code), "{}", told.stderr);
    assert_eq!(bundle(&cluster).ended_audit_keys, []);
    assert_eq!(key(&cluster).public(), second.public());
    cluster.restart("coordinator").await;
    let third = key(&cluster);
    assert_eq!(*third.public(), next(&cluster));
    goes_on(&mut evidence, third.public()).await;

    // As soon as the event can be seen.
    cluster.diloctl_ok(&ROTATE).await;
    let fourth = next(&cluster);
    let named = |recorded: &Recorded| recorded.body.event.next_emitter() == Some(&fourth);
    evidence.until("name of the next key", named).await;
    cluster.kill9("coordinator");
    cluster.restart("coordinator").await;
    assert_eq!(*key(&cluster).public(), fourth);
    goes_on(&mut evidence, &fourth).await;

    // After.
    cluster.kill9("coordinator");
    cluster.restart("coordinator").await;
    goes_on(&mut evidence, &fourth).await;
    let goes_on = ends_as_one_chain(&mut cluster, first.public()).await;
    assert_eq!(goes_on, fourth);
    let ledger = cluster.evidence().await.ledger().await;
    let named = ledger.iter().filter_map(|event| match event {
        LedgerEvent::EmitterSucceeded { next } => Some(next.clone()),
        _ => None,
    });
    let expected = [second.public(), third.public(), &fourth].map(Clone::clone);
    assert_eq!(named.collect::<Vec<_>>(), expected);
}
