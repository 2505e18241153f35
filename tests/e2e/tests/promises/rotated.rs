//! Signing keys of roles, and the key of leases and commands, are replaced while a run goes on:
//! nobody loses a lease, and what was made with the old keys stops working.

use std::fs;

use e2e::Recipe;
use harness::{Cluster, Options, PATIENCE};
use identity::claims::UserClaims;
use identity::jwt::{Subject, mint};
use identity::{ConnectionKey, Credentials, KeyKind, ManifestKey, SigningKey, TrustBundle};
use runtime::{Bus, clock};
use schemas::event::{Event, LedgerEvent, WorkerEvent};
use schemas::member::Session;
use schemas::permission::Role;
use schemas::public::{COMMAND_TYPE, Command, CommandVerb};
use schemas::subject::command_subject;
use schemas::{Code, Epoch, Millis, V, WorkerId};

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
async fn tl_28_tl_30_an_overlap_serves_old_and_new_tokens_until_it_is_ended_also_of_a_second_rotation()
 {
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
    // Another rotation before the overlap has ended names every key that stands.
    let told = cluster
        .diloctl_ok(&["auth", "rotate", "role", "worker"])
        .await;
    assert_eq!(told.matches("until retired").count(), 2, "{told}");
    assert_eq!(refused(&cluster, "old.creds").await, None);
    fs::copy(&issued.credentials, cluster.path("new.creds")).unwrap();
    let retired = cluster.diloctl_ok(&["auth", "retire", "worker"]).await;
    assert_eq!(retired.matches("void").count(), 2, "{retired}");
    let again = cluster.diloctl(&["auth", "retire", "worker"]).await;
    assert_eq!(again.stdout.matches("void already").count(), 2);
    let left = "nothing is left to retire of role worker: the keys before the present one were retired at 20";
    assert!(
        again.status.success() && again.stderr.contains(left),
        "{}",
        again.stderr
    );
    assert_eq!(refused(&cluster, "old.creds").await, Some(Code::BusRefused));
    assert_eq!(refused(&cluster, "new.creds").await, None);
    // All roles at once: the holders' files have new tokens, and old ones are void.
    let operator = cluster.issue(Role::Operator, "operator");
    fs::copy(&operator.credentials, cluster.path("operator.creds")).unwrap();
    let told = cluster
        .diloctl_ok(&["auth", "rotate", "role", "--all", "--now"])
        .await;
    for role in Role::ALL {
        let rotated = told
            .lines()
            .any(|line| line.starts_with(&format!("{} ", role.name())));
        assert_eq!(rotated, role != Role::AccountWriter, "{role:?}: {told}");
    }
    for file in ["new.creds", "operator.creds"] {
        assert_eq!(
            refused(&cluster, file).await,
            Some(Code::BusRefused),
            "{file}"
        );
    }
    for one in [&issued, &operator] {
        fs::copy(&one.credentials, cluster.path("now.creds")).unwrap();
        assert_eq!(refused(&cluster, "now.creds").await, None);
    }
    let both = ["auth", "rotate", "role", "worker", "--all"];
    assert_eq!(cluster.diloctl(&both).await.status.code(), Some(2));
    assert_eq!(cluster.diloctl(&both[..3]).await.status.code(), Some(2));
    // A key that only commands use cannot be replaced this way.
    let writer = cluster
        .diloctl(&["auth", "rotate", "role", "account-writer"])
        .await;
    assert_eq!(writer.status.code(), Some(2), "{}", writer.stderr);
}

/// The session of the process that joined last as this worker.
async fn session(cluster: &Cluster, worker: &WorkerId) -> Session {
    let recorded = cluster.evidence().await.everything().await;
    let mut joined = recorded.iter().rev().filter_map(|one| match one.ledger() {
        Some(LedgerEvent::WorkerJoined {
            worker: of,
            session,
            ..
        }) if of == worker => Some(*session),
        _ => None,
    });
    joined.next().expect("the worker has joined")
}

/// A command to the present process of a worker that somebody signed who has this key.
async fn leave(cluster: &Cluster, key: &ManifestKey, worker: &WorkerId) -> (String, String) {
    let account = cluster.domain().tenant().unwrap();
    let (run, verb) = (cluster.run(), CommandVerb::Stop);
    let now = clock::now().get() / 1000;
    let command = Command {
        v: V,
        iss: key.public().to_string(),
        jti: "stolen".to_owned(),
        run: run.clone(),
        aud: worker.clone(),
        session: session(cluster, worker).await,
        iat: now,
        exp: now + 60,
        verb,
    };
    let document = key.sign_document(COMMAND_TYPE, &command).unwrap();
    (command_subject(&account, run, worker, verb), document)
}

#[tokio::test]
async fn tl_28_tl_13_the_key_of_leases_is_replaced_mid_round_and_no_lease_is_lost() {
    let mut cluster = Cluster::start(Options::default(), 2).await;
    let mut evidence = cluster.evidence().await;
    Recipe::reference(6, 2, 300).create(&cluster).await;
    let run = cluster.run().clone();
    let started = |recorded: &harness::Recorded| {
        matches!(
            &recorded.body.event,
            Event::Worker(WorkerEvent::Started { .. })
        )
    };
    evidence.until("start of a unit", started).await;
    let layout = cluster.domain().layout().clone();
    let stolen = ManifestKey::read(&layout.manifest_key()).unwrap();
    let rotate = ["auth", "rotate", "manifest"];
    let told = cluster
        .diloctl_ok(&[&rotate[..], &["--prepare"]].concat())
        .await;
    let next = ManifestKey::read(&layout.next_manifest_key()).unwrap();
    assert!(told.contains(next.public().as_str()), "{told}");
    let told = cluster.diloctl_ok(&rotate).await;
    for key in [&stolen, &next] {
        assert!(told.contains(key.public().as_str()), "{told}");
    }
    let coordinator = cluster.process("coordinator");
    let uses = |log: &str| log.contains("leases are signed with a new key");
    coordinator.until_logged(PATIENCE, uses).await;
    let set = cluster.diloctl_ok(&["auth", "jwks", "--from-bus"]).await;
    for key in [&stolen, &next] {
        assert!(set.contains(key.public().as_str()), "{set}");
    }
    fs::copy(layout.trust(), cluster.path("before.json")).unwrap();
    let told = cluster
        .diloctl_ok(&[&rotate[..], &["--retire"]].concat())
        .await;
    // The bus has the new bundle at once, and somebody with the old one is told so.
    let set = cluster.diloctl_ok(&["auth", "jwks", "--from-bus"]).await;
    assert!(!set.contains(stolen.public().as_str()), "{set}");
    let old = cluster.path("before.json");
    let old = [
        "auth",
        "jwks",
        "--from-bus",
        "--trust",
        old.to_str().unwrap(),
    ];
    let refused = cluster.diloctl(&old).await;
    assert_eq!(refused.status.code(), Some(10), "{}", refused.stderr);
    let code = Code::KeysDiffer.to_string();
    assert!(refused.stderr.contains(&code), "{}", refused.stderr);
    assert!(
        told.contains(stolen.public().as_str()) && told.contains("void"),
        "{told}"
    );

    // What the thief of the old key signs is obeyed by nobody.
    let worker = Credentials::read(&layout.credentials("worker-0")).unwrap();
    let worker: WorkerId = worker.public().as_str().parse().unwrap();
    let config = cluster.bus_config(&layout.credentials("coordinator"));
    let bus = Bus::connect("thief", &config, clock::now()).await.unwrap();
    let (subject, document) = leave(&cluster, &stolen, &worker).await;
    bus.publish(&subject, document.into()).await.unwrap();
    bus.round_trip().await.unwrap();
    let ignored = |log: &str| log.contains("a command is ignored");
    let log = cluster
        .process("worker-0")
        .until_logged(PATIENCE, ignored)
        .await;
    assert!(log.contains(&Code::SignatureInvalid.to_string()), "{log}");

    cluster.operator().await.until_complete(&run).await;
    cluster.end_well(&["worker-0", "worker-1"]).await;
    cluster.record_verifies().await;
    for recorded in cluster.evidence().await.everything().await {
        if let Some(LedgerEvent::LeaseGranted { lease, .. }) = recorded.ledger() {
            assert_eq!(lease.epoch, Epoch(1), "{lease} was lost before");
        }
    }
    let bundle = TrustBundle::read(&layout.trust()).unwrap();
    assert_eq!(bundle.manifest_keys, [next.public().clone()]);
}

#[tokio::test]
async fn tl_28_the_key_of_leases_does_not_end_while_the_coordinator_signs_with_it() {
    let mut cluster = Cluster::start(Options::default(), 0).await;
    let layout = cluster.domain().layout().clone();
    let rotate = ["auth", "rotate", "manifest"];
    let retire = [&rotate[..], &["--retire"]].concat();
    let signs = ManifestKey::read(&layout.manifest_key()).unwrap();
    let trusted = || TrustBundle::read(&layout.trust()).unwrap().manifest_keys;
    // The coordinator has not got the new key: its bundle does not know it.
    let unknown = ManifestKey::generate();
    unknown.seed().write(&layout.manifest_key()).unwrap();
    let code = Code::ManifestKeyInUse.to_string();
    for cause in [signs.public().as_str(), "could not be asked"] {
        let told = cluster.diloctl(&retire).await;
        assert!(!told.status.success());
        assert!(told.stderr.contains(&code), "{}", told.stderr);
        assert!(told.stderr.contains(cause), "{}", told.stderr);
        assert_eq!(trusted(), [signs.public().clone()]);
        if cluster.process("coordinator").ended().is_none() {
            cluster.stop_well(&["coordinator"]).await;
        }
    }
    signs.seed().write(&layout.manifest_key()).unwrap();
    cluster.diloctl_ok(&rotate).await;
    let new = ManifestKey::read(&layout.manifest_key()).unwrap();
    assert!(!cluster.diloctl(&retire).await.status.success());
    assert_eq!(trusted().len(), 2);
    cluster
        .diloctl_ok(&[&retire[..], &["--force"]].concat())
        .await;
    assert_eq!(trusted(), [new.public().clone()]);
    let again = cluster.diloctl(&[&retire[..], &["--force"]].concat()).await;
    assert!(again.stdout.contains("void already"), "{}", again.stdout);
    assert!(
        again.stdout.contains(signs.public().as_str()),
        "{}",
        again.stdout
    );
    assert!(again.stderr.contains("nothing is left to retire of leases"));
    for count in [1, 2] {
        let told = cluster.diloctl_ok(&rotate).await;
        assert_eq!(told.matches("until retired").count(), count, "{told}");
    }
}

/// Somebody who holds the broker has kept the command that ended a process, and shows it to the
/// next process of the same worker while it is still valid.
#[tokio::test]
async fn tl_14_a_command_that_ended_a_process_is_nothing_to_the_next_one() {
    let mut cluster = Cluster::start(Options::default(), 1).await;
    let mut evidence = cluster.evidence().await;
    Recipe::reference(4, 1, 300).create(&cluster).await;
    let run = cluster.run().clone();
    let joined = |recorded: &harness::Recorded| {
        matches!(recorded.ledger(), Some(LedgerEvent::WorkerJoined { .. }))
    };
    evidence.until("join of the first process", joined).await;
    let layout = cluster.domain().layout().clone();
    let key = ManifestKey::read(&layout.manifest_key()).unwrap();
    let worker = Credentials::read(&layout.credentials("worker-0")).unwrap();
    let worker: WorkerId = worker.public().as_str().parse().unwrap();
    let (subject, document) = leave(&cluster, &key, &worker).await;
    let config = cluster.bus_config(&layout.credentials("coordinator"));
    let bus = Bus::connect("broker", &config, clock::now()).await.unwrap();
    let say = async || {
        let document = document.clone().into();
        bus.publish(&subject, document).await.unwrap();
        bus.round_trip().await.unwrap();
    };
    say().await;
    cluster.end_well(&["worker-0"]).await;

    cluster.restart("worker-0").await;
    evidence.until("join of the next process", joined).await;
    say().await;
    let ignored = |log: &str| log.contains("a command is ignored");
    let log = cluster
        .process("worker-0")
        .until_logged(PATIENCE, ignored)
        .await;
    assert!(log.contains(&Code::ProcessOther.to_string()), "{log}");
    cluster.operator().await.until_complete(&run).await;
    cluster.end_well(&["worker-0"]).await;
    cluster.record_verifies().await;
}
