use data::{TokenShard, encode_shard};
use merge::codec::encode;
use model::Preset;
use schemas::run::Rounding;

use super::*;

const SEQUENCE: u32 = 16;

struct Scene {
    engine: Engine,
    thread: JoinHandle<()>,
    opening: Opening,
    initial: Vec<f32>,
    scratch: tempfile::TempDir,
}

fn opening(preset: &str, folder: &std::path::Path) -> Opening {
    let model = Preset::named(preset).expect("a preset").config;
    Opening {
        model,
        precision: Precision::Fp32,
        inner: folder.join("run").join("inner.safetensors"),
    }
}

fn start() -> (Engine, JoinHandle<()>) {
    let (progress, _) = watch::channel((WorkId(0), Steps(0)));
    Engine::start(
        TrainingSection::default(),
        Arc::new(Meter::default()),
        progress,
    )
    .expect("a thread")
}

fn shard() -> TokenShard {
    let tokens: Vec<u32> = (0..2000_u32).map(|at| (at * at) % 251).collect();
    TokenShard::decode(encode_shard(&tokens, 1), 256).expect("valid")
}

fn training(steps: u64, stop: CancellationToken) -> Training {
    Training {
        work: WorkId(1),
        stop,
        sampler: UnitSampler::new(vec![shard()], 3, SEQUENCE as usize).expect("long enough"),
        optimizer: InnerOptimizer {
            warmup_steps: Steps(1),
            final_ratio: 0.1,
            ..InnerOptimizer::adamw(1e-2)
        },
        steps: Steps(steps),
        steps_before: Steps(0),
        steps_total: Steps(100),
        sequences: 4,
        accumulation: 2,
        sequence_tokens: SEQUENCE,
    }
}

impl Scene {
    async fn new() -> Self {
        Self::of("reference").await
    }

    async fn of(preset: &str) -> Self {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let opening = opening(preset, scratch.path());
        let (engine, thread) = start();
        engine.open(opening.clone()).await.expect("a small model");
        let mut initial = vec![0.0; opening.model.parameters() as usize];
        opening.model.initial(1).fill(0, &mut initial);
        Self {
            engine,
            thread,
            opening,
            initial,
            scratch,
        }
    }

    /// Loads the initial weights in chunks of `size`.
    async fn load(&self, base: Digest, size: usize) -> Result<(), Refusal> {
        if self.engine.begin(base).await? {
            return Ok(());
        }
        for (index, values) in self.initial.chunks(size).enumerate() {
            let mut bytes = vec![0; values.len() * 4];
            encode(CodecKind::Fp32, values, SeededRounding::NEAREST, &mut bytes)
                .expect("sizes agree");
            let start = index * size;
            self.engine
                .load(CodecKind::Fp32, start..start + values.len(), bytes.into())
                .await?;
        }
        self.engine.loaded(base).await
    }

    /// The contribution as the coordinator would read it.
    async fn contribution(&self, size: u64) -> Vec<f32> {
        let chunks = self
            .opening
            .model
            .layout()
            .chunks(size)
            .expect("few chunks");
        let encoding = Encoding {
            stop: CancellationToken::new(),
            codec: CodecKind::Fp32,
            rounding: SeededRounding::NEAREST,
            chunks,
        };
        let mut arriving = self
            .engine
            .encode(encoding.clone())
            .await
            .expect("the thread lives");
        let mut values = vec![f32::NAN; self.initial.len()];
        while let Some(chunk) = arriving.recv().await {
            let (index, bytes) = chunk.expect("encoded");
            decode(
                CodecKind::Fp32,
                &bytes,
                &mut values[encoding.chunks[index].range()],
            )
            .expect("sizes agree");
        }
        values
    }
}

#[tokio::test]
async fn a_contribution_is_base_minus_local_however_it_is_cut() {
    let scene = Scene::new().await;
    scene
        .load(Digest::of(b"base"), 5000)
        .await
        .expect("complete");
    assert!(
        scene
            .contribution(7000)
            .await
            .iter()
            .all(|value| *value == 0.0),
        "nothing was trained"
    );
    let trained = scene
        .engine
        .train(training(5, CancellationToken::new()))
        .await
        .expect("trains");
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
    // Back to the same base without loading it again: the contribution is nothing once more.
    assert!(
        scene
            .engine
            .begin(Digest::of(b"base"))
            .await
            .expect("at hand")
    );
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
    assert!(!scene.engine.begin(base).await.expect("at hand"));
    scene
        .engine
        .load(CodecKind::Fp32, 0..2, Bytes::from_static(&[0; 8]))
        .await
        .expect("the thread lives");
    assert_eq!(
        scene
            .engine
            .loaded(base)
            .await
            .expect_err("two of many")
            .code,
        Code::LayoutMismatch
    );
    assert!(
        !scene.engine.begin(base).await.expect("at hand"),
        "it is not taken for complete"
    );
    scene
        .engine
        .load(CodecKind::Fp32, 0..2, Bytes::from_static(&[0; 7]))
        .await
        .expect("the thread lives");
    assert_eq!(
        scene
            .engine
            .loaded(base)
            .await
            .expect_err("seven bytes")
            .code,
        Code::SizeMismatch
    );
    assert!(!scene.engine.begin(base).await.expect("at hand"));
    let outside = usize::MAX - 2..usize::MAX;
    scene
        .engine
        .load(CodecKind::Fp32, outside, Bytes::from_static(&[0; 8]))
        .await
        .expect("the thread lives");
    assert_eq!(
        scene.engine.loaded(base).await.expect_err("outside").code,
        Code::LayoutMismatch
    );
}

#[tokio::test]
async fn a_stopped_unit_ends_early_and_the_thread_goes_on() {
    let scene = Scene::new().await;
    scene
        .load(Digest::of(b"base"), 5000)
        .await
        .expect("complete");
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
async fn the_inner_state_survives_a_restart_and_a_damaged_one_is_put_aside() {
    let scene = Scene::new().await;
    let base = Digest::of(b"base");
    scene.load(base, 5000).await.expect("complete");
    scene
        .engine
        .train(training(3, CancellationToken::new()))
        .await
        .expect("trains");
    scene.engine.save().await.expect("the thread lives");
    scene.load(base, 5000).await.expect("back to the base");
    scene
        .engine
        .train(training(2, CancellationToken::new()))
        .await
        .expect("trains");
    let expected = scene.contribution(5000).await;
    let Scene {
        engine,
        thread,
        opening,
        initial,
        scratch,
    } = scene;
    drop(engine);
    thread.join().expect("it ends when nobody can ask any more");

    let (engine, thread) = start();
    engine.open(opening.clone()).await.expect("a small model");
    let scene = Scene {
        engine,
        thread,
        opening,
        initial,
        scratch,
    };
    scene.load(base, 4000).await.expect("complete");
    scene
        .engine
        .train(training(2, CancellationToken::new()))
        .await
        .expect("trains");
    assert_eq!(
        scene.contribution(5000).await,
        expected,
        "as if there had been no restart"
    );

    std::fs::write(&scene.opening.inner, b"damaged").expect("written");
    let (engine, _thread) = start();
    engine
        .open(scene.opening.clone())
        .await
        .expect("moments start anew");
    assert!(
        !scene.opening.inner.exists() && scene.opening.inner.with_extension("refused").exists()
    );
    assert!(scene.scratch.path().exists());
}

/// A scene whose model took a saved state up again, with the poison of `change` in the file before
/// it did.
async fn resumed(change: impl FnOnce(&std::path::Path)) -> Scene {
    resumed_with("reference", change).await
}

async fn resumed_with(preset: &str, change: impl FnOnce(&std::path::Path)) -> Scene {
    let scene = Scene::of(preset).await;
    let base = Digest::of(b"base");
    scene.load(base, 5000).await.expect("complete");
    scene
        .engine
        .train(training(3, CancellationToken::new()))
        .await
        .expect("trains");
    scene.engine.save().await.expect("the thread lives");
    let Scene {
        engine,
        thread,
        opening,
        initial,
        scratch,
    } = scene;
    drop(engine);
    thread.join().expect("it ends when nobody can ask any more");
    change(&opening.inner);
    let (engine, thread) = start();
    engine.open(opening.clone()).await.expect("a small model");
    let scene = Scene {
        engine,
        thread,
        opening,
        initial,
        scratch,
    };
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
    scene
        .engine
        .doubt(Refusal::new(Code::StoreUnreachable, "the line"))
        .await
        .expect("the thread lives");
    scene
        .engine
        .train(training(1, CancellationToken::new()))
        .await
        .expect("a dead line says nothing about moments");
    scene
        .engine
        .doubt(Refusal::new(Code::NormOutlier, "too large"))
        .await
        .expect("the thread lives");
    // What was dropped is not written again either.
    scene.engine.save().await.expect("the thread lives");
    let error = scene
        .engine
        .begin(Digest::of(b"base"))
        .await
        .expect_err("the model is gone");
    assert_eq!(error.code, Code::Internal);
    assert!(!scene.opening.inner.exists() && refused_file(&scene).exists());
    scene
        .engine
        .open(scene.opening.clone())
        .await
        .expect("fresh moments");
    scene
        .load(Digest::of(b"base"), 5000)
        .await
        .expect("complete");
    scene
        .engine
        .train(training(1, CancellationToken::new()))
        .await
        .expect("trains");
    // Moments that this process made itself are not what was taken up.
    scene
        .engine
        .doubt(Refusal::new(Code::NormOutlier, "too large"))
        .await
        .expect("the thread lives");
    assert!(
        scene.engine.begin(Digest::of(b"base")).await.is_ok(),
        "the model stays"
    );
}

/// A unit at a rate at which weights grow beyond all numbers within a few steps.
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

/// What comes of two steps from the base with fresh moments.
#[cfg(feature = "torch")]
async fn fresh() -> Vec<f32> {
    let scene = Scene::of("tiny").await;
    scene
        .load(Digest::of(b"base"), 5000)
        .await
        .expect("complete");
    scene
        .engine
        .train(training(2, CancellationToken::new()))
        .await
        .expect("trains");
    scene.contribution(5000).await
}

/// Each of its values can be. Together they throw the weights far off, which the coordinator sees.
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
    scene
        .engine
        .doubt(Refusal::new(Code::NormOutlier, "too large"))
        .await
        .expect("the thread lives");
    let error = scene
        .engine
        .begin(Digest::of(b"base"))
        .await
        .expect_err("the model is gone");
    assert_eq!(error.code, Code::Internal);
    assert!(!scene.opening.inner.exists() && refused_file(&scene).exists());
    // The next unit is that of a worker that never had a state.
    scene
        .engine
        .open(scene.opening.clone())
        .await
        .expect("fresh moments");
    scene
        .load(Digest::of(b"base"), 5000)
        .await
        .expect("complete");
    scene
        .engine
        .train(training(2, CancellationToken::new()))
        .await
        .expect("trains");
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
    let error = scene
        .engine
        .begin(Digest::of(b"base"))
        .await
        .expect_err("the model is gone");
    assert_eq!(error.code, Code::Internal);
    scene
        .engine
        .open(scene.opening.clone())
        .await
        .expect("fresh moments");
    scene
        .load(Digest::of(b"base"), 5000)
        .await
        .expect("complete");
    scene
        .engine
        .train(training(2, CancellationToken::new()))
        .await
        .expect("trains");
    assert_eq!(scene.contribution(5000).await, fresh().await);
    // Moments that this process made are not to blame for what fails next.
    scene
        .engine
        .train(astray())
        .await
        .expect_err("the loss is no number");
    assert!(
        scene.engine.begin(Digest::of(b"base")).await.is_ok(),
        "the model stays"
    );
}

#[tokio::test]
async fn a_state_that_led_to_a_result_that_counts_is_trusted() {
    let scene = resumed(|_| {}).await;
    scene
        .engine
        .train(training(1, CancellationToken::new()))
        .await
        .expect("trains");
    scene.engine.save().await.expect("the thread lives");
    scene
        .engine
        .doubt(Refusal::new(Code::NormOutlier, "too large"))
        .await
        .expect("the thread lives");
    assert!(
        scene.engine.begin(Digest::of(b"base")).await.is_ok(),
        "the model stays"
    );
    assert!(scene.opening.inner.exists());
}

#[tokio::test]
async fn a_held_out_loss_is_the_same_in_any_batches() {
    let scene = Scene::new().await;
    scene
        .load(Digest::of(b"base"), 5000)
        .await
        .expect("complete");
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
async fn rounding_names_the_place_in_the_whole_vector() {
    let scene = Scene::new().await;
    scene
        .load(Digest::of(b"base"), 5000)
        .await
        .expect("complete");
    scene
        .engine
        .train(training(1, CancellationToken::new()))
        .await
        .expect("trains");
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
        let encoding = Encoding {
            stop: CancellationToken::new(),
            codec: CodecKind::Bf16,
            rounding,
            chunks,
        };
        let mut arriving = scene
            .engine
            .encode(encoding)
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

#[tokio::test]
async fn jobs_without_a_model_are_refused() {
    let (engine, _thread) = start();
    assert_eq!(
        engine
            .begin(Digest::of(b"x"))
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
