//! A worker's own messages, said again when their time is over: nothing happens, and nothing counts
//! twice.

use e2e::Scripted;
use schemas::blob::PutRequest;
use schemas::contribution::StageRequest;
use schemas::event::LedgerEvent;
use schemas::lease::{ReleaseRequest, RenewRequest};
use schemas::member::LeaveRequest;
use schemas::subject::Verb;
use schemas::view::RunView;
use schemas::{Bytes, Code, Message as _, Millis, ObjectRef, Steps, V};

use crate::hostile_messages::{chunk, stage};

/// Messages that a worker has said, and each is answered well.
async fn says<const N: usize>(
    scripted: &Scripted,
    messages: [(Verb, Vec<u8>); N],
    recorded: &mut Vec<(Verb, Vec<u8>)>,
) {
    for (verb, bytes) in messages {
        let code = scripted.refused_raw(verb, bytes.clone()).await;
        assert_eq!(code, None, "{verb}");
        recorded.push((verb, bytes));
    }
}

/// What a worker itself said in the past, it or somebody with its credentials says again, from the
/// end to the beginning.
#[tokio::test]
async fn tl_14_fg_17_ones_own_messages_again_and_in_reverse_change_nothing() {
    let cluster = stage().await;
    let run = cluster.run().clone();
    let mut recorded = Vec::new();
    let renew = |lease| {
        let (steps_done, bytes_moved) = (Steps(1), Bytes(0));
        let renew = RenewRequest {
            v: V,
            lease,
            steps_done,
            bytes_moved,
        };
        (Verb::Renew, renew.encode())
    };

    // A process that is replaced by the next one of the same worker.
    let before = Scripted::connect(&cluster, "worker-0").await;
    before.join().await;
    let leave = LeaveRequest {
        v: V,
        session: before.session(),
        reason: "enough".to_owned(),
    };
    recorded.push((Verb::Leave, leave.encode()));
    recorded.push((Verb::Claim, before.claim_request(Millis(1)).encode()));
    let lease = before.claim().await.lease;
    says(&before, [renew(lease)], &mut recorded).await;

    let replaced = recorded.len();

    // One lease that it gives back, and one whose unit counts.
    let scripted = Scripted::connect(&cluster, "worker-0").await;
    let spec = scripted.join().await;
    let lease = scripted.claim().await.lease;
    let release = ReleaseRequest {
        v: V,
        lease,
        reason: "enough".to_owned(),
    };
    let release = (Verb::Release, release.encode());
    says(&scripted, [renew(lease), release], &mut recorded).await;
    let lease = scripted.claim().await.lease;
    let object = ObjectRef::of(&chunk(&spec, 0.001, 0.0));
    let put = PutRequest {
        v: V,
        lease,
        objects: vec![object],
    };
    says(
        &scripted,
        [renew(lease), (Verb::Put, put.encode())],
        &mut recorded,
    )
    .await;
    scripted.upload(lease, chunk(&spec, 0.001, 0.0)).await;
    let staged = StageRequest {
        v: V,
        lease,
        index: 0,
        object,
    };
    let result = Scripted::contribution(&spec, vec![object]);
    let result = scripted.result(&spec, lease, result).encode();
    let staged = (Verb::Stage, staged.encode());
    let said = [
        staged,
        (Verb::Submit, result.clone()),
        (Verb::Submit, result),
    ];
    says(&scripted, said, &mut recorded).await;

    let operator = cluster.operator().await;
    let closed = operator
        .until(&run, harness::PATIENCE, |view| view.round.get() == 1)
        .await;
    // What is about workers and rounds: a snapshot of the round before may still be written.
    let lasting = async || {
        let mut ledger = cluster.evidence().await.ledger().await;
        let other = [
            "request-denied",
            "snapshot-saved",
            "checkpoint-taken",
            "checkpoint-saved",
        ];
        ledger.retain(|event| !other.contains(&event.kind()));
        ledger
    };
    let stood = lasting().await;
    for (place, (verb, bytes)) in recorded.iter().enumerate().rev() {
        let code = scripted.refused_raw(*verb, bytes.clone()).await;
        let expected = match verb {
            _ if place < replaced => Some(Code::Replaced),
            // The result that counts gets the answer of the first time, and counts once.
            Verb::Submit => None,
            _ => Some(Code::LeaseLost),
        };
        assert_eq!(code, expected, "{verb} again");
    }
    let stands = lasting().await;
    assert_eq!(stands, stood, "nothing happened");
    // TL-29: each refusal is an event with its reason, and there is none beside.
    let ledger = cluster.evidence().await.ledger().await;
    let denied = ledger.iter().filter_map(|event| match event {
        LedgerEvent::RequestDenied {
            worker,
            verb,
            code,
            suppressed,
            ..
        } => {
            assert_eq!((worker, *suppressed), (&scripted.worker, 0));
            Some((verb.clone(), *code))
        }
        _ => None,
    });
    let mut denied: Vec<(String, Code)> = denied.collect();
    let mut expected: Vec<(String, Code)> = recorded
        .iter()
        .enumerate()
        .filter_map(|(place, (verb, _))| match verb {
            _ if place < replaced => Some((verb.to_string(), Code::Replaced)),
            Verb::Submit => None,
            _ => Some((verb.to_string(), Code::LeaseLost)),
        })
        .collect();
    denied.sort();
    expected.sort();
    assert_eq!(denied, expected);
    let accepted = |event: &&LedgerEvent| matches!(event, LedgerEvent::ContributionAccepted { .. });
    assert_eq!(stands.iter().filter(accepted).count(), 1);
    let view = operator.run(&run).await.unwrap().view;
    let what = |view: &RunView| {
        (
            view.round,
            view.phase,
            view.leases,
            view.units_done,
            view.tokens.clone(),
        )
    };
    assert_eq!(what(&view), what(&closed));
    // It is a member all the while, and gets the next unit.
    assert_eq!(scripted.claim().await.lease.unit.round.get(), 1);
}
