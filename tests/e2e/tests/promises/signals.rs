//! The signals that end processes: one signal asks for an orderly end, and a repeated one does not
//! make it disorderly.

use e2e::{Machine, Recipe};
use harness::{Cluster, Options, PATIENCE, Signal};
use schemas::event::LedgerEvent;

/// A service manager and `diloctl down` may both send a signal while a worker saves.
#[tokio::test]
async fn a_worker_that_is_told_more_than_once_saves_its_inner_state_and_ends_well() {
    let mut cluster = Cluster::start(Options::default(), 1).await;
    let run = cluster.run().clone();
    let mut evidence = cluster.evidence().await;
    Recipe::reference(50, 1, 60).create(&cluster).await;
    let second_round = |event: &LedgerEvent| matches!(event, LedgerEvent::LeaseGranted { lease, .. } if lease.unit.round.get() == 1);
    evidence
        .until_ledger("lease in round 1", &run, second_round)
        .await;
    for signal in [
        Signal::Terminate,
        Signal::Terminate,
        Signal::Hangup,
        Signal::Interrupt,
        Signal::Terminate,
    ] {
        cluster.process("worker-0").signal(signal);
    }
    let status = cluster.process("worker-0").exit(PATIENCE).await;
    assert!(
        status.success(),
        "{status}\n{}",
        cluster.process("worker-0").log()
    );
    let state = cluster.path("work/worker-0/state");
    let saved = std::fs::read_dir(&state)
        .unwrap()
        .any(|entry| entry.unwrap().path().join("inner.safetensors").is_file());
    assert!(saved, "no inner state below {}", state.display());
}

#[tokio::test]
async fn the_end_of_a_terminal_ends_every_service_in_order() {
    if runtime::shutdown::hangup().unwrap().is_none() {
        // The services inherit the ignored signal, and outlive their terminal on purpose.
        e2e::skipped("these tests were started with SIGHUP ignored, as `nohup` does");
        return;
    }
    let mut cluster = Cluster::start(Options::default(), 1).await;
    for name in ["worker-0", "coordinator", "audit", "store"] {
        cluster.process(name).signal(Signal::Hangup);
        cluster.process(name).signal(Signal::Hangup);
        let status = cluster.process(name).exit(PATIENCE).await;
        assert!(status.success(), "{name}: {status}");
    }
    cluster.diloctl_ok(&["audit", "replay", "--summary"]).await;
}

/// `down` tells each service once; a second signal would show in the log.
#[tokio::test]
async fn down_tells_each_service_once_and_all_end_in_order() {
    let machine = Machine::new();
    assert!(machine.init("d", "1").await.status.success());
    let up = machine.up("d", "1").await;
    assert!(up.status.success(), "{}", up.text);
    let down = machine.down("d").await;
    assert!(!down.contains("killed"), "{down}");
    for name in ["worker-0", "coordinator", "audit", "registrar", "store"] {
        let log =
            std::fs::read_to_string(machine.path("d/logs").join(format!("{name}.log"))).unwrap();
        assert!(
            !log.contains("stopping already") && !log.contains("ending at once"),
            "{name}:\n{log}"
        );
    }
}
