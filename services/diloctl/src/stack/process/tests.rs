//! Tests that find real processes again, wait for them and stop them.

use super::*;

fn spec(folder: &Path, script: &str) -> Spec {
    Spec {
        name: "test".to_owned(),
        program: PathBuf::from("/bin/sh"),
        arguments: vec!["-c".to_owned(), script.to_owned()],
        environment: Vec::new(),
        folder: folder.to_owned(),
        ready: Ready::File(folder.join("ready")),
    }
}

#[tokio::test]
async fn a_process_is_found_again_and_stopped() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let spec = spec(scratch.path(), "touch ready; exec sleep 60");
    let started = Running::start(scratch.path(), &spec).expect("starts");
    assert_eq!(
        started.ready(&spec).await.expect("it writes the file"),
        Readiness::Ready
    );
    let found = Running::find(scratch.path(), "test")
        .expect("a note")
        .expect("alive");
    assert_eq!(found, started.running);
    assert!(found.terminate());
    assert!(found.end(Duration::from_secs(5)).await);
    assert_eq!(
        Running::find(scratch.path(), "test").expect("no note"),
        None
    );
}

/// A crash between the start of a process and the note of its number.
#[tokio::test]
async fn a_process_whose_number_was_not_noted_is_found_by_its_command_line() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let script = format!(
        "touch ready; while :; do sleep 60; done # {}",
        scratch.path().display()
    );
    let spec = spec(scratch.path(), &script);
    let started = Running::start(scratch.path(), &spec).expect("starts");
    started.ready(&spec).await.expect("it writes the file");
    Running {
        pid: 0,
        started: 0,
        ..started.running.clone()
    }
    .write()
    .expect("the folder takes files");
    let found = Running::find(scratch.path(), "test")
        .expect("a note")
        .expect("alive");
    assert_eq!(found, started.running);
    found.terminate();
    assert!(found.end(Duration::from_secs(5)).await);
    assert_eq!(
        Running::find(scratch.path(), "test").expect("no note"),
        None
    );
}

#[tokio::test]
async fn a_renamed_folder_keeps_its_processes_and_a_copied_one_has_none() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let path = |name: &str| scratch.path().join(name);
    let (first, renamed, copied) = (path("first"), path("renamed"), path("copied"));
    fs::create_dir(&first).expect("it is ours");
    let spec = spec(&first, "touch ready; exec sleep 60");
    let started = Running::start(&first, &spec).expect("starts");
    started.ready(&spec).await.expect("it writes the file");
    fs::create_dir_all(copied.join("up")).expect("it is ours");
    fs::copy(first.join("up/test.json"), copied.join("up/test.json")).expect("it was noted");
    fs::rename(&first, &renamed).expect("it is ours");

    assert_eq!(Running::find(&copied, "test").expect("a note"), None);
    assert!(Running::all(&copied).expect("a note").is_empty());
    let found = Running::find(&renamed, "test")
        .expect("a note")
        .expect("alive");
    assert_eq!(found.pid, started.running.pid);
    assert!(found.moved(&renamed).expect("it is there"));
    found.terminate();
    assert!(found.end(Duration::from_secs(5)).await);
}

/// A worker whose run is complete is ready and gone between two looks.
#[tokio::test]
async fn a_process_that_has_nothing_to_do_is_no_failure() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let spec = spec(scratch.path(), "touch ready; rm ready; exit 0");
    let started = Running::start(scratch.path(), &spec).expect("starts");
    let reached = started.ready(&spec).await.expect("success is no failure");
    // The result depends on when the process was looked at.
    assert!(matches!(reached, Readiness::Ready | Readiness::Done));
    assert!(started.running.ended(Instant::now() + READY_MAX).await);
    assert_eq!(
        started.ready(&spec).await.expect("success is no failure"),
        Readiness::Done
    );
}

/// A process that lives need not be usable.
#[tokio::test]
async fn a_process_that_was_started_earlier_is_waited_for_until_it_shows_that_it_is_ready() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let slow = spec(
        scratch.path(),
        "while ! [ -e go ]; do sleep 0.05; done; touch ready; exec sleep 60",
    );
    let running = Running::start(scratch.path(), &slow)
        .expect("starts")
        .running;
    let (usable, ()) = tokio::join!(running.usable(&slow), async {
        fs::write(scratch.path().join("go"), "").expect("the folder takes files");
    });
    assert!(usable.expect("it becomes ready") && scratch.path().join("ready").exists());
    running.terminate();
    assert!(
        running.end(Duration::from_secs(5)).await,
        "it ends by itself"
    );
    assert!(!running.usable(&slow).await.expect("it has ended"));
}

#[tokio::test]
async fn a_process_that_dies_early_shows_its_log() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let spec = spec(scratch.path(), "echo no luck; exit 3");
    let started = Running::start(scratch.path(), &spec).expect("starts");
    let failure = started.ready(&spec).await.expect_err("it died");
    assert_eq!(failure.code(), Code::ProcessDied);
    assert!(failure.to_string().contains("no luck"), "{failure}");
}

/// The broker moves its log aside at a certain size and begins a new one.
#[tokio::test]
async fn a_process_that_began_its_log_anew_and_died_shows_it() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let log = log_file(scratch.path(), "test");
    fs::create_dir_all(log.parent().expect("a folder")).expect("it is ours");
    fs::write(&log, "an earlier life\n".repeat(100)).expect("it is ours");
    let script = format!("mv {0} {0}.1; echo no luck > {0}; exit 3", log.display());
    let spec = spec(scratch.path(), &script);
    let started = Running::start(scratch.path(), &spec).expect("starts");
    let failure = started.ready(&spec).await.expect_err("it died");
    assert!(failure.to_string().contains("no luck"), "{failure}");
}

/// Checks that the last words of an earlier process are not taken for those of this one.
#[tokio::test]
async fn a_service_of_ours_that_dies_early_is_told_by_its_own_code() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let refusal = schemas::Refusal::new(Code::LedgerLost, "the ledger holds 2 events");
    for code in [Some(Code::LedgerLost), None] {
        let said = code.map_or_else(|| "no luck".to_owned(), |_| runtime::exit::render(&refusal));
        fs::write(scratch.path().join("words"), format!("{said}\n")).expect("it is ours");
        let spec = spec(scratch.path(), "cat words; exit 10");
        let started = Running::start(scratch.path(), &spec).expect("starts");
        let failure = started.ready(&spec).await.expect_err("it died");
        assert_eq!(
            failure.code(),
            code.unwrap_or(Code::ProcessDied),
            "{failure}"
        );
        assert!(
            code.is_none() || failure.to_string().contains("the ledger holds 2 events"),
            "{failure}"
        );
    }
}
