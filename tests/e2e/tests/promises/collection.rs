//! `diloctl run gc` deletes the objects of old rounds while the run trains, whatever dies
//! meanwhile; nothing goes that anything needs, and what is gone is told apart from what is lost.

use std::path::PathBuf;

use e2e::Recipe;
use harness::{Cluster, Options};
use runtime::exit::EXIT_NO_VERDICT;
use schemas::event::LedgerEvent;
use schemas::{Code, ObjectRef};

const ROUNDS: u64 = 16;

fn gc(more: &[&'static str]) -> Vec<&'static str> {
    [&["run", "gc", "demo", "--keep", "2"], more].concat()
}

const DELETE: &[&str] = &["--yes", "--store-is-ours", "--reason", "the disk is full"];

/// The manifest of the full snapshot of a round, once it is saved.
async fn saved(cluster: &Cluster, of: u64) -> ObjectRef {
    let mut evidence = cluster.evidence().await;
    let is = |event: &LedgerEvent| matches!(event, LedgerEvent::SnapshotSaved { round, .. } if round.get() == of);
    let found = evidence.until_ledger("snapshot", cluster.run(), is).await;
    match found.ledger() {
        Some(LedgerEvent::SnapshotSaved { manifest, .. }) => *manifest,
        other => unreachable!("it was picked as one: {other:?}"),
    }
}

/// The file of an object in the store.
fn file(cluster: &Cluster, object: &ObjectRef) -> PathBuf {
    let hex = object.digest.hex();
    let blobs = cluster.path("store").join("blobs/sha256");
    blobs.join(&hex[..2]).join(hex)
}

/// The contributions that the store has, and those that it lost: their rounds.
fn contributions(cluster: &Cluster, events: &[LedgerEvent]) -> (Vec<u64>, Vec<u64>) {
    let (mut kept, mut lost) = (Vec::new(), Vec::new());
    for event in events {
        if let LedgerEvent::ContributionAccepted {
            lease,
            contribution,
            ..
        } = event
        {
            let mut chunks = contribution.chunks.objects().iter();
            let there = chunks.all(|chunk| file(cluster, chunk).exists());
            let rounds = if there { &mut kept } else { &mut lost };
            rounds.push(lease.unit.round.get());
        }
    }
    (kept, lost)
}

fn given_up(events: &[LedgerEvent]) -> Vec<u64> {
    let through = events.iter().filter_map(|event| match event {
        LedgerEvent::ObjectsGivenUp { through, .. } => Some(through.get()),
        _ => None,
    });
    through.collect()
}

#[tokio::test]
async fn old_objects_are_deleted_while_the_run_trains_and_nothing_goes_that_is_needed() {
    let mut cluster = Cluster::start(Options::default(), 2).await;
    Recipe::reference(ROUNDS, 2, 200)
        .set("schedule.snapshot_every=1")
        .set("outer.rule=nesterov")
        .set("schedule.evaluation_every=2")
        .create(&cluster)
        .await;
    let run = cluster.run().clone();
    let promoted = saved(&cluster, 1).await.digest.to_string();
    let reason = ["--as", "release", "--reason", "it reads well"];
    let promote = |digest: &str| {
        let order = ["snapshot", "promote"].map(str::to_owned).into_iter();
        let reason = reason.map(str::to_owned);
        order
            .chain([digest.to_owned()])
            .chain(reason)
            .collect::<Vec<String>>()
    };
    let order = promote(&promoted);
    let order: Vec<&str> = order.iter().map(String::as_str).collect();
    cluster.kept().await;
    cluster.diloctl_ok(&order).await;
    saved(&cluster, 5).await;

    // Told, and nothing deleted.
    let told = cluster.diloctl_ok(&gc(&[])).await;
    assert!(told.contains("this is what would go"), "{told}");
    let events = cluster.evidence().await.ledger().await;
    let (_, lost) = contributions(&cluster, &events);
    assert_eq!((given_up(&events), lost), (vec![], vec![]));

    // The coordinator dies as soon as the ledger names what goes; the same order deletes the rest.
    {
        let order = gc(DELETE);
        let ordered = cluster.diloctl(&order);
        let mut evidence = cluster.evidence().await;
        let is = |event: &LedgerEvent| matches!(event, LedgerEvent::ObjectsGivenUp { .. });
        tokio::select! {
            _ = ordered => {}
            _ = evidence.until_ledger("collection", &run, is) => {}
        }
    }
    cluster.kill9("coordinator");
    // However far it came, nothing is gone that the ledger does not name as given up.
    let events = cluster.evidence().await.ledger().await;
    let through = *given_up(&events).last().expect("the event comes first");
    let (_, lost) = contributions(&cluster, &events);
    assert!(lost.iter().all(|round| *round < through), "{lost:?}");
    for round in [1, through] {
        let manifest = saved(&cluster, round).await;
        assert!(file(&cluster, &manifest).exists(), "snapshot {round}");
    }
    cluster.restart("coordinator").await;
    let done = cluster.diloctl_ok(&gc(DELETE)).await;
    assert!(done.contains("deleted"), "{done}");
    let events = cluster.evidence().await.ledger().await;
    let (kept, lost) = contributions(&cluster, &events);
    let through = *given_up(&events).last().expect("it was written");
    assert!(kept.iter().all(|round| *round >= through), "{kept:?}");
    assert!(lost.iter().all(|round| *round < through), "{lost:?}");
    let gone = saved(&cluster, 2).await.digest.to_string();
    let restore = ["snapshot", "restore", &gone, "--reason", "an odd loss"];
    let refused = cluster.diloctl(&restore).await;
    let code = Code::ObjectsGivenUp.to_string();
    let said = &refused.stderr;
    assert!(said.contains(&code) && said.contains("event"), "{said}");
    let order = promote(&gone);
    let order: Vec<&str> = order.iter().map(String::as_str).collect();
    cluster.kept().await;
    let refused = cluster.diloctl(&order).await;
    let said = &refused.stderr;
    assert!(said.contains(&code) && said.contains("event"), "{said}");
    cluster.operator().await.until_complete(&run).await;
    let done = cluster.diloctl_ok(&gc(DELETE)).await;
    assert!(done.contains("objects deleted; event"), "{done}");
    let again = cluster.diloctl_ok(&gc(DELETE)).await;
    assert!(again.contains("there was nothing to delete"), "{again}");

    let events = cluster.evidence().await.ledger().await;
    let through = *given_up(&events).last().expect("it was written");
    assert_eq!(through, ROUNDS - 1, "two snapshots are kept");
    let (kept, lost) = contributions(&cluster, &events);
    assert!(kept.iter().all(|round| *round >= through), "{kept:?}");
    assert!(lost.iter().all(|round| *round < through), "{lost:?}");
    assert_eq!((kept.len(), lost.len()), (2, 2 * (ROUNDS as usize - 1)));

    cluster.stop_well(&["audit"]).await;
    cluster.record_verifies().await;
    // What is gone is told apart from what is lost, and what is kept verifies.
    let recomputed = cluster
        .diloctl(&["audit", "recompute", "--run", "demo", "--all"])
        .await;
    let said = format!("{}{}", recomputed.stdout, recomputed.stderr);
    let code = Code::ObjectsGivenUp.to_string();
    assert_eq!(
        recomputed.status.code(),
        Some(EXIT_NO_VERDICT.into()),
        "{said}"
    );
    assert!(
        said.contains(&code) && said.contains("given up by gc at event"),
        "{said}"
    );
    let last = (ROUNDS - 1).to_string();
    let round = ["audit", "recompute", "--run", "demo", "--round", &last];
    let round = cluster.diloctl_ok(&round).await;
    assert!(round.contains("verified"), "{round}");
    let listed = cluster.diloctl_ok(&["snapshot", "ls", "demo"]).await;
    assert_eq!(
        listed.matches("given up").count(),
        ROUNDS as usize - 3,
        "{listed}"
    );
    // A pointer's snapshot is whole, and so is the lineage of the newest one.
    let folder = cluster.path("pulled");
    let to = folder.to_str().expect("a path of ours");
    let pull = [
        "snapshot",
        "pull",
        "demo",
        "--promoted",
        "release",
        "--to",
        to,
    ];
    cluster.diloctl_ok(&pull).await;
    let newest = saved(&cluster, ROUNDS).await.digest.to_string();
    let order = promote(&newest);
    let order: Vec<&str> = order.iter().map(String::as_str).collect();
    let shown = cluster.diloctl_ok(&order).await;
    assert!(shown.contains(&newest), "{shown}");
}
