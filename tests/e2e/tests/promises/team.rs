//! A run does not start before its planned team is complete.

use e2e::{Recipe, Scripted};
use harness::{Cluster, Options};
use schemas::Millis;
use schemas::lease::{ClaimOutcome, ClaimReply};
use schemas::subject::Verb;
use schemas::view::RunPhase;

#[tokio::test]
async fn fg_15_no_lease_is_granted_before_the_minimum_of_workers_is_there_and_fg_25_that_is_visible()
 {
    let cluster = Cluster::start(Options::default(), 0).await;
    Recipe::reference(1, 2, 5)
        .set("policy.workers_min=2")
        .create(&cluster)
        .await;
    let first = Scripted::connect(&cluster, "worker-0").await;
    first.join().await;
    let request = first.claim_request(Millis(500));
    let reply: ClaimReply = first.ask(Verb::Claim, &request).await.unwrap();
    assert_eq!(reply.outcome, ClaimOutcome::Nothing);
    let view = cluster
        .operator()
        .await
        .run(cluster.run())
        .await
        .unwrap()
        .view;
    assert_eq!(
        (view.phase, view.workers, view.workers_min),
        (RunPhase::Waiting, 1, 2)
    );

    let second = Scripted::connect(&cluster, "worker-1").await;
    second.join().await;
    let (one, other) = tokio::join!(first.claim(), second.claim());
    assert_ne!(one.lease.unit, other.lease.unit);
    let view = cluster
        .operator()
        .await
        .run(cluster.run())
        .await
        .unwrap()
        .view;
    assert_eq!(
        (view.phase, view.workers, view.leases),
        (RunPhase::Training, 2, 2)
    );
}
