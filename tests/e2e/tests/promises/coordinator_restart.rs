//! The coordinator is killed in the middle of a round and started again: nothing is lost, and the
//! weights are those of a run that nobody disturbed.

use std::time::{Duration, Instant};

use e2e::{Recipe, Scripted};
use harness::{Cluster, Options, PATIENCE};
use runtime::BusError;
use schemas::event::LedgerEvent;
use schemas::lease::{ClaimReply, ClaimRequest};
use schemas::limits::CLAIM_WAIT_MAX;
use schemas::subject::Verb;
use schemas::{Code, Digest, V};

const ROUNDS: u64 = 3;

/// Trains with two workers and returns the digest of every round's weights. Chance decides which
/// worker gets which unit, and each worker keeps its optimizer's moments from unit to unit. With
/// both decays at zero there are no moments, so a unit gives the same bits on each worker.
async fn train(disturbed: bool) -> Vec<Digest> {
    let mut cluster = Cluster::start(Options::default(), 2).await;
    let run = cluster.run().clone();
    let mut evidence = cluster.evidence().await;
    let recipe = Recipe::reference(ROUNDS, 2, 60)
        .set("inner.beta1=0")
        .set("inner.beta2=0")
        .set("policy.lease=20s");
    recipe
        .set("inner.learning_rate=0.001")
        .create(&cluster)
        .await;
    let mut accepted_before = None;
    if disturbed {
        let accepted = evidence.until_contribution(&run, 1).await;
        cluster.kill9("coordinator");
        cluster.restart("coordinator").await;
        let started = |event: &LedgerEvent| matches!(event, LedgerEvent::CoordinatorStarted { .. });
        evidence
            .until("second start", |recorded| {
                recorded.sequence > accepted.sequence && recorded.ledger().is_some_and(started)
            })
            .await;
        accepted_before = Some(accepted);
    }
    cluster.operator().await.until_complete(&run).await;
    cluster.end_well(&["worker-0", "worker-1"]).await;
    cluster.record_verifies().await;
    let recorded = cluster.evidence().await.everything().await;
    if let Some(accepted) = accepted_before {
        let Some(LedgerEvent::ContributionAccepted { lease, .. }) = accepted.ledger() else {
            unreachable!()
        };
        let granted_again = recorded.iter().filter(|one| one.sequence > accepted.sequence).any(
            |one| matches!(one.ledger(), Some(LedgerEvent::LeaseGranted { lease: again, .. }) if again.unit == lease.unit),
        );
        assert!(
            !granted_again,
            "what counted before the crash was asked for again"
        );
    }
    let lost = recorded
        .iter()
        .filter(|one| matches!(one.ledger(), Some(LedgerEvent::LeaseEnded { .. })));
    assert_eq!(lost.count(), 0, "a lease was lost");
    recorded
        .iter()
        .filter_map(|one| match one.ledger() {
            Some(LedgerEvent::RoundClosed { broadcast, .. }) => Some(broadcast.digest()),
            _ => None,
        })
        .collect()
}

#[tokio::test]
async fn a_coordinator_that_is_killed_in_mid_round_loses_nothing() {
    let (calm, disturbed) = tokio::join!(train(false), train(true));
    assert_eq!(calm.len() as u64, ROUNDS);
    assert_eq!(
        calm, disturbed,
        "the same seed gives the same weights, crash or not"
    );
}

/// A worker waits for work when its coordinator dies and comes back. It gets work as soon as there
/// is some, long before its lost question would time out.
#[tokio::test]
async fn a_worker_that_waits_for_work_finds_the_next_coordinator_soon() {
    /// The worker notices the lost claim after half of the shortest lease and repeats it within a
    /// second; the rest is for a busy machine.
    const SOON: Duration = Duration::from_secs(18);
    let mut cluster = Cluster::start(Options::default(), 1).await;
    let run = cluster.run().clone();
    let mut evidence = cluster.evidence().await;
    // The run needs one worker more than there is, so the only worker waits.
    Recipe::reference(1, 1, 5)
        .set("policy.workers_min=2")
        .create(&cluster)
        .await;
    let joined = |event: &LedgerEvent| matches!(event, LedgerEvent::WorkerJoined { .. });
    evidence.until_ledger("member", &run, joined).await;
    cluster.kill9("coordinator");
    cluster.restart("coordinator").await;
    let started = Instant::now();
    let second = Scripted::connect(&cluster, "worker-1").await;
    second.join().await;
    let granted = |event: &LedgerEvent| matches!(event, LedgerEvent::LeaseGranted { .. });
    evidence.until_ledger("lease", &run, granted).await;
    assert!(
        started.elapsed() < SOON,
        "granted after {:?}",
        started.elapsed()
    );
}

/// A coordinator that is told to stop tells all that wait for its answer to ask its successor.
/// Without that each of them would wait until its question times out.
#[tokio::test]
async fn a_coordinator_that_stops_leaves_nobody_waiting_for_its_answer() {
    let mut cluster = Cluster::start(Options::default(), 0).await;
    Recipe::reference(1, 1, 5)
        .set("policy.workers_min=2")
        .create(&cluster)
        .await;
    let worker = Scripted::connect(&cluster, "worker-0").await;
    worker.join().await;
    let claim = ClaimRequest {
        v: V,
        session: worker.session(),
        wait: CLAIM_WAIT_MAX,
    };
    let (claimed, ()) = tokio::join!(worker.ask::<_, ClaimReply>(Verb::Claim, &claim), async {
        // One connection keeps its order: when this is answered, the coordinator holds the claim
        // that came before.
        worker.join().await;
        let coordinator = cluster.process("coordinator");
        coordinator.terminate();
        assert!(coordinator.exit(PATIENCE).await.success());
    });
    match claimed {
        Err(BusError::Refused(refusal)) => assert_eq!(refusal.code, Code::Draining, "{refusal}"),
        other => panic!("the claim is declined: {other:?}"),
    }
    // The stopped coordinator granted nothing: the next one knows the member and answers it.
    cluster.restart("coordinator").await;
    worker.join().await;
}
