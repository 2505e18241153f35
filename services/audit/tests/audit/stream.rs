//! Replay from a real stream: streams that verify, streams that were tampered with, and streams
//! without a verdict.

use audit_core::{Finding, StreamSequence, Verdict};
use diloco_audit::{Checked, Known, Replay, ReplayError};
use harness::PATIENCE;
use runtime::StreamError;
use schemas::event::WorkerEvent;
use schemas::permission::Role;
use schemas::{ChainSequence, Code, Digest, UnixMillis};

use crate::broker::{Broker, Cast};
use crate::chain_writer::run;

/// Writes the ledger's beginning and the worker's first event: four messages.
async fn beginning(broker: &Broker, cast: &mut Cast) {
    let account = broker.domain.tenant().expect("a fresh name");
    for said in cast
        .ledger
        .beginning(&cast.worker, &account, &cast.worker_key)
    {
        cast.publish(&said).await;
    }
    let joined = WorkerEvent::Joined {
        release: "0.1.0".to_owned(),
        device: "cpu".to_owned(),
    };
    let said = cast.account_chain.worker(&account, &cast.worker, joined);
    cast.publish(&said).await;
}

async fn replay(broker: &Broker) -> (Replay, Vec<Checked>) {
    let bus = broker.bus(Role::Auditor.name()).await;
    let mut replay = Replay::open(&bus, broker.domain.trust())
        .await
        .expect("there is a stream");
    let mut results = Vec::new();
    replay
        .run(PATIENCE, &mut |checked| results.push(checked))
        .await
        .expect("it is read to its end");
    (replay, results)
}

/// The next `count` results; the broker decides how many come together.
async fn follow(replay: &mut Replay, count: usize) -> Vec<Checked> {
    let mut results = Vec::new();
    while results.len() < count {
        results.extend(
            tokio::time::timeout(PATIENCE, replay.follow())
                .await
                .expect("they come"),
        );
    }
    results
}

/// A stream that was replaced, or has lost its end, verifies by itself; the records that an audit
/// service kept contradict it.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_kept_contradicts_a_stream_that_is_another_or_shorter() {
    let broker = Broker::start().await;
    broker.create_streams().await;
    let mut cast = broker.cast().await;
    let other = Known {
        digest: Digest::of(b"another event"),
        stored_at: UnixMillis(0),
    };
    let cases = [
        (StreamSequence(2), "altered"),
        (StreamSequence(9), "truncated"),
    ];
    let against = async |kept: StreamSequence| {
        let bus = broker.bus(Role::Auditor.name()).await;
        let opened = Replay::open(&bus, broker.domain.trust())
            .await
            .expect("there is a stream");
        let mut replay = opened.against([(kept, other)].into());
        replay
            .run(PATIENCE, &mut |_| {})
            .await
            .expect("it is read to its end");
        let found = replay
            .auditor()
            .evidence()
            .expect("it is not what was kept");
        assert_eq!(found.code(), Code::LedgerBroken);
        found.finding.name()
    };
    assert_eq!(
        against(StreamSequence(1)).await,
        "truncated",
        "an empty stream of which something was kept"
    );
    beginning(&broker, &mut cast).await;
    for (kept, finding) in cases {
        assert_eq!(against(kept).await, finding);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_ledger_replays_and_is_followed() {
    let broker = Broker::start().await;
    let bus = broker.bus(Role::Auditor.name()).await;
    let missing = Replay::open(&bus, broker.domain.trust())
        .await
        .err()
        .expect("no stream yet");
    assert!(
        matches!(missing, ReplayError::Read(StreamError::Missing(_))),
        "{missing}"
    );
    broker.create_streams().await;
    let mut empty = Replay::open(&bus, broker.domain.trust())
        .await
        .expect("there is a stream");
    let error = empty
        .run(PATIENCE, &mut |_| {})
        .await
        .expect_err("nothing can be checked");
    assert!(matches!(error, ReplayError::Empty));
    assert_eq!(runtime::Failure::from(error).code(), Code::NoVerdict);

    let mut cast = broker.cast().await;
    beginning(&broker, &mut cast).await;
    let (mut whole, results) = replay(&broker).await;
    assert_eq!(results.len(), 4);
    assert!(
        results
            .iter()
            .all(|checked| checked.verdict == Verdict::Verified),
        "{results:?}"
    );
    assert_eq!(results[3].row.emitter, cast.worker.short());
    assert!(whole.auditor().evidence().is_none());

    // The state at one moment, and a position beyond the end.
    let mut moment = Replay::open(&bus, broker.domain.trust())
        .await
        .expect("there is a stream");
    moment
        .catch_up(StreamSequence(1), PATIENCE, &mut |_| {})
        .await
        .expect("one event");
    assert!(moment.auditor().state().run(&run()).is_none());
    let beyond = moment
        .catch_up(StreamSequence(9), PATIENCE, &mut |_| {})
        .await;
    assert!(matches!(
        beyond,
        Err(ReplayError::Beyond {
            last: StreamSequence(4),
            ..
        })
    ));
    // Following first returns the records that were not read yet, and then new ones.
    cast.remark().await;
    for (following, count) in [(&mut moment, 4), (&mut whole, 1)] {
        let more = follow(following, count).await;
        assert!(
            more.iter()
                .all(|checked| checked.verdict == Verdict::Verified),
            "{more:?}"
        );
        assert_eq!(more[count - 1].row.kind, "control-received");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_tampered_with_is_found() {
    let broker = Broker::start().await;
    let provisioner = broker.create_streams().await;
    let mut cast = broker.cast().await;
    beginning(&broker, &mut cast).await;
    // The provisioner may delete messages; here it deletes the run's creation.
    let stream = provisioner.get_stream("AUDIT").await.expect("it is there");
    stream
        .delete_message(2)
        .await
        .expect("this stream allows it");
    // A thief has the coordinator's connection, but not its audit key.
    let mut forged = cast.ledger.clone().remark();
    forged.event.body[20] ^= 1;
    cast.publish(&forged).await;
    // The coordinator's chain forks, and then one of its events disappears.
    let mut fork = cast.ledger.clone();
    cast.remark().await;
    let said = fork.ledger(
        None,
        schemas::event::LedgerEvent::CoordinatorStopped {
            reason: "fork".to_owned(),
        },
    );
    cast.publish(&said).await;
    let _swallowed = cast.ledger.remark();
    cast.remark().await;
    let (replay, _) = replay(&broker).await;
    let found: Vec<Finding> = replay
        .auditor()
        .findings()
        .iter()
        .map(|found| found.finding.clone())
        .collect();
    let expected = [
        Finding::Hole {
            from: StreamSequence(2),
            to: StreamSequence(2),
        },
        Finding::Gap {
            from: ChainSequence(1),
            to: ChainSequence(1),
        },
        Finding::Reused {
            sequence: ChainSequence(3),
        },
        Finding::Gap {
            from: ChainSequence(4),
            to: ChainSequence(4),
        },
    ];
    for finding in expected {
        assert!(found.contains(&finding), "{finding:?} in {found:?}");
    }
    let forgery = |finding: &Finding| {
        matches!(
            finding,
            Finding::BadSignature { .. } | Finding::Malformed { .. }
        )
    };
    assert!(found.iter().any(forgery), "{found:?}");
    // Two faults: the forgery, and the worker's event, since the worker joined a run that no event
    // created.
    assert_eq!(
        replay.auditor().summary().foreign,
        2,
        "what nobody signed is told apart"
    );
    assert_eq!(
        replay.auditor().evidence().expect("much of it").code(),
        Code::LedgerBroken
    );
}
