//! Keys leaked: one command replaces the signing key, revokes everything that the old one signed,
//! and ends all leases, while a run goes on.

use std::fs;

use e2e::{Recipe, Scripted};
use harness::{Cluster, Options, PATIENCE};
use identity::{KeyKind, SigningKey};
use runtime::exit::EXIT_NO_ANSWER;
use runtime::{Bus, BusError, clock};
use schemas::event::{Event, LeaseEnd, LedgerEvent, WorkerEvent};
use schemas::lease::LeaseRef;
use schemas::permission::Role;
use schemas::{Code, Epoch};
use serde_json::Value;

const REASON: &str = "a laptop is gone";
const ORDER: [&str; 10] = [
    "--output",
    "json",
    "auth",
    "rotate",
    "role",
    "worker",
    "--now",
    "--end-leases",
    "--reason",
    REASON,
];

/// A worker whose credentials somebody has copied, and the connection of that somebody.
async fn thief_of(cluster: &Cluster, name: &str) -> Scripted {
    let mut thief = Scripted::connect(cluster, name).await;
    let own = cluster.domain().layout().credentials(name);
    let copy = cluster.path("stolen.creds");
    fs::copy(own, &copy).unwrap();
    let connected = Bus::connect("thief", &cluster.bus_config(&copy), clock::now()).await;
    thief.bus = connected.unwrap();
    thief
}

/// The present signing key of workers.
fn signs(cluster: &Cluster) -> String {
    let path = cluster.domain().layout().issuer().join("role-worker.nk");
    let key = SigningKey::read(KeyKind::Account, &path).unwrap();
    key.public().to_string()
}

/// The rows about one kind of thing in a state.
fn rows(told: &str, what: &str, state: &str) -> Vec<Value> {
    let told: Value = serde_json::from_str(told).unwrap_or_else(|error| panic!("{error}: {told}"));
    let all = told["items"].as_array().unwrap().iter();
    let rows = all.filter(|row| row["what"] == what && row["state"] == state);
    rows.cloned().collect()
}

fn is_of(row: &Value, lease: LeaseRef) -> bool {
    row["run"] == "demo" && row["lease"] == serde_json::to_value(lease).unwrap()
}

#[tokio::test]
async fn tl_30_one_command_replaces_leaked_keys_cuts_the_thief_and_ends_its_lease() {
    let mut cluster = Cluster::start(Options::default(), 1).await;
    let mut evidence = cluster.evidence().await;
    Recipe::reference(8, 2, 300)
        .set("policy.lease=60s")
        .create(&cluster)
        .await;
    let run = cluster.run().clone();
    let thief = thief_of(&cluster, "worker-1").await;
    let spec = thief.join().await;
    let stolen = thief.claim().await.lease;
    let started = |recorded: &harness::Recorded| {
        matches!(
            &recorded.body.event,
            Event::Worker(WorkerEvent::Started { .. })
        )
    };
    evidence.until("start of a unit", started).await;
    let old = signs(&cluster);

    let told = cluster.diloctl_ok(&ORDER).await;
    let new = signs(&cluster);
    assert_ne!(old, new);
    for (state, key) in [("new", &new), ("void", &old)] {
        let keys = rows(&told, "signing key", state);
        assert!(keys.iter().any(|row| row["key"] == **key), "{told}");
    }
    for name in ["worker-0", "worker-1"] {
        let renewed = rows(&told, "credential", "new token");
        assert!(renewed.iter().any(|row| row["name"] == name), "{told}");
    }
    // The honest worker's and the thief's; each process may have more than one.
    let cut = rows(&told, "connections", "cut");
    assert!(cut[0]["connections"].as_u64() >= Some(2), "{told}");
    let ended = rows(&told, "lease", "ended");
    let its = ended.iter().find(|row| is_of(row, stolen));
    let its = its.unwrap_or_else(|| panic!("{stolen}: {told}"));
    assert_eq!(its["name"], "worker-1");
    assert_eq!(its["key"], thief.worker.as_str());

    // What the thief trained is worth nothing, by whatever way it comes.
    let honest = Scripted::connect(&cluster, "worker-1").await;
    assert_eq!(honest.worker, thief.worker);
    honest.join().await;
    let chunks = spec.model.initial.objects().to_vec();
    let late = Scripted::contribution(&spec, chunks);
    let late = honest.submit(&spec, stolen, late).await;
    assert!(
        matches!(&late, Err(BusError::Refused(why)) if why.code == Code::LeaseLost),
        "{late:?}"
    );

    // Honest workers go on with their new credentials, and do the unit again.
    cluster.start_worker("worker-1", &[]).await;
    let refused = tokio::time::timeout(PATIENCE, thief.bus.refused()).await;
    assert_eq!(refused.unwrap().code, Code::BusRefused);
    cluster.operator().await.until_complete(&run).await;
    cluster.end_well(&["worker-0", "worker-1"]).await;
    cluster.record_verifies().await;
    let (mut by, mut again) = (None, None);
    for recorded in cluster.evidence().await.everything().await {
        match recorded.ledger() {
            Some(LedgerEvent::LeasesEnded { reason, leases, .. }) => {
                assert_eq!(by.replace(reason.to_string()), None, "there is one order");
                assert_eq!(*leases as usize, ended.len());
            }
            Some(LedgerEvent::LeaseEnded { lease, cause, .. }) if *lease == stolen => {
                assert_eq!(*cause, LeaseEnd::Ordered);
            }
            Some(LedgerEvent::ContributionAccepted { lease, .. }) if lease.unit == stolen.unit => {
                again = Some(lease.epoch);
            }
            _ => {}
        }
    }
    assert_eq!(by.as_deref(), Some(REASON));
    assert!(again > Some(stolen.epoch), "{again:?}");
    let replayed = ["audit", "replay", "--kind", "leases-ended"];
    let replayed = cluster.diloctl_ok(&replayed).await;
    assert!(replayed.contains(REASON), "{replayed}");
}

#[tokio::test]
async fn tl_30_what_the_coordinator_did_not_hear_is_done_by_a_repeat_that_replaces_no_key_again() {
    let mut cluster = Cluster::start(Options::default(), 0).await;
    Recipe::scripted(3, 1).create(&cluster).await;
    let thief = thief_of(&cluster, "worker-0").await;
    thief.join().await;
    let stolen = thief.claim().await.lease;
    cluster.kill9("coordinator");

    let told = cluster.diloctl(&ORDER).await;
    assert_eq!(
        told.status.code(),
        Some(EXIT_NO_ANSWER.into()),
        "{}",
        told.stderr
    );
    assert_eq!(
        rows(&told.stdout, "signing key", "new").len(),
        1,
        "{}",
        told.stdout
    );
    assert_eq!(
        rows(&told.stdout, "leases", "NOT ended").len(),
        1,
        "{}",
        told.stdout
    );
    let next = "the same command does the rest, and replaces no key again";
    assert!(told.stderr.contains(next), "{}", told.stderr);
    let key = signs(&cluster);
    let refused = tokio::time::timeout(PATIENCE, thief.bus.refused()).await;
    assert_eq!(refused.unwrap().code, Code::BusRefused);

    cluster.restart("coordinator").await;
    let told = cluster.diloctl_ok(&ORDER).await;
    assert_eq!(signs(&cluster), key, "it is not replaced again");
    assert_eq!(rows(&told, "signing key", "new").len(), 0, "{told}");
    assert_eq!(
        rows(&told, "signing key", "void already").len(),
        1,
        "{told}"
    );
    let ended = rows(&told, "lease", "ended");
    assert!(ended.len() == 1 && is_of(&ended[0], stolen), "{told}");
    let honest = Scripted::connect(&cluster, "worker-0").await;
    honest.join().await;
    let lease = honest.claim().await.lease;
    assert_eq!((lease.unit, lease.epoch), (stolen.unit, Epoch(2)));

    // Everything was done, so the next one is about another leak.
    let told = cluster.diloctl_ok(&ORDER).await;
    assert_ne!(signs(&cluster), key);
    assert!(is_of(&rows(&told, "lease", "ended")[0], lease), "{told}");

    // Only workers hold leases, and each order has a reason.
    let mut other = ORDER;
    other[5] = Role::Auditor.name();
    let told = cluster.diloctl(&other).await;
    let code = Code::ConfigInvalid.to_string();
    assert!(
        !told.status.success() && told.stderr.contains(&code),
        "{}",
        told.stderr
    );
    for wrong in [&ORDER[..8], &[&ORDER[..6], &ORDER[7..]].concat()[..]] {
        let told = cluster.diloctl(wrong).await;
        assert_eq!(told.status.code(), Some(2), "{}", told.stderr);
    }
}
