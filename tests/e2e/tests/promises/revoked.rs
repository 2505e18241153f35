//! Holders whose credentials are revoked while a run goes on: their processes end with a code, and
//! the run goes on without them.

use e2e::Recipe;
use harness::{Cluster, Options, PATIENCE, Recorded};
use identity::Credentials;
use runtime::exit::{EXIT_KEPT, EXIT_NOT_FOUND, EXIT_USAGE};
use runtime::{Bus, clock};
use schemas::event::{Event, LedgerEvent, WorkerEvent};
use schemas::hold::Reason;
use schemas::permission::Role;
use schemas::{Code, PublicKey};
use serde_json::Value;

/// The rows that `diloctl` prints as JSON.
async fn rows(cluster: &Cluster, arguments: &[&str]) -> Vec<Value> {
    let arguments = [arguments, &["--output", "jsonl"]].concat();
    let text = cluster.diloctl_ok(&arguments).await;
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The key of the credentials of this name.
fn key_of(cluster: &Cluster, name: &str) -> PublicKey {
    let file = cluster.domain().layout().credentials(name);
    let held = Credentials::read(&file).unwrap_or_else(|error| panic!("{name}: {error}"));
    held.public().clone()
}

/// The event of the ledger that this key was revoked.
fn revocation_of(revoked: PublicKey) -> impl Fn(&Recorded) -> bool {
    move |one| matches!(one.ledger(), Some(LedgerEvent::CredentialRevoked { key, .. }) if *key == revoked)
}

/// Waits until a process has ended because its credentials were revoked.
async fn until_revoked(cluster: &mut Cluster, process: &str) {
    let status = cluster.process(process).exit(PATIENCE).await;
    let log = cluster.process(process).log();
    assert_eq!(status.code(), Some(i32::from(EXIT_USAGE)), "{log}");
    let last = log.lines().rev().find(|line| line.starts_with("error "));
    // The coordinator may say it before the broker cuts the connection.
    let codes = [Code::CredentialRevoked, Code::HolderBlocked];
    let told = |line: &str| codes.iter().any(|code| line.contains(&code.to_string()));
    assert!(last.is_some_and(told), "{log}");
}

#[tokio::test]
async fn tl_07_tl_23_a_revoked_worker_ends_with_a_code_and_the_run_completes_without_it() {
    let mut cluster = Cluster::start(Options::default(), 2).await;
    let mut evidence = cluster.evidence().await;
    Recipe::reference(3, 2, 300).create(&cluster).await;
    let run = cluster.run().clone();
    let started = |wanted: &str| {
        let key = cluster.issue(Role::Worker, wanted).public.to_string();
        move |recorded: &harness::Recorded| {
            matches!(
                &recorded.body.event,
                Event::Worker(WorkerEvent::Started { .. })
            ) && recorded.subject.contains(&key)
        }
    };
    let works = started("worker-1");
    evidence.until("start of a unit of worker-1", works).await;

    let stolen = key_of(&cluster, "worker-1");
    // The worker may end by itself when the coordinator refuses it; this connection only listens.
    let file = cluster.domain().layout().credentials("worker-1");
    let config = cluster.bus_config(&file);
    let _idle = Bus::connect("idle", &config, clock::now()).await.unwrap();
    cluster.issue(Role::Worker, "worker-7");
    let touched = rows(
        &cluster,
        &[
            "auth",
            "revoke",
            "worker-1",
            "--reason",
            "its laptop was stolen",
        ],
    )
    .await;
    assert_eq!(touched.len(), 1);
    let row = &touched[0];
    assert_eq!(row["name"], "worker-1");
    assert_eq!(
        (&row["state"], &row["role"]),
        (&"revoked".into(), &"worker".into())
    );
    assert!(row["connections"].as_u64().unwrap() > 0, "{row}");
    until_revoked(&mut cluster, "worker-1").await;
    // The record says who revoked whose key, and why; also of a key that never connected.
    let never = key_of(&cluster, "worker-7");
    rows(&cluster, &["auth", "revoke", "worker-7"]).await;
    for (key, name, reason) in [
        (stolen, "worker-1", Some("its laptop was stolen")),
        (never, "worker-7", None),
    ] {
        let found = evidence.until("a revocation", revocation_of(key)).await;
        let Some(LedgerEvent::CredentialRevoked {
            role,
            name: of,
            reason: why,
            operator,
            ..
        }) = found.ledger()
        else {
            panic!("{found:?}");
        };
        assert_eq!((*role, of.as_deref()), (Some(Role::Worker), Some(name)));
        assert_eq!(why.as_ref().map(Reason::as_str), reason);
        assert_eq!(*operator, key_of(&cluster, "operator"));
    }
    let again = rows(&cluster, &["auth", "revoke", "worker-1"]).await;
    assert_eq!(again[0]["state"], "revoked already");
    let listed = rows(&cluster, &["auth", "ls"]).await;
    let state = |name: &str| {
        let found = listed.iter().find(|row| row["name"] == name).unwrap();
        (found["state"].as_str().unwrap(), found["reason"].as_str())
    };
    assert_eq!(
        state("worker-1"),
        ("revoked", Some("its laptop was stolen"))
    );
    assert_eq!(state("worker-0"), ("valid", None));

    let operator = cluster.operator().await;
    operator.until_complete(&run).await;
    cluster.end_well(&["worker-0"]).await;
    cluster.record_verifies().await;
    let replayed = cluster.diloctl_ok(&["audit", "replay"]).await;
    let line = replayed
        .lines()
        .find(|line| line.contains("its laptop was stolen"));
    let shown = line.is_some_and(|line| line.contains("credential-revoked"));
    assert!(shown, "{replayed}");
    for name in ["coordinator", "audit"] {
        let log = cluster.process(name).log();
        assert!(
            !log.contains("connection to the bus lost"),
            "{name} was cut"
        );
    }
}

#[tokio::test]
async fn tl_07_a_service_is_revoked_with_both_of_its_connections() {
    let mut cluster = Cluster::start(Options::default(), 0).await;
    cluster.issue(Role::Operator, "operator");
    for (name, process, second) in [
        ("coordinator", "coordinator", "ledger-writer"),
        ("auditor", "audit", "recorder"),
    ] {
        let touched = rows(&cluster, &["auth", "revoke", name]).await;
        let mut names: Vec<&str> = touched
            .iter()
            .map(|row| row["name"].as_str().unwrap())
            .collect();
        names.sort_unstable();
        let mut expected = [name, second];
        expected.sort_unstable();
        assert_eq!(names, expected);
        for row in &touched {
            assert!(row["connections"].as_u64().unwrap() > 0, "{row}");
        }
        until_revoked(&mut cluster, process).await;
        // New tokens for the same keys are valid again.
        for name in expected {
            cluster.diloctl_ok(&["auth", "issue", name, name]).await;
        }
        cluster.restart(process).await;
    }
}

#[tokio::test]
async fn tl_07_a_revocation_that_no_broker_confirms_is_kept_and_says_so() {
    let mut cluster = Cluster::bare(Options::default()).await;
    let issued = cluster.issue(Role::Worker, "worker-0");
    let unknown = cluster.diloctl(&["auth", "revoke", "worker-7"]).await;
    assert_eq!(unknown.status.code(), Some(i32::from(EXIT_NOT_FOUND)));
    assert!(unknown.stderr.contains("worker-7"), "{}", unknown.stderr);

    cluster.kill9("broker");
    let key = issued.public.to_string();
    let kept = cluster.diloctl(&["auth", "revoke", &key]).await;
    let told = kept.stderr.contains(&Code::RevocationKept.to_string())
        && kept.stderr.contains(&Code::BusUnreachable.to_string())
        && kept.stderr.contains("diloctl auth push");
    assert!(told, "{}", kept.stderr);
    assert_eq!(kept.status.code(), Some(i32::from(EXIT_KEPT)));
    assert!(kept.stdout.contains("kept") && kept.stdout.contains(&key));
    let state = async |cluster: &Cluster| {
        let listed = cluster.diloctl_ok(&["auth", "ls"]).await;
        let row = listed.lines().find(|line| line.contains(&key)).unwrap();
        let states = ["kept", "revoked"].map(|state| row.contains(state));
        let doctor = cluster.diloctl(&["doctor"]).await.stdout;
        let row = doctor.lines().find(|line| line.contains("revocations"));
        (states, row.unwrap().starts_with("fail"))
    };
    assert_eq!(state(&cluster).await, ([true, false], true));

    cluster.restart("broker").await;
    // Without a coordinator it is in effect, and in no ledger; the command does not say otherwise.
    let unrecorded = Code::RevocationUnrecorded.to_string();
    let pushed = cluster.diloctl(&["auth", "push"]).await;
    assert_eq!(pushed.status.code(), Some(i32::from(EXIT_KEPT)));
    assert!(pushed.stderr.contains(&unrecorded), "{}", pushed.stderr);
    assert_eq!(state(&cluster).await, ([false, true], false));
    let doctor = cluster.diloctl(&["doctor"]).await.stdout;
    assert!(doctor.contains(&unrecorded), "{doctor}");
    let arguments = cluster.worker_arguments("worker-1");
    assert!(!arguments.is_empty());
    let config = cluster.bus_config(&issued.credentials);
    let refused = runtime::Bus::connect("revoked", &config, runtime::clock::now()).await;
    assert_eq!(refused.unwrap_err().code(), Code::BusRefused);
    let kept = std::fs::read_dir(cluster.domain().layout().folder()).unwrap();
    let left = kept
        .map(|one| one.unwrap().file_name().into_string().unwrap())
        .find(|name| name.starts_with(".moment"));
    assert_eq!(left, None, "no command leaves its credentials");

    cluster.issue(Role::Operator, "operator");
    cluster.diloctl_ok(&["cluster", "init"]).await;
    cluster.start_store().await;
    cluster.start_coordinator("coordinator").await;
    let pushed = cluster.diloctl(&["auth", "push"]).await;
    assert!(pushed.status.success(), "{}", pushed.stderr);
    let told = pushed.stderr.contains("in the ledger now: 1");
    assert!(told, "{}", pushed.stderr);
    let mut evidence = cluster.evidence().await;
    let revocation = revocation_of(issued.public.clone());
    evidence.until("the revocation", revocation).await;
    let pushed = cluster.diloctl(&["auth", "push"]).await;
    let quiet = pushed.status.success() && !pushed.stderr.contains("ledger");
    assert!(quiet, "{}", pushed.stderr);
    let doctor = cluster.diloctl(&["doctor"]).await.stdout;
    assert!(!doctor.contains(&unrecorded), "{doctor}");
}

#[tokio::test]
async fn tl_07_whose_own_credential_is_revoked_hears_so_in_one_line() {
    let cluster = Cluster::bare(Options::default()).await;
    cluster.issue(Role::Operator, "operator");
    let listed = ["run", "ls", "--timeout", "1s"];
    let nobody = cluster.diloctl(&listed).await;
    assert!(nobody.stderr.contains("DL0204"), "{}", nobody.stderr);
    let stolen = ["auth", "revoke", "operator", "--reason", "it was stolen"];
    let revoked = cluster.diloctl(&stolen).await;
    assert_eq!(revoked.status.code(), Some(i32::from(EXIT_KEPT)));
    let unrecorded = Code::RevocationUnrecorded.to_string();
    assert!(revoked.stderr.contains(&unrecorded), "{}", revoked.stderr);
    assert!(revoked.stdout.contains("revoked"), "{}", revoked.stdout);
    let refused = cluster.diloctl(&listed).await;
    let text = &refused.stderr;
    let code = Code::BusRefused.to_string();
    assert!(text.starts_with(&format!("error {code} ")), "{text}");
    for part in [
        "operator.creds is of operator, role operator; it was revoked (it was stolen)",
        "`diloctl auth issue operator operator`",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    cluster
        .diloctl_ok(&["auth", "issue", "operator", "operator"])
        .await;
    let file = cluster.issue(Role::Auditor, "auditor").credentials;
    let file = file.display().to_string();
    let by_auditor = [&listed[..], &["--credentials", &file]].concat();
    let text = cluster.diloctl(&by_auditor).await.stderr;
    let code = Code::BusDenied.to_string();
    let told = text.contains(&code)
        && text.contains("is of auditor, role auditor; this needs role operator");
    assert!(told, "{text}");
}
