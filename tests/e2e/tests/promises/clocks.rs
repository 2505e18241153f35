//! Clocks that are wrong, or that are set while processes run: no run stands still because of them,
//! and no worker is blamed.

use std::path::PathBuf;
use std::process::Command;

use e2e::Recipe;
use harness::{Cluster, Options, Recorded};
use runtime::clock;
use schemas::Code;
use schemas::UnixMillis;
use schemas::event::{Event, LedgerEvent, WorkerEvent};

/// A library that moves the wall clock of the process that loads it, and the file that says by how
/// much.
struct Skew {
    library: PathBuf,
    file: PathBuf,
}

impl Skew {
    /// Compiles the library; none where there is no C compiler.
    #[expect(
        clippy::print_stderr,
        reason = "a test that was not made is said to be so"
    )]
    fn new(cluster: &Cluster, seconds: i64) -> Option<Self> {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/native/skew.c");
        let skew = Self {
            library: cluster.path("skew.so"),
            file: cluster.path("skew"),
        };
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .args([skew.library.as_os_str(), source.as_ref(), "-ldl".as_ref()])
            .status();
        match compiled {
            Ok(status) if status.success() => {
                skew.set(seconds);
                Some(skew)
            }
            other => {
                eprintln!("skipped: no C compiler makes a clock that can be set ({other:?})");
                None
            }
        }
    }

    fn set(&self, seconds: i64) {
        // The file is replaced as a whole, since the process reads it all the time.
        let next = self.file.with_extension("next");
        std::fs::write(&next, seconds.to_string()).unwrap();
        std::fs::rename(&next, &self.file).unwrap();
    }

    fn environment(&self) -> [(&str, &str); 2] {
        [
            ("LD_PRELOAD", self.library.to_str().unwrap()),
            ("CLOCK_SKEW_FILE", self.file.to_str().unwrap()),
        ]
    }
}

fn closed(event: &LedgerEvent) -> bool {
    matches!(event, LedgerEvent::RoundClosed { .. })
}

/// Checks that no lease was lost and that no worker refused anything.
fn nobody_is_blamed(recorded: &[Recorded]) {
    for one in recorded {
        let bad = match &one.body.event {
            Event::Ledger(event) => matches!(event, LedgerEvent::LeaseEnded { .. }),
            Event::Worker(event) => matches!(
                event,
                WorkerEvent::Refused { .. } | WorkerEvent::Dropped { .. }
            ),
            Event::Security(_) => false,
        };
        assert!(!bad, "{:?}", one.body);
    }
}

/// The last time in the ledger.
fn newest(recorded: &[Recorded]) -> UnixMillis {
    recorded
        .iter()
        .filter(|one| one.ledger().is_some())
        .map(|one| one.body.time)
        .max()
        .unwrap()
}

#[tokio::test]
async fn a_coordinator_whose_clock_is_set_goes_on_at_once_and_the_ledger_keeps_its_time() {
    let mut cluster = Cluster::start(Options::default(), 0).await;
    let Some(skew) = Skew::new(&cluster, 0) else {
        return;
    };
    cluster
        .process("coordinator")
        .set_environment(&skew.environment());
    cluster.restart("coordinator").await;
    Recipe::reference(16, 1, 60).create(&cluster).await;
    let run = cluster.run().clone();
    let mut evidence = cluster.evidence().await;
    cluster.start_worker("worker-0", &[]).await;
    evidence.until_ledger("first round", &run, closed).await;
    for seconds in [3600, 0, -3600, 0] {
        skew.set(seconds);
        evidence
            .until_ledger("a round after the clock was set", &run, closed)
            .await;
    }
    // The coordinator starts again while the clock is an hour back: the ledger's time is ahead, and
    // it continues from there. A worker whose answer was lost in the restart asks again while its
    // lease runs.
    skew.set(-3600);
    cluster.restart("coordinator").await;
    evidence
        .until_ledger("a round after the restart", &run, closed)
        .await;
    cluster.operator().await.until_complete(&run).await;
    cluster.end_well(&["worker-0"]).await;
    let recorded = cluster.evidence().await.everything().await;
    nobody_is_blamed(&recorded);
    let hour = 3_600_000;
    assert!(
        newest(&recorded).get() < clock::now().get() + hour / 2,
        "an hour that was not entered the ledger"
    );
    assert!(
        newest(&recorded).get() > clock::now().get() - hour / 2,
        "the ledger's time goes on"
    );
    cluster.record_verifies().await;
    let log = cluster.process("coordinator").log();
    let told = |code: Code| {
        log.lines()
            .filter(|line| line.contains(&code.to_string()))
            .count()
    };
    assert!(
        (1..=8).contains(&told(Code::ClockOff)),
        "once for each step:\n{log}"
    );
    assert_eq!(
        told(Code::ClockBehind),
        1,
        "the restart says which it does:\n{log}"
    );
}

#[tokio::test]
async fn a_restart_waits_for_a_clock_that_is_a_few_seconds_behind() {
    let mut cluster = Cluster::start(Options::default(), 0).await;
    let Some(skew) = Skew::new(&cluster, -4) else {
        return;
    };
    Recipe::reference(1, 1, 5).create(&cluster).await;
    let run = cluster.run().clone();
    cluster
        .process("coordinator")
        .set_environment(&skew.environment());
    cluster.restart("coordinator").await;
    cluster.start_worker("worker-0", &[]).await;
    cluster.operator().await.until_complete(&run).await;
    let log = cluster.process("coordinator").log();
    assert!(
        log.contains("waiting until then") && !log.contains(&Code::ClockBehind.to_string()),
        "{log}"
    );
}

#[tokio::test]
async fn a_worker_whose_clock_is_off_works_says_so_and_loses_nothing() {
    for seconds in [-90, 3600] {
        let mut cluster = Cluster::start(Options::default(), 0).await;
        let Some(skew) = Skew::new(&cluster, seconds) else {
            return;
        };
        Recipe::reference(2, 1, 10).create(&cluster).await;
        let run = cluster.run().clone();
        cluster
            .start_worker_with("worker-0", &skew.environment())
            .await;
        cluster.operator().await.until_complete(&run).await;
        cluster.end_well(&["worker-0"]).await;
        nobody_is_blamed(&cluster.evidence().await.everything().await);
        let log = cluster.process("worker-0").log();
        let told: Vec<&str> = log
            .lines()
            .filter(|line| line.contains(&Code::ClockOff.to_string()))
            .collect();
        let [told] = told[..] else {
            panic!("it is told once: {log}")
        };
        let words = if seconds < 0 {
            " s behind"
        } else {
            " s ahead of"
        };
        assert!(told.contains(words) && told.contains("clock"), "{told}");
        assert!(!log.contains("trust bundle"), "the keys are right: {log}");
    }
}
