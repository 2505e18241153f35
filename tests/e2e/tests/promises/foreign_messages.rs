//! No message stops another client. A message of any role, with any reply subject, header or
//! length, leaves the record as it is; coordinator and audit service go on, and can start again.

use std::collections::BTreeMap;

use async_nats::HeaderMap;
use async_nats::jetstream;
use e2e::{Recipe, Scripted};
use futures::TryStreamExt as _;
use harness::{Cluster, Options, PATIENCE, RawConnection};
use runtime::{Bus, BusError};
use schemas::account::{Account, Copied};
use schemas::control::{OperatorObjects, Query};
use schemas::event::{LedgerEvent, WorkerEvent};
use schemas::lease::Done;
use schemas::permission::Role;
use schemas::subject::{
    AUDIT_STREAM, ControlVerb, LEDGER_STREAM, Verb, events_stream, ledger_subject, record_subject,
    request_subject, security_subject, worker_event_subject,
};
use schemas::{Code, Message as _, ObjectRef, PublicKey, V};

/// Number of one-byte events: more than a worker may send in its whole life.
const FLOOD: usize = 30_000;

/// A cluster with a run and without workers.
async fn stage() -> Cluster {
    let cluster = Cluster::start(Options::default(), 0).await;
    Recipe::reference(2, 1, 5)
        .set("schedule.evaluation_every=0")
        .create(&cluster)
        .await;
    cluster
}

async fn provisioner(cluster: &Cluster, account: Account) -> jetstream::Context {
    let role = Role::provisioner(account).expect("it has streams");
    jetstream::new(cluster.connect(role, role.name()).await.client().clone())
}

/// A stream or bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stored {
    /// The time at which it was made: a stream that was deleted and made again has another.
    created: String,
    /// The position of its last message.
    last: u64,
}

/// Each stream and bucket in each account. The copy for readers grows without anybody's message,
/// so its last position is left out.
async fn stored(cluster: &Cluster) -> BTreeMap<String, Stored> {
    let mut all = BTreeMap::new();
    for account in Account::ALL
        .into_iter()
        .filter(|account| Role::provisioner(*account).is_some())
    {
        let jetstream = provisioner(cluster, account).await;
        let infos: Vec<_> = jetstream.streams().try_collect().await.unwrap();
        all.extend(infos.into_iter().map(|info| {
            let stored = Stored {
                created: info.created.to_string(),
                last: info.state.last_sequence,
            };
            (info.config.name, stored)
        }));
    }
    all.get_mut(AUDIT_STREAM).expect("readers have one").last = 0;
    all
}

/// Every kind of subject, in any account, under which something is stored, ordered or asked.
fn targets(cluster: &Cluster, key: &PublicKey) -> Vec<String> {
    let (domain, run) = (cluster.domain(), cluster.run());
    let (tenant, worker) = (domain.tenant().unwrap(), key.as_str().parse().unwrap());
    let coordinator = &domain.trust().audit_keys[0];
    let mut targets = vec![
        ledger_subject(Some(run), coordinator, "run-completed"),
        ledger_subject(None, coordinator, "coordinator-stopped"),
        record_subject(&tenant, run, &worker, "joined"),
        worker_event_subject(run, &worker, "joined"),
        format!("diloco.event.{tenant}.{run}.{worker}.joined"),
        format!("diloco.event.{run}.x"),
        format!("diloco.work.{run}.0.train-0"),
        format!("diloco.command.{run}.{worker}.drain"),
        request_subject(run, &worker, Verb::Join),
        "$KV.state.x".to_owned(),
        "_INBOX.x.y".to_owned(),
    ];
    for stream in [
        AUDIT_STREAM,
        LEDGER_STREAM,
        "WORK",
        "KV_state",
        &events_stream(&tenant),
    ] {
        targets.extend(
            ["DELETE", "PURGE", "UPDATE", "CREATE"]
                .map(|verb| format!("$JS.API.STREAM.{verb}.{stream}")),
        );
        targets.push(format!("$JS.API.CONSUMER.CREATE.{stream}.thief"));
    }
    for copied in Copied::all(&domain.trust().tenants) {
        targets.extend(
            copied
                .paths()
                .into_iter()
                .map(|path| path.local.replace('>', "thief.x")),
        );
    }
    targets
}

/// Checks that the record verifies and that replay reports this many foreign messages.
async fn replay_tells(cluster: &Cluster, foreign: u64) {
    let said = cluster
        .diloctl_ok(&["--output", "json", "audit", "replay", "--summary"])
        .await;
    let summary: serde_json::Value =
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
    assert_eq!(
        (summary["foreign"].as_u64(), summary["evidence"].as_bool()),
        (Some(foreign), Some(false)),
        "{said}"
    );
    assert_eq!(
        summary["foreign_messages"].as_array().map(Vec::len),
        Some(foreign as usize),
        "{said}"
    );
    assert_eq!(
        summary["faulty_workers"].as_array().map(Vec::len),
        Some(0),
        "{said}"
    );
}

/// Changes the coordinator's state, so that it appends to the ledger.
async fn append(cluster: &Cluster) {
    let upload = OperatorObjects {
        v: V,
        objects: vec![ObjectRef::of(b"nothing that was uploaded")],
    };
    let asked = cluster
        .operator()
        .await
        .ask::<_, Done>(ControlVerb::BlobCommit, &upload)
        .await;
    assert!(
        matches!(asked, Err(runtime::BusError::Refused(_))),
        "the coordinator answers: {asked:?}"
    );
}

/// Checks that coordinator and audit service go on, and can start again on the stored messages.
async fn all_go_on(cluster: &mut Cluster) {
    append(cluster).await;
    for name in ["coordinator", "audit"] {
        assert!(cluster.process(name).ended().is_none(), "{name} ended");
        cluster.kill9(name);
        cluster.restart(name).await;
    }
    append(cluster).await;
}

/// Asks with a reply subject of the asker's choice, and waits until the broker has handled the
/// requests.
async fn ask_for(bus: &Bus, subject: &str, replies: &[String], payload: &'static [u8]) {
    for reply in replies {
        let sent = bus
            .client()
            .publish_with_reply(subject.to_owned(), reply.clone(), payload.into())
            .await;
        sent.expect("the client sends anything");
    }
    bus.round_trip().await.expect("the broker answers");
}

#[tokio::test]
async fn whatever_an_auditor_asks_for_whomever_nothing_is_stored_or_altered() {
    let mut cluster = stage().await;
    let auditor = cluster.connect(Role::Auditor, "auditor").await;
    let targets = targets(&cluster, auditor.public().expect("with credentials"));
    let before = stored(&cluster).await;
    for (verb, payload) in [
        ("STREAM.INFO", &b""[..]),
        ("STREAM.MSG.GET", b"{\"seq\":1}"),
        ("STREAM.MSG.GET", b"{\"seq\":1000000}"),
        ("STREAM.INFO", b"{"),
        // Several of these answers are empty.
        ("DIRECT.GET", b"{\"seq\":1}"),
        ("DIRECT.GET", b"{\"seq\":1,\"batch\":2}"),
        ("DIRECT.GET", b"{\"seq\":1000000}"),
        ("DIRECT.GET", b"{\"seq\":1000000,\"batch\":2}"),
        ("DIRECT.GET", b"{"),
        ("DIRECT.GET", b""),
    ] {
        let subject = format!("$JS.API.{verb}.{AUDIT_STREAM}");
        ask_for(&auditor, &subject, &targets, payload).await;
    }
    assert_eq!(stored(&cluster).await, before);
    all_go_on(&mut cluster).await;
    cluster.copied().await;
    replay_tells(&cluster, 0).await;
}

#[tokio::test]
async fn whatever_a_worker_asks_for_whomever_nobody_stores_the_answer() {
    let mut cluster = stage().await;
    let scripted = Scripted::connect(&cluster, "worker-0").await;
    let targets = targets(&cluster, scripted.bus.public().expect("with credentials"));
    let before = stored(&cluster).await;
    ask_for(&scripted.bus, &scripted.subject(Verb::Join), &targets, b"").await;
    ask_for(
        &scripted.bus,
        &worker_event_subject(cluster.run(), &scripted.worker, "joined"),
        &targets,
        b"",
    )
    .await;
    // The coordinator answers in order: once it answers this, it has answered everything before.
    let refused = scripted.refused_raw(Verb::Claim, Vec::new()).await;
    assert!(refused.is_some());
    let mut after = stored(&cluster).await;
    // The coordinator records its refusals itself.
    let ledger = after.get_mut(LEDGER_STREAM).expect("it is there");
    ledger.last = before[LEDGER_STREAM].last;
    assert_eq!(after, before);
    all_go_on(&mut cluster).await;
    cluster.copied().await;
    replay_tells(&cluster, 0).await;
}

/// Those who may write the ledger, a tenant's stream and `SECURITY`, and the provisioners of their
/// accounts, each without the key that signs there.
#[tokio::test]
async fn fg_07_what_nobody_signed_is_skipped_and_told_apart() {
    let mut cluster = stage().await;
    // The thief has the connection's credentials, but not the key that signs events.
    let thief = cluster.connect(Role::LedgerWriter, "ledger-writer").await;
    let subject = ledger_subject(
        None,
        &cluster.domain().trust().audit_keys[0],
        "coordinator-stopped",
    );
    for foreign in 1..=2 {
        let stored = thief
            .request_raw(&subject, HeaderMap::new(), "forged".into(), PATIENCE)
            .await;
        stored.expect("the broker stores what this role may publish");
        all_go_on(&mut cluster).await;
        cluster.copied().await;
        replay_tells(&cluster, foreign).await;
    }
    let said = cluster.diloctl_ok(&["audit", "replay", "--summary"]).await;
    assert!(said.contains("2 foreign messages were skipped"), "{said}");

    // What a worker, that is a member, would have said, under a key that is not its own.
    let (victim, maker) = (
        Scripted::connect(&cluster, "worker-0").await,
        Scripted::connect(&cluster, "worker-1").await,
    );
    victim.join().await;
    let tenant = cluster.domain().tenant().unwrap();
    let left = WorkerEvent::Stopped {
        reason: "never".to_owned(),
    };
    let of_worker = record_subject(&tenant, cluster.run(), &victim.worker, left.kind());
    let of_sentry = security_subject(&cluster.domain().trust().sentry_keys[0], "sentry-stopped");
    let made = maker.signed_event(left).encode();
    let recorder = cluster.connect(Role::Recorder, Role::Recorder.name()).await;
    for (at, payload) in [(&of_worker, made.clone()), (&of_sentry, made)] {
        let stored = recorder
            .request_raw(at, HeaderMap::new(), payload.into(), PATIENCE)
            .await;
        stored.expect("the broker stores what this role may publish");
    }
    for account in Account::ALL {
        let Some(role) = Role::provisioner(account) else {
            continue;
        };
        let provisioner = cluster.connect(role, role.name()).await;
        for at in [&subject, &of_worker, &of_sentry] {
            let denied = provisioner
                .publish_all_checked(at, vec!["forged".into()])
                .await;
            assert!(matches!(denied, Err(BusError::Denied { .. })), "{denied:?}");
        }
    }
    all_go_on(&mut cluster).await;
    cluster.copied().await;
    replay_tells(&cluster, 4).await;
    assert!(
        cluster
            .process("coordinator")
            .log()
            .contains(&Code::ForeignMessage.to_string())
    );
}

#[tokio::test]
async fn events_with_headers_that_nobody_can_parse_or_that_are_too_long_stop_nobody() {
    let mut cluster = stage().await;
    let issued = cluster.issue(Role::Worker, "worker-0");
    let worker = issued.public.as_str().parse().unwrap();
    let subject = worker_event_subject(cluster.run(), &worker, "joined");
    let before = stored(&cluster).await;
    let mut raw = RawConnection::connect(&cluster, &issued.credentials).await;
    let controls = [&b"NATS/1.0\r\nX: "[..], &[1; 60_000], b"\r\n\r\n"].concat();
    for headers in [
        &b"NATS/1.0\r\nX: \xff\xfe\r\n\r\n"[..],
        b"NATS/1.0\r\nno colon\r\n\r\n",
        &controls,
    ] {
        for payload in [&b""[..], b"nonsense", &[7; 60_000]] {
            raw.publish(subject.as_bytes(), b"", headers, payload).await;
        }
    }
    raw.settled().await;
    // The answer to a later event shows that the messages were heard; none of them was recorded.
    let scripted = Scripted::connect(&cluster, "worker-0").await;
    let answer = scripted
        .bus
        .request::<_, Done>(&subject, &Done::default(), PATIENCE)
        .await;
    assert!(
        matches!(&answer, Err(runtime::BusError::Refused(refusal)) if refusal.code == Code::EventRefused),
        "{answer:?}"
    );
    assert_eq!(stored(&cluster).await, before);
    all_go_on(&mut cluster).await;
    cluster.copied().await;
    replay_tells(&cluster, 0).await;
}

/// The broker sends stored headers to readers that ask for many messages. The reader loses its
/// connection over some of them, and reads on.
#[tokio::test]
async fn stored_headers_that_nobody_can_parse_or_that_imitate_the_brokers_hide_nothing() {
    let mut cluster = stage().await;
    let thief = cluster.issue(Role::LedgerWriter, "ledger-writer");
    let coordinator = &cluster.domain().trust().audit_keys[0];
    let subject = ledger_subject(None, coordinator, "coordinator-stopped");
    let mut raw = RawConnection::connect(&cluster, &thief.credentials).await;
    let all = [
        &b"NATS/1.0\r\nX: \xff\xfe\r\n\r\n"[..],
        b"NATS/1.0\r\nno colon\r\n\r\n",
        b"NATS/1.0 204 EOB\r\nNats-Num-Pending: 0\r\n\r\n",
        b"NATS/1.0 503\r\n\r\n",
        b"NATS/1.0\r\nNats-Sequence: 1\r\nNats-Subject: other\r\n\r\n",
        b"NATS/1.0\r\nX: ",
        b"nothing of a header",
    ];
    for headers in all {
        raw.publish(subject.as_bytes(), b"", headers, b"").await;
    }
    raw.settled().await;
    all_go_on(&mut cluster).await;
    cluster.copied().await;
    replay_tells(&cluster, all.len() as u64).await;
    // One of the headers says that nobody answers the question. Nobody takes it for the broker's
    // word, and reads message by message from there on.
    let slow = Code::ReadersBehind.to_string();
    let replayed = cluster.diloctl(&["audit", "replay", "--summary"]).await;
    assert!(replayed.status.success(), "{}", replayed.stderr);
    assert!(!replayed.stderr.contains(&slow), "{}", replayed.stderr);
    let logged = cluster.process("audit").log();
    assert!(!logged.contains(&slow), "{logged}");
}

#[tokio::test]
async fn a_burst_of_events_costs_nobody_else_anything() {
    let mut cluster = stage().await;
    let scripted = Scripted::connect(&cluster, "worker-0").await;
    scripted.join().await;
    let subject = worker_event_subject(cluster.run(), &scripted.worker, "joined");
    let before = stored(&cluster).await;
    let (client, flooded) = (scripted.bus.client().clone(), subject.clone());
    let flood = tokio::spawn(async move {
        for _ in 0..FLOOD {
            client
                .publish(flooded.clone(), "x".into())
                .await
                .expect("the client sends anything");
        }
        client.flush().await.expect("the broker takes it");
    });
    // While the flood comes, questions are answered and others' events are recorded.
    let operator = cluster.operator().await;
    let other = Scripted::connect(&cluster, "worker-1").await;
    other.join().await;
    let mut answered = 0;
    while !flood.is_finished() || answered < 20 {
        operator
            .view(Query::Runs)
            .await
            .expect("it is answered in its usual time");
        answered += 1;
    }
    flood.await.expect("no panic");
    other
        .emit(WorkerEvent::Stopped {
            reason: "recorded".to_owned(),
        })
        .await;
    let events = events_stream(&cluster.domain().tenant().unwrap());
    assert_eq!(
        stored(&cluster).await[&events].last,
        before[&events].last + 1,
        "nothing of the flood"
    );
    all_go_on(&mut cluster).await;
    cluster.copied().await;
    replay_tells(&cluster, 0).await;
}

/// A worker continues from an old copy of its state, or two workers use one identity: the second
/// history is refused, and its worker is told.
#[tokio::test]
async fn a_chain_that_forks_is_not_recorded_and_its_worker_is_told() {
    let cluster = stage().await;
    let scripted = Scripted::connect(&cluster, "worker-0").await;
    scripted.join().await;
    scripted
        .emit(WorkerEvent::Stopped {
            reason: "first life".to_owned(),
        })
        .await;
    scripted.forget_events();
    let stopped = WorkerEvent::Stopped {
        reason: "second life".to_owned(),
    };
    let refusal = scripted.try_emit(stopped).await.expect_err("a fork");
    assert_eq!(refusal.code, Code::ChainForked);
    let recorded = cluster.evidence().await.everything().await;
    let joined = |event: &LedgerEvent| matches!(event, LedgerEvent::WorkerJoined { .. });
    assert_eq!(
        recorded
            .iter()
            .filter(|one| one.ledger().is_some_and(joined))
            .count(),
        1
    );
    assert_eq!(
        recorded.iter().filter(|one| one.ledger().is_none()).count(),
        1,
        "the first life's event alone"
    );
    replay_tells(&cluster, 0).await;
}
