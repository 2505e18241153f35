//! Contributions of a private run: clipped and noised whatever the trainer, with nothing of earlier
//! units.

use schemas::layout::Chunk;

use super::*;

const PRIVACY: Privacy = Privacy {
    clip: 0.25,
    noise_multiplier: 0.5,
    delta: 1e-5,
    epsilon: 1e3,
};

/// A model of a private run, with its base in place.
async fn scene(error_feedback: bool) -> Scene {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let opening = Opening {
        privacy: Some(PRIVACY),
        error_feedback,
        ..opening("reference", scratch.path())
    };
    let scene = Scene::opened(opening, scratch).await;
    scene.load_base().await;
    scene
}

/// The contribution as fp32 values, captured in pieces of a thousand elements.
async fn contribution(scene: &Scene, work: u64) -> Vec<f32> {
    let elements = scene.initial.len();
    let chunk = |start: usize| Chunk {
        fragment: 0,
        start: start as u64,
        elements: (elements - start).min(1000) as u64,
    };
    let capture = Capture {
        work: WorkId(work),
        fragment: ALL,
        stop: CancellationToken::new(),
        codec: CodecKind::Fp32,
        rounding: SeededRounding::NEAREST,
        chunks: (0..elements).step_by(1000).map(chunk).enumerate().collect(),
    };
    let mut chunks = scene.engine.capture(capture).await.expect("a thread");
    let mut values = Vec::new();
    while let Some(made) = chunks.recv().await {
        let (_, bytes) = made.expect("it is made");
        let start = values.len();
        values.resize(start + bytes.len() / 4, 0.0);
        decode(CodecKind::Fp32, &bytes, &mut values[start..]).expect("sizes agree");
    }
    assert_eq!(values.len(), elements);
    values
}

fn norm(values: &[f32]) -> f64 {
    let squares = values.iter().map(|value| f64::from(*value).powi(2));
    squares.sum::<f64>().sqrt()
}

async fn train(scene: &Scene) -> Trained {
    let training = training(20, CancellationToken::new());
    scene.engine.train(training).await.expect("a small model")
}

#[tokio::test]
async fn tl_16_a_contribution_is_clipped_and_noised_before_it_leaves_the_engine() {
    let scene = scene(false).await;
    train(&scene).await;
    let values = contribution(&scene, 1).await;
    let (least, most) = PRIVACY.norms(values.len() as u64);
    assert!(
        least > 0.0 && (least..most).contains(&norm(&values)),
        "{}",
        norm(&values)
    );
    // Twenty steps lead farther than the clip, and the noise alone is known to a few percent.
    let noise = PRIVACY.clip * PRIVACY.noise_multiplier * (values.len() as f64).sqrt();
    assert!(
        (norm(&values) / noise - 1.0).abs() < 0.05,
        "{} {noise}",
        norm(&values)
    );
    // The same contribution once more is no second disclosure; that of another unit has other
    // noise.
    assert_eq!(contribution(&scene, 1).await, values);
    let other = contribution(&scene, 2).await;
    let apart: Vec<f32> = values
        .iter()
        .zip(&other)
        .map(|(one, two)| one - two)
        .collect();
    // What they have in common is gone, and the noise of both is left.
    let both = noise * 2.0_f64.sqrt();
    assert!(
        (norm(&apart) / both - 1.0).abs() < 0.05,
        "{} {both}",
        norm(&apart)
    );
}

#[tokio::test]
async fn tl_16_the_moments_of_a_private_run_do_not_outlive_a_unit() {
    let scene = scene(false).await;
    let first = train(&scene).await;
    scene
        .engine
        .keep(WorkId(1), ResultEnd::Counted)
        .await
        .expect("a thread");
    scene
        .engine
        .open(scene.opening.clone())
        .await
        .expect("a small model");
    // The same text from the same base, with fresh moments, is the same unit.
    scene.load_base().await;
    let second = train(&scene).await;
    assert_eq!(first.loss, second.loss);
    let inner = scene.opening.inner.clone();
    let scene = scene.restarted(|_| ()).await;
    assert!(!inner.exists(), "no state is kept");
    drop(scene);
}
