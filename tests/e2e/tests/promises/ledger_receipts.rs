//! The coordinator's receipt for an event of the ledger is a head of the log that covers it, as a
//! worker's is for its own events: who holds broker and audit service cannot leave the end of the
//! ledger out of the log without the coordinator saying so.

use std::fs;

use diloco_audit::heads::Heads;
use e2e::Recipe;
use harness::{Cluster, Options, PATIENCE, Recorded};
use runtime::{Bus, Listener, clock};
use schemas::control::{Query, View};
use schemas::head::HeadRequest;
use schemas::permission::Role;
use schemas::subject::{Incoming, LOG_FILTER};
use schemas::view::LedgerCover;
use schemas::{Code, Message as _, Refusal, Reply};
use tokio::task::JoinHandle;

/// What the coordinator says when no head covers its events, and when one does again.
const OVERDUE: &str = "events of the ledger are under no head of the log";
const COVERED: &str = "the events of the ledger that waited for a head are under one";
const CHECK: &str = "ledger in the log";

/// An audit service that goes on showing a head that it has signed, and keeps everything since from
/// the log.
struct Withholding(JoinHandle<()>);

impl Withholding {
    /// Takes the place of the audit service, which it ends.
    async fn take_over(cluster: &mut Cluster) -> Self {
        cluster.stop_well(&["audit"]).await;
        let name = Role::Recorder.name();
        let bus = cluster.connect(Role::Recorder, name).await;
        let config = cluster.bus_config(&cluster.domain().layout().credentials(name));
        let heard = Listener::connect("withholding", &config, &[LOG_FILTER], clock::now()).await;
        let listener = heard.unwrap().pop().unwrap();
        let folder = cluster.domain().layout().audit_log();
        let heads = Heads::new(folder, cluster.domain().trust());
        Self(tokio::spawn(Self::withhold(bus, listener, heads)))
    }

    async fn withhold(bus: Bus, mut listener: Listener, heads: Heads) {
        while let Ok(delivery) = listener.next().await {
            let asked = delivery.subject.parse();
            let reply = match (asked, HeadRequest::decode(&delivery.payload)) {
                (Ok(Incoming::LedgerHead { .. }), Ok(asked)) => heads
                    .newest(asked.known, &[])
                    .map_or_else(Reply::Refused, Reply::Ok),
                _ => Reply::Refused(Refusal::new(Code::EventLater, "not now")),
            };
            delivery.answer(&bus, reply).await;
        }
    }

    /// Gives the audit service its place back.
    async fn give_back(self, cluster: &mut Cluster) {
        self.0.abort();
        assert!(self.0.await.unwrap_err().is_cancelled());
        cluster.restart("audit").await;
    }
}

async fn cover(cluster: &Cluster) -> LedgerCover {
    match cluster.operator().await.view(Query::Coordinator).await {
        Ok(View::Coordinator(view)) => view.log.expect("this domain signs heads"),
        other => panic!("no view of the coordinator: {other:?}"),
    }
}

/// The events of the ledger that are under a verified head, as the coordinator keeps that on its
/// disk.
fn kept(cluster: &Cluster) -> Option<u64> {
    let mark = cluster.domain().layout().ledger_mark();
    let file = format!("{}.head", mark.display());
    let kept: serde_json::Value = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    kept["covered"].as_u64()
}

/// Waits until every event that the ledger has now is under a head that the coordinator has
/// verified.
async fn until_covered(cluster: &Cluster) {
    let events = cover(cluster).await.events;
    assert!(events > 0);
    let covered = || kept(cluster).filter(|covered| *covered >= events);
    let found = harness::look(2 * PATIENCE, covered).await;
    assert!(found.is_some(), "{:?} of {events}", kept(cluster));
}

/// What the doctor finds about the ledger.
async fn examined(cluster: &Cluster) -> (String, Option<String>) {
    let config = e2e::nats_config();
    let doctor = ["--output", "json", "doctor", "--nats-config", &config];
    let found = cluster.diloctl(&doctor).await;
    let report: serde_json::Value = serde_json::from_str(&found.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap();
    let own = findings.iter().find(|one| one["check"] == CHECK).unwrap();
    let text = |name: &str| own[name].as_str().map(str::to_owned);
    (text("state").unwrap(), text("code"))
}

#[tokio::test]
async fn ls_04_fg_07_events_of_the_ledger_that_are_kept_from_the_log_are_said_and_rounds_go_on() {
    let options = Options {
        coordinator: &[("limits.receipt_within", "20s")],
        ..Options::default()
    };
    let mut cluster = Cluster::start(options, 1).await;
    Recipe::reference(2, 1, 10).create(&cluster).await;
    let freeze = ["run", "freeze", "demo", "--reason", "a test"];
    cluster.diloctl_ok(&freeze).await;
    until_covered(&cluster).await;
    assert_eq!(examined(&cluster).await, ("ok".to_owned(), None));

    let withholding = Withholding::take_over(&mut cluster).await;
    let before = kept(&cluster);
    let unfreeze = ["run", "unfreeze", "demo", "--reason", "a test"];
    cluster.diloctl_ok(&unfreeze).await;
    let code = Code::LedgerUncovered.to_string();
    let said = |log: &str| {
        let mut lines = log.lines();
        lines.any(|line| line.contains(OVERDUE) && line.contains(&code))
    };
    let process = cluster.process("coordinator");
    process.until_logged(2 * PATIENCE, said).await;
    cluster.operator().await.until_complete(cluster.run()).await;
    let found = cover(&cluster).await;
    assert!(found.uncovered > 0 && found.since.is_some(), "{found:?}");
    assert_eq!(found.code, Some(Code::LedgerUncovered));
    assert_eq!(
        kept(&cluster),
        before,
        "no event is under the head that is shown"
    );
    assert_eq!(examined(&cluster).await, ("warn".to_owned(), Some(code)));

    // Nothing is sent again: the audit service reads the ledger's stream from where it stopped. A
    // coordinator that dies meanwhile goes on from there too.
    withholding.give_back(&mut cluster).await;
    let process = cluster.process("coordinator");
    process
        .until_logged(2 * PATIENCE, |log| log.contains(COVERED))
        .await;
    cluster.kill9("coordinator");
    cluster.restart("coordinator").await;
    until_covered(&cluster).await;
    assert_eq!(cover(&cluster).await.code, None);

    // Events name the head that was verified before them, and this log has it.
    cluster.end_well(&["worker-0"]).await;
    cluster.kept().await;
    let all = cluster.evidence().await.everything().await;
    let names_head =
        |one: &&Recorded| one.subject.starts_with("diloco.ledger.") && one.body.known.is_some();
    assert!(all.iter().any(|one| names_head(&one)), "none names a head");
    cluster.record_verifies().await;
    cluster.diloctl_ok(&["audit", "verify"]).await;
}
