//! `diloctl worker quarantine` shuts a worker out of a run while it trains: its process ends, its
//! work goes to the others, and it cannot come back, whatever dies meanwhile.

use std::time::Instant;

use e2e::{Recipe, Scripted};
use harness::{Cluster, Options, PATIENCE, Recorded};
use objects::key::HolderTag;
use runtime::exit::{EXIT_NO_ANSWER, EXIT_NOT_FOUND, EXIT_UNREACHABLE, EXIT_USAGE};
use runtime::{Bus, BusError, clock};
use schemas::event::{Event, LedgerEvent, WorkerEvent};
use schemas::lease::UnitKind;
use schemas::permission::Role;
use schemas::{Code, Digest, ObjectRef, RunId, WorkerId};

use crate::stopped_urls::{Thief, refused, to_read};

const UNITS: u32 = 3;

/// `diloctl worker quarantine` or `readmit` of this worker. Its credential stays valid, so that it
/// is the coordinator that keeps it out.
fn order<'a>(verb: &'a str, worker: &'a str) -> Vec<&'a str> {
    let mut order = with_credential(verb, worker);
    if verb == "quarantine" {
        order.push("--keep-credential");
    }
    order
}

/// The same as an operator says it.
pub(crate) fn with_credential<'a>(verb: &'a str, worker: &'a str) -> Vec<&'a str> {
    let reason = "a strange loss";
    vec!["worker", verb, worker, "--run", "demo", "--reason", reason]
}

/// Starts a worker again, whose process must end by itself with the code.
async fn stays_out(cluster: &Cluster, worker: &str) {
    let arguments = cluster.worker_arguments(worker);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let ended = cluster
        .run_program("diloco-worker", &arguments, PATIENCE)
        .await;
    let log = ended.stderr + &ended.stdout;
    assert_eq!(ended.status.code(), Some(EXIT_USAGE.into()), "{log}");
    assert!(log.contains(&Code::WorkerQuarantined.to_string()), "{log}");
}

#[expect(
    clippy::print_stderr,
    reason = "how long it takes is told, and depends on the machine"
)]
#[tokio::test]
async fn tl_31_fg_04_a_worker_is_shut_out_while_it_trains_and_stays_out() {
    let mut cluster = Cluster::start(Options::default(), 2).await;
    let mut evidence = cluster.evidence().await;
    // A lease of 20 s: a unit that waited for its end would be noticed.
    Recipe::reference(4, UNITS, 250)
        .set("policy.lease=20s")
        .set("schedule.evaluation_every=0")
        .create(&cluster)
        .await;
    let run = cluster.run().clone();
    let trains = |event: &LedgerEvent| matches!(event, LedgerEvent::LeaseGranted { lease, .. } if lease.unit.kind == UnitKind::Train && lease.unit.round.get() == 1);
    let granted = evidence
        .until_ledger("lease of round 1", &run, trains)
        .await;
    let Some(LedgerEvent::LeaseGranted { worker, .. }) = granted.ledger().cloned() else {
        unreachable!("it was picked as one")
    };
    let name = cluster.worker_named(&worker);

    let begun = Instant::now();
    let shown = cluster.diloctl_ok(&order("quarantine", &name)).await;
    let answered = begun.elapsed();
    let status = cluster.process(&name).exit(PATIENCE).await;
    eprintln!(
        "answered after {answered:?}, the worker had ended after {:?}",
        begun.elapsed()
    );
    assert_eq!(status.code(), Some(EXIT_USAGE.into()), "{status}");
    let log = cluster.process(&name).log();
    assert!(log.contains(&Code::WorkerQuarantined.to_string()), "{log}");
    let said = format!("{worker}: shut out; this is in the ledger");
    assert_eq!(value(&shown, "worker"), Some(said), "{shown}");
    assert!(deleted(&shown).is_some(), "{shown}");
    assert_eq!(value(&shown, "joined"), None, "{shown}");
    stays_out(&cluster, &name).await;

    // The store refuses its URLs for as long as this file is there; a coordinator looks at its
    // start.
    let tag = HolderTag::of_worker(&worker);
    let file = cluster
        .path("store")
        .join(format!("blobs/stopped/demo.{tag}"));
    cluster.kill9("coordinator");
    std::fs::remove_file(&file).expect("it was there");
    cluster.restart("coordinator").await;
    let written = harness::look(PATIENCE, || file.is_file().then_some(()));
    written.await.expect("the store is told again");
    stays_out(&cluster, &name).await;
    let again = cluster
        .diloctl_ok(&order("quarantine", worker.as_str()))
        .await;
    assert!(again.contains("is shut out already"), "{again}");
    let ended = "by an earlier order; `diloctl audit replay --run demo` shows it".to_owned();
    assert_eq!(value(&again, "ended"), Some(ended), "{again}");
    assert_eq!(value(&again, "lease ended"), None, "{again}");
    let listed = cluster.diloctl_ok(&["worker", "ls", "demo"]).await;
    assert!(listed.contains("quarantine"), "{listed}");

    cluster.operator().await.until_complete(&run).await;
    cluster.stop_well(&["audit"]).await;
    cluster.record_verifies().await;
    cluster
        .diloctl_ok(&["audit", "recompute", "--run", "demo", "--all"])
        .await;
    let all = cluster.evidence().await.everything().await;
    nothing_came_of_it_after(&all, &run, &worker);
    the_answer_is_what_the_record_says(&all, &shown, &worker);
}

#[tokio::test]
async fn tl_31_without_the_coordinator_the_credential_is_revoked_and_the_same_command_does_the_rest()
 {
    let mut cluster = Cluster::start(Options::default(), 1).await;
    let mut evidence = cluster.evidence().await;
    Recipe::reference(50, 1, 250).create(&cluster).await;
    let run = cluster.run().clone();
    let joins = |event: &LedgerEvent| matches!(event, LedgerEvent::WorkerJoined { .. });
    evidence.until_ledger("a join", &run, joins).await;
    cluster.kill9("coordinator");
    let order = with_credential("quarantine", "worker-0");
    let told = cluster
        .diloctl(&[&order[..], &["--timeout", "2s"]].concat())
        .await;
    assert_eq!(told.status.code(), Some(EXIT_NO_ANSWER.into()));
    let code = Code::NoAnswer.to_string();
    assert!(told.stderr.contains(&code), "{}", told.stderr);
    let shown = &told.stdout;
    assert!(
        shown.contains("not known to be shut out of the run"),
        "{shown}"
    );
    let credential = value(shown, "credential").expect("it is told");
    assert!(credential.starts_with("revoked; "), "{shown}");
    assert!(value(shown, "not done").is_some(), "{shown}");
    let next = value(shown, "next").expect("it is told");
    assert!(next.contains("`diloctl worker quarantine U"), "{shown}");
    let status = cluster.process("worker-0").exit(PATIENCE).await;
    assert_eq!(status.code(), Some(EXIT_USAGE.into()), "{status}");
    let log = cluster.process("worker-0").log();
    assert!(log.contains(&Code::CredentialRevoked.to_string()), "{log}");

    cluster.restart("coordinator").await;
    let shown = cluster.diloctl_ok(&order).await;
    assert!(shown.contains("shut out; this is in the ledger"), "{shown}");
    let credential = value(&shown, "credential").expect("it is told");
    assert!(credential.starts_with("was revoked already"), "{shown}");
}

#[tokio::test]
async fn tl_31_without_the_broker_the_revocation_is_kept_for_it() {
    let mut cluster = Cluster::bare(Options::default()).await;
    let issued = cluster.issue(schemas::permission::Role::Worker, "worker-0");
    let key = issued.public.to_string();
    cluster.kill9("broker");
    // Only the coordinator could tell who this is.
    let nobody = cluster
        .diloctl(&with_credential("quarantine", "UAAAAAAAA"))
        .await;
    assert_eq!(nobody.status.code(), Some(EXIT_UNREACHABLE.into()));
    let told = nobody.stderr.contains("nothing was revoked") && nobody.stdout.is_empty();
    assert!(told, "{}", nobody.stderr);
    for named in ["worker-0", &key[..8], &key] {
        let kept = cluster.diloctl(&with_credential("quarantine", named)).await;
        assert_eq!(kept.status.code(), Some(EXIT_UNREACHABLE.into()), "{named}");
        for code in [Code::BusUnreachable, Code::RevocationKept] {
            assert!(kept.stderr.contains(&code.to_string()), "{}", kept.stderr);
        }
        let shown = &kept.stdout;
        let credential = value(shown, "credential").expect("it is told");
        assert!(credential.starts_with("kept: "), "{shown}");
        assert!(credential.contains("`diloctl auth push`"), "{shown}");
    }
    let listed = cluster.diloctl_ok(&["auth", "ls"]).await;
    let row = listed.lines().find(|line| line.contains(&key));
    assert!(row.is_some_and(|row| row.contains(" kept ")), "{listed}");
    cluster.restart("broker").await;
    let config = cluster.bus_config(&issued.credentials);
    let refused = Bus::connect("revoked", &config, clock::now()).await;
    assert_eq!(refused.unwrap_err().code(), Code::BusRefused);
}

/// The whole value of a printed line.
pub(crate) fn value(shown: &str, title: &str) -> Option<String> {
    let mut lines = shown.lines();
    let value = |line: &str| {
        let rest = line.strip_prefix(title)?;
        rest.starts_with("  ").then(|| rest.trim().to_owned())
    };
    lines.find_map(value)
}

/// The number of uploads that an order deleted; none if the store did not do it.
pub(crate) fn deleted(shown: &str) -> Option<u32> {
    value(shown, "uploads")?
        .strip_suffix(" deleted")?
        .parse()
        .ok()
}

/// What an order said that it ended, and what it named as merged.
fn the_answer_is_what_the_record_says(all: &[Recorded], shown: &str, worker: &WorkerId) {
    let order = all.iter().position(|one| {
        matches!(one.ledger(), Some(LedgerEvent::WorkerQuarantined { worker: of, .. }) if of == worker)
    });
    let (before, order) = all.split_at(order.expect("it is in the ledger"));
    let Some(LedgerEvent::WorkerQuarantined {
        lease, withdrawn, ..
    }) = order[0].ledger()
    else {
        unreachable!("it was picked as one")
    };
    let held = lease.map_or_else(|| "none".to_owned(), |lease| lease.to_string());
    assert_eq!(value(shown, "lease ended"), Some(held), "{shown}");
    let named = value(shown, "contributions withdrawn").expect("it is printed");
    let count = match named.as_str() {
        "none" => 0,
        named => named.split(", ").count(),
    };
    assert_eq!(count as u32, *withdrawn, "{shown}");
    let opened = withdrawn + u32::from(lease.is_some());
    assert_eq!(value(shown, "units open again"), Some(opened.to_string()));
    let ledger = || before.iter().filter_map(Recorded::ledger);
    let closed = |of: u64| {
        ledger().any(
            |event| matches!(event, LedgerEvent::RoundClosed { round, .. } if round.get() == of),
        )
    };
    let own = ledger().filter_map(|event| match event {
        LedgerEvent::ContributionAccepted {
            worker: by, lease, ..
        } if by == worker && lease.unit.kind == UnitKind::Train => Some(lease.unit.round.get()),
        _ => None,
    });
    let merged: std::collections::BTreeSet<u64> = own.filter(|round| closed(*round)).collect();
    let said = match (merged.first(), merged.last()) {
        (Some(first), Some(last)) => format!(
            "{}, from round {first} to round {last}: the weights descend from them",
            merged.len()
        ),
        _ => "none".to_owned(),
    };
    assert_eq!(value(shown, "merged rounds with it"), Some(said), "{shown}");
}

/// After the quarantine the ledger gives the worker nothing, and the record has no event of the
/// worker.
fn nothing_came_of_it_after(all: &[Recorded], run: &RunId, worker: &WorkerId) {
    let is_shut =
        |one: &Recorded| matches!(one.ledger(), Some(LedgerEvent::WorkerQuarantined { .. }));
    let place = all.iter().position(is_shut).expect("it is in the ledger");
    let shut: Vec<&Recorded> = all.iter().filter(|one| is_shut(one)).collect();
    assert_eq!(
        shut.len(),
        1,
        "an order that changes nothing is not written"
    );
    assert_eq!(shut[0].body.run.as_ref(), Some(run));
    for one in &all[place..] {
        let by = match &one.body.event {
            Event::Ledger(
                LedgerEvent::WorkerJoined { worker, .. }
                | LedgerEvent::LeaseGranted { worker, .. }
                | LedgerEvent::ContributionAccepted { worker, .. },
            ) => Some(worker),
            Event::Ledger(_) | Event::Worker(_) | Event::Security(_) => None,
        };
        assert_ne!(by, Some(worker), "{one:?}");
    }
    let refused = |event: &LedgerEvent| matches!(event, LedgerEvent::RequestDenied { worker: of, code: Code::WorkerQuarantined, .. } if of == worker);
    let mut ledger = all.iter().filter_map(Recorded::ledger);
    assert!(ledger.any(refused), "its joins are refused in the record");
}

/// The run is frozen before anybody trains, so the round is open for as long as this test needs
/// it, and what the worker did is in no seal.
#[tokio::test]
async fn tl_31_what_is_in_no_seal_is_withdrawn_and_done_by_the_others() {
    let mut cluster = Cluster::start(Options::default(), 0).await;
    let mut evidence = cluster.evidence().await;
    Recipe::reference(12, UNITS, 20)
        .set("schedule.evaluation_every=0")
        .create(&cluster)
        .await;
    let run = cluster.run().clone();
    let freeze = ["run", "freeze", "demo", "--reason", "a strange loss"];
    cluster.diloctl_ok(&freeze).await;
    for name in ["worker-0", "worker-1"] {
        cluster.start_worker(name, &[]).await;
    }
    let operator = cluster.operator().await;
    let all_in = operator.until(&run, PATIENCE, |view| view.units_done == UNITS);
    all_in.await;
    // What was accepted last is in the frozen round.
    let all = cluster.evidence().await.everything().await;
    let worker = by_whom(&all).last().expect("all units are in").0.clone();
    let name = cluster.worker_named(&worker);

    let shown = cluster
        .diloctl_ok(&order("quarantine", worker.short()))
        .await;
    let withdrawn = |event: &LedgerEvent| {
        matches!(event, LedgerEvent::WorkerQuarantined { withdrawn: 1.., .. })
    };
    evidence.until_ledger("withdrawal", &run, withdrawn).await;
    let named = value(&shown, "contributions withdrawn");
    assert!(named.is_some_and(|named| named != "none"), "{shown}");
    // The other worker does these units again, while the run is frozen.
    let view = operator
        .until(&run, PATIENCE, |view| view.units_done == UNITS)
        .await;
    assert_eq!(view.leases, 0);
    // It was a mistake: the worker is let in, and the record of its events goes on without a gap.
    cluster.process(&name).exit(PATIENCE).await;
    let shown = cluster.diloctl_ok(&order("readmit", &name)).await;
    assert!(shown.contains("may join again"), "{shown}");
    cluster.restart(&name).await;
    let by = worker.clone();
    let joins = move |event: &LedgerEvent| matches!(event, LedgerEvent::WorkerJoined { worker, .. } if *worker == by);
    evidence.until_ledger("its return", &run, joins).await;
    let unfreeze = ["run", "unfreeze", "demo", "--reason", "it is let in"];
    cluster.diloctl_ok(&unfreeze).await;
    cluster.operator().await.until_complete(&run).await;
    cluster.process(&name).exit(PATIENCE).await;

    let unknown = cluster.diloctl(&order("readmit", "nobody")).await;
    assert!(
        unknown.stderr.contains(&Code::WorkerUnknown.to_string()),
        "{}",
        unknown.stderr
    );
    cluster.stop_well(&["audit"]).await;
    cluster.record_verifies().await;
    its_chain_goes_on(&cluster.evidence().await.everything().await, &worker);
    cluster
        .diloctl_ok(&["audit", "recompute", "--run", "demo", "--all"])
        .await;
    lineage_is_known(&cluster, &worker).await;
}

/// The record has events of the worker from after its quarantine.
fn its_chain_goes_on(all: &[Recorded], worker: &WorkerId) {
    let lifted = |one: &Recorded| matches!(one.ledger(), Some(LedgerEvent::WorkerReadmitted { worker: of, .. }) if of == worker);
    let place = all.iter().position(lifted).expect("it is in the ledger");
    let own = |one: &&Recorded| {
        matches!(one.body.event, Event::Worker(_)) && one.subject.contains(worker.as_str())
    };
    assert!(all[..place].iter().any(|one| own(&one)));
    assert!(all[place..].iter().any(|one| own(&one)));
}

/// The accepted contributions, oldest first: the worker and the digest of its statement.
fn by_whom(all: &[Recorded]) -> impl Iterator<Item = (&WorkerId, &Digest)> {
    let ledger = all.iter().filter_map(Recorded::ledger);
    ledger.filter_map(|event| match event {
        LedgerEvent::ContributionAccepted {
            worker, statement, ..
        } => Some((worker, statement)),
        _ => None,
    })
}

/// The record says what became of the worker's contributions, and what descends from the others.
async fn lineage_is_known(cluster: &Cluster, worker: &WorkerId) {
    let all = cluster.evidence().await.everything().await;
    let out = |one: &Recorded| matches!(one.ledger(), Some(LedgerEvent::WorkerQuarantined { worker: by, .. }) if by == worker);
    let quarantined = all.iter().position(out).expect("it was recorded");
    // Of the worker the contribution before its quarantine, which no seal names; of the other one
    // its first, which is merged.
    let own = by_whom(&all[..quarantined]).filter(|(by, _)| *by == worker);
    let own = own.last().expect("it was withdrawn").1.to_string();
    let other = by_whom(&all).find(|(by, _)| *by != worker);
    let other = other.expect("both workers contributed").1.to_string();
    let files = cluster.domain().layout().audit_files();
    let files = files.to_str().unwrap();
    let of = |digest: String| async move {
        let shown = ["lineage", "descendants", &digest, "--ledger", files];
        cluster.diloctl_ok(&shown).await
    };
    let withdrawn = of(own).await;
    assert!(
        withdrawn.contains("withdrawn by a quarantine"),
        "{withdrawn}"
    );
    assert!(!withdrawn.contains("has it"), "{withdrawn}");
    let merged = of(other.clone()).await;
    for said in [": merged", "has it", "descends from it", "snapshot"] {
        assert!(merged.contains(said), "{said}: {merged}");
    }
    let live = ["lineage", "descendants", &other];
    let live = cluster.diloctl(&live).await;
    assert_eq!(live.stdout, merged, "from the stream");
    let summary = "descend from this digest;";
    assert!(live.stderr.contains(summary), "{}", live.stderr);
    // `audit replay` shows the first digits of the digest, and JSON has the last line too.
    let replayed = cluster.diloctl_ok(&["audit", "replay", "--kind", "contribution-accepted"]);
    let digits = other.trim_start_matches("sha256:")[..8].to_owned();
    let replayed = replayed.await;
    assert!(
        replayed.contains(&format!("statement {digits}")),
        "{replayed}"
    );
    let short = ["-o", "json", "lineage", "descendants", &digits];
    let short = cluster.diloctl_ok(&short).await;
    let short: serde_json::Value = serde_json::from_str(&short).expect("a document");
    assert_eq!(short["items"][0]["digest"], other);
    assert!(
        short["runs"][0]["merged_rounds"].as_u64() > Some(0),
        "{short}"
    );
    let unknown = Digest::of(b"nothing of ours").to_string();
    let ended = cluster.diloctl(&["lineage", "descendants", &unknown]).await;
    assert_eq!(ended.status.code(), Some(EXIT_NOT_FOUND.into()));
    assert!(
        ended.stderr.contains(&Code::DigestUnknown.to_string()),
        "{}",
        ended.stderr
    );
}

/// A worker that does not obey keeps its connection. Nothing that it says is taken, what it
/// uploaded is deleted, and the URLs that it got before are worth nothing at once.
#[tokio::test]
async fn tl_31_fg_04_a_worker_that_does_not_obey_is_heard_by_nobody() {
    let cluster = Cluster::start(Options::default(), 0).await;
    Recipe::scripted(3, 1).create(&cluster).await;
    let worker = Scripted::connect(&cluster, "worker-0").await;
    let spec = worker.join().await;
    // From then on the audit service knows the worker's key.
    cluster.kept().await;
    let said = || WorkerEvent::Stopped {
        reason: "a test".to_owned(),
    };
    worker.emit(said()).await;
    let lease = worker.claim().await.lease;
    let chunk = |value: f32| {
        let values = spec.model.initial.objects()[0].bytes.get() / 4;
        value.to_le_bytes().repeat(values as usize)
    };
    worker.upload(lease, chunk(0.001)).await;
    let kept = worker.grant(lease, ObjectRef::of(&chunk(0.002))).await;
    let kept = kept.expect("it holds the lease");
    let weights = spec.model.initial.objects()[0];
    let read = to_read(&worker, weights).await.expect("it is a member");
    let thief = Thief::of(&cluster);

    let shown = cluster.diloctl_ok(&order("quarantine", "worker-0")).await;
    assert_eq!(deleted(&shown), Some(1), "{shown}");
    assert_eq!(
        value(&shown, "lease ended"),
        Some(lease.to_string()),
        "{shown}"
    );
    let urls = value(&shown, "urls").expect("it is printed");
    assert!(urls.starts_with("the store refuses them"), "{urls}");
    assert!(refused(thief.writes(&kept, &chunk(0.002)).await));
    assert!(refused(thief.reads(&read).await));
    let again = cluster.diloctl_ok(&order("quarantine", "worker-0")).await;
    assert_eq!(deleted(&again), Some(0), "{again}");
    assert_eq!(value(&again, "urls"), Some(urls), "{again}");
    let left = cluster.path("store").join("incoming");
    cluster.until_empty(&left).await;

    // The audit service has read the order. A refusal is a later record: once it has that too, its
    // half that hears workers was told of the order.
    cluster.kept().await;
    let object = ObjectRef::of(&chunk(0.003));
    let refused = worker.grant(lease, object).await;
    assert!(
        matches!(&refused, Err(BusError::Refused(why)) if why.code == Code::WorkerQuarantined),
        "{refused:?}"
    );
    cluster.kept().await;
    let refused = worker.try_emit(said()).await;
    let refused = refused.expect_err("its events are refused");
    assert_eq!(refused.code, Code::WorkerQuarantined, "{refused}");

    let shown = cluster.diloctl_ok(&order("readmit", "worker-0")).await;
    assert!(shown.contains("may join again"), "{shown}");
    let urls = value(&shown, "urls");
    assert_eq!(urls.as_deref(), Some("the store takes them"), "{shown}");
    thief.reads(&read).await.expect("the store takes it again");
    cluster.kept().await;
    worker.join().await;
    assert_eq!(worker.claim().await.lease.unit, lease.unit);
    cluster.kept().await;
    worker.emit(said()).await;
}

/// One command shuts a worker out and cuts its connection, and nobody connects with its key until
/// it has a new token. Where the vault is elsewhere, the quarantine takes effect all the same.
#[tokio::test]
async fn tl_31_tl_07_a_quarantine_revokes_the_credential_in_the_same_command() {
    let cluster = Cluster::start(Options::default(), 0).await;
    Recipe::reference(3, 1, 5).create(&cluster).await;
    for name in ["worker-0", "worker-1"] {
        cluster.issue(Role::Worker, name);
    }
    let worker = Scripted::connect(&cluster, "worker-0").await;
    worker.join().await;
    let lease = worker.claim().await.lease;

    // An operator's key is no worker's.
    let other = cluster
        .diloctl(&with_credential("quarantine", "operator"))
        .await;
    assert_eq!(other.status.code(), Some(i32::from(EXIT_NOT_FOUND)));
    assert!(other.stderr.contains("role operator"), "{}", other.stderr);

    let shown = cluster
        .diloctl_ok(&with_credential("quarantine", "worker-0"))
        .await;
    let ended = Some(lease.to_string());
    assert_eq!(value(&shown, "lease ended"), ended, "{shown}");
    let credential = value(&shown, "credential").expect("it is printed");
    let cut = credential.strip_prefix("revoked; ");
    let cut = cut.and_then(|rest| rest.split(' ').next()?.parse::<u32>().ok());
    assert!(cut.is_some_and(|cut| cut > 0), "{credential}");
    let credentials = cluster.domain().layout().credentials("worker-0");
    let config = cluster.bus_config(&credentials);
    let connect = || Bus::connect("a worker", &config, clock::now());
    let refused = connect().await.expect_err("its key is revoked");
    assert_eq!(refused.code(), Code::BusRefused, "{refused}");
    let again = cluster
        .diloctl_ok(&with_credential("quarantine", "worker-0"))
        .await;
    assert!(again.contains("is shut out already"), "{again}");
    let credential = value(&again, "credential").expect("it is printed");
    assert!(
        credential.starts_with("was revoked already; 0 connections"),
        "{credential}"
    );

    // It was a mistake: with a new token for the same key it is a worker again.
    let shown = cluster
        .diloctl_ok(&with_credential("readmit", "worker-0"))
        .await;
    let next = "diloctl auth issue worker worker-0 --run demo";
    let credential = value(&shown, "credential").expect("it is printed");
    assert!(credential.contains(next), "{credential}");
    let refused = connect().await.expect_err("it has no new token yet");
    assert_eq!(refused.code(), Code::BusRefused, "{refused}");
    let issue = ["auth", "issue", "worker", "worker-0", "--run", "demo"];
    cluster.diloctl_ok(&issue).await;
    let worker = Scripted::connect(&cluster, "worker-0").await;
    worker.join().await;
    assert_eq!(worker.claim().await.lease.unit, lease.unit);

    let vault = cluster.domain().layout().folder().join("vault");
    let elsewhere = cluster.path("elsewhere");
    std::fs::rename(&vault, &elsewhere).expect("the folder is ours");
    let shown = cluster
        .diloctl_ok(&with_credential("quarantine", "worker-1"))
        .await;
    assert!(shown.contains("shut out; this is in the ledger"), "{shown}");
    let credential = value(&shown, "credential").expect("it is printed");
    let next = "Where it is, run `diloctl auth revoke U";
    assert!(credential.contains(next), "{credential}");
    std::fs::rename(&elsewhere, &vault).expect("the folder is ours");
    let name = ["auth", "revoke", "worker-1"];
    cluster.diloctl_ok(&name).await;
}
