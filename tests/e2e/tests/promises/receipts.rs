//! A worker's receipt for an event is a head of the log that covers it, and not the answer that it
//! is recorded: a broker can lose what it has acknowledged.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use e2e::Recipe;
use harness::{Cluster, Evidence, Options, PATIENCE, Recorded};
use runtime::{Bus, Listener, clock};
use schemas::permission::Role;
use schemas::subject::EVENTS_FILTER;
use schemas::{Code, Reply, lease::Done};
use tokio::task::JoinHandle;

/// What the worker says when it sends events again.
const AGAIN: &str = "are sent again";
/// What it says when no head covers them.
const OVERDUE: &str = "recorded events of this worker are under no head";
/// Time to a head of a worker that is to be impatient.
const SOON: &[&str] = &["worker.receipt_within=20s"];

/// A cluster with one worker that has joined a run in which nothing is done, and whose events are
/// all under a head that it has verified.
async fn covered(settings: &[&str]) -> Cluster {
    let mut cluster = Cluster::start(Options::default(), 0).await;
    cluster.start_worker("worker-0", settings).await;
    Recipe::reference(2, 1, 10).create(&cluster).await;
    let freeze = ["run", "freeze", "demo", "--reason", "a test"];
    cluster.diloctl_ok(&freeze).await;
    until_waiting(&cluster, |waiting| waiting == 0).await;
    cluster
}

fn chain_end(cluster: &Cluster) -> PathBuf {
    cluster.path("work/worker-0/state/events.json")
}

/// The recorded events for which the worker waits for a head; none before its first event, or while
/// one is under way.
fn waiting(cluster: &Cluster) -> Option<usize> {
    let end: serde_json::Value =
        serde_json::from_slice(&fs::read(chain_end(cluster)).ok()?).ok()?;
    let under_way = !end["unacknowledged"].is_null();
    let waiting = end["uncovered"].as_array().map_or(0, Vec::len);
    (!under_way).then_some(waiting)
}

async fn until_waiting(cluster: &Cluster, wanted: impl Fn(usize) -> bool) {
    let found = harness::look(2 * PATIENCE, || {
        waiting(cluster).filter(|count| wanted(*count))
    });
    let end = || fs::read_to_string(chain_end(cluster));
    assert!(found.await.is_some(), "it stays at {:?}", end());
}

/// Says that events are recorded, and records none: as a broker that loses what it has
/// acknowledged.
struct Forgetful(JoinHandle<()>);

impl Forgetful {
    /// Takes the place of the audit service, which it ends.
    async fn take_over(cluster: &mut Cluster) -> Self {
        cluster.stop_well(&["audit"]).await;
        let name = Role::Recorder.name();
        let bus = cluster.connect(Role::Recorder, name).await;
        let config = cluster.bus_config(&cluster.domain().layout().credentials(name));
        let heard = Listener::connect("forgetful", &config, &[EVENTS_FILTER], clock::now()).await;
        let listener = heard.unwrap().pop().unwrap();
        Self(tokio::spawn(Self::forget(bus, listener)))
    }

    async fn forget(bus: Bus, mut listener: Listener) {
        while let Ok(delivery) = listener.next().await {
            delivery.answer(&bus, Reply::Ok(Done::default())).await;
        }
    }

    /// Gives the audit service its place back.
    async fn give_back(self, cluster: &mut Cluster) {
        self.0.abort();
        assert!(self.0.await.unwrap_err().is_cancelled());
        cluster.restart("audit").await;
    }
}

async fn train(cluster: &Cluster) {
    let unfreeze = ["run", "unfreeze", "demo", "--reason", "a test"];
    cluster.diloctl_ok(&unfreeze).await;
    cluster.operator().await.until_complete(cluster.run()).await;
}

/// The worker's events are recorded from the first to the last, each once.
async fn all_are_recorded_once(cluster: &Cluster) {
    cluster.kept().await;
    let evidence: Evidence = cluster.evidence().await;
    let own = |one: &Recorded| one.subject.starts_with("diloco.record.");
    let all = evidence.everything().await;
    let sequences: Vec<u64> = all
        .iter()
        .filter(|one| own(one))
        .map(|one| one.body.sequence.get())
        .collect();
    let once: BTreeSet<u64> = sequences.iter().copied().collect();
    assert_eq!(once.len(), sequences.len(), "{sequences:?}");
    let end: serde_json::Value =
        serde_json::from_slice(&fs::read(chain_end(cluster)).unwrap()).unwrap();
    let next = end["sequence"].as_u64().unwrap();
    assert!(
        next > 0 && once == (0..next).collect(),
        "{sequences:?} of {next}"
    );
    cluster.record_verifies().await;
}

/// Nothing else happens, so no later event shows that one is missing.
#[tokio::test]
async fn ls_04_an_event_that_was_lost_after_its_acknowledgement_is_sent_until_a_head_covers_it() {
    let mut cluster = covered(SOON).await;
    let forgetful = Forgetful::take_over(&mut cluster).await;
    cluster.kill9("worker-0");
    cluster.restart("worker-0").await;
    until_waiting(&cluster, |waiting| waiting > 0).await;
    // The worker itself does not forget, whatever becomes of its process.
    cluster.kill9("worker-0");
    let lost = waiting(&cluster).unwrap();
    forgetful.give_back(&mut cluster).await;
    cluster.restart("worker-0").await;
    until_waiting(&cluster, |waiting| waiting == 0).await;
    assert!(lost > 0);
    train(&cluster).await;
    cluster.end_well(&["worker-0"]).await;
    all_are_recorded_once(&cluster).await;
}

/// The next event cannot be recorded without the lost ones, so they come first.
#[tokio::test]
async fn ls_04_events_that_were_lost_are_recorded_before_the_next_one() {
    let mut cluster = covered(&[]).await;
    let forgetful = Forgetful::take_over(&mut cluster).await;
    cluster.kill9("worker-0");
    cluster.restart("worker-0").await;
    until_waiting(&cluster, |waiting| waiting > 0).await;
    forgetful.give_back(&mut cluster).await;
    train(&cluster).await;
    cluster.end_well(&["worker-0"]).await;
    all_are_recorded_once(&cluster).await;
    let log = cluster.process("worker-0").log();
    assert!(!log.contains(AGAIN), "no deadline is over: {log}");
}

#[tokio::test]
async fn ls_04_events_that_no_head_covers_are_said_and_training_goes_on() {
    let mut cluster = covered(SOON).await;
    let _forgetful = Forgetful::take_over(&mut cluster).await;
    cluster.kill9("worker-0");
    cluster.restart("worker-0").await;
    let code = Code::EventsUncovered.to_string();
    let said = |log: &str| {
        log.lines()
            .any(|line| line.contains(OVERDUE) && line.contains(&code))
    };
    let process = cluster.process("worker-0");
    process.until_logged(2 * PATIENCE, said).await;
    train(&cluster).await;
    cluster.end_well(&["worker-0"]).await;
    assert!(waiting(&cluster).unwrap() > 0, "they are kept");
}
