//! A cluster whose broker and store speak plaintext by an exception: it trains, and everybody who
//! looks is told what is open, and why.

use std::collections::BTreeMap;

use e2e::Recipe;
use harness::{Cluster, Options, Recorded};
use schemas::Code;
use schemas::event::{Event, LedgerEvent};
use schemas::member::{Layer, Posture};
use schemas::security::{Refuser, SecurityEvent};

/// The posture that an event states, with the name of the process that it is of.
fn posture(one: &Recorded) -> Option<(&'static str, &Posture)> {
    match &one.body.event {
        Event::Ledger(LedgerEvent::CoordinatorStarted { posture, .. }) => {
            Some(("coordinator", posture))
        }
        Event::Ledger(LedgerEvent::WorkerJoined { posture, .. }) => Some(("worker", posture)),
        Event::Security(SecurityEvent::SentryStarted { posture, .. }) => {
            Some((Refuser::Audit.title(), posture))
        }
        Event::Security(SecurityEvent::PostureStated { by, posture }) => {
            Some((by.title(), posture))
        }
        _ => None,
    }
}

#[tokio::test]
async fn la_01_la_03_layers_opened_by_an_exception_are_told_and_recorded_and_nothing_else_is_open()
{
    let options = Options {
        plaintext: true,
        sentry: true,
        ..Options::default()
    };
    let mut cluster = Cluster::start(options, 1).await;
    let run = cluster.run().clone();
    cluster.start_registrar().await;
    Recipe::reference(2, 1, 5).create(&cluster).await;
    let operator = cluster.operator().await;
    operator.until_complete(&run).await;

    // Each process said so at its start.
    for name in ["coordinator", "store", "audit", "registrar", "worker-0"] {
        let log = cluster.process(name).log();
        assert!(log.contains(&Code::LayerOpen.to_string()), "{name}: {log}");
    }
    // The record has the posture of every process, each with the reason.
    let mut evidence = cluster.evidence().await;
    let mut postures = BTreeMap::new();
    while postures.len() < 5 {
        let has_one =
            |one: &Recorded| posture(one).is_some_and(|(by, _)| !postures.contains_key(by));
        let found = evidence
            .until(&format!("posture beside {:?}", postures.keys()), has_one)
            .await;
        let (by, posture) = posture(&found).expect("it was found so");
        postures.insert(by, posture.clone());
    }
    for (by, posture) in &postures {
        let open: Vec<_> = posture.open.iter().map(|open| open.layer).collect();
        assert_eq!(open, [Layer::Bus, Layer::Bulk], "{by}");
        let mut reasons = posture.open.iter().map(|open| open.reason.as_str());
        assert!(reasons.all(|reason| reason == "a measurement"), "{by}");
    }
    let by: Vec<&str> = postures.keys().copied().collect();
    let all = [
        "audit service",
        "coordinator",
        "registrar",
        "store",
        "worker",
    ];
    assert_eq!(by, all);
    let replayed = cluster
        .diloctl_ok(&["audit", "replay", "--kind", "security"])
        .await;
    let stated = replayed
        .lines()
        .filter(|line| line.contains("posture-stated"));
    let reasons = stated
        .filter(|line| line.contains("(a measurement)"))
        .count();
    assert_eq!(reasons, 2, "{replayed}");
    // Identity does not depend on TLS: without credentials the broker still admits nobody.
    let stranger = cluster
        .diloctl(&["--credentials", "nowhere.creds", "run", "ls"])
        .await;
    assert!(!stranger.status.success(), "{}", stranger.stdout);
    cluster
        .stop_well(&["worker-0", "audit", "coordinator"])
        .await;
}
