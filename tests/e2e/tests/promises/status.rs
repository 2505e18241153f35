//! `diloctl` shows what happened in a run.

use std::collections::BTreeSet;

use e2e::{Recipe, Scripted};
use harness::{Cluster, Options, PATIENCE};
use schemas::contribution::{Contribution, Evaluation, Fate, Outcome, Statement, SubmitReply};
use schemas::lease::{Done, LeaseRef, RenewReply, RenewRequest, UnitId, UnitKind};
use schemas::member::LeaveRequest;
use schemas::run::RunSpec;
use schemas::subject::{Verb, heartbeat_subject};
use schemas::telemetry::{Heartbeat, Phase, WorkerMetrics};
use schemas::view::{LeaseView, RoundView, RunPhase, RunView, WorkerView};
use schemas::{Bytes, Message as _, Round, Steps, Tokens, UnitIndex, V};
use serde::de::DeserializeOwned;

/// The rows of a list, as `diloctl` prints them for other programs.
async fn rows<T: DeserializeOwned>(cluster: &Cluster, noun: &str) -> Vec<T> {
    let text = cluster.diloctl_ok(&["--output", "json", noun, "ls"]).await;
    let mut shown: serde_json::Value = serde_json::from_str(&text).unwrap();
    serde_json::from_value(shown["items"].take())
        .unwrap_or_else(|error| panic!("{noun} ls: {error}\n{text}"))
}

/// Hands in a held-out loss of two nats a token.
async fn evaluate(cluster: &Cluster, worker: &Scripted, spec: &RunSpec, lease: LeaseRef) {
    // The held-out part of the corpus has more sequences than an evaluation reads.
    let tokens =
        u64::from(spec.schedule.evaluation_sequences) * u64::from(spec.schedule.sequence_tokens);
    let statement = Statement {
        v: V,
        run: cluster.run().clone(),
        spec: spec.to_object().1,
        worker: worker.worker.clone(),
        lease,
        outcome: Outcome::Evaluation(Evaluation {
            loss_sum: 2.0 * tokens as f64,
            tokens: Tokens(tokens),
        }),
    };
    let reply: SubmitReply = worker
        .ask(Verb::Submit, &worker.signed(&statement))
        .await
        .expect("it fits");
    assert_eq!(reply.fate, Fate::Merged);
}

/// Claims a training unit and returns its lease.
async fn training_lease(worker: &Scripted) -> LeaseRef {
    let lease = worker.claim().await.lease;
    assert_eq!(lease.unit.kind, UnitKind::Train, "training comes first");
    lease
}

/// Hands in a result with a loss of `loss` nats a token that changes no weight.
async fn submit(worker: &Scripted, spec: &RunSpec, lease: LeaseRef, loss: f64) {
    let zeros = vec![0; spec.model.initial.objects()[0].bytes.get() as usize];
    let object = worker.upload(lease, zeros).await;
    let contribution = Contribution {
        loss,
        ..Scripted::contribution(spec, vec![object])
    };
    assert_eq!(
        worker
            .submit(spec, lease, contribution)
            .await
            .expect("it fits")
            .fate,
        Fate::Merged
    );
}

async fn heartbeat(
    cluster: &Cluster,
    worker: &Scripted,
    phase: Phase,
    lease: Option<LeaseRef>,
    tokens_per_second: f64,
) {
    let heartbeat = Heartbeat {
        v: V,
        session: worker.session(),
        phase,
        lease,
        steps_done: Steps(3),
        tokens: Tokens(8),
        tokens_per_second,
        loss: None,
        bytes_up: Bytes(5 << 20),
        bytes_down: Bytes(7 << 20),
        metrics: WorkerMetrics::default(),
    };
    let subject = heartbeat_subject(cluster.run(), &worker.worker);
    worker
        .bus
        .publish(&subject, heartbeat.encode().into())
        .await
        .unwrap();
}

/// The middle of a round: one unit is in, the other is held, and the snapshot that the round
/// started from is evaluated.
async fn middle_of_a_round(
    cluster: &Cluster,
    first: &Scripted,
    second: &Scripted,
    spec: &RunSpec,
) -> [LeaseRef; 2] {
    let held = training_lease(second).await;
    let done = training_lease(first).await;
    submit(first, spec, done, 2.0).await;
    let operator = cluster.operator().await;
    // Both workers may be needed for the next round at any moment, so a third one gets the
    // evaluation.
    let spare = Scripted::connect(cluster, "worker-2").await;
    spare.join().await;
    let evaluation = spare.claim().await.lease;
    evaluate(cluster, &spare, spec, evaluation).await;
    let _: Done = spare
        .ask(
            Verb::Leave,
            &LeaveRequest {
                v: V,
                session: spare.session(),
                reason: "not needed".to_owned(),
            },
        )
        .await
        .expect("it is there");
    let renewal = RenewRequest {
        v: V,
        lease: held,
        steps_done: Steps(3),
        bytes_moved: Bytes(0),
    };
    let _: RenewReply = second
        .ask(Verb::Renew, &renewal)
        .await
        .expect("it holds the lease");
    heartbeat(cluster, first, Phase::Claiming, None, 120.0).await;
    heartbeat(cluster, second, Phase::Training, Some(held), 80.0).await;
    operator
        .until(cluster.run(), PATIENCE, |view| {
            view.tokens_per_second == 200.0
        })
        .await;
    [done, held]
}

#[tokio::test]
async fn fg_14_status_workers_work_map_speeds_losses_and_history_are_shown() {
    let cluster = Cluster::start(Options::default(), 0).await;
    let recipe = Recipe::reference(2, 2, 5)
        .set("schedule.evaluation_every=1")
        .set("transfer.upload=fp32");
    recipe.set("policy.lease=60s").create(&cluster).await;
    let (first, second) = (
        Scripted::connect(&cluster, "worker-0").await,
        Scripted::connect(&cluster, "worker-1").await,
    );
    let spec = first.join().await;
    second.join().await;
    let [done, held] = middle_of_a_round(&cluster, &first, &second, &spec).await;

    let [run]: [RunView; 1] = rows(&cluster, "run").await.try_into().unwrap();
    assert_eq!(
        (run.phase, run.round, run.rounds),
        (RunPhase::Training, Round(0), 2)
    );
    assert_eq!(
        (run.units_done, run.units, run.workers, run.leases),
        (1, 2, 2, 1)
    );
    // Bytes uploaded come from the ledger: they are those of the one accepted contribution,
    // whatever heartbeats claim.
    let uploaded = spec.model.initial.objects()[0].bytes;
    assert_eq!(
        (run.tokens_per_second, run.bytes_up, run.bytes_down),
        (200.0, uploaded, Bytes(14 << 20))
    );
    assert_eq!(
        (run.train_loss, run.held_out_loss),
        (None, Some((Round(0), 2.0)))
    );

    let workers: Vec<WorkerView> = rows(&cluster, "worker").await;
    assert_eq!(workers.iter().filter(|shown| shown.member).count(), 2);
    for (of, phase, lease, speed) in [
        (&first, Phase::Claiming, None, 120.0),
        (&second, Phase::Training, Some(held), 80.0),
    ] {
        let shown = workers
            .iter()
            .find(|shown| shown.worker == of.worker)
            .expect("every member is shown");
        assert_eq!(
            (shown.phase, shown.lease, shown.tokens_per_second),
            (Some(phase), lease, speed)
        );
        assert!(shown.member);
    }

    // The held units and those that are in are all units of the round.
    let [lease]: [LeaseView; 1] = rows(&cluster, "lease").await.try_into().unwrap();
    assert_eq!(
        (lease.lease, &lease.worker, lease.steps_done),
        (held, &second.worker, Steps(3))
    );
    let [open]: [RoundView; 1] = rows(&cluster, "round").await.try_into().unwrap();
    assert!(open.done.contains(&done.unit) && !open.done.contains(&held.unit));
    let known = open
        .done
        .iter()
        .chain([&lease.lease.unit])
        .filter(|unit| unit.kind == UnitKind::Train);
    let unit = |index| UnitId {
        round: Round(0),
        kind: UnitKind::Train,
        index: UnitIndex(index),
    };
    assert_eq!(
        known.copied().collect::<BTreeSet<_>>(),
        BTreeSet::from([unit(0), unit(1)])
    );

    // A closed round stays in the history, with its results.
    submit(&second, &spec, held, 4.0).await;
    let run = cluster
        .operator()
        .await
        .until(cluster.run(), PATIENCE, |view| view.round == Round(1))
        .await;
    assert_eq!(run.train_loss, Some(3.0));
    let [over, open]: [RoundView; 2] = rows(&cluster, "round").await.try_into().unwrap();
    assert_eq!(
        (over.round, over.tokens),
        (Round(0), Tokens(2 * spec.unit_tokens().get()))
    );
    assert_eq!(
        (over.train_loss, over.held_out_loss, over.norm),
        (Some(3.0), Some(2.0), Some(0.0))
    );
    assert!(
        over.closed_at
            .is_some_and(|closed_at| closed_at >= over.opened_at)
    );
    assert_eq!(
        (open.round, open.closed_at, open.train_loss),
        (Round(1), None, None)
    );

    // The tables for people show the same.
    for (noun, shown) in [
        ("run", "3.0000"),
        ("run", "200"),
        ("worker", first.worker.short()),
        ("round", "3.0000"),
    ] {
        let table = cluster.diloctl_ok(&[noun, "ls"]).await;
        assert!(
            table.contains(shown),
            "{noun} ls does not show {shown}:\n{table}"
        );
    }
}
