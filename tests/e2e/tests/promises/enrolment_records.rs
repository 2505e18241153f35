//! The records of issued credentials bind a worker's audit key and seat. Without its record nobody
//! joins, and without the folder the coordinator does not start, unless an exception says so.

use std::fs;

use e2e::{Recipe, Scripted};
use harness::{Cluster, Options, PATIENCE};
use runtime::BusError;
use schemas::Code;
use schemas::event::LedgerEvent;
use schemas::member::JoinReply;
use schemas::permission::Role;
use schemas::subject::Verb;

#[tokio::test]
async fn fg_03_a_worker_without_its_record_joins_nothing_and_the_ledger_says_so() {
    let cluster = Cluster::start(Options::default(), 0).await;
    Recipe::reference(2, 1, 5).create(&cluster).await;
    let worker = Scripted::connect(&cluster, "worker-0").await;
    let join = async || {
        let joined: Result<JoinReply, BusError> =
            worker.ask(Verb::Join, &worker.join_request()).await;
        joined.map(|_| ()).map_err(|error| error.code())
    };
    let folder = cluster.domain().layout().issued().folder().to_owned();
    let (file, aside) = (
        folder.join(format!("{}.json", worker.worker)),
        cluster.path("aside.json"),
    );
    fs::rename(&file, &aside).unwrap();
    assert_eq!(join().await, Err(Code::RecordMissing));
    let denied = |event: &LedgerEvent| matches!(event, LedgerEvent::RequestDenied { code: Code::RecordMissing, worker: of, .. } if *of == worker.worker);
    let events = cluster.evidence().await.ledger().await;
    assert!(events.iter().any(denied), "{events:?}");
    fs::write(&file, "{}").unwrap();
    assert_eq!(join().await, Err(Code::RegistrationInvalid));
    // A folder that is gone while the coordinator runs lets nobody in either.
    let moved = cluster.path("issued.aside");
    fs::rename(&folder, &moved).unwrap();
    assert_eq!(join().await, Err(Code::RecordMissing));
    fs::rename(&moved, &folder).unwrap();
    fs::rename(&aside, &file).unwrap();
    assert_eq!(join().await, Ok(()));
}

#[tokio::test]
async fn fg_03_a_worker_waits_for_its_record_and_trains_once_it_is_there() {
    let mut cluster = Cluster::start(Options::default(), 0).await;
    let key = cluster.issue(Role::Worker, "worker-0").public;
    cluster.start_worker("worker-0", &[]).await;
    cluster.kill9("worker-0");
    let folder = cluster.domain().layout().issued().folder().to_owned();
    let (file, aside) = (
        folder.join(format!("{key}.json")),
        cluster.path("aside.json"),
    );
    fs::rename(&file, &aside).unwrap();
    Recipe::reference(2, 1, 5).create(&cluster).await;
    cluster.restart("worker-0").await;
    let said = Code::RecordMissing.to_string();
    let waits = |log: &str| log.contains(&said);
    cluster
        .process("worker-0")
        .until_logged(PATIENCE, waits)
        .await;
    fs::rename(&aside, &file).unwrap();
    let run = cluster.run().clone();
    cluster.operator().await.until_complete(&run).await;
}
