//! Tests of the inner state across restarts, and of bad states.

use super::*;

#[tokio::test]
async fn the_inner_state_survives_a_restart_and_a_damaged_one_is_put_aside() {
    let scene = Scene::new().await;
    let base = Digest::of(b"base");
    scene.load(base, 5000).await.expect("complete");
    scene.train(training(3, CancellationToken::new())).await;
    scene.keep(1, ResultEnd::Unknown).await;
    scene.load(base, 5000).await.expect("back to the base");
    scene.train(training(2, CancellationToken::new())).await;
    let expected = scene.contribution(5000).await;
    let scene = scene.restarted(|_| {}).await;
    scene.load(base, 4000).await.expect("complete");
    scene.train(training(2, CancellationToken::new())).await;
    assert_eq!(
        scene.contribution(5000).await,
        expected,
        "as if there had been no restart"
    );

    std::fs::write(&scene.opening.inner, b"damaged").expect("written");
    let (engine, ..) = start();
    engine
        .open(scene.opening.clone())
        .await
        .expect("moments start anew");
    assert!(
        !scene.opening.inner.exists() && scene.opening.inner.with_extension("refused").exists()
    );
    assert!(scene.scratch.path().exists());
}

/// A scene whose model loaded a saved state, after `change` to the file.
async fn resumed(change: impl FnOnce(&std::path::Path)) -> Scene {
    resumed_with("reference", change).await
}

async fn resumed_with(preset: &str, change: impl FnOnce(&std::path::Path)) -> Scene {
    let scene = Scene::of(preset).await;
    let base = Digest::of(b"base");
    scene.load(base, 5000).await.expect("complete");
    scene.train(training(3, CancellationToken::new())).await;
    scene.keep(1, ResultEnd::Unknown).await;
    let scene = scene.restarted(change).await;
    scene.load(base, 5000).await.expect("complete");
    scene
}

fn refused_file(scene: &Scene) -> PathBuf {
    scene.opening.inner.with_extension("refused")
}

#[tokio::test]
async fn a_state_whose_values_cannot_be_is_put_aside_and_training_goes_on() {
    // The last four bytes of the file are the last element of the second moments.
    let poison = |value: f32| {
        move |path: &std::path::Path| {
            let mut bytes = std::fs::read(path).expect("saved");
            let end = bytes.len() - 4;
            bytes[end..].copy_from_slice(&value.to_le_bytes());
            std::fs::write(path, bytes).expect("written");
        }
    };
    for value in [f32::NAN, f32::INFINITY, -1.0] {
        let scene = resumed(poison(value)).await;
        assert!(
            !scene.opening.inner.exists() && refused_file(&scene).exists(),
            "{value}"
        );
        scene
            .engine
            .train(training(2, CancellationToken::new()))
            .await
            .expect("trains with fresh moments");
    }
}

#[tokio::test]
async fn a_unit_that_fails_right_after_a_state_was_taken_up_drops_it() {
    let scene = resumed(|_| {}).await;
    let of_the_line = Refusal::new(Code::StoreUnreachable, "the line");
    scene.keep(1, ResultEnd::Refused(of_the_line)).await;
    scene
        .engine
        .train(training(1, CancellationToken::new()))
        .await
        .expect("a dead line says nothing about moments");
    scene.doubt().await;
    // The dropped state is not written again either.
    scene.keep(1, ResultEnd::Unknown).await;
    scene.model_is_gone().await;
    assert!(!scene.opening.inner.exists() && refused_file(&scene).exists());
    scene.reopen().await;
    scene.load_base().await;
    scene.train(training(1, CancellationToken::new())).await;
    // Moments that this process made itself are not in doubt.
    scene.doubt().await;
    assert!(
        scene
            .engine
            .expect(ALL, Digest::of(b"base"), Alpha::TAKE_OVER)
            .await
            .is_ok(),
        "the model stays"
    );
}

/// A unit with a learning rate at which weights overflow within a few steps.
#[cfg(feature = "torch")]
fn astray() -> Training {
    let mut training = training(10, CancellationToken::new());
    training.optimizer.learning_rate = 1e10;
    training
}

#[cfg(feature = "torch")]
fn norm(values: &[f32]) -> f64 {
    values
        .iter()
        .map(|value| f64::from(*value).powi(2))
        .sum::<f64>()
        .sqrt()
}

/// The outcome of two steps from the base with fresh moments.
#[cfg(feature = "torch")]
async fn fresh() -> Vec<f32> {
    let scene = Scene::of("tiny").await;
    scene.load_base().await;
    scene.train(training(2, CancellationToken::new())).await;
    scene.contribution(5000).await
}

/// Each value is possible by itself. Together they throw the weights far off, which the coordinator
/// sees.
#[cfg(feature = "torch")]
#[tokio::test]
async fn a_state_that_led_libtorch_to_a_result_that_is_refused_is_dropped() {
    let layout = Preset::named("tiny").expect("a preset").config.layout();
    let scene = resumed_with("tiny", |path| {
        let moments = trainer::load_inner(path, &layout).expect("what was saved is good");
        let (first, second) = (
            vec![9e3; moments.first.len()],
            vec![1.0; moments.second.len()],
        );
        trainer::save_inner(path, &layout, 1000, &first, &second).expect("written");
    })
    .await;
    assert!(scene.opening.inner.exists(), "it was taken up");
    scene
        .engine
        .train(training(2, CancellationToken::new()))
        .await
        .expect("every number is one");
    let (spoilt, good) = (scene.contribution(5000).await, fresh().await);
    assert!(
        norm(&spoilt) > 100.0 * norm(&good),
        "{} and {}",
        norm(&spoilt),
        norm(&good)
    );
    scene.doubt().await;
    scene.model_is_gone().await;
    assert!(!scene.opening.inner.exists() && refused_file(&scene).exists());
    // The next unit is like that of a worker that never had a state.
    scene.reopen().await;
    scene.load_base().await;
    scene.train(training(2, CancellationToken::new())).await;
    assert_eq!(scene.contribution(5000).await, good);
}

#[cfg(feature = "torch")]
#[tokio::test]
async fn a_unit_that_fails_in_libtorch_right_after_a_state_was_taken_up_drops_it() {
    let scene = resumed_with("tiny", |_| {}).await;
    let error = scene
        .engine
        .train(astray())
        .await
        .expect_err("the loss is no number");
    assert_eq!(error.code, Code::TrainingFailed, "{error}");
    assert!(!scene.opening.inner.exists() && refused_file(&scene).exists());
    scene.model_is_gone().await;
    scene.reopen().await;
    scene.load_base().await;
    scene.train(training(2, CancellationToken::new())).await;
    assert_eq!(scene.contribution(5000).await, fresh().await);
    // Moments that this process made are not the cause of a later failure.
    scene
        .engine
        .train(astray())
        .await
        .expect_err("the loss is no number");
    assert!(
        scene
            .engine
            .expect(ALL, Digest::of(b"base"), Alpha::TAKE_OVER)
            .await
            .is_ok(),
        "the model stays"
    );
}

#[tokio::test]
async fn a_state_that_led_to_a_result_that_counts_is_trusted() {
    let scene = resumed(|_| {}).await;
    scene.train(training(1, CancellationToken::new())).await;
    scene.keep(1, ResultEnd::Counted).await;
    scene.doubt().await;
    assert!(
        scene
            .engine
            .expect(ALL, Digest::of(b"base"), Alpha::TAKE_OVER)
            .await
            .is_ok(),
        "the model stays"
    );
    assert!(scene.opening.inner.exists());
}
