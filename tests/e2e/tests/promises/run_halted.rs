//! A run whose objects are gone cannot go on, and says so in each answer.

use std::path::{Path, PathBuf};

use e2e::Recipe;
use harness::{Cluster, Options, PATIENCE};
use schemas::Code;
use schemas::view::RunPhase;

/// The file of that name below `folder`.
fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?.flatten();
    entries
        .map(|entry| entry.path())
        .find_map(|path| match path.is_dir() {
            true => find(&path, name),
            false => path.ends_with(name).then_some(path),
        })
}

#[tokio::test]
async fn a_run_that_cannot_be_restored_is_shown_as_halted_and_waiting_for_it_fails() {
    let mut cluster = Cluster::start(Options::default(), 0).await;
    let run = cluster.run().clone();
    Recipe::reference(2, 1, 5).create(&cluster).await;
    let spec = cluster
        .operator()
        .await
        .run(&run)
        .await
        .expect("it was created")
        .spec;
    cluster.kill9("coordinator");
    let initial = spec.model.initial.objects()[0].digest.hex();
    let file = find(&cluster.path("store").join("blobs"), &initial)
        .expect("the store holds the initial weights");
    std::fs::remove_file(file).expect("the test owns the folder");
    cluster.restart("coordinator").await;
    let view = cluster
        .operator()
        .await
        .until(&run, PATIENCE, |view| view.phase == RunPhase::Halted)
        .await;
    assert_eq!(
        view.halted.expect("with its reason").code,
        Code::ObjectMissing
    );
    let code = Code::ObjectMissing.to_string();
    for arguments in [&["run", "ls"][..], &["run", "get", "demo"]] {
        let said = cluster.diloctl_ok(arguments).await;
        assert!(
            said.contains("halted") && said.contains(&code),
            "{arguments:?}: {said}"
        );
    }
    for arguments in [
        &["run", "wait", "demo", "--within", "20s"][..],
        &["run", "watch", "demo"],
    ] {
        let output = cluster.diloctl(arguments).await;
        assert_eq!(
            output.status.code(),
            Some(3),
            "{arguments:?}: {}{}",
            output.stdout,
            output.stderr
        );
        assert!(
            output.stderr.contains(&code) && output.stderr.contains("halted"),
            "{arguments:?}: {}",
            output.stderr
        );
    }
}
