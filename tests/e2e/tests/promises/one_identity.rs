//! Two processes with one identity: the newest is the worker. The older one is told so with a code
//! and ends, and the record shows it.

use e2e::Recipe;
use harness::{Cluster, Options, PATIENCE};
use runtime::exit::EXIT_CONFLICT;
use schemas::Code;
use schemas::event::{Departure, LedgerEvent};

#[tokio::test]
async fn the_newest_process_of_a_worker_takes_over_and_the_older_one_ends_with_a_code() {
    let mut cluster = Cluster::start(Options::default(), 1).await;
    let mut evidence = cluster.evidence().await;
    // Leases of a minute: a worker that waited for the end of one would be noticed.
    Recipe::reference(6, 1, 120)
        .set("schedule.evaluation_every=0")
        .set("policy.lease=60s")
        .create(&cluster)
        .await;
    let run = cluster.run().clone();
    let granted = |event: &LedgerEvent| matches!(event, LedgerEvent::LeaseGranted { .. });
    evidence.until_ledger("first lease", &run, granted).await;

    // The same credentials on another machine, with folders of its own.
    let keys = cluster.domain().layout().folder().join("credentials");
    let arguments = cluster.worker_arguments("worker-0");
    let value = |key: &str| {
        let found = arguments
            .iter()
            .find_map(|one| one.strip_prefix(&format!("{key}=")));
        format!("{key}={}", found.unwrap_or_else(|| panic!("{key} is set")))
    };
    assert!(value("bus.credentials").contains(keys.to_str().unwrap()));
    let (credentials, key) = (value("bus.credentials"), value("worker.audit_key"));
    cluster.start_worker("twin", &[&credentials, &key]).await;
    let replaced = |event: &LedgerEvent| {
        matches!(
            event,
            LedgerEvent::WorkerLeft {
                cause: Departure::Replaced,
                ..
            }
        )
    };
    evidence.until_ledger("replacement", &run, replaced).await;
    let status = cluster.process("worker-0").exit(PATIENCE).await;
    assert_eq!(status.code(), Some(i32::from(EXIT_CONFLICT)), "{status}");
    let log = cluster.process("worker-0").log();
    assert!(
        log.contains(&Code::Replaced.to_string()) && log.contains("next:"),
        "{log}"
    );

    // A worker that was killed and starts again is a newer process too, and works on at once.
    cluster.kill9("twin");
    cluster.restart("twin").await;
    evidence
        .until_ledger("second replacement", &run, replaced)
        .await;
    cluster.operator().await.until_complete(&run).await;
    cluster.end_well(&["twin"]).await;
    let recorded = cluster.evidence().await.everything().await;
    let count = |wanted: fn(&LedgerEvent) -> bool| {
        recorded
            .iter()
            .filter(|one| one.ledger().is_some_and(wanted))
            .count()
    };
    assert_eq!(
        count(|event| matches!(event, LedgerEvent::WorkerJoined { .. })),
        3
    );
    let expired = count(|event| {
        matches!(
            event,
            LedgerEvent::LeaseEnded {
                cause: schemas::event::LeaseEnd::Expired,
                ..
            }
        )
    });
    assert_eq!(expired, 0, "nobody waited for the end of a lease");
}
