//! The asker chooses the reply subject of a request, and the broker checks no permission for it. So
//! each role makes every request that it may make, with every subject of every client as the reply
//! subject. Nothing is stored where it should not be, nobody but the asker notices, and the run
//! goes on.
//!
//! Three kinds of roles are left out, since each may do by right what an answer could: provisioners
//! alter and delete streams; the coordinator, its writer of the ledger, and the recorder of
//! workers' events write the streams themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use async_nats::jetstream;
use e2e::{Recipe, Scripted};
use futures::TryStreamExt as _;
use harness::{Cluster, Options, PATIENCE, RawConnection, publication};
use schemas::event::LedgerEvent;
use schemas::permission::{Role, permissions};
use schemas::subject::{TABLE, Verb};
use schemas::{Code, PublicKey, WorkerId};

use super::candidates::{Names, rows};

/// A name for the consumer and the token that a subject leaves open.
const PROBE: &str = "probe";

/// A client that asks.
struct Asker {
    role: Role,
    key: PublicKey,
    credentials: PathBuf,
}

impl Asker {
    fn new(cluster: &Cluster, role: Role, name: &str) -> Self {
        let issued = cluster.issue(role, name);
        Self {
            role,
            key: issued.public,
            credentials: issued.credentials,
        }
    }

    /// Every subject to which the client may publish, with the open parts of the template filled
    /// in.
    fn asks(&self, run: &str) -> Vec<String> {
        let filled = |subject: &String| {
            let own = subject
                .replace("{{subject()}}", self.key.as_str())
                .replace("{{tag(run)}}", run);
            own.replace(['*', '>'], PROBE)
        };
        let all = permissions(self.role).publish_allow;
        all.iter().map(filled).collect()
    }
}

/// True for a role that may write streams.
fn writes_by_right(role: Role) -> bool {
    role.name().ends_with("provisioner")
        || matches!(role.name(), "coordinator" | "ledger-writer" | "recorder")
}

/// Every stream that a provisioner sees, with its number of messages and its last sequence.
async fn streams(cluster: &Cluster) -> BTreeMap<(&'static str, String), (u64, u64)> {
    let mut found = BTreeMap::new();
    for role in Role::ALL
        .into_iter()
        .filter(|role| role.name().ends_with("provisioner"))
    {
        let bus = cluster.connect(role, role.name()).await;
        let listed: Vec<_> = jetstream::new(bus.client().clone())
            .streams()
            .try_collect()
            .await
            .unwrap();
        found.extend(listed.into_iter().map(|info| {
            let state = (info.state.messages, info.state.last_sequence);
            ((role.name(), info.config.name), state)
        }));
    }
    found
}

/// The reply subjects: every row in every form, inboxes, and every operation on each stream.
fn places(
    cluster: &Cluster,
    keys: &[PublicKey],
    streams: impl Iterator<Item = String>,
) -> BTreeSet<String> {
    let accounts = [
        cluster.domain().tenant().unwrap(),
        cluster.domain().control().unwrap(),
    ];
    let run = cluster.run().to_string();
    let mut places = rows(
        &Names {
            keys,
            runs: &[&run],
            accounts: &accounts,
        },
        TABLE,
    );
    places.extend(keys.iter().map(|key| format!("_INBOX.{key}.{PROBE}")));
    places.extend(["run.demo.snapshot", "leader", PROBE].map(|key| format!("$KV.state.{key}")));
    places.extend(
        [
            "$KV.leader.leader",
            "$SYS.REQ.CLAIMS.UPDATE",
            "$JS.API.INFO",
            "_R_.x.y",
        ]
        .map(str::to_owned),
    );
    for stream in streams {
        for verb in [
            "CREATE",
            "UPDATE",
            "DELETE",
            "PURGE",
            "INFO",
            "MSG.DELETE",
            "MSG.GET",
            "SNAPSHOT",
            "RESTORE",
        ] {
            places.insert(format!("$JS.API.STREAM.{verb}.{stream}"));
        }
        places.insert(format!("$JS.API.DIRECT.GET.{stream}"));
        for verb in ["CREATE", "DURABLE.CREATE", "DELETE", "MSG.NEXT"] {
            places.insert(format!("$JS.API.CONSUMER.{verb}.{stream}.lease"));
        }
        places.insert(format!("$JS.API.CONSUMER.CREATE.{stream}"));
        places.insert(format!("$JS.ACK.{stream}.lease.1.1.1.0.0"));
        places.insert(format!("$JS.FC.{stream}.{PROBE}"));
    }
    places
}

/// The payloads of a request: usually none, which is answered as well. A request to create a
/// consumer asks for deliveries to `place` itself. The answers to a direct get end with an empty
/// message when several messages are wanted, and are empty when there is none.
fn payloads(subject: &str, place: &str) -> Vec<Vec<u8>> {
    if subject.starts_with("$JS.API.DIRECT.GET.") {
        let wanted = [
            "",
            r#"{"seq":1}"#,
            r#"{"seq":1,"batch":1}"#,
            r#"{"seq":1000000}"#,
            r#"{"seq":1000000,"batch":1}"#,
        ];
        return wanted.map(|text| text.as_bytes().to_vec()).to_vec();
    }
    let named = subject
        .strip_prefix("$JS.API.CONSUMER.CREATE.")
        .and_then(|rest| rest.split_once('.'));
    let Some((stream, _)) = named else {
        return vec![Vec::new()];
    };
    let config = serde_json::json!({
        "stream_name": stream,
        "config": { "deliver_subject": place, "deliver_policy": "all", "ack_policy": "none", "name": PROBE },
    });
    vec![config.to_string().into_bytes()]
}

/// Makes every request of this client with every place.
async fn ask_all(cluster: &Cluster, asker: &Asker, places: &BTreeSet<String>) {
    let mut raw = RawConnection::connect(cluster, &asker.credentials).await;
    for subject in asker.asks(cluster.run().as_str()) {
        let asked = |place: &String| {
            let all = payloads(&subject, place).into_iter();
            all.flat_map(|payload| publication(subject.as_bytes(), place.as_bytes(), b"", &payload))
                .collect::<Vec<u8>>()
        };
        raw.say(places.iter().flat_map(asked).collect::<Vec<u8>>())
            .await;
        for line in raw.settled().await {
            assert!(
                line.starts_with("-ERR 'Permissions Violation for Publish with Reply"),
                "{subject}: {line}"
            );
        }
    }
}

#[tokio::test]
async fn no_answer_does_anything_where_its_asker_sends_it() {
    let mut cluster = Cluster::start(Options::default(), 1).await;
    cluster.start_registrar().await;
    // The only worker waits for another, so that nothing is stored meanwhile but by this test.
    Recipe::reference(2, 1, 5)
        .set("policy.workers_min=2")
        .create(&cluster)
        .await;
    let operator = cluster.operator().await;
    let run = cluster.run().clone();
    operator
        .until(&run, PATIENCE, |view| view.workers == 1)
        .await;
    let victim = operator.workers(&run).await.remove(0).worker;
    let attacker = Scripted::connect(&cluster, "attacker").await;
    let mut askers: Vec<Asker> = Role::ALL
        .into_iter()
        .filter(|role| !writes_by_right(*role) && !role.is_tenant())
        .map(|role| match role {
            // The test looks with the operator's own credentials, whose requests are counted.
            Role::Operator => Asker::new(&cluster, role, "asking-operator"),
            _ => Asker::new(&cluster, role, role.name()),
        })
        .collect();
    askers.push(Asker::new(&cluster, Role::Worker, "attacker"));
    let mut keys: Vec<PublicKey> = askers.iter().map(|asker| asker.key.clone()).collect();
    keys.push(victim.as_str().parse().unwrap());
    keys.push(
        cluster
            .issue(Role::Coordinator, Role::Coordinator.name())
            .public,
    );

    let before = streams(&cluster).await;
    let names: BTreeSet<String> = before.keys().map(|(_, stream)| stream.clone()).collect();
    let places = places(&cluster, &keys, names.into_iter());
    for asker in &askers {
        ask_all(&cluster, asker, &places).await;
        // Waits twice for the end of the coordinator's lanes: first for the requests, then for what
        // the answers caused.
        for _ in 0..2 {
            assert_eq!(
                attacker.refused_raw(Verb::Leave, vec![0xc0]).await,
                Some(Code::MessageInvalid)
            );
            operator.workers(&run).await;
        }
    }

    let after = streams(&cluster).await;
    assert_eq!(
        before.keys().collect::<Vec<_>>(),
        after.keys().collect::<Vec<_>>(),
        "the streams are those there were"
    );
    for (stream, state) in &before {
        // The record grows by the coordinator's refusals; its contents are checked below.
        let records = ["AUDIT", "LEDGER"].contains(&stream.1.as_str());
        assert!(
            after[stream] == *state || records && after[stream].0 > state.0,
            "{stream:?}: {state:?} became {:?}",
            after[stream]
        );
    }
    innocent(&mut cluster, &victim, &attacker.worker).await;
    // The run answers, and completes once another worker comes.
    cluster.start_worker("worker-1", &[]).await;
    operator.until_complete(&run).await;
    cluster.record_verifies().await;
}

/// Checks that every event is one of ours, that none of them blames the victim, and that every
/// process lives.
async fn innocent(cluster: &mut Cluster, victim: &WorkerId, attacker: &WorkerId) {
    let recorded = cluster.evidence().await.everything().await;
    let denied: BTreeSet<&WorkerId> = recorded
        .iter()
        .filter_map(|one| match one.ledger() {
            Some(LedgerEvent::RequestDenied { worker, .. }) => Some(worker),
            _ => None,
        })
        .collect();
    assert_eq!(denied, BTreeSet::from([attacker]), "not {victim}");
    cluster.record_verifies().await;
    for name in [
        "coordinator",
        "audit",
        "registrar",
        "store",
        "worker-0",
        "broker",
    ] {
        assert!(cluster.process(name).ended().is_none(), "{name} ended");
    }
    for name in ["coordinator", "worker-0"] {
        let log = cluster.process(name).log();
        assert!(
            !log.contains("connection to the bus lost"),
            "{name} was cut off"
        );
        let lines = log
            .lines()
            .filter(|line| line.contains("DL0210") || line.contains("a command is ignored"));
        assert!(
            lines.count() < 10,
            "a line for each forged message in the log of {name}"
        );
    }
    let log = cluster.process("worker-0").log();
    assert!(
        !log.contains("command of the coordinator"),
        "an answer was obeyed"
    );
}
