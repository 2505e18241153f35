//! `diloctl snapshot restore` leads a run back to a full snapshot while it trains: its workers go
//! on from there, whatever dies meanwhile, and the record of it all verifies.

use std::fs;
use std::path::PathBuf;

use e2e::{Recipe, Scripted};
use harness::{Cluster, Options, PATIENCE, Recorded};
use runtime::BusError;
use runtime::exit::{EXIT_NOT_FOUND, EXIT_TAMPERED};
use schemas::event::LedgerEvent;
use schemas::lease::UnitKind;
use schemas::permission::Role;
use schemas::snapshot::{Slot, SnapshotManifest};
use schemas::{Chunks, Code, Digest, ObjectRef, Round};

/// Enough that the run still trains when the snapshot to go back to is found.
const ROUNDS: u64 = 24;
const UNITS: u32 = 2;

fn restore(digest: &str) -> [&str; 7] {
    let reason = "a loss that jumps";
    [
        "snapshot", "restore", digest, "--run", "demo", "--reason", reason,
    ]
}

/// The whole value of a printed line.
fn value(shown: &str, title: &str) -> Option<String> {
    let mut lines = shown.lines();
    let value = |line: &str| {
        let rest = line.strip_prefix(title)?;
        rest.starts_with("  ").then(|| rest.trim().to_owned())
    };
    lines.find_map(value)
}

/// The manifest of the full snapshot of a round, once it is saved.
async fn saved(cluster: &Cluster, of: u64) -> ObjectRef {
    let mut evidence = cluster.evidence().await;
    let found = evidence
        .until_ledger(
            "snapshot",
            cluster.run(),
            |event| matches!(event, LedgerEvent::SnapshotSaved { round, .. } if round.get() == of),
        )
        .await;
    match found.ledger() {
        Some(LedgerEvent::SnapshotSaved { manifest, .. }) => *manifest,
        other => unreachable!("it was picked as one: {other:?}"),
    }
}

/// The statement of the first contribution to a round.
fn statement(events: &[LedgerEvent], of: u64) -> Option<Digest> {
    events.iter().find_map(|event| match event {
        LedgerEvent::ContributionAccepted {
            lease, statement, ..
        } if lease.unit.round.get() == of => Some(*statement),
        _ => None,
    })
}

/// Trace the cause, restore the snapshot that the trace names, and go on.
#[tokio::test]
async fn tl_32_a_run_is_led_back_by_digest_while_it_trains_and_trains_on() {
    let mut cluster = Cluster::start(Options::default(), 2).await;
    Recipe::reference(ROUNDS, UNITS, 120)
        .set("schedule.snapshot_every=1")
        .set("outer.rule=nesterov")
        .set("schedule.evaluation_every=1")
        .create(&cluster)
        .await;
    let run = cluster.run().clone();
    saved(&cluster, 4).await;
    cluster.kept().await;
    // A contribution to round 2 is the cause: the newest snapshot without it is that of round 2.
    let cause = statement(&cluster.evidence().await.ledger().await, 2).expect("round 2 is merged");
    let traced = cluster
        .diloctl_ok(&["lineage", "descendants", &cause.to_string()])
        .await;
    assert!(traced.contains(": merged"), "{traced}");
    let clean = saved(&cluster, 2).await.digest.to_string();
    let listed = cluster.diloctl_ok(&["snapshot", "ls", "demo"]).await;
    assert!(listed.contains(&clean), "{listed}");

    let shown = cluster.diloctl_ok(&restore(&clean)).await;
    cluster.kill9("coordinator");
    let said = format!("{clean}: restored; this is in the ledger");
    assert_eq!(value(&shown, "snapshot"), Some(said), "{shown}");
    assert!(
        value(&shown, "frozen").is_some_and(|said| said.contains("run unfreeze")),
        "{shown}"
    );
    cluster.restart("coordinator").await;
    let again = cluster.diloctl_ok(&restore(&clean)).await;
    let said = value(&again, "snapshot").expect("it is printed");
    assert!(said.contains("is restored already, since"), "{again}");
    assert_eq!(
        value(&again, "weights"),
        value(&shown, "weights"),
        "{again}"
    );
    // The workers train from the restored weights, and nothing is merged into them.
    let operator = cluster.operator().await;
    let view = operator
        .until(&run, PATIENCE, |view| {
            view.units_done == UNITS && view.holds.len() == 1
        })
        .await;
    assert_eq!(view.leases, 0);
    let rounds = cluster.diloctl_ok(&["round", "ls", "demo"]).await;
    assert!(rounds.contains("undone"), "{rounds}");
    let unfreeze = ["run", "unfreeze", "demo", "--reason", "it is right now"];
    cluster.diloctl_ok(&unfreeze).await;
    cluster.operator().await.until_complete(&run).await;

    cluster.stop_well(&["audit"]).await;
    cluster.record_verifies().await;
    let recomputed = cluster
        .diloctl_ok(&["audit", "recompute", "--run", "demo", "--all"])
        .await;
    let events = cluster.evidence().await.ledger().await;
    let merged = events
        .iter()
        .filter(|event| matches!(event, LedgerEvent::RoundClosed { .. }));
    assert_eq!(
        recomputed.matches("verified").count(),
        merged.count(),
        "{recomputed}"
    );
    let files = cluster.domain().layout().audit_files();
    let files = files.to_str().expect("a path of ours");
    let replayed = cluster
        .diloctl_ok(&["audit", "replay", "--run", "demo"])
        .await;
    assert!(replayed.contains("snapshot-restored"), "{replayed}");
    let last = saved_last(&events);
    let descends = [
        "lineage",
        "descendants",
        &cause.to_string(),
        "--ledger",
        files,
    ];
    let descends = cluster.diloctl_ok(&descends).await;
    assert!(
        !descends.contains(&last.to_string()),
        "the final weights are clean: {descends}"
    );
    nothing_of_before_counts_after(&cluster.evidence().await.everything().await, &clean);
}

fn saved_last(events: &[LedgerEvent]) -> Digest {
    let last = events.iter().rev().find_map(|event| match event {
        LedgerEvent::SnapshotSaved { manifest, .. } => Some(manifest.digest),
        _ => None,
    });
    last.expect("the last weights are saved")
}

/// One order froze the run and led it back; from there on only new rounds are worked on, as many as
/// the schedule has left.
fn nothing_of_before_counts_after(all: &[Recorded], clean: &str) {
    let ledger: Vec<&LedgerEvent> = all.iter().filter_map(Recorded::ledger).collect();
    let restores = |event: &&LedgerEvent| matches!(event, LedgerEvent::SnapshotRestored { .. });
    let place = ledger.iter().position(restores);
    let (before, after) = ledger.split_at(place.expect("it is in the ledger"));
    assert_eq!(
        ledger.iter().filter(|event| restores(event)).count(),
        1,
        "a repeated order"
    );
    assert!(
        matches!(before.last(), Some(LedgerEvent::HoldPlaced { .. })),
        "it was frozen first"
    );
    let LedgerEvent::SnapshotRestored {
        snapshot,
        manifest,
        weights,
        ..
    } = after[0]
    else {
        unreachable!("it was picked as one")
    };
    assert_eq!(
        (snapshot.get(), manifest.digest.to_string().as_str()),
        (2, clean)
    );
    let published = before.iter().find_map(|event| match event {
        LedgerEvent::RoundClosed { broadcast, .. } if broadcast.round == *snapshot => {
            Some(broadcast)
        }
        _ => None,
    });
    assert_eq!(
        published.map(|of| &of.chunks),
        Some(&weights.chunks),
        "what workers had then"
    );
    let mut merged = 0;
    for event in after {
        match event {
            LedgerEvent::LeaseGranted { lease, .. }
            | LedgerEvent::ContributionAccepted { lease, .. } => {
                assert!(lease.unit.round >= weights.round, "{event:?}");
            }
            LedgerEvent::RoundClosed { .. } => merged += 1,
            _ => {}
        }
    }
    assert_eq!(merged, ROUNDS - snapshot.get());
    let trained = |event: &&&LedgerEvent| {
        matches!(event, LedgerEvent::ContributionAccepted { lease, .. }
            if lease.unit.kind == UnitKind::Train && lease.unit.round == weights.round)
    };
    assert_eq!(after.iter().filter(trained).count(), UNITS as usize);
}

/// Nothing is written for a snapshot that is not as it was saved, whatever of it was altered or is
/// gone; once the object is back, it is restored.
#[tokio::test]
async fn tl_32_a_snapshot_that_is_not_as_it_was_saved_is_refused() {
    let cluster = Cluster::start(Options::default(), 1).await;
    Recipe::reference(40, 1, 40)
        .set("schedule.snapshot_every=1")
        .set("outer.rule=nesterov")
        .set("schedule.evaluation_every=0")
        .create(&cluster)
        .await;
    let object = saved(&cluster, 2).await;
    let file = |object: ObjectRef| -> PathBuf {
        let hex = object.digest.hex();
        let blobs = cluster.path("store").join("blobs/sha256");
        blobs.join(&hex[..2]).join(hex)
    };
    let bytes = fs::read(file(object)).expect("the manifest is in the store");
    let manifest: SnapshotManifest = serde_json::from_slice(&bytes).expect("it is one");
    let first = |chunks: &Chunks| chunks.objects()[0];
    let digest = object.digest.to_string();
    let refused = |code: Code, status: u8| {
        let order = restore(&digest);
        let cluster = &cluster;
        async move {
            let ended = cluster.diloctl(&order).await;
            assert_eq!(ended.status.code(), Some(status.into()), "{}", ended.stderr);
            assert!(ended.stderr.contains(&code.to_string()), "{}", ended.stderr);
            ended.stderr
        }
    };
    let parts = [
        object,
        first(&manifest.weights),
        first(&manifest.slots[&Slot::Momentum]),
        first(&manifest.broadcast.chunks),
    ];
    for part in parts {
        let whole = fs::read(file(part)).expect("it is in the store");
        let mut altered = whole.clone();
        altered[3] ^= 1;
        fs::write(file(part), &altered).expect("the store's folder is ours");
        let said = refused(Code::ObjectAltered, EXIT_TAMPERED).await;
        assert!(said.contains(&part.digest.to_string()), "{said}");
        fs::remove_file(file(part)).expect("the store's folder is ours");
        let said = refused(Code::SnapshotGone, EXIT_NOT_FOUND).await;
        assert!(said.contains(&part.digest.hex()), "{said}");
        fs::write(file(part), &whole).expect("the store's folder is ours");
    }
    let unknown = Digest::of(b"nothing of ours").to_string();
    let ended = cluster.diloctl(&restore(&unknown)).await;
    assert_eq!(ended.status.code(), Some(EXIT_NOT_FOUND.into()));
    assert!(
        ended.stderr.contains(&Code::SnapshotUnknown.to_string()),
        "{}",
        ended.stderr
    );
    let written = cluster.evidence().await.ledger().await;
    let touched = |event: &&LedgerEvent| {
        matches!(
            event,
            LedgerEvent::HoldPlaced { .. } | LedgerEvent::SnapshotRestored { .. }
        )
    };
    assert_eq!(written.iter().filter(touched).count(), 0);

    let shown = cluster.diloctl_ok(&restore(&digest)).await;
    assert!(shown.contains("restored; this is in the ledger"), "{shown}");
    let restored = cluster.evidence().await.ledger().await;
    let last = restored.iter().rev().find_map(|event| match event {
        LedgerEvent::SnapshotRestored { snapshot, .. } => Some(*snapshot),
        _ => None,
    });
    assert_eq!(last, Some(Round(2)));
}

/// Uploads of before the restore are deleted, also those that a URL brings later; uploads for the
/// rounds since then are not.
#[tokio::test]
async fn tl_32_uploads_of_before_are_deleted_and_those_of_after_stay() {
    let mut cluster = Cluster::start(Options::default(), 1).await;
    Recipe::reference(40, 1, 40)
        .set("schedule.evaluation_every=0")
        .set("schedule.snapshot_every=1")
        .set("transfer.upload=fp32")
        .set("policy.lease=60s")
        .create(&cluster)
        .await;
    let freeze = ["run", "freeze", "demo", "--reason", "a loss that jumps"];
    let digest = saved(&cluster, 1).await.digest.to_string();
    saved(&cluster, 2).await;
    cluster.diloctl_ok(&freeze).await;
    let operator = cluster.operator().await;
    let run = cluster.run().clone();
    let all_in = operator.until(&run, PATIENCE, |view| view.units_done == 1);
    all_in.await;
    // The unit that the other worker did is dropped, and its worker is gone.
    cluster.stop_well(&["worker-0"]).await;
    cluster.diloctl_ok(&restore(&digest)).await;
    cluster.issue(Role::Worker, "worker-1");
    let worker = Scripted::connect(&cluster, "worker-1").await;
    let spec = worker.join().await;
    let chunk = |value: f32| {
        let values = spec.model.initial.objects()[0].bytes.get() / 4;
        value.to_le_bytes().repeat(values as usize)
    };
    let lease = worker.claim().await.lease;
    worker.upload(lease, chunk(0.001)).await;
    let late = worker.grant(lease, ObjectRef::of(&chunk(0.002))).await;
    let late = late.expect("it holds the lease");
    // These are of the round since the restore: a repeated order leaves them alone.
    let again = cluster.diloctl_ok(&restore(&digest)).await;
    assert_eq!(value(&again, "uploads").as_deref(), Some("0 deleted"));
    let other = listed(&cluster)
        .await
        .into_iter()
        .find(|one| *one != digest);
    let other = other.expect("that of round 2 is there");
    let shown = cluster.diloctl_ok(&restore(&other)).await;
    assert_eq!(
        value(&shown, "uploads").as_deref(),
        Some("1 deleted"),
        "{shown}"
    );
    assert_eq!(
        value(&shown, "leases ended").as_deref(),
        Some("1"),
        "{shown}"
    );
    worker.send(&late, chunk(0.002)).await;
    let again = cluster.diloctl_ok(&restore(&other)).await;
    assert_eq!(
        value(&again, "uploads").as_deref(),
        Some("1 deleted"),
        "{again}"
    );
    let lost = worker.grant(lease, ObjectRef::of(&chunk(0.003))).await;
    assert!(
        matches!(&lost, Err(BusError::Refused(why)) if why.code == Code::LeaseLost),
        "{lost:?}"
    );
}

/// The manifests of the run's full snapshots, as the command prints them.
async fn listed(cluster: &Cluster) -> Vec<String> {
    let text = cluster.diloctl_ok(&["snapshot", "ls", "demo"]).await;
    let digests = text
        .split_whitespace()
        .filter(|word| word.starts_with("sha256:"));
    digests.map(str::to_owned).collect()
}
