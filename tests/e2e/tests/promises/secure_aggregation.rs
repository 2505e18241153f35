//! Secure aggregation: the coordinator merges masked contributions and learns their sum alone, also
//! when a worker is gone; and a run with settings that need a contribution by itself is refused.

use std::collections::{BTreeMap, BTreeSet};

use e2e::Recipe;
use harness::{Cluster, Evidence, Options, Scripted};
use identity::{AuditKey, TrustBundle};
use masking::{FixedPoint, unmask};
use schemas::event::{Event, LedgerEvent, WorkerEvent};
use schemas::lease::{LeaseRef, UnitId, UnitKind};
use schemas::masking::{CohortSeal, CohortStatement, UnitKey, Unmasking};
use schemas::{Code, Digest, Epoch, Message as _, Round, UnitIndex};

const UNITS: u32 = 4;

/// A run of four units a round, of which three must be in.
fn recipe(rounds: u64, steps: u64) -> Recipe {
    Recipe::reference(rounds, UNITS, steps)
        .shards_of(20_000)
        .set("policy.workers_min=4")
        .set("policy.lease=10s")
        .set("policy.silence_max=10s")
        .set("transfer.upload=fp32")
        .set("policy.norm_ratio_max=0")
        .set("secure_aggregation.threshold=3")
}

/// Settings that go together with secure aggregation.
const SOUND: [(&str, &str); 3] = [
    ("transfer.upload", "fp32"),
    ("policy.norm_max", "0"),
    ("policy.norm_ratio_max", "0"),
];

/// What `run new` says when it refuses one setting together with secure aggregation.
async fn refused(cluster: &Cluster, units: &str, threshold: &str, setting: (&str, &str)) -> String {
    let mut arguments = vec!["run", "new", "other", "--units", units];
    arguments.extend(["--secure-aggregation", threshold]);
    let others = SOUND.iter().filter(|(name, _)| *name != setting.0);
    let all: Vec<String> = others
        .chain([&setting])
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    arguments.extend(all.iter().flat_map(|one| ["--set", one]));
    let output = cluster.diloctl(&arguments).await;
    assert!(!output.status.success(), "{setting:?}: {}", output.stdout);
    output.stderr
}

/// What is left of these contributions, as the root of the mean square of their sum's words, when
/// the own mask of each is taken off: a part of the largest word. Noise without a pattern has the
/// root of a third.
fn left(cohort: Digest, seeds: &[UnitKey], chunks: &[&[u8]]) -> f64 {
    let unmasking = Unmasking {
        cohort,
        seeds: seeds.to_vec(),
        masking: vec![],
        gone: vec![],
    };
    // Every word is in the range of this one, and stands for itself.
    let largest = f64::from(i32::MAX);
    let words = FixedPoint::new(largest - 1.0, 1);
    let mean = unmask(&unmasking, &words, 0, chunks).expect("a sum of whole words");
    let (values, rest) = mean.as_chunks::<4>();
    assert!(rest.is_empty() && values.len() > 1000, "{}", values.len());
    let squares = values.iter().map(|value| {
        let word = f64::from(f32::from_le_bytes(*value)) * chunks.len() as f64;
        (word / largest).powi(2)
    });
    (squares.sum::<f64>() / values.len() as f64).sqrt()
}

/// The events of the ledger so far.
async fn ledger(evidence: Evidence) -> Vec<LedgerEvent> {
    let recorded = evidence.everything().await;
    let events = recorded.iter().filter_map(|one| one.ledger());
    events.cloned().collect()
}

#[tokio::test]
async fn tl_17_the_coordinator_merges_masked_contributions_and_learns_their_sum_alone() {
    let mut cluster = Cluster::start(Options::default(), UNITS as usize).await;
    let run = cluster.run().clone();
    let none = ("seed", "1");
    for (units, threshold, setting, named) in [
        ("4", "3", ("transfer.upload", "bf16"), "upload"),
        ("4", "3", ("transfer.upload", "e3m0"), "upload"),
        ("4", "3", ("combination.rule", "median"), "combination"),
        ("4", "3", ("combination.rule", "clipped"), "combination"),
        ("4", "3", ("policy.norm_max", "5"), "policy.norm_max"),
        (
            "4",
            "3",
            ("policy.norm_ratio_max", "4"),
            "policy.comparison",
        ),
        ("4", "3", ("policy.workers_min", "3"), "policy.workers_min"),
        ("4", "3", ("privacy.enabled", "true"), "privacy"),
        ("2", "2", none, "schedule.units"),
        ("40", "30", none, "schedule.units"),
        ("6", "3", none, "threshold"),
        ("4", "5", none, "threshold"),
    ] {
        let said = refused(&cluster, units, threshold, setting).await;
        let code = Code::AggregationUnfit.to_string();
        assert!(
            said.contains(&code) && said.contains(named),
            "{setting:?}: {said}"
        );
    }
    recipe(3, 60).create(&cluster).await;
    let operator = cluster.operator().await;
    let view = operator.until_complete(&run).await;
    assert_eq!(view.round.get(), 3);
    assert_eq!(view.train_loss, None);
    let rounds = operator.rounds(&run).await;
    let first = rounds.first().and_then(|round| round.held_out_loss);
    let first = first.expect("the initial weights were evaluated");
    let (_, last) = view.held_out_loss.expect("the last weights were evaluated");
    assert!(
        last + 0.3 < first,
        "held-out loss went from {first} to {last}"
    );

    cluster.record_verifies().await;
    // The ledger has what takes the masks from the sums, so an auditor comes to the same weights.
    let text = cluster.diloctl_ok(&["audit", "recompute", "--all"]).await;
    assert_eq!(text.matches("verified").count(), 3, "{text}");
    let names = ["worker-0", "worker-1", "worker-2", "worker-3"];
    cluster.end_well(&names).await;
    let (mut sealed, mut unmasked, mut contributions) = (0, 0, 0);
    let mut uploads = BTreeMap::new();
    for event in ledger(cluster.evidence().await).await {
        match event {
            LedgerEvent::CohortSealed { members, .. } => {
                sealed += 1;
                assert_eq!(members.len(), UNITS as usize);
            }
            LedgerEvent::RoundUnmasked { secrets, .. } => {
                unmasked += 1;
                // Whose own mask is known has those of the pairs left, and its words say nothing.
                let (cohorts, chunks): (Vec<Digest>, Vec<Vec<u8>>) =
                    std::mem::take(&mut uploads).into_values().unzip();
                let chunks: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
                for (secret, chunk) in secrets.iter().zip(&chunks) {
                    let one = left(cohorts[0], &[*secret], &[chunk]);
                    assert!((one - (1.0_f64 / 3.0).sqrt()).abs() < 0.03, "{one}");
                }
                // Of all of them together nothing but the sum is left.
                let all = left(cohorts[0], &secrets, &chunks);
                assert!(all > 0.0 && all < 0.1, "{all}");
            }
            LedgerEvent::CohortDissolved { .. } => panic!("nobody was gone"),
            LedgerEvent::ContributionAccepted {
                lease,
                contribution,
                norm,
                ..
            } => {
                contributions += 1;
                let hex = contribution.chunks.objects()[0].digest.hex();
                let path = format!("store/blobs/sha256/{}/{hex}", &hex[..2]);
                let chunk = std::fs::read(cluster.path(&path)).unwrap();
                let cohort = contribution.cohort.expect("it is masked");
                uploads.insert(lease.unit.index, (cohort, chunk));
                // Nothing about one contribution is told: not its norm, not its loss.
                assert_eq!((contribution.loss, norm), (0.0, 0.0));
            }
            _ => {}
        }
    }
    assert_eq!((sealed, unmasked, contributions), (3, 3, 3 * UNITS));
}

/// What a coordinator leaves behind that shows a worker a cohort of its own making: the worker's
/// event names it, with the signature without which no worker masks.
#[tokio::test]
async fn tl_17_a_cohort_that_one_worker_alone_was_shown_is_found_by_an_auditor() {
    let cluster = Cluster::start(Options::default(), UNITS as usize).await;
    let run = cluster.run().clone();
    recipe(3, 300)
        .set("secure_aggregation.largest=64")
        .create(&cluster)
        .await;
    let victim = Scripted::connect(&cluster, "victim").await;
    victim.join().await;
    let layout = cluster.domain().layout();
    let key = AuditKey::read(&layout.coordinator_audit_key()).expect("the coordinator has one");
    let trust = TrustBundle::read(&layout.trust()).expect("the domain has one");
    let (round, cohort) = (Round(0), Digest::of(b"a cohort for one worker alone"));
    let body = CohortStatement::of(&run, round, cohort).encode();
    let seal = CohortSeal {
        key: key.public().clone(),
        signature: key.sign_statement(trust.domain.as_str(), &body).into(),
    };
    let unit = UnitId {
        round,
        kind: UnitKind::Train,
        index: UnitIndex(1),
    };
    let epoch = Epoch(1);
    let lease = LeaseRef { unit, epoch };
    let shown = WorkerEvent::Masked {
        lease,
        cohort,
        seal,
    };
    cluster.operator().await.until_complete(&run).await;
    victim.emit(shown).await;
    cluster.copied().await;
    let told = cluster
        .diloctl(&["audit", "replay", "--run", run.as_str(), "--summary"])
        .await;
    assert!(!told.status.success(), "{}", told.stdout);
    let all = format!("{}{}", told.stdout, told.stderr);
    let code = Code::CohortFalse.to_string();
    assert!(
        all.contains(&code) && all.contains(&cohort.to_string()),
        "{all}"
    );
    // The workers' own cohort is in the ledger, so each of them was shown that one.
    let masked = |one: &harness::Recorded| match &one.body.event {
        Event::Worker(WorkerEvent::Masked { cohort, .. }) => Some(*cohort),
        _ => None,
    };
    let recorded = cluster.evidence().await.everything().await;
    let named: BTreeSet<Digest> = recorded.iter().filter_map(masked).collect();
    let accepted = |one: &harness::Recorded| match one.ledger() {
        Some(LedgerEvent::ContributionAccepted { contribution, .. }) => contribution.cohort,
        _ => None,
    };
    let counted: BTreeSet<Digest> = recorded.iter().filter_map(accepted).collect();
    assert_eq!(counted.len(), 3);
    assert_eq!(named, counted.into_iter().chain([cohort]).collect());
}

#[tokio::test]
async fn tl_17_a_coordinator_that_is_killed_once_a_cohort_is_sealed_loses_no_round() {
    let mut cluster = Cluster::start(Options::default(), UNITS as usize).await;
    let mut evidence = cluster.evidence().await;
    let run = cluster.run().clone();
    recipe(2, 300)
        .set("secure_aggregation.largest=64")
        .create(&cluster)
        .await;
    let sealed = |event: &LedgerEvent| matches!(event, LedgerEvent::CohortSealed { .. });
    evidence.until_ledger("a cohort", &run, sealed).await;
    // Maybe before a worker has got its shares, maybe after: in both cases none is missing.
    cluster.kill9("coordinator");
    cluster.restart("coordinator").await;
    let view = cluster.operator().await.until_complete(&run).await;
    assert_eq!(view.round.get(), 2);
    cluster.record_verifies().await;
    let events = ledger(cluster.evidence().await).await;
    let dissolved = |event: &LedgerEvent| matches!(event, LedgerEvent::CohortDissolved { .. });
    assert!(!events.iter().any(dissolved));
}

#[tokio::test]
async fn tl_17_a_round_closes_without_a_worker_that_is_killed_after_it_has_shared_its_secrets() {
    let mut cluster = Cluster::start(Options::default(), UNITS as usize).await;
    let mut evidence = cluster.evidence().await;
    let run = cluster.run().clone();
    recipe(2, 1000)
        .set("secure_aggregation.largest=64")
        .create(&cluster)
        .await;
    let sealed = |event: &LedgerEvent| matches!(event, LedgerEvent::CohortSealed { .. });
    let recorded = evidence.until_ledger("a cohort", &run, sealed).await;
    let Some(LedgerEvent::CohortSealed { members, .. }) = recorded.ledger() else {
        unreachable!("it was waited for")
    };
    let gone = members[1].clone();
    let name = cluster.worker_named(&gone.worker);
    cluster.kill9(&name);
    let closed = |event: &LedgerEvent| matches!(event, LedgerEvent::RoundClosed { .. });
    evidence
        .until_ledger("the end of the round", &run, closed)
        .await;
    // The next round has four units again, so it needs the fourth worker.
    cluster.restart(&name).await;
    let view = cluster.operator().await.until_complete(&run).await;
    assert_eq!(view.round.get(), 2);
    cluster.record_verifies().await;
    let text = cluster.diloctl_ok(&["audit", "recompute", "--all"]).await;
    assert_eq!(text.matches("verified").count(), 2, "{text}");
    let sets: Vec<Vec<u32>> = ledger(cluster.evidence().await)
        .await
        .into_iter()
        .filter_map(|event| match event {
            LedgerEvent::RoundSealed { inputs, .. } => {
                Some(inputs.iter().map(|input| input.unit.get()).collect())
            }
            _ => None,
        })
        .collect();
    assert_eq!(sets, [vec![0, 2, 3], vec![0, 1, 2, 3]]);
    let started = |one: &harness::Recorded| matches!(&one.body.event, Event::Worker(WorkerEvent::Started { lease }) if lease.unit.kind == UnitKind::Train);
    let recorded = cluster.evidence().await.everything().await;
    let starts = recorded.iter().filter(|one| started(one)).count();
    assert!(
        starts <= 2 * UNITS as usize,
        "nobody else took the unit: {starts}"
    );
}

/// All four must reveal, so a drain that did not wait for that would have trained them in vain.
#[tokio::test]
async fn tl_17_a_drain_waits_for_the_sum_of_a_masked_round() {
    let mut cluster = Cluster::start(Options::default(), UNITS as usize).await;
    let mut evidence = cluster.evidence().await;
    let run = cluster.run().clone();
    recipe(2, 300)
        .set("secure_aggregation.threshold=4")
        .set("secure_aggregation.largest=64")
        .create(&cluster)
        .await;
    let sealed = |event: &LedgerEvent| matches!(event, LedgerEvent::CohortSealed { .. });
    evidence.until_ledger("a cohort", &run, sealed).await;
    let workers = ["worker-0", "worker-1", "worker-2", "worker-3"];
    let all = [&["coordinator"], &workers[..]].concat();
    cluster.drain("40s", &all).await;
    let events = ledger(cluster.evidence().await).await;
    let place = |found: fn(&LedgerEvent) -> bool| events.iter().position(found);
    let closed = place(|event| matches!(event, LedgerEvent::RoundClosed { .. }));
    let stopped = place(|event| matches!(event, LedgerEvent::CoordinatorStopped { .. }));
    assert!(
        closed.is_some() && closed < stopped,
        "{closed:?} {stopped:?}"
    );
}
