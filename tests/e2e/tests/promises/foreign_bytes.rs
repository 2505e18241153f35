//! Bytes that no client library would send, with real credentials: headers that are malformed,
//! bytes that are no text. Nobody but their sender notices.

use harness::{Cluster, Options, RawConnection, publication};
use schemas::permission::Role;
use schemas::subject::{ControlVerb, Verb, control_subject, heartbeat_subject, request_subject};
use schemas::{Code, RunId, WorkerId};

use e2e::{Recipe, Scripted};

/// Header blocks that the broker passes on unchanged. The client library ends its connection at
/// most of them.
fn foreign() -> Vec<Vec<u8>> {
    let blocks: [&[u8]; 7] = [
        b"NATS/1.0\r\nX: \xff\xfe\r\n\r\n",
        b"NATS/1.0\r\nno colon in this line\r\n\r\n",
        b"NATS/1.0\r\na name with spaces: x\r\n\r\n",
        b"NATS/1.0\r\n\x1b[2J: x\r\n\r\n",
        b"NATS/9.9 strange words\r\nX: y\r\n\r\n",
        b"NATS/1.0 \xff\xff\r\n\r\n",
        b"\r\n",
    ];
    let long = [
        b"NATS/1.0\r\nX: ".to_vec(),
        vec![b'\x01'; 60 << 10],
        b"\r\n\r\n".to_vec(),
    ]
    .concat();
    blocks
        .iter()
        .map(|block| block.to_vec())
        .chain([long])
        .collect()
}

/// The subjects on which a worker may send something to the coordinator.
fn subjects(run: &RunId, worker: &WorkerId) -> Vec<String> {
    let requests = Verb::ALL
        .iter()
        .map(|verb| request_subject(run, worker, *verb));
    requests.chain([heartbeat_subject(run, worker)]).collect()
}

#[tokio::test]
async fn headers_that_nobody_can_read_are_in_nobodys_way() {
    let mut cluster = Cluster::start(Options::default(), 0).await;
    Recipe::reference(2, 1, 5).create(&cluster).await;
    let operator = cluster.operator().await;
    let honest = Scripted::connect(&cluster, "worker-1").await;
    honest.join().await;
    let issued = cluster.issue(Role::Worker, "worker-0");
    let worker: WorkerId = issued.public.as_str().parse().unwrap();
    let mut raw = RawConnection::connect(&cluster, &issued.credentials).await;
    let subjects = subjects(cluster.run(), &worker);
    let inbox = format!("_INBOX.{worker}.x");
    // Sent one at a time: after each, the coordinator answers another worker.
    for headers in foreign() {
        for subject in &subjects {
            raw.publish(subject.as_bytes(), inbox.as_bytes(), &headers, b"x")
                .await;
        }
        assert!(raw.settled().await.is_empty(), "the broker takes it");
        assert_eq!(operator.workers(cluster.run()).await.len(), 1);
    }
    // Sent a thousand at once, while an honest worker asks.
    let headers = &foreign()[0];
    let burst: Vec<u8> = (0..1000)
        .flat_map(|number| {
            publication(
                subjects[number % subjects.len()].as_bytes(),
                inbox.as_bytes(),
                headers,
                b"x",
            )
        })
        .collect();
    raw.say(burst).await;
    honest.claim().await;
    // The same blocks from an operator, on each of its verbs.
    let public = operator.bus().public().unwrap().clone();
    let mut other = RawConnection::connect(
        &cluster,
        &cluster.domain().layout().credentials(Role::Operator.name()),
    )
    .await;
    for headers in foreign() {
        for verb in ControlVerb::ALL {
            let subject = control_subject(&public, *verb);
            other
                .publish(
                    subject.as_bytes(),
                    format!("_INBOX.{public}.x").as_bytes(),
                    &headers,
                    b"x",
                )
                .await;
        }
    }
    other.settled().await;
    assert_eq!(operator.workers(cluster.run()).await.len(), 1);
    for name in ["coordinator", "audit", "store"] {
        assert!(cluster.process(name).ended().is_none(), "{name} ended");
    }
    let log = cluster.process("coordinator").log();
    assert!(
        !log.contains("connection to the bus lost"),
        "the coordinator was cut off"
    );
}

#[tokio::test]
async fn a_request_with_a_header_is_answered_like_any_other() {
    let cluster = Cluster::start(Options::default(), 0).await;
    Recipe::reference(2, 1, 5).create(&cluster).await;
    let scripted = Scripted::connect(&cluster, "worker-0").await;
    scripted.join().await;
    let credentials = cluster.domain().layout().credentials("worker-0");
    let mut raw = RawConnection::connect(&cluster, &credentials).await;
    raw.say(format!("SUB _INBOX.{}.raw.* 1\r\n", scripted.worker))
        .await;
    let inbox = format!("_INBOX.{}.raw.1", scripted.worker);
    raw.publish(
        scripted.subject(Verb::Leave).as_bytes(),
        inbox.as_bytes(),
        &foreign()[0],
        b"\xc0",
    )
    .await;
    assert!(
        raw.line().await.starts_with(&format!("MSG {inbox} 1 ")),
        "without a header of its own"
    );
    assert_eq!(
        scripted.refused_raw(Verb::Leave, vec![0xc0]).await,
        Some(Code::MessageInvalid)
    );
}
