//! Inner steps and evaluations.

use super::*;

#[tokio::test]
async fn a_stopped_unit_ends_early_and_the_thread_goes_on() {
    let scene = Scene::new().await;
    scene.load_base().await;
    let stop = CancellationToken::new();
    stop.cancel();
    let error = scene
        .engine
        .train(training(1_000_000, stop))
        .await
        .expect_err("stopped");
    assert_eq!(error.code, Code::Interrupted);
    scene
        .engine
        .train(training(1, CancellationToken::new()))
        .await
        .expect("the next unit trains");
}

#[tokio::test]
async fn a_held_out_loss_is_the_same_in_any_batches() {
    let scene = Scene::new().await;
    scene.load_base().await;
    let mut losses = Vec::new();
    for batch_sequences in [1, 3, 100] {
        let evaluating = Evaluating {
            work: WorkId(1),
            stop: CancellationToken::new(),
            held_out: HeldOut::new(vec![shard()], 10, SEQUENCE as usize).expect("long enough"),
            batch_sequences,
            sequence_tokens: SEQUENCE,
        };
        let evaluation = scene.engine.evaluate(evaluating).await.expect("finite");
        assert_eq!(evaluation.tokens, Tokens(10 * u64::from(SEQUENCE)));
        losses.push(evaluation.loss_sum);
    }
    assert!(
        losses
            .iter()
            .all(|loss| (loss - losses[0]).abs() < 1e-3 * losses[0]),
        "{losses:?}"
    );
}

#[tokio::test]
async fn jobs_without_a_model_are_refused() {
    let (engine, ..) = start();
    assert_eq!(
        engine
            .expect(ALL, Digest::of(b"x"), Alpha::TAKE_OVER)
            .await
            .expect_err("no model")
            .code,
        Code::Internal
    );
    let error = engine
        .train(training(1, CancellationToken::new()))
        .await
        .expect_err("no model");
    assert_eq!(error.code, Code::Internal);
}

/// Jobs that may run between two steps run there; jobs that need the steps to be over wait.
#[tokio::test]
async fn jobs_are_taken_between_two_steps_in_their_order() {
    let scene = Scene::new().await;
    let base = Digest::of(b"base");
    scene.load(base, 5000).await.expect("complete");
    let stop = CancellationToken::new();
    let mut progress = scene.progress.clone();
    let evaluating = Evaluating {
        work: WorkId(2),
        stop: CancellationToken::new(),
        held_out: HeldOut::new(vec![shard()], 10, SEQUENCE as usize).expect("long enough"),
        batch_sequences: 10,
        sequence_tokens: SEQUENCE,
    };
    let meanwhile = async {
        progress.changed().await.expect("the thread lives");
        let difference = scene.contribution(5000).await;
        assert!(
            difference.iter().any(|value| *value != 0.0),
            "of some steps"
        );
        let keep = Alpha::new(1.0).expect("a share");
        let here = scene.engine.expect(ALL, base, keep).await;
        assert!(here.expect("there is such a fragment"));
        scene.engine.blend(ALL, base, keep).await.expect("whole");
        progress.borrow_and_update();
        progress.changed().await.expect("the thread lives");
        let further = scene.contribution(5000).await;
        assert_ne!(difference, further, "steps went on");
        let mut evaluation = Box::pin(scene.engine.evaluate(evaluating));
        let first = futures::future::poll_immediate(&mut evaluation).await;
        assert!(first.is_none(), "it waits for the end of the steps");
        stop.cancel();
        evaluation.await.expect("finite");
    };
    let training = scene.engine.train(training(u64::MAX, stop.clone()));
    let (trained, ()) = tokio::join!(training, meanwhile);
    assert_eq!(trained.expect_err("stopped").code, Code::Interrupted);
}
