//! Signing keys of roles are replaced while a run goes on: nobody loses a lease, and what was made
//! with the old keys stops working.

use std::fs;

use e2e::Recipe;
use harness::{Cluster, Options};
use identity::claims::UserClaims;
use identity::jwt::{Subject, mint};
use identity::{ConnectionKey, Credentials, KeyKind, SigningKey};
use runtime::{Bus, clock};
use schemas::event::{Event, LedgerEvent, WorkerEvent};
use schemas::permission::Role;
use schemas::{Code, Epoch, Millis};

/// The roles of the processes that run.
const ROLES: [Role; 5] = [
    Role::Worker,
    Role::Coordinator,
    Role::LedgerWriter,
    Role::Auditor,
    Role::Recorder,
];

/// Tries to connect with the credentials in a file.
async fn refused(cluster: &Cluster, file: &str) -> Option<Code> {
    let config = cluster.bus_config(&cluster.path(file));
    let connected = Bus::connect("tried", &config, clock::now()).await;
    connected.err().map(|error| error.code())
}

#[tokio::test]
async fn tl_28_tl_30_fg_10_stolen_signing_keys_are_replaced_mid_round_and_no_lease_is_lost() {
    let mut cluster = Cluster::start(Options::default(), 2).await;
    let mut evidence = cluster.evidence().await;
    Recipe::reference(3, 2, 300).create(&cluster).await;
    let run = cluster.run().clone();
    let started = |recorded: &harness::Recorded| {
        matches!(
            &recorded.body.event,
            Event::Worker(WorkerEvent::Started { .. })
        )
    };
    evidence.until("start of a unit", started).await;

    let layout = cluster.domain().layout().clone();
    for role in ROLES {
        // What a thief has: a copy of a holder's credentials, and the role's signing key.
        let holder = match role {
            Role::Worker => "worker-1",
            role => role.name(),
        };
        fs::copy(layout.credentials(holder), cluster.path("copy.creds")).unwrap();
        let path = layout.issuer().join(format!("role-{}.nk", role.name()));
        let stolen = SigningKey::read(KeyKind::Account, &path).unwrap();
        assert_eq!(refused(&cluster, "copy.creds").await, None, "{role:?}");

        let told = cluster
            .diloctl_ok(&["auth", "rotate", "role", role.name(), "--now"])
            .await;
        for touched in [stolen.public().as_str(), holder, "void", "new token"] {
            assert!(told.contains(touched), "{touched} is not in:\n{told}");
        }
        let gone = Some(Code::BusRefused);
        assert_eq!(refused(&cluster, "copy.creds").await, gone, "{role:?}");
        let key = ConnectionKey::generate();
        let now = clock::now();
        let subject = Subject {
            name: "thief",
            key: key.public(),
            not_before: None,
            expires: Some(now.after(Millis::from_secs(3600))),
        };
        let account = cluster.domain().account(role.account()).unwrap();
        let tags = role.is_tenant().then(|| format!("run:{run}"));
        let claims = UserClaims::of_role(account, tags.into_iter().collect());
        let token = mint(&subject, claims, &stolen, now).unwrap();
        let forged = Credentials::new(token, key).unwrap();
        forged.write(&cluster.path("forged.creds")).unwrap();
        assert_eq!(refused(&cluster, "forged.creds").await, gone, "{role:?}");
    }

    cluster.operator().await.until_complete(&run).await;
    cluster.end_well(&["worker-0", "worker-1"]).await;
    cluster.record_verifies().await;
    for recorded in cluster.evidence().await.everything().await {
        if let Some(LedgerEvent::LeaseGranted { lease, .. }) = recorded.ledger() {
            assert_eq!(lease.epoch, Epoch(1), "{lease} was lost before");
        }
    }
    for name in ["coordinator", "audit"] {
        assert!(cluster.process(name).ended().is_none(), "{name} ended");
    }
}

#[tokio::test]
async fn tl_28_an_overlap_serves_old_and_new_tokens_until_it_is_ended() {
    let cluster = Cluster::bare(Options::default()).await;
    let issued = cluster.issue(Role::Worker, "worker-0");
    fs::copy(&issued.credentials, cluster.path("old.creds")).unwrap();
    let told = cluster
        .diloctl_ok(&["auth", "rotate", "role", "worker"])
        .await;
    assert!(told.contains("until retired"), "{told}");
    fs::copy(&issued.credentials, cluster.path("new.creds")).unwrap();
    assert_ne!(
        fs::read(cluster.path("old.creds")).unwrap(),
        fs::read(cluster.path("new.creds")).unwrap()
    );
    for file in ["old.creds", "new.creds"] {
        assert_eq!(refused(&cluster, file).await, None, "{file}");
    }
    cluster.diloctl_ok(&["auth", "retire", "worker"]).await;
    assert_eq!(refused(&cluster, "old.creds").await, Some(Code::BusRefused));
    assert_eq!(refused(&cluster, "new.creds").await, None);
    // A key that only commands use cannot be replaced this way.
    let writer = cluster
        .diloctl(&["auth", "rotate", "role", "account-writer"])
        .await;
    assert_eq!(writer.status.code(), Some(2), "{}", writer.stderr);
}
