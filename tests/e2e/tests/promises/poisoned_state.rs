//! A saved optimizer state with the right form and impossible values does not spoil a run.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use e2e::Recipe;
use harness::{Cluster, Options};
use schemas::Code;
use schemas::event::LedgerEvent;
use serde_json::Value;

/// The state of the only run in a worker's state folder.
fn saved(cluster: &Cluster) -> PathBuf {
    let state = cluster.path("work/worker-0/state");
    let runs = fs::read_dir(&state)
        .unwrap()
        .map(|entry| entry.unwrap().path().join("inner.safetensors"));
    runs.filter(|path| path.is_file())
        .last()
        .unwrap_or_else(|| panic!("no inner state below {}", state.display()))
}

/// Makes the first element of the mean of squares NaN, and leaves the rest of the file unchanged.
fn poison(path: &Path) {
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut length = [0; 8];
    file.read_exact_at(&mut length, 0).unwrap();
    let length = u64::from_le_bytes(length);
    let mut header = vec![0; usize::try_from(length).unwrap()];
    file.read_exact_at(&mut header, 8).unwrap();
    let header: Value = serde_json::from_slice(&header).unwrap();
    let start = header["second_moment"]["data_offsets"][0].as_u64().unwrap();
    file.write_all_at(&f32::NAN.to_le_bytes(), 8 + length + start)
        .unwrap();
}

#[tokio::test]
async fn a_worker_whose_saved_state_was_spoilt_says_so_once_and_the_run_goes_on() {
    let mut cluster = Cluster::start(Options::default(), 1).await;
    let mut evidence = cluster.evidence().await;
    Recipe::torch(4, 1, 8)
        .set("policy.workers_min=1")
        .create(&cluster)
        .await;
    let run = cluster.run().clone();
    // A worker saves the state after a result that counts.
    let second_round = |event: &LedgerEvent| matches!(event, LedgerEvent::LeaseGranted { lease, .. } if lease.unit.round.get() == 1);
    evidence
        .until_ledger("lease in round 1", &run, second_round)
        .await;
    cluster.stop_well(&["worker-0"]).await;
    let state = saved(&cluster);
    poison(&state);
    cluster.restart("worker-0").await;
    let view = cluster.operator().await.until_complete(&run).await;
    assert_eq!(view.round.get(), 4);
    cluster.end_well(&["worker-0"]).await;
    let log = cluster.process("worker-0").log();
    let code = Code::InnerStateInvalid.to_string();
    let told: Vec<&str> = log.lines().filter(|line| line.contains(&code)).collect();
    assert_eq!(told.len(), 1, "{log}");
    let (line, path) = (told[0], state.display().to_string());
    assert!(
        line.contains("second_moment is NaN at element 0") && line.contains(&path),
        "{line}"
    );
    assert!(
        line.contains("the saved inner state is not used; moments start anew"),
        "{line}"
    );
    assert!(
        state.with_extension("refused").is_file(),
        "it is kept for a person to look at"
    );
    // The state that was saved since is good again.
    assert!(state.is_file());
    cluster.record_verifies().await;
}
