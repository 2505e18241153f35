//! The residual through the engine: when it moves on, and that it outlives the process.

use super::*;

async fn scene() -> Scene {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let opening = Opening {
        error_feedback: true,
        ..opening("reference", scratch.path())
    };
    let scene = Scene::opened(opening, scratch).await;
    to_the_base(&scene).await;
    scene
}

/// Sets all parameters to the base.
async fn to_the_base(scene: &Scene) {
    let base = Digest::of(b"base");
    scene.load(base, 5000).await.expect("complete");
}

/// The present contribution in 4 bits a value.
async fn contribution(scene: &Scene) -> Vec<Bytes> {
    let chunks = scene.opening.model.layout().chunks(5000);
    let chunks = chunks.expect("few chunks");
    let capture = Capture {
        fragment: ALL,
        stop: CancellationToken::new(),
        codec: CodecKind::E3m0,
        rounding: SeededRounding::NEAREST,
        chunks: chunks.into_iter().enumerate().collect(),
    };
    let arriving = scene.engine.capture(capture).await;
    let mut arriving = arriving.expect("the thread lives");
    let mut encoded = Vec::new();
    while let Some(chunk) = arriving.recv().await {
        encoded.push(chunk.expect("encoded").1);
    }
    encoded
}

async fn train(scene: &Scene) {
    let trained = scene.engine.train(training(3, CancellationToken::new()));
    trained.await.expect("it learns");
}

#[tokio::test]
async fn what_was_not_sent_comes_with_the_next_contribution_when_the_result_counts() {
    let scene = scene().await;
    train(&scene).await;
    let first = contribution(&scene).await;
    // The lease is lost, then a result is refused.
    scene.engine.save().await.expect("the thread lives");
    assert_eq!(contribution(&scene).await, first);
    let refusal = Refusal::new(Code::SizeMismatch, "refused");
    scene.engine.doubt(refusal).await.expect("the thread lives");
    assert_eq!(
        contribution(&scene).await,
        first,
        "nothing of it was merged"
    );
    scene.engine.trust().await.expect("the thread lives");
    assert_ne!(contribution(&scene).await, first);
    // Of a unit that changes nothing all is residual.
    to_the_base(&scene).await;
    let nothing_new = contribution(&scene).await;
    assert!(nothing_new.iter().flatten().any(|byte| *byte != 0));
}

#[tokio::test]
async fn a_restart_keeps_the_residual() {
    let scene = scene().await;
    train(&scene).await;
    contribution(&scene).await;
    scene.engine.trust().await.expect("the thread lives");
    to_the_base(&scene).await;
    let before = contribution(&scene).await;
    assert!(before.iter().flatten().any(|byte| *byte != 0));
    let scene = scene.restarted(|inner| assert!(inner.exists())).await;
    to_the_base(&scene).await;
    assert_eq!(contribution(&scene).await, before);
    // A worker that was killed between the two files begins without one.
    let without = |inner: &std::path::Path| {
        std::fs::remove_file(inner.with_file_name("residual.safetensors")).expect("it is there");
    };
    let scene = scene.restarted(without).await;
    to_the_base(&scene).await;
    let fresh = contribution(&scene).await;
    assert!(fresh.iter().flatten().all(|byte| *byte == 0));
}

/// Moments and residual went into the same contribution.
#[tokio::test]
async fn a_state_that_is_dropped_takes_its_residual_along() {
    let scene = scene().await;
    train(&scene).await;
    contribution(&scene).await;
    scene.engine.trust().await.expect("the thread lives");
    let scene = scene.restarted(|_| ()).await;
    to_the_base(&scene).await;
    let refusal = Refusal::new(Code::NormOutlier, "too large");
    scene.engine.doubt(refusal).await.expect("the thread lives");
    let opening = scene.opening.clone();
    scene.engine.open(opening).await.expect("a small model");
    to_the_base(&scene).await;
    let fresh = contribution(&scene).await;
    assert!(fresh.iter().flatten().all(|byte| *byte == 0));
    let refused = scene.opening.inner.with_file_name("residual.refused");
    assert!(refused.exists());
}
