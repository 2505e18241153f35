//! Tenants: made while everything runs, with runs of one name, walls between them, and an end that
//! touches nobody else.

use e2e::{Recipe, Scripted};
use harness::{Cluster, Options, PATIENCE, refused_raw};
use identity::AuditKey;
use runtime::exit::{EXIT_KEPT, EXIT_NO_ANSWER, EXIT_USAGE};
use runtime::{Bus, clock};
use schemas::blob::{GetRequest, PutRequest};
use schemas::contribution::StageRequest;
use schemas::event::{Event, LedgerEvent};
use schemas::keys::KeysRequest;
use schemas::lease::{ReleaseRequest, RenewRequest};
use schemas::masking::{MaskRequest, MaskStep};
use schemas::member::{JoinRequest, LeaveRequest};
use schemas::subject::{Verb, request_subject};
use schemas::{Bytes, Code, Digest, Message as _, Millis, ObjectRef, RunId, Steps, V, WorkerId};
use serde_json::Value;

fn run(name: &str) -> RunId {
    name.parse().unwrap()
}

/// The rows that `diloctl` prints as JSON.
async fn rows(cluster: &Cluster, arguments: &[&str]) -> Vec<Value> {
    let arguments = [arguments, &["--output", "jsonl"]].concat();
    let text = cluster.diloctl_ok(&arguments).await;
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// A cluster whose own tenant has no run, with tenants `acme` and `blue` that each have a run
/// `demo` and a worker in it. The tenants are made while coordinator and audit service run.
async fn two_tenants(recipe: &Recipe) -> Cluster {
    let mut cluster = Cluster::start(Options::default(), 0).await;
    for (tenant, connections) in [("acme", "8"), ("blue", "none")] {
        let new = ["tenant", "new", tenant, "--max-connections", connections];
        cluster.diloctl_ok(&new).await;
        recipe
            .clone()
            .named(&format!("{tenant}_demo"))
            .create(&cluster)
            .await;
    }
    for tenant in ["acme", "blue"] {
        let of = run(&format!("{tenant}_demo"));
        cluster.start_worker_for(&format!("{tenant}-w"), &of).await;
    }
    cluster
}

#[tokio::test]
async fn tl_03_two_tenants_train_runs_of_one_name_side_by_side_and_share_nothing() {
    let cluster = two_tenants(&Recipe::reference(2, 1, 40)).await;
    let operator = cluster.operator().await;
    let mut seen = Vec::new();
    for tenant in ["acme", "blue"] {
        let run = run(&format!("{tenant}_demo"));
        operator.until_complete(&run).await;
        let snapshots = operator.snapshots(&run).await;
        let workers = operator.workers(&run).await;
        assert_eq!(workers.len(), 1, "{run}");
        seen.push((
            snapshots.last().unwrap().manifest,
            workers[0].worker.clone(),
            workers[0].account.clone().unwrap(),
        ));
        let listed = rows(&cluster, &["run", "ls", "--tenant", tenant]).await;
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0]["run"], run.as_str());
        let summary = ["audit", "replay", "--run", run.as_str(), "--summary"];
        cluster.diloctl_ok(&summary).await;
    }
    assert_ne!(seen[0].0, seen[1].0, "snapshots");
    assert_ne!(seen[0].1, seen[1].1, "workers");
    assert_ne!(seen[0].2, seen[1].2, "accounts");
    assert_eq!(rows(&cluster, &["run", "ls"]).await.len(), 2);
    let own = ["run", "ls", "--tenant", "default", "--output", "jsonl"];
    assert_eq!(cluster.diloctl_ok(&own).await, "");
    // The events of both are in the readers' copy, each under its own account.
    let everything = cluster.evidence().await.everything().await;
    for (_, worker, account) in &seen {
        let of = format!("diloco.record.{account}.");
        let recorded = everything
            .iter()
            .filter(|one| one.subject.contains(worker.as_str()));
        let mut recorded = recorded.filter(|one| matches!(one.body.event, Event::Worker(_)));
        assert!(
            recorded
                .next()
                .is_some_and(|one| one.subject.starts_with(&of))
        );
        assert!(recorded.all(|one| one.subject.starts_with(&of)));
    }
    cluster.diloctl_ok(&["cluster", "check"]).await;
    a_tenant_at_its_quota_of_connections_hurts_no_other(&cluster).await;
}

/// `acme` may have eight connections. The broker takes no ninth, and one of `blue` all the same.
async fn a_tenant_at_its_quota_of_connections_hurts_no_other(cluster: &Cluster) {
    let connect = async |name: &str| {
        let file = cluster.domain().layout().credentials(name);
        Bus::connect("further", &cluster.bus_config(&file), clock::now()).await
    };
    let mut held = Vec::new();
    while let Ok(bus) = connect("acme-w").await {
        held.push(bus);
        assert!(held.len() <= 8, "the broker takes a ninth connection");
    }
    assert!(!held.is_empty());
    let shown = &rows(cluster, &["tenant", "show", "acme"]).await[0];
    assert_eq!(shown["quota"]["connections"], 8, "{shown}");
    connect("blue-w").await.unwrap();
    let more = ["tenant", "quota", "acme", "--max-connections", "none"];
    cluster.diloctl_ok(&more).await;
    connect("acme-w").await.unwrap();
}

#[tokio::test]
async fn tl_31_a_tenant_that_is_ended_during_training_is_out_for_good_and_the_other_is_untouched() {
    let mut cluster = two_tenants(&Recipe::reference(6, 1, 120)).await;
    let mut evidence = cluster.evidence().await;
    for tenant in ["acme", "blue"] {
        let run = run(&format!("{tenant}_demo"));
        evidence.until_contribution(&run, 0).await;
    }
    let end = ["tenant", "end", "acme", "--reason", "it left"];
    let refused = cluster.diloctl(&end).await;
    let text = format!("{}{}", refused.stdout, refused.stderr);
    assert!(text.contains(&Code::TenantBusy.to_string()), "{text}");
    // The worker may end by itself when the coordinator tells it; this connection only listens.
    let file = cluster.domain().layout().credentials("acme-w");
    let config = cluster.bus_config(&file);
    let _idle = Bus::connect("idle", &config, clock::now()).await.unwrap();
    let now = [&end[..], &["--now"]].concat();
    let ended = &rows(&cluster, &now).await[0];
    assert_eq!(ended["coordinator"]["changed"], true, "{ended}");
    assert_eq!(ended["coordinator"]["runs"], 1);
    assert_eq!(ended["credentials"], 1);
    // The store refuses the URLs that its workers have.
    assert_eq!(ended["coordinator"]["store"], "stopped", "{ended}");
    let stopped = cluster.path("store").join("blobs").join("stopped");
    assert!(stopped.join("acme_demo").is_file() && !stopped.join("blue_demo").exists());
    assert!(ended["connections"].as_u64().unwrap() > 0, "{ended}");

    // Its worker ends, cannot come back with what it has, and gets nothing new.
    let status = cluster.process("acme-w").exit(PATIENCE).await;
    let log = cluster.process("acme-w").log();
    assert_eq!(status.code(), Some(i32::from(EXIT_USAGE)), "{log}");
    let again = Bus::connect("again", &config, clock::now()).await;
    assert_eq!(again.unwrap_err().code(), Code::BusRefused);
    let issue = ["auth", "issue", "worker", "acme-w", "--run", "acme_demo"];
    for command in [&issue[..], &["tenant", "new", "acme"]] {
        let refused = cluster.diloctl(command).await;
        assert_eq!(
            refused.status.code(),
            Some(i32::from(EXIT_USAGE)),
            "{}",
            refused.stderr
        );
        let code = Code::TenantEnded.to_string();
        assert!(refused.stderr.contains(&code), "{}", refused.stderr);
    }
    let repeated = &rows(&cluster, &now).await[0];
    assert_eq!(repeated["coordinator"]["changed"], false);
    let listed = rows(&cluster, &["tenant", "ls"]).await;
    let states: Vec<_> = listed.iter().map(|row| &row["state"]).collect();
    assert_eq!(states, ["ended", "open"]);

    // The other's worker kept its connection and its leases.
    let blue = run("blue_demo");
    cluster.operator().await.until_complete(&blue).await;
    cluster.end_well(&["blue-w"]).await;
    let log = cluster.process("blue-w").log();
    assert!(!log.contains("connection to the bus lost"), "{log}");
    let everything = cluster.evidence().await.everything().await;
    let of_blue = everything
        .iter()
        .filter(|one| one.body.run.as_ref() == Some(&blue));
    let lost = of_blue
        .filter_map(|one| one.ledger())
        .filter(|event| matches!(event, LedgerEvent::LeaseEnded { .. }));
    assert_eq!(lost.count(), 0);
}

/// An end `--now` waits for nobody: what is at hand is done, and the command says what is not.
#[tokio::test]
async fn tl_31_a_tenant_is_ended_without_the_coordinator_and_without_the_broker() {
    let mut cluster = Cluster::start(Options::default(), 0).await;
    for tenant in ["acme", "blue"] {
        let of = format!("{tenant}_demo");
        let worker = format!("{tenant}-w");
        cluster.diloctl_ok(&["tenant", "new", tenant]).await;
        let issue = ["auth", "issue", "worker", &worker, "--run", &of];
        cluster.diloctl_ok(&issue).await;
    }
    let refused = async |cluster: &Cluster, name: &str| {
        let file = cluster.domain().layout().credentials(name);
        let again = Bus::connect("again", &cluster.bus_config(&file), clock::now()).await;
        again.err().map(|error| error.code())
    };
    let states = async |cluster: &Cluster| -> Vec<Value> {
        let listed = rows(cluster, &["tenant", "ls"]).await;
        listed.iter().map(|row| row["state"].clone()).collect()
    };
    let end = [
        "--timeout",
        "3s",
        "tenant",
        "end",
        "--now",
        "--reason",
        "gone",
    ];
    let (acme, blue) = (
        [&end[..], &["acme"]].concat(),
        [&end[..], &["blue"]].concat(),
    );
    let unknown = "ended; the coordinator does not know";

    cluster.kill9("coordinator");
    assert_eq!(refused(&cluster, "acme-w").await, None);
    let ended = cluster.diloctl(&acme).await;
    let status = Some(i32::from(EXIT_NO_ANSWER));
    assert_eq!(ended.status.code(), status, "{}", ended.stderr);
    assert!(
        ended.stdout.contains("credentials void"),
        "{}",
        ended.stdout
    );
    assert_eq!(refused(&cluster, "acme-w").await, Some(Code::BusRefused));
    assert_eq!(refused(&cluster, "blue-w").await, None);
    cluster.restart("coordinator").await;
    assert_eq!(states(&cluster).await, [unknown, "open"]);
    cluster.diloctl_ok(&acme).await;
    assert_eq!(states(&cluster).await, ["ended", "open"]);

    cluster.kill9("broker");
    let ended = cluster.diloctl(&blue).await;
    let status = Some(i32::from(EXIT_KEPT));
    assert_eq!(ended.status.code(), status, "{}", ended.stderr);
    for code in [Code::RevocationKept, Code::BusUnreachable] {
        assert!(ended.stderr.contains(&code.to_string()), "{}", ended.stderr);
    }
    let issue = ["auth", "issue", "worker", "blue-w", "--run", "blue_demo"];
    let nothing = cluster.diloctl(&issue).await;
    let code = Code::TenantEnded.to_string();
    assert!(nothing.stderr.contains(&code), "{}", nothing.stderr);
    cluster.restart("broker").await;
    assert_eq!(refused(&cluster, "blue-w").await, Some(Code::BusRefused));
    cluster.kill9("coordinator");
    cluster.restart("coordinator").await;
    assert_eq!(states(&cluster).await, ["ended", unknown]);
    cluster.diloctl_ok(&blue).await;
    assert_eq!(states(&cluster).await, ["ended", "ended"]);
}

/// The thief of the signing key of workers makes credentials in its own tenant's account for a run
/// of another, which goes on, and has overheard what a member of it says. The broker lets it speak,
/// under its own account, and the coordinator refuses it.
#[tokio::test]
async fn tl_25_credentials_of_another_tenant_for_a_run_of_this_one_reach_nothing() {
    let options = Options {
        second_tenant: true,
        ..Options::default()
    };
    let cluster = Cluster::start(options, 0).await;
    Recipe::reference(2, 1, 40).create(&cluster).await;
    let demo = cluster.run().clone();
    let operator = cluster.operator().await;
    let victim = Scripted::connect(&cluster, "victim").await;
    let spec = victim.join().await;
    let lease = victim.manifest().await.lease;
    let before = (operator.workers(&demo).await, operator.leases(&demo).await);
    let path = cluster.path("thief.creds");
    let second = cluster.second_tenant();
    let key = second.issue("thief", &demo, &path);
    let thief: WorkerId = key.as_str().parse().unwrap();
    let bus = Bus::connect("thief", &cluster.bus_config(&path), clock::now()).await;
    let bus = bus.unwrap();
    let audit_key = AuditKey::generate();
    let domain = cluster.domain().trust().domain.as_str().to_owned();
    let objects = vec![ObjectRef::of(b"anything")];
    let question = |verb: &Verb| match verb {
        Verb::Join => JoinRequest {
            audit_key: audit_key.public().clone(),
            proof: audit_key.sign_join(&domain, &demo, &thief).into(),
            ..victim.join_request()
        }
        .encode(),
        Verb::Leave => LeaveRequest {
            v: V,
            session: victim.session(),
            reason: String::new(),
        }
        .encode(),
        Verb::Claim => victim.claim_request(Millis(0)).encode(),
        Verb::Renew => RenewRequest {
            v: V,
            lease,
            steps_done: Steps(1),
            bytes_moved: Bytes(0),
        }
        .encode(),
        Verb::Release => ReleaseRequest {
            v: V,
            lease,
            reason: String::new(),
        }
        .encode(),
        Verb::Get => GetRequest {
            v: V,
            objects: vec![spec.data.digest],
        }
        .encode(),
        Verb::Put => PutRequest {
            v: V,
            lease,
            objects: objects.clone(),
        }
        .encode(),
        Verb::Stage => StageRequest {
            v: V,
            lease,
            index: 0,
            object: objects[0],
        }
        .encode(),
        Verb::Mask => MaskRequest {
            v: V,
            lease,
            step: MaskStep::Share {
                cohort: Digest::of(b"any"),
                sealed: Vec::new(),
            },
        }
        .encode(),
        Verb::Keys => KeysRequest { v: V }.encode(),
        Verb::Submit => {
            let contribution = Scripted::contribution(&spec, objects.clone());
            victim.result(&spec, lease, contribution).encode()
        }
    };
    // Nobody has issued these credentials, so a join already fails for want of a record.
    let refusal = |verb: Verb| match verb {
        Verb::Join => Code::RecordMissing,
        _ => Code::IdentityMismatch,
    };
    for verb in Verb::ALL {
        let subject = request_subject(&demo, &thief, *verb);
        let code = refused_raw(&bus, &subject, question(verb)).await;
        assert_eq!(code, Some(refusal(*verb)), "{verb}");
    }
    let after = (operator.workers(&demo).await, operator.leases(&demo).await);
    assert_eq!(after, before);
    let account = second.account().clone();
    let denied = cluster.evidence().await.ledger().await;
    let denied = denied.iter().filter(|event| {
        matches!(event, LedgerEvent::RequestDenied { account: of, worker, code, .. }
            if *of == account && *worker == thief
                && [Code::IdentityMismatch, Code::RecordMissing].contains(code))
    });
    assert_eq!(denied.count(), Verb::ALL.len());
}
