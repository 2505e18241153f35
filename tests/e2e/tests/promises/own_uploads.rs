//! A contribution consists of objects that its worker uploaded under its lease. Uploads of others,
//! objects that the run gave out, and objects of another lease count for nothing, even if the store
//! has them.

use std::path::PathBuf;

use e2e::{Recipe, Scripted};
use harness::{Cluster, Operator, Options};
use runtime::BusError;
use schemas::blob::Grants;
use schemas::contribution::{Fate, SubmitReply};
use schemas::control::{OperatorObjects, RunNew, RunNewReply};
use schemas::event::LedgerEvent;
use schemas::lease::{ClaimReply, Done, LeaseRef, ReleaseRequest};
use schemas::member::{JoinReply, JoinRequest};
use schemas::run::RunSpec;
use schemas::subject::{ControlVerb, Verb, heartbeat_subject};
use schemas::telemetry::{Heartbeat, Phase, WorkerMetrics};
use schemas::{Bytes, Code, Digest, Message as _, Millis, ObjectRef, RunId, Steps, Tokens, V};

/// Two runs with equal settings under two names, one unit a round, whose workers are all scripted.
/// Both have `setting` besides.
pub(crate) async fn two_runs(setting: &str) -> (Cluster, Operator, RunId) {
    let cluster = Cluster::start(Options::default(), 0).await;
    let recipe = Recipe::scripted(3, 1)
        .set("policy.norm_max=1000")
        .set(setting);
    recipe.create(&cluster).await;
    let operator = cluster.operator().await;
    let second: RunId = "second".parse().unwrap();
    let spec = RunSpec {
        run: second.clone(),
        ..operator.run(cluster.run()).await.unwrap().spec
    };
    let created: RunNewReply = operator
        .ask(ControlVerb::RunNew, &RunNew { v: V, spec })
        .await
        .unwrap();
    assert!(created.created);
    (cluster, operator, second)
}

fn refusal<T: std::fmt::Debug>(outcome: Result<T, BusError>) -> Code {
    match outcome {
        Err(BusError::Refused(refusal)) => refusal.code,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

/// A chunk of a contribution in which all numbers are `value`.
fn chunk(spec: &RunSpec, value: f32) -> Vec<u8> {
    value
        .to_le_bytes()
        .repeat((spec.model.initial.objects()[0].bytes.get() / 4) as usize)
}

/// The path at which the store keeps a verified object.
fn blob(cluster: &Cluster, digest: Digest) -> PathBuf {
    let hex = digest.hex();
    cluster
        .path("store")
        .join("blobs")
        .join("sha256")
        .join(&hex[..2])
        .join(hex)
}

async fn submit(
    worker: &Scripted,
    spec: &RunSpec,
    lease: LeaseRef,
    chunk: ObjectRef,
) -> Result<SubmitReply, BusError> {
    worker
        .submit(spec, lease, Scripted::contribution(spec, vec![chunk]))
        .await
}

#[tokio::test]
async fn what_others_uploaded_is_nobodys_contribution() {
    let (cluster, _operator, second) = two_runs("policy.strikes_max=100").await;
    let victim = Scripted::connect(&cluster, "worker-0").await;
    let thief = Scripted::connect_for(&cluster, "worker-1", &second).await;
    let theirs = victim.join().await;
    let spec = thief.join().await;
    assert_eq!(
        spec.model.initial.count(),
        1,
        "one chunk, so that a contribution is one object"
    );
    let lease = victim.claim().await.lease;
    let bytes = chunk(&theirs, 0.001);
    let stolen = victim.upload(lease, bytes.clone()).await;
    assert_eq!(
        submit(&victim, &theirs, lease, stolen).await.unwrap().fate,
        Fate::Merged
    );
    assert!(blob(&cluster, stolen.digest).exists());

    // Both objects are in `blobs` and have the right length: another run's contribution, and the
    // weights that this run starts from.
    let lease = thief.claim().await.lease;
    for named in [stolen, spec.model.initial.objects()[0]] {
        assert_eq!(
            refusal(submit(&thief, &spec, lease, named).await),
            Code::UploadMissing,
            "{named:?}"
        );
    }
    // The worker uploaded this itself, but under a lease that it gave back.
    let own = thief.upload(lease, chunk(&spec, 0.002)).await;
    let release = ReleaseRequest {
        v: V,
        lease,
        reason: "a test".to_owned(),
    };
    let _: Done = thief.ask(Verb::Release, &release).await.unwrap();
    let again = thief.claim().await.lease;
    assert_eq!(again.unit, lease.unit);
    assert_eq!(
        refusal(submit(&thief, &spec, again, own).await),
        Code::UploadMissing
    );
    // The worker must upload even bytes that the store already has; a worker that has the bytes and
    // uploads them may use them.
    let grant = thief.grant(again, stolen).await.unwrap();
    assert!(
        grant.action.is_some(),
        "an upload of what others uploaded is not left out"
    );
    assert_eq!(
        refusal(submit(&thief, &spec, again, stolen).await),
        Code::UploadMissing,
        "a grant is no upload"
    );
    thief.send(&grant, bytes).await;
    assert_eq!(
        submit(&thief, &spec, again, stolen).await.unwrap().fate,
        Fate::Merged
    );
    // Quarantine is empty again: results that count, results that do not, and an operator's data
    // have left it.
    cluster
        .until_empty(&cluster.path("store").join("incoming"))
        .await;
    assert!(blob(&cluster, stolen.digest).exists());
}

#[tokio::test]
async fn what_does_not_count_fills_no_bucket_of_verified_objects() {
    let (cluster, _operator, _) = two_runs("policy.strikes_max=100").await;
    let worker = Scripted::connect(&cluster, "worker-0").await;
    let spec = worker.join().await;
    // Finite numbers with a norm above the run's bound, which is found only when all chunks were
    // read.
    let lease = worker.claim().await.lease;
    let outlier = worker.upload(lease, chunk(&spec, 1e6)).await;
    assert_eq!(
        refusal(submit(&worker, &spec, lease, outlier).await),
        Code::NormOutlier
    );
    assert!(
        !blob(&cluster, outlier.digest).exists(),
        "a refused contribution was promoted"
    );
    // The worker takes leases and gives them back: after uploads of four contributions that came to
    // nothing, of which the outlier was one, it gets no further lease for a while.
    for number in 0..3_u16 {
        let lease = worker.claim().await.lease;
        let bytes = chunk(&spec, 1e-3 * f32::from(number + 1));
        let grant = worker.grant(lease, ObjectRef::of(&bytes)).await.unwrap();
        worker.send(&grant, bytes).await;
        let release = ReleaseRequest {
            v: V,
            lease,
            reason: "a test".to_owned(),
        };
        let _: Done = worker.ask(Verb::Release, &release).await.unwrap();
    }
    let claim = worker.claim_request(Millis::from_secs(1));
    let claimed: Result<ClaimReply, _> = worker.ask(Verb::Claim, &claim).await;
    assert_eq!(refusal(claimed), Code::AskedTooMuch);
    // These uploads do not stay in quarantine either.
    cluster
        .until_empty(&cluster.path("store").join("incoming"))
        .await;
}

#[tokio::test]
async fn numbers_and_keys_that_cannot_be_are_refused_by_name() {
    let (cluster, operator, second) = two_runs("policy.strikes_max=100").await;
    let honest = Scripted::connect(&cluster, "worker-0").await;
    let liar = Scripted::connect(&cluster, "worker-1").await;
    honest.join().await;
    let own = liar.join_request();
    let ledger = cluster
        .domain()
        .trust()
        .audit_keys
        .first()
        .expect("the coordinator's key")
        .clone();
    let elsewhere = Scripted::connect_for(&cluster, "worker-2", &second)
        .await
        .join_request();
    for (what, request) in [
        (
            "another worker's key",
            JoinRequest {
                audit_key: honest.join_request().audit_key,
                ..own.clone()
            },
        ),
        (
            "the coordinator's key",
            JoinRequest {
                audit_key: ledger,
                ..own.clone()
            },
        ),
        (
            "another worker's key and proof",
            JoinRequest {
                session: own.session,
                ..honest.join_request()
            },
        ),
        ("a key of another run's worker, with its proof", elsewhere),
        (
            "no proof",
            JoinRequest {
                proof: [0; 64].into(),
                ..own.clone()
            },
        ),
    ] {
        let joined: Result<JoinReply, _> = liar.ask(Verb::Join, &request).await;
        assert_eq!(refusal(joined), Code::AuditKeyRefused, "{what}");
    }
    let spec = liar.join().await;

    let subject = heartbeat_subject(cluster.run(), &liar.worker);
    let good = Heartbeat {
        v: V,
        session: liar.session(),
        phase: Phase::Claiming,
        lease: None,
        steps_done: Steps(0),
        tokens: Tokens(0),
        tokens_per_second: 1.0,
        loss: None,
        bytes_up: Bytes(7),
        bytes_down: Bytes(9),
        metrics: WorkerMetrics::default(),
    };
    for bad in [
        Heartbeat {
            bytes_up: Bytes(u64::MAX),
            bytes_down: Bytes(u64::MAX),
            ..good.clone()
        },
        Heartbeat {
            tokens_per_second: f64::INFINITY,
            ..good.clone()
        },
        Heartbeat {
            loss: Some(-1.0),
            ..good.clone()
        },
        good,
    ] {
        liar.bus
            .publish(&subject, bad.encode().into())
            .await
            .unwrap();
    }
    let view = operator
        .until(cluster.run(), harness::PATIENCE, |view| {
            view.bytes_down > Bytes(0)
        })
        .await;
    assert_eq!(view.bytes_down, Bytes(9));
    let denied = cluster.evidence().await.everything().await;
    let denied = |code: Code| {
        let found = |event: &LedgerEvent| matches!(event, LedgerEvent::RequestDenied { code: found, worker, .. } if *found == code && *worker == liar.worker);
        denied
            .iter()
            .filter(|one| one.ledger().is_some_and(found))
            .count()
    };
    assert_eq!(
        (
            denied(Code::AuditKeyRefused),
            denied(Code::NumberImpossible)
        ),
        (5, 3)
    );

    // A run that would start from weights that contain a NaN.
    let mut bytes = chunk(&spec, 0.5);
    bytes.splice(..4, f32::NAN.to_le_bytes());
    let object = ObjectRef::of(&bytes);
    let objects = OperatorObjects {
        v: V,
        objects: vec![object],
    };
    let grants: Grants = operator.ask(ControlVerb::BlobPut, &objects).await.unwrap();
    liar.send(&grants.grants[0], bytes).await;
    let _: Done = operator
        .ask(ControlVerb::BlobCommit, &objects)
        .await
        .unwrap();
    let mut broken = RunSpec {
        run: "broken".parse().unwrap(),
        ..spec
    };
    broken.model.initial = vec![object].into();
    let created: Result<RunNewReply, _> = operator
        .ask(ControlVerb::RunNew, &RunNew { v: V, spec: broken })
        .await;
    assert_eq!(refusal(created), Code::NotFinite);
}
