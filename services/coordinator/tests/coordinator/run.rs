//! The whole coordinator as a process, against a real broker with real permissions and the real
//! store.

use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt as _};
use identity::AuditKey;
use runtime::BusError;
use schemas::blob::{Grants, PutRequest};
use schemas::contribution::Fate;
use schemas::control::{
    Query, RunNew, RunNewReply, Shutdown, ShutdownReply, View, ViewReply, ViewRequest,
};
use schemas::lease::{Manifest, ReleaseRequest};
use schemas::limits::GRANTS_MAX;
use schemas::permission::Role;
use schemas::snapshot::SnapshotManifest;
use schemas::subject::{ControlVerb, Verb, control_subject};
use schemas::view::RunPhase;
use schemas::{Chunks, Code, Digest, Message as _, Millis, ObjectRef, Round, V};

use crate::scene::{self, Reference, Scene, WAIT, Worker};

/// The bytes of objects as an operator reads them, one after another.
async fn read(scene: &Scene, objects: &[ObjectRef]) -> Vec<u8> {
    let mut contents = Vec::new();
    for batch in objects.chunks(GRANTS_MAX) {
        let request = schemas::blob::GetRequest {
            v: V,
            objects: batch.iter().map(|object| object.digest).collect(),
        };
        let Grants { grants, .. } = scene
            .operator
            .ask(ControlVerb::BlobGet, &request)
            .await
            .expect("granted");
        for grant in &grants {
            contents.extend_from_slice(&fetch(scene, grant).await);
        }
    }
    contents
}

/// Does one unit as it should be done, and returns its chunks.
async fn work(scene: &Scene, worker: &Worker, manifest: &Manifest, base: &[f32]) -> Vec<Bytes> {
    let chunks = worker.contribution(manifest, base);
    let reply = worker
        .submit(manifest, chunks.clone())
        .await
        .expect("accepted");
    assert_eq!(
        reply.fate,
        Fate::Merged,
        "{}",
        scene.cluster.path("logs").display()
    );
    chunks
}

/// Does both units of a round with one worker. Returns the contributions in the order of their
/// units.
async fn round(
    scene: &Scene,
    worker: &Worker,
    reference: &mut Reference,
    base: &[f32],
) -> Vec<f32> {
    let mut contributions = Vec::new();
    for _ in 0..2 {
        let manifest = worker.claim().await.expect("the run goes on");
        assert_eq!(worker.fetch(&manifest.base).await, base);
        contributions.push((
            manifest.lease.unit,
            work(scene, worker, &manifest, base).await,
        ));
    }
    contributions.sort_by_key(|(unit, _)| *unit);
    let chunks: Vec<_> = contributions
        .into_iter()
        .map(|(_, chunks)| chunks)
        .collect();
    reference.step(&worker.spec, &chunks)
}

#[tokio::test(flavor = "multi_thread")]
async fn rounds_give_the_weights_of_the_rule_and_end_in_a_saved_snapshot() {
    rounds_give_the_weights_of_the_rule(Scene::start(3).await, 3).await;
}

/// A model of more chunks than an event names.
#[tokio::test(flavor = "multi_thread")]
async fn rounds_of_listed_chunks_give_the_weights_of_the_rule() {
    rounds_give_the_weights_of_the_rule(Scene::start_listed(2).await, 2).await;
}

async fn rounds_give_the_weights_of_the_rule(mut scene: Scene, rounds: u64) {
    let worker = scene.worker("worker-0").await;
    let manifest = worker.claim().await.expect("work");
    let mut base = worker.fetch(&manifest.base).await;
    let release = ReleaseRequest {
        v: V,
        lease: manifest.lease,
        reason: "only looking".into(),
    };
    let _: schemas::lease::Done = worker.ask(Verb::Release, &release).await.expect("released");
    let mut reference = Reference::new(base.clone());
    for _ in 0..rounds {
        base = round(&scene, &worker, &mut reference, &base).await;
    }
    assert!(worker.claim().await.is_none(), "the run is complete");
    let view = scene.operator.until_complete(scene.cluster.run()).await;
    assert_eq!(view.phase, RunPhase::Complete);

    let snapshots = scene.operator.snapshots(scene.cluster.run()).await;
    let last = snapshots.last().expect("snapshots were saved");
    assert_eq!(last.round, Round(rounds));

    // The exact weights are bit for bit those of the rule.
    let text = read(&scene, &[last.manifest]).await;
    let manifest: SnapshotManifest = serde_json::from_slice(&text).expect("it is JSON");
    let chunks = match &manifest.weights {
        Chunks::Named(chunks) => chunks.clone(),
        Chunks::Listed(listed) => {
            let read = listed.read(&read(&scene, &[listed.list]).await);
            read.expect("a list")
        }
    };
    let exact = read(&scene, &chunks).await;
    let expected: Vec<u8> = reference
        .params
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    assert_eq!(Digest::of(&exact), Digest::of(&expected));

    let shutdown = Shutdown {
        v: V,
        drain: Millis::from_secs(5),
    };
    let _: ShutdownReply = scene
        .operator
        .ask(ControlVerb::Shutdown, &shutdown)
        .await
        .expect("it drains");
    assert!(
        scene
            .cluster
            .process("coordinator")
            .exit(WAIT)
            .await
            .success()
    );
}

async fn fetch(scene: &Scene, grant: &schemas::blob::Grant) -> Bytes {
    struct NoOther;
    #[async_trait::async_trait]
    impl objects::Regrant for NoOther {
        async fn regrant(&self, digest: Digest) -> Result<schemas::blob::Grant, schemas::Refusal> {
            panic!("the first url for {digest} was not good enough");
        }
    }
    let deadline = tokio::time::Instant::now() + WAIT;
    let max = schemas::limits::OBJECT_BYTES_MAX;
    scene
        .transfer
        .get(grant, max, &NoOther, deadline)
        .await
        .expect("downloaded")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_coordinator_continues_with_what_was_accepted() {
    let mut scene = Scene::start(2).await;
    let worker = scene.worker("worker-0").await;
    let first = worker.claim().await.expect("work");
    let base = worker.fetch(&first.base).await;
    let mut reference = Reference::new(base.clone());
    let mut contributions = vec![(first.lease.unit, work(&scene, &worker, &first, &base).await)];
    // One unit of round 0 is in the ledger; the other was never begun.
    scene.cluster.kill9("coordinator");
    scene.cluster.restart("coordinator").await;
    let second = worker.claim().await.expect("work");
    assert_ne!(
        second.lease.unit, first.lease.unit,
        "what was accepted is not given out again"
    );
    contributions.push((
        second.lease.unit,
        work(&scene, &worker, &second, &base).await,
    ));
    contributions.sort_by_key(|(unit, _)| *unit);
    let chunks: Vec<_> = contributions
        .into_iter()
        .map(|(_, chunks)| chunks)
        .collect();
    let base = reference.step(&worker.spec, &chunks);
    // In the middle of round 1 a lease is held; its holder hands in to the new process.
    let held = worker.claim().await.expect("work");
    assert_eq!(worker.fetch(&held.base).await, base);
    scene.cluster.kill9("coordinator");
    scene.cluster.restart("coordinator").await;
    let mut contributions = vec![(held.lease.unit, work(&scene, &worker, &held, &base).await)];
    let other = worker.claim().await.expect("work");
    contributions.push((other.lease.unit, work(&scene, &worker, &other, &base).await));
    assert!(worker.claim().await.is_none(), "the run is complete");
    contributions.sort_by_key(|(unit, _)| *unit);
    let chunks: Vec<_> = contributions
        .into_iter()
        .map(|(_, chunks)| chunks)
        .collect();
    let _ = reference.step(&worker.spec, &chunks);
    let expected: Vec<u8> = reference
        .params
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let snapshots = scene.operator.snapshots(scene.cluster.run()).await;
    let last = snapshots.last().expect("the last round is saved");
    let request = schemas::blob::GetRequest {
        v: V,
        objects: vec![last.manifest.digest],
    };
    let grants: schemas::blob::Grants = scene
        .operator
        .ask(ControlVerb::BlobGet, &request)
        .await
        .expect("granted");
    let manifest: SnapshotManifest =
        serde_json::from_slice(&fetch(&scene, &grants.grants[0]).await).expect("it is JSON");
    let chunks = scene
        .layout
        .chunks(worker.spec.model.chunk_elements)
        .expect("few chunks");
    for (chunk, object) in chunks.iter().zip(manifest.weights.objects()) {
        let range = chunk.range();
        assert_eq!(
            object.digest,
            Digest::of(&expected[range.start * 4..range.end * 4])
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_results_are_refused_alone_and_the_round_goes_on() {
    let scene = Scene::start(1).await;
    let worker = scene.worker("worker-0").await;
    let code = |result: Result<schemas::contribution::SubmitReply, runtime::BusError>| match result
    {
        Err(runtime::BusError::Refused(refusal)) => refusal.code,
        other => panic!("expected a refusal, got {other:?}"),
    };
    let manifest = worker.claim().await.expect("work");
    let base = worker.fetch(&manifest.base).await;
    let mut chunks = worker.contribution(&manifest, &base);
    let mut poisoned = chunks[1].to_vec();
    poisoned[100..102].copy_from_slice(&0x7fc0_u16.to_le_bytes());
    chunks[1] = poisoned.into();
    assert_eq!(
        code(worker.submit(&manifest, chunks).await),
        Code::NotFinite
    );

    let manifest = worker.claim().await.expect("the unit is issued again");
    let mut chunks = worker.contribution(&manifest, &base);
    // No chunk of the run has this length, so the request gets no URL; the lease stays as it is.
    let short = ObjectRef::of(&chunks[0].slice(..chunks[0].len() - 2));
    let request = PutRequest {
        v: V,
        lease: manifest.lease,
        objects: vec![short],
    };
    match worker.ask::<_, Grants>(Verb::Put, &request).await {
        Err(runtime::BusError::Refused(refusal)) => assert_eq!(refusal.code, Code::SizeMismatch),
        other => panic!("expected a refusal, got {other:?}"),
    }
    // Each of these has the length of a chunk of the run, but not that of its own place.
    chunks.swap(0, 3);
    assert_eq!(
        code(worker.submit(&manifest, chunks).await),
        Code::SizeMismatch
    );

    let manifest = worker.claim().await.expect("the unit is issued again");
    let stranger = AuditKey::generate();
    let chunks = worker.contribution(&manifest, &base);
    let chunks: Vec<_> = chunks.iter().map(|b| ObjectRef::of(b)).collect();
    let outcome =
        schemas::contribution::Outcome::Contribution(kit::contribution(&worker.spec, chunks));
    let statement = kit::statement(&worker.spec, manifest.aud.clone(), manifest.lease, outcome);
    assert_eq!(
        code(worker.hand_in_signed_by(&stranger, &statement).await),
        Code::StatementInvalid
    );

    let mut reference = Reference::new(base.clone());
    round(&scene, &worker, &mut reference, &base).await;
    assert!(worker.claim().await.is_none(), "the run is complete");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_names_what_is_not_there_is_refused() {
    let scene = Scene::start(1).await;
    let ask = async |change: &dyn Fn(&mut schemas::run::RunSpec)| {
        let mut spec = scene.spec(1).await;
        spec.run = "other".parse().expect("a name");
        change(&mut spec);
        match scene
            .operator
            .ask::<_, RunNewReply>(ControlVerb::RunNew, &RunNew { v: V, spec })
            .await
        {
            Err(runtime::BusError::Refused(refusal)) => Some(refusal.code),
            Ok(_) => None,
            Err(error) => panic!("{error}"),
        }
    };
    let absent = schemas::ObjectRef::of(b"never uploaded");
    let other_model = scene
        .import(vec![scene::model_of(301).to_json().into()])
        .await[0];
    assert_eq!(
        ask(&|spec| spec.model.config = absent).await,
        Some(Code::ObjectMissing)
    );
    assert_eq!(
        ask(&|spec| spec.model.config = other_model).await,
        Some(Code::LayoutMismatch)
    );
    assert_eq!(
        ask(&|spec| spec.model.config = spec.data).await,
        Some(Code::ModelInvalid)
    );
    assert_eq!(
        ask(&|spec| spec.data = spec.model.config).await,
        Some(Code::DataInvalid)
    );
    assert_eq!(
        ask(&|spec| spec.model.initial = spec.model.initial.objects()[..1].to_vec().into()).await,
        Some(Code::SpecInvalid)
    );
    assert_eq!(
        ask(&|spec| {
            let mut chunks = spec.model.initial.objects().to_vec();
            chunks.swap(0, 3);
            spec.model.initial = chunks.into();
        })
        .await,
        Some(Code::SizeMismatch)
    );
    assert_eq!(
        ask(&|spec| spec.model.layout = spec.model.config).await,
        Some(Code::SpecInvalid)
    );
    assert_eq!(ask(&|_| {}).await, None);
}

/// An operator with a client of its own asks for a run with settings that every worker would
/// refuse. The coordinator refuses it before the run exists.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_no_worker_could_do_is_refused_with_what_does_not_fit() {
    let scene = Scene::start(1).await;
    let ask = async |change: &dyn Fn(&mut schemas::run::RunSpec)| {
        let mut spec = scene.spec(1).await;
        spec.run = "other".parse().expect("a name");
        change(&mut spec);
        match scene
            .operator
            .ask::<_, RunNewReply>(ControlVerb::RunNew, &RunNew { v: V, spec })
            .await
        {
            Err(runtime::BusError::Refused(refusal)) => Err(refusal),
            Ok(_) => Ok(()),
            Err(error) => panic!("{error}"),
        }
    };
    let refused =
        async |change: &dyn Fn(&mut schemas::run::RunSpec)| ask(change).await.expect_err("refused");
    let short_rest = scene.data(256, &[4096, 8], &[1024]).await;
    let refusal = refused(&|spec| spec.data = short_rest).await;
    assert_eq!(refusal.code, Code::ShardTooShort);
    let shard = ObjectRef::of(&[2; 8]).digest.to_string();
    for part in [
        &shard,
        "training shard",
        "8 tokens",
        "takes 9",
        &short_rest.digest.to_string(),
    ] {
        assert!(refusal.detail.contains(part), "{part} in {refusal}");
    }
    let short_held_out = scene.data(256, &[4096], &[8]).await;
    let evaluating = |spec: &mut schemas::run::RunSpec| {
        spec.data = short_held_out;
        spec.schedule.evaluation_every = 1;
    };
    let refusal = refused(&evaluating).await;
    assert!(
        refusal.code == Code::ShardTooShort && refusal.detail.contains("held-out shard"),
        "{refusal}"
    );
    let wide = scene.data(257, &[4096], &[1024]).await;
    let refusal = refused(&|spec| spec.data = wide).await;
    assert!(
        refusal.code == Code::VocabularyTooLarge && refusal.detail.contains("257"),
        "{refusal}"
    );
    let empty = scene.data(256, &[4096], &[]).await;
    assert_eq!(
        refused(&|spec| spec.data = empty).await.code,
        Code::DataInvalid,
        "as every worker says"
    );

    // A model with few positions.
    let tiny = model::Preset::named("tiny").expect("a preset").config;
    let layout = tiny.layout();
    let length = 4 * layout.elements();
    let parts = vec![
        tiny.to_json().into(),
        layout.encode().into(),
        Bytes::from(vec![0; length as usize]),
    ];
    let parts = scene.import(parts).await;
    let long = scene.data(256, &[4096], &[1024]).await;
    let decoder = |spec: &mut schemas::run::RunSpec, sequence| {
        spec.model.trainer = schemas::run::TrainerKind::Torch;
        (spec.model.config, spec.model.layout, spec.model.initial) =
            (parts[0], parts[1], vec![parts[2]].into());
        spec.model.chunk_elements = layout.elements();
        spec.schedule.sequence_tokens = sequence;
        spec.data = long;
    };
    let refusal = refused(&|spec| decoder(spec, 513)).await;
    assert!(
        refusal.code == Code::SequenceTooLong && refusal.detail.contains("512"),
        "{refusal}"
    );
    assert_eq!(ask(&|spec| decoder(spec, 512)).await, Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_coordinator_takes_over_and_the_first_stands_down() {
    let mut scene = Scene::start(1).await;
    scene.cluster.start_coordinator("successor").await;
    // The first coordinator learns of the second with its next event, here a member's.
    let worker = scene.worker("worker-0").await;
    let status = scene
        .cluster
        .process("coordinator")
        .exit(Duration::from_secs(60))
        .await;
    assert_eq!(status.code(), Some(4));
    let log = scene.cluster.process("coordinator").log();
    assert!(log.contains("DL0701"), "{log}");
    assert!(worker.claim().await.is_some());
}

/// One operator's key, used by a program out of control, or by a thief.
#[tokio::test(flavor = "multi_thread")]
async fn an_operator_that_asks_without_end_is_refused_and_another_is_answered() {
    let scene = Scene::start(1).await;
    let look = ViewRequest::of(Query::Runs);
    let loud = async |_| {
        scene
            .operator
            .ask::<_, ViewReply>(ControlVerb::View, &look)
            .await
    };
    let asked: Vec<_> = stream::iter(0..6000)
        .map(loud)
        .buffer_unordered(256)
        .collect()
        .await;
    let too_much = |answer: &Result<ViewReply, BusError>| matches!(answer, Err(BusError::Refused(refusal)) if refusal.code == Code::AskedTooMuch);
    let refused = asked.iter().filter(|answer| too_much(answer)).count();
    let answered = asked.iter().filter(|answer| answer.is_ok()).count();
    assert!(
        refused > 0 && answered >= 2000,
        "{answered} answered, {refused} refused"
    );
    let second = scene.cluster.connect(Role::Operator, "second").await;
    let subject = control_subject(
        second.public().expect("connected with credentials"),
        ControlVerb::View,
    );
    let other: ViewReply = second
        .request(&subject, &look, WAIT)
        .await
        .expect("it has asked nothing yet");
    assert!(matches!(other.view, View::Runs(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_configuration_ends_with_64_before_anything_is_connected() {
    let cluster = harness::Cluster::bare(harness::Options::default()).await;
    let domain = cluster.domain().layout().folder().display().to_string();
    let run = async |arguments: &[&str]| {
        let all: Vec<&str> = ["--domain", domain.as_str()]
            .iter()
            .chain(arguments)
            .copied()
            .collect();
        cluster.run_program("diloco-coordinator", &all, WAIT).await
    };
    let good = run(&["--check-config"]).await;
    assert!(good.status.success(), "{}", good.stderr);
    for (arguments, code) in [
        (vec!["--set", "bus.urll=x"], "DL0101"),
        (vec!["--set", "limits.transfers=many"], "DL0101"),
        (vec!["--set", "bus.url=nats://127.0.0.1:4222"], "DL0109"),
        (
            vec!["--set", "keys.manifest=/nowhere/manifest.nk"],
            "DL0102",
        ),
        (vec!["--set", "auth.layers.bulk=false"], "DL0101"),
        (vec!["--config", "/nowhere/coordinator.toml"], "DL0101"),
    ] {
        let output = run(&arguments).await;
        assert_eq!(
            output.status.code(),
            Some(64),
            "{arguments:?}: {}",
            output.stderr
        );
        assert!(
            output.stderr.contains(code),
            "{arguments:?}: {}",
            output.stderr
        );
        assert!(
            output.stderr.contains("\n  next: "),
            "{arguments:?}: {}",
            output.stderr
        );
    }
    assert_eq!(run(&["--unknown"]).await.status.code(), Some(64));
    let printed = run(&["--print-config", "--set", "limits.transfers=3"]).await;
    assert!(
        printed
            .stdout
            .contains("transfers = 3  # flag --set limits.transfers"),
        "{}",
        printed.stdout
    );
    // With an exception the start goes on until it needs the store, which is not there.
    let open = "auth.exceptions=[{ layer = \"bus\", reason = \"a test\" }]";
    let output = run(&[
        "--set",
        open,
        "--set",
        "store.url=https://127.0.0.1:1",
        "--set",
        "limits.store_patience=1s",
    ])
    .await;
    assert_eq!(output.status.code(), Some(5), "{}", output.stderr);
    assert!(
        output.stderr.contains("layer is open") && output.stderr.contains("a test"),
        "{}",
        output.stderr
    );
}
