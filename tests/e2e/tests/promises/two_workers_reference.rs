//! Two workers train a model with the trainer in plain Rust: the held-out loss falls, the run
//! completes, the audit replay verifies, and no secret is left in any log or event.

use std::collections::BTreeSet;

use e2e::{Recipe, secrets, sockets};
use harness::{Cluster, Options, PATIENCE};
use schemas::contribution::Fate;
use schemas::event::LedgerEvent;

const ROUNDS: u64 = 3;
const UNITS: u32 = 2;

#[tokio::test]
async fn tl_22_two_workers_train_a_model_and_leave_evidence_without_secrets_and_tl_05_listen_nowhere()
 {
    // All lines of our programs are logged, so that a secret in a debug line is found.
    let log = "info,diloco_coordinator=debug,diloco_worker=debug,diloco_store=debug,runtime=debug,objects=debug";
    let options = Options {
        log: log.to_owned(),
        sentry: true,
        ..Options::default()
    };
    let mut cluster = Cluster::start(options, 2).await;
    Recipe::reference(ROUNDS, UNITS, 60)
        .set("policy.workers_min=2")
        .create(&cluster)
        .await;
    let run = cluster.run().clone();
    let operator = cluster.operator().await;
    operator
        .until(&run, PATIENCE, |view| view.workers == 2)
        .await;
    let mut listening =
        |name: &str| sockets::listening(cluster.process(name).pid().expect("it lives"));
    assert!(
        !listening("store").is_empty(),
        "the tables show who listens"
    );
    for worker in ["worker-0", "worker-1"] {
        assert_eq!(
            listening(worker),
            Vec::<String>::new(),
            "{worker} connects outwards only"
        );
    }
    let view = operator.until_complete(&run).await;

    let rounds = operator.rounds(&run).await;
    let first = rounds
        .first()
        .and_then(|round| round.held_out_loss)
        .expect("the initial weights were evaluated");
    let (last_round, last) = view.held_out_loss.expect("the last snapshot was evaluated");
    assert_eq!(last_round.get(), ROUNDS);
    assert!(
        last + 1.0 < first,
        "held-out loss went from {first} to {last}"
    );
    let spec = operator.run(&run).await.unwrap().spec;
    let merged = view
        .tokens
        .iter()
        .find(|(fate, _)| *fate == Fate::Merged)
        .expect("tokens were merged")
        .1;
    assert_eq!(
        merged.get(),
        ROUNDS * u64::from(UNITS) * spec.unit_tokens().get()
    );
    let (round, snapshot) = view.snapshot.expect("the last round is saved");
    assert_eq!(round.get(), ROUNDS);
    assert!(
        operator
            .snapshots(&run)
            .await
            .iter()
            .any(|one| one.manifest == snapshot)
    );

    let replay = cluster.record_verifies().await;
    cluster.end_well(&["worker-0", "worker-1"]).await;
    let recorded = cluster.evidence().await.everything().await;
    let contributors: BTreeSet<_> = recorded
        .iter()
        .filter_map(|one| match one.ledger() {
            Some(LedgerEvent::ContributionAccepted { worker, .. }) => Some(worker.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(contributors.len(), 2, "both workers contributed");
    cluster.stop_well(&["coordinator", "audit", "store"]).await;
    let credentials = std::fs::read(cluster.path(".diloco/credentials/worker-0.creds")).unwrap();
    assert!(
        secrets::found(&cluster, &credentials).len() >= 3,
        "the search finds a seed, a token and whose they are"
    );
    for name in cluster.names() {
        let log = cluster.process(&name).log();
        assert!(!log.is_empty(), "{name} logs nothing");
        assert_eq!(
            secrets::found(&cluster, log.as_bytes()),
            Vec::<String>::new(),
            "in the log of {name}"
        );
    }
    let stream: Vec<u8> = recorded.iter().flat_map(|one| one.raw.clone()).collect();
    assert_eq!(
        secrets::found(&cluster, &stream),
        Vec::<String>::new(),
        "in stream AUDIT"
    );
    assert_eq!(
        secrets::found(&cluster, replay.as_bytes()),
        Vec::<String>::new(),
        "in the replay"
    );
}
