//! A worker whose contribution has the usual length and points against those of the others, or that
//! points with them and is many times as long, is left out of the merge by default, with a reason
//! that the ledger, the run's view and the audit name.

use e2e::{Recipe, Scripted};
use harness::{Cluster, Options};
use schemas::contribution::Fate;
use schemas::event::LedgerEvent;
use schemas::run::{Comparison, RunSpec};
use schemas::{Code, Round};

use crate::recompute::auditor;

/// A contribution in one chunk. Half of its numbers are `shared`, as those of other workers are;
/// the others are its own.
fn contribution(spec: &RunSpec, shared: f32, own: f32) -> Vec<u8> {
    let elements = spec.model.initial.objects()[0].bytes.get() / 4;
    let values = (0..elements).map(|index| match index % 2 {
        0 => shared,
        _ => own * (index as f32 * own.abs() * 1e6).sin(),
    });
    values.flat_map(f32::to_le_bytes).collect()
}

#[tokio::test]
async fn a_flipped_sign_is_left_out_by_default_and_the_record_says_why() {
    let cluster = Cluster::start(Options::default(), 0).await;
    Recipe::scripted(1, 3).create(&cluster).await;
    // The run begins when all three are there.
    let mut workers = Vec::new();
    for (name, shared, own) in [
        ("worker-0", 1e-3, 1e-3),
        ("worker-1", 1e-3, 2e-3),
        ("worker-2", -1e-3, 1.5e-3),
    ] {
        let worker = Scripted::connect(&cluster, name).await;
        let spec = worker.join().await;
        workers.push((worker, spec, shared, own));
    }
    let mut unit = None;
    for (worker, spec, shared, own) in &workers {
        let lease = worker.claim().await.lease;
        let object = worker
            .upload(lease, contribution(spec, *shared, *own))
            .await;
        let result = Scripted::contribution(spec, vec![object]);
        let told = worker
            .submit(spec, lease, result)
            .await
            .expect("it counts so far");
        assert_eq!(told.fate, Fate::Merged);
        if *shared < 0.0 {
            unit = Some(lease.unit);
        }
    }
    let unit = unit.expect("one is hostile");
    let view = cluster.operator().await.until_complete(cluster.run()).await;
    assert_eq!(view.left_out.len(), 1);
    assert_eq!(
        (view.left_out[0].unit, view.left_out[0].code),
        (unit, Code::DirectionOutlier)
    );
    cluster.kept().await;
    let ledger = cluster.evidence().await.ledger().await;
    let compared = ledger.iter().find_map(|event| match event {
        LedgerEvent::RoundCompared {
            round: Round(0),
            cosines,
        } => Some(cosines.clone()),
        _ => None,
    });
    let compared = compared.expect("directions are compared");
    for one in &compared {
        assert_eq!(one.cosine < -0.25, one.unit == unit.index, "{compared:?}");
    }
    let sealed = ledger.iter().find_map(|event| match event {
        LedgerEvent::RoundSealed { left_out, .. } => Some(left_out.clone()),
        _ => None,
    });
    assert_eq!(sealed, Some(vec![(unit.index, Code::DirectionOutlier)]));
    // Operators see it, and an auditor comes to the same cosines and weights from the objects.
    let shown = cluster
        .diloctl_ok(&["run", "get", cluster.run().as_str()])
        .await;
    assert!(shown.contains("DL0423"), "{shown}");
    auditor(&cluster);
    let arguments = [
        "--domain",
        "auditor",
        "audit",
        "recompute",
        "--ledger",
        "auditor/ledger",
    ];
    let objects = ["--store-folder", "auditor/store", "--all"];
    let said = cluster
        .diloctl_ok(&[&arguments[..], &objects].concat())
        .await;
    assert!(said.contains("verified"), "{said}");
}

/// Three workers, of which the last hands in what is too long by the default ratio: just, and a
/// hundred times as long; and once what is just short enough.
#[tokio::test]
async fn fg_16_a_contribution_many_times_as_long_is_left_out_by_default_and_a_shorter_one_is_not() {
    let cluster = Cluster::start(Options::default(), 0).await;
    let ratio = Comparison::NORM_RATIO_MAX as f32;
    let times = [0.75 * ratio, 1.25 * ratio, 25.0 * ratio];
    assert_eq!(times, [3.0, 5.0, 100.0], "what the pages say");
    Recipe::scripted(times.len() as u64, 3)
        .create(&cluster)
        .await;
    let mut workers = Vec::new();
    for name in ["worker-0", "worker-1", "worker-2"] {
        let worker = Scripted::connect(&cluster, name).await;
        let spec = worker.join().await;
        workers.push((worker, spec));
    }
    let mut hostile = Vec::new();
    for (round, times) in times.into_iter().enumerate() {
        for (at, (worker, spec)) in workers.iter().enumerate() {
            let lease = worker.claim().await.lease;
            assert_eq!(lease.unit.round, Round(round as u64));
            // No two are alike, in no round.
            let own = 1e-5 * (1.0 + 0.01 * (3 * round + at) as f32);
            let bytes = contribution(spec, 1e-5, own);
            let bytes = match at {
                2 => bytes
                    .as_chunks::<4>()
                    .0
                    .iter()
                    .flat_map(|value| (f32::from_le_bytes(*value) * times).to_le_bytes())
                    .collect(),
                _ => bytes,
            };
            let object = worker.upload(lease, bytes).await;
            let result = Scripted::contribution(spec, vec![object]);
            let told = worker.submit(spec, lease, result).await;
            told.unwrap_or_else(|error| panic!("{times} times: {error}"));
            if at == 2 {
                hostile.push(lease.unit.index);
            }
        }
    }
    let view = cluster.operator().await.until_complete(cluster.run()).await;
    let ledger = cluster.evidence().await.ledger().await;
    let sealed = ledger.iter().filter_map(|event| match event {
        LedgerEvent::RoundSealed { left_out, .. } => Some(left_out.clone()),
        _ => None,
    });
    let expected = [
        vec![],
        vec![(hostile[1], Code::NormOutlier)],
        vec![(hostile[2], Code::NormOutlier)],
    ];
    assert_eq!(sealed.collect::<Vec<_>>(), expected);
    let shown = view.left_out.iter().map(|one| (one.unit.index, one.code));
    assert_eq!(shown.collect::<Vec<_>>(), expected.concat());
}

/// The chunks of the round before, handed in again by their maker under a new lease and a new
/// signature.
#[tokio::test]
async fn the_work_of_the_round_before_is_refused_when_it_is_handed_in_again() {
    let cluster = Cluster::start(Options::default(), 0).await;
    Recipe::scripted(2, 1).create(&cluster).await;
    let worker = Scripted::connect(&cluster, "worker-0").await;
    let spec = worker.join().await;
    let mut told = Vec::new();
    for round in 0..2 {
        let lease = worker.claim().await.lease;
        assert_eq!(lease.unit.round, Round(round));
        let object = worker.upload(lease, contribution(&spec, 1e-3, 1e-3)).await;
        let result = Scripted::contribution(&spec, vec![object]);
        told.push(worker.submit(&spec, lease, result).await);
    }
    let [Ok(counts), Err(copied)] = &told[..] else {
        panic!("{told:?}");
    };
    assert_eq!(
        (counts.fate, copied.code()),
        (Fate::Merged, Code::ContributionCopied)
    );
    // The unit is open again, and other work counts.
    let lease = worker.claim().await.lease;
    let object = worker.upload(lease, contribution(&spec, 1e-3, 2e-3)).await;
    let result = Scripted::contribution(&spec, vec![object]);
    let told = worker
        .submit(&spec, lease, result)
        .await
        .expect("it counts");
    assert_eq!(told.fate, Fate::Merged);
    cluster.operator().await.until_complete(cluster.run()).await;
    let ledger = cluster.evidence().await.ledger().await;
    let rejected = ledger.iter().filter_map(|event| match event {
        LedgerEvent::ContributionRejected { code, .. } => Some(*code),
        _ => None,
    });
    assert_eq!(rejected.collect::<Vec<_>>(), [Code::ContributionCopied]);
}
