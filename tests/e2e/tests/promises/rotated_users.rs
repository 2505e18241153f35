//! Holders of credentials get other keys while a run goes on: nobody loses a lease, and the old
//! keys stop working.

use std::fs;

use e2e::Recipe;
use harness::{Cluster, Options, PATIENCE, Recorded, look};
use identity::{AuditKey, Credentials};
use runtime::{Bus, clock};
use schemas::event::{Event, LedgerEvent, WorkerEvent};
use schemas::permission::Role;
use schemas::{Code, Epoch, Millis, PublicKey, WorkerId};

use crate::enrolment::{enrol, invite, layout, record};

/// Tries to connect with the credentials in a file.
async fn refused(cluster: &Cluster, file: &str) -> Option<Code> {
    let config = cluster.bus_config(&cluster.path(file));
    let connected = Bus::connect("tried", &config, clock::now()).await;
    connected.err().map(|error| error.code())
}

fn key(cluster: &Cluster, name: &str) -> PublicKey {
    let path = cluster.domain().layout().credentials(name);
    Credentials::read(&path).unwrap().public().clone()
}

#[tokio::test]
async fn tl_28_tl_06_every_holder_gets_another_key_mid_round_and_no_lease_is_lost() {
    let mut cluster = Cluster::start(Options::default(), 2).await;
    let mut evidence = cluster.evidence().await;
    // More rounds than the test waits for.
    Recipe::reference(1_000, 2, 300).create(&cluster).await;
    let run = cluster.run().clone();
    let started = |recorded: &Recorded| {
        matches!(
            &recorded.body.event,
            Event::Worker(WorkerEvent::Started { .. })
        )
    };
    evidence.until("start of a unit", started).await;
    let layout = cluster.domain().layout().clone();
    let worker: WorkerId = key(&cluster, "worker-0").as_str().parse().unwrap();
    let signs = || AuditKey::read(&layout.audit_key("worker-0")).unwrap();
    let signed = signs().public().clone();
    let accepted = |wanted: &WorkerId| {
        let wanted = wanted.clone();
        move |event: &LedgerEvent| matches!(event, LedgerEvent::ContributionAccepted { worker, .. } if *worker == wanted)
    };
    evidence
        .until_ledger("contribution of a worker", &run, accepted(&worker))
        .await;

    let names = [
        "worker-0",
        Role::Coordinator.name(),
        Role::LedgerWriter.name(),
        Role::Auditor.name(),
        Role::Recorder.name(),
        Role::Operator.name(),
    ];
    for name in names {
        let old = key(&cluster, name);
        fs::copy(layout.credentials(name), cluster.path("old.creds")).unwrap();
        assert_eq!(refused(&cluster, "old.creds").await, None, "{name}");
        let told = cluster.diloctl_ok(&["auth", "rotate", "user", name]).await;
        let new = key(&cluster, name);
        assert_ne!(old, new, "{name}");
        for touched in [old.as_str(), new.as_str(), "void", "in use"] {
            assert!(told.contains(touched), "{touched} is not in:\n{told}");
        }
        let gone = refused(&cluster, "old.creds").await;
        assert!(
            matches!(gone, Some(Code::BusRefused | Code::CredentialRevoked)),
            "{name}: {gone:?}"
        );
    }
    assert_ne!(signed, *signs().public());

    // The same process goes on, as another worker that says who it was.
    let renamed: WorkerId = key(&cluster, "worker-0").as_str().parse().unwrap();
    let joined = |event: &LedgerEvent| {
        matches!(event, LedgerEvent::WorkerJoined { worker: joins, before, .. }
            if *joins == renamed && *before == Some(worker.clone()))
    };
    // The connection of before was the old auditor's.
    let mut evidence = cluster.evidence().await;
    evidence
        .until_ledger("join with another key", &run, joined)
        .await;
    evidence
        .until_ledger("contribution with another key", &run, accepted(&renamed))
        .await;
    for name in ["coordinator", "audit"] {
        assert!(cluster.process(name).ended().is_none(), "{name} ended");
    }
    cluster
        .drain("20s", &["worker-0", "worker-1", "coordinator"])
        .await;
    cluster.record_verifies().await;
    for recorded in cluster.evidence().await.everything().await {
        if let Some(LedgerEvent::LeaseGranted { lease, .. }) = recorded.ledger() {
            assert_eq!(lease.epoch, Epoch(1), "{lease} was lost before");
        }
    }
}

#[tokio::test]
async fn tl_28_a_holder_that_is_away_keeps_its_key_until_it_is_back() {
    let mut cluster = Cluster::start(Options::default(), 1).await;
    let layout = cluster.domain().layout().clone();
    let old = key(&cluster, "worker-0");
    cluster.stop_well(&["worker-0"]).await;
    let rotate = ["auth", "rotate", "user", "worker-0"];
    let told = cluster
        .diloctl(&[&rotate[..], &["--wait", "2s"]].concat())
        .await;
    let code = Code::SuccessorWaiting.to_string();
    assert!(told.stderr.contains(&code), "{}", told.stderr);
    assert_eq!(key(&cluster, "worker-0"), old);
    fs::copy(layout.credentials("worker-0"), cluster.path("old.creds")).unwrap();
    assert_eq!(refused(&cluster, "old.creds").await, None, "it is not void");
    let unknown = cluster.diloctl(&["auth", "rotate", "user", "nobody"]).await;
    let code = Code::HolderMissing.to_string();
    assert!(unknown.stderr.contains(&code), "{}", unknown.stderr);

    cluster.restart("worker-0").await;
    let other = |log: &str| log.contains("this process has another key from now on");
    let worker = cluster.process("worker-0");
    worker.until_logged(PATIENCE, other).await;
    assert_ne!(key(&cluster, "worker-0"), old);
    cluster.diloctl_ok(&rotate).await;
    let gone = refused(&cluster, "old.creds").await;
    assert!(
        matches!(gone, Some(Code::BusRefused | Code::CredentialRevoked)),
        "{gone:?}"
    );
}

/// The keys lie on the machine alone: the domain's folder never sees them.
#[tokio::test]
async fn tl_28_fg_03_a_worker_with_keys_of_its_own_changes_them_mid_round() {
    let options = Options {
        token_lifetime: Some(Millis::from_secs(3600)),
        ..Options::default()
    };
    let mut cluster = Cluster::start(options, 0).await;
    let run = cluster.run().clone();
    let file = invite(&cluster, "invited", &[]).await;
    enrol(&cluster, "machine", &file).await.unwrap();
    let own = layout(&cluster, "machine");
    let machine = cluster.path("machine");
    let mut evidence = cluster.evidence().await;
    Recipe::reference(8, 1, 300).create(&cluster).await;
    cluster.start_worker_of(&machine, "invited").await;
    let started = |recorded: &Recorded| {
        matches!(
            &recorded.body.event,
            Event::Worker(WorkerEvent::Started { .. })
        )
    };
    evidence.until("start of a unit", started).await;
    let held = || {
        let held = Credentials::read(&own.credentials("invited")).unwrap();
        held.public().clone()
    };
    let old = held();
    fs::copy(own.credentials("invited"), cluster.path("old.creds")).unwrap();
    let (folder, bus) = (machine.display().to_string(), cluster.bus_url().to_owned());
    let rekey = ["--domain", &folder, "--bus", &bus, "worker", "rekey"];
    let rekey = [&rekey[..], &["invited"]].concat();
    let early = cluster.diloctl(&rekey).await;
    let code = Code::SuccessionUnasked.to_string();
    assert!(early.stderr.contains(&code), "{}", early.stderr);

    let rotate = ["auth", "rotate", "user", "invited"];
    let machines = async {
        let ordered = || record(&cluster, &old)?.changes_until;
        look(PATIENCE, ordered).await.expect("the operator's word");
        cluster.diloctl_ok(&rekey).await;
    };
    let (told, ()) = tokio::join!(cluster.diloctl_ok(&rotate), machines);
    let new = held();
    assert_ne!(old, new);
    for touched in [old.as_str(), new.as_str(), "void", "in use"] {
        assert!(told.contains(touched), "{touched} is not in:\n{told}");
    }
    assert!(!cluster.domain().layout().credentials("invited").exists());
    let gone = refused(&cluster, "old.creds").await;
    assert!(
        matches!(gone, Some(Code::BusRefused | Code::CredentialRevoked)),
        "{gone:?}"
    );
    cluster.operator().await.until_complete(&run).await;
    cluster.end_well(&["invited"]).await;
    cluster.record_verifies().await;
    let renamed: WorkerId = new.as_str().parse().unwrap();
    let worker: WorkerId = old.as_str().parse().unwrap();
    let mut joins = 0;
    for recorded in cluster.evidence().await.everything().await {
        match recorded.ledger() {
            Some(LedgerEvent::LeaseGranted { lease, .. }) => {
                assert_eq!(lease.epoch, Epoch(1), "{lease} was lost before");
            }
            Some(LedgerEvent::WorkerJoined {
                worker: joined,
                before,
                ..
            }) if *joined == renamed => {
                assert_eq!(*before, Some(worker.clone()));
                joins += 1;
            }
            _ => {}
        }
    }
    assert_eq!(joins, 1);
}
