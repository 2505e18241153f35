//! Tests of the weights that a unit starts from, and of its contribution relative to them.

use super::*;

#[tokio::test]
async fn a_contribution_is_base_minus_local_however_it_is_cut() {
    let scene = Scene::new().await;
    scene.load_base().await;
    assert!(
        scene
            .contribution(7000)
            .await
            .iter()
            .all(|value| *value == 0.0),
        "nothing was trained"
    );
    let trained = scene.train(training(5, CancellationToken::new())).await;
    assert_eq!(
        (trained.steps, trained.tokens),
        (Steps(5), Tokens(5 * 4 * u64::from(SEQUENCE)))
    );
    assert!(trained.loss.is_finite());
    let (whole, cut) = (
        scene.contribution(1 << 20).await,
        scene.contribution(999).await,
    );
    assert_eq!(whole, cut);
    assert!(whole.iter().any(|value| *value != 0.0));
    // The same base again, without loading: the contribution is zero once more.
    let (base, alpha) = (Digest::of(b"base"), Alpha::TAKE_OVER);
    let here = scene.engine.expect(ALL, base, alpha).await;
    assert!(here.expect("at hand"));
    scene.engine.blend(ALL, base, alpha).await.expect("whole");
    assert!(
        scene
            .contribution(7000)
            .await
            .iter()
            .all(|value| *value == 0.0)
    );
}

#[tokio::test]
async fn an_incomplete_or_wrong_base_is_no_base() {
    let scene = Scene::new().await;
    let base = Digest::of(b"base");
    assert!(!scene.has(base).await);
    scene.load_chunk(0..2, Bytes::from_static(&[0; 8])).await;
    assert_eq!(scene.blend_refused(base).await, Code::LayoutMismatch);
    assert!(!scene.has(base).await, "it is not taken for complete");
    scene.load_chunk(0..2, Bytes::from_static(&[0; 7])).await;
    assert_eq!(scene.blend_refused(base).await, Code::SizeMismatch);
    assert!(!scene.has(base).await);
    let outside = usize::MAX - 2..usize::MAX;
    scene.load_chunk(outside, Bytes::from_static(&[0; 8])).await;
    assert_eq!(scene.blend_refused(base).await, Code::LayoutMismatch);
}

#[tokio::test]
async fn rounding_names_the_place_in_the_whole_vector() {
    let scene = Scene::new().await;
    scene.load_base().await;
    scene.train(training(1, CancellationToken::new())).await;
    let encoded = async |size: u64| {
        let rounding = SeededRounding {
            rule: Rounding::Stochastic,
            seed: 9,
            first_element: 0,
        };
        let chunks = scene
            .opening
            .model
            .layout()
            .chunks(size)
            .expect("few chunks");
        let capture = Capture {
            work: WorkId(1),
            fragment: ALL,
            stop: CancellationToken::new(),
            codec: CodecKind::Bf16,
            rounding,
            chunks: chunks.into_iter().enumerate().collect(),
        };
        let mut arriving = scene
            .engine
            .capture(capture)
            .await
            .expect("the thread lives");
        let mut bytes = Vec::new();
        while let Some(chunk) = arriving.recv().await {
            bytes.extend_from_slice(&chunk.expect("encoded").1);
        }
        bytes
    };
    assert_eq!(encoded(1 << 20).await, encoded(1000).await);
}
