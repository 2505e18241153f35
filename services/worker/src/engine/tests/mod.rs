mod base;
mod failures;
mod falling;
mod fragments;
mod inner_state;
mod private;
mod residual;
mod saving;
mod steps;

use data::{HeldOut, TokenShard, UnitSampler, encode_shard};
use merge::SeededRounding;
use merge::codec::{decode, encode};
use model::Preset;
use schemas::Tokens;
use schemas::run::{InnerOptimizer, Rounding};
use tokio_util::sync::CancellationToken;

use super::*;

/// All parameters, in a layout with one fragment.
const ALL: Fragment = Fragment(0);

const SEQUENCE: u32 = 16;

struct Scene {
    engine: Engine,
    thread: JoinHandle<()>,
    progress: watch::Receiver<(WorkId, Steps)>,
    opening: Opening,
    initial: Vec<f32>,
    scratch: tempfile::TempDir,
}

fn opening(preset: &str, folder: &std::path::Path) -> Opening {
    let model = Preset::named(preset).expect("a preset").config;
    let all = 0..usize::try_from(model.parameters()).expect("a small model");
    Opening {
        precision: Precision::Fp32,
        fragments: Vec::from([all]),
        inner: folder.join("run").join("inner.safetensors"),
        owner: "domain/run/settings".to_owned(),
        error_feedback: false,
        privacy: None,
        masked: false,
        model,
    }
}

fn start() -> (Engine, JoinHandle<()>, watch::Receiver<(WorkId, Steps)>) {
    let (told, progress) = watch::channel((WorkId(0), Steps(0)));
    let meter = Arc::new(Meter::default());
    let (engine, running) =
        Engine::start(TrainingSection::default(), meter, told).expect("a thread");
    (engine, running.thread, progress)
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
        Self::opened(opening(preset, scratch.path()), scratch).await
    }

    async fn opened(opening: Opening, scratch: tempfile::TempDir) -> Self {
        let (engine, thread, progress) = start();
        engine.open(opening.clone()).await.expect("a small model");
        let mut initial = vec![0.0; opening.model.parameters() as usize];
        opening.model.initial(1).fill(0, &mut initial);
        Self {
            engine,
            thread,
            progress,
            opening,
            initial,
            scratch,
        }
    }

    /// The next process on the same folder, after `change` to the saved state.
    async fn restarted(self, change: impl FnOnce(&std::path::Path)) -> Self {
        drop(self.engine);
        self.thread
            .join()
            .expect("it ends when nobody can ask any more");
        change(&self.opening.inner);
        Self::opened(self.opening, self.scratch).await
    }

    /// Loads the initial weights in chunks of `size`.
    async fn load(&self, base: Digest, size: usize) -> Result<(), Refusal> {
        let alpha = Alpha::TAKE_OVER;
        if self.engine.expect(ALL, base, alpha).await? {
            return self.engine.blend(ALL, base, alpha).await;
        }
        for (index, values) in self.initial.chunks(size).enumerate() {
            let mut bytes = vec![0; values.len() * 4];
            encode(CodecKind::Fp32, values, SeededRounding::NEAREST, &mut bytes)
                .expect("sizes agree");
            let start = index * size;
            self.engine
                .load(
                    ALL,
                    CodecKind::Fp32,
                    start..start + values.len(),
                    bytes.into(),
                )
                .await?;
        }
        self.engine.blend(ALL, base, alpha).await
    }

    /// Loads the initial weights under the name of the base.
    async fn load_base(&self) {
        let loaded = self.load(Digest::of(b"base"), 5000).await;
        loaded.expect("complete");
    }

    /// Passes one chunk of fp32 weights to the engine, right or wrong.
    async fn load_chunk(&self, range: Range<usize>, bytes: Bytes) {
        let loaded = self.engine.load(ALL, CodecKind::Fp32, range, bytes).await;
        loaded.expect("the thread lives");
    }

    /// Expects weights. Returns true if they are loaded already.
    async fn has(&self, weights: Digest) -> bool {
        let expected = self.engine.expect(ALL, weights, Alpha::TAKE_OVER).await;
        expected.expect("a model is open")
    }

    /// The code of the refusal of a blend.
    async fn blend_refused(&self, weights: Digest) -> Code {
        let blended = self.engine.blend(ALL, weights, Alpha::TAKE_OVER).await;
        blended.expect_err("they are not whole").code
    }

    async fn train(&self, training: Training) -> Trained {
        self.engine.train(training).await.expect("trains")
    }

    /// Reports a result that was refused for its numbers.
    async fn doubt(&self) {
        let refusal = Refusal::new(Code::NormOutlier, "too large");
        self.keep(1, ResultEnd::Refused(refusal)).await;
    }

    /// Reports the end of a unit.
    async fn keep(&self, work: u64, end: ResultEnd) {
        let kept = self.engine.keep(WorkId(work), end).await;
        kept.expect("the thread lives");
    }

    /// Opens the model again after it was dropped.
    async fn reopen(&self) {
        let opened = self.engine.open(self.opening.clone()).await;
        opened.expect("fresh moments");
    }

    /// Checks that no model is open any more.
    async fn model_is_gone(&self) {
        let base = Digest::of(b"base");
        let expected = self.engine.expect(ALL, base, Alpha::TAKE_OVER).await;
        assert_eq!(
            expected.expect_err("the model is gone").code,
            Code::Internal
        );
    }

    /// The decoded contribution.
    async fn contribution(&self, size: u64) -> Vec<f32> {
        let chunks = self
            .opening
            .model
            .layout()
            .chunks(size)
            .expect("few chunks");
        let capture = Capture {
            work: WorkId(1),
            fragment: ALL,
            stop: CancellationToken::new(),
            codec: CodecKind::Fp32,
            rounding: SeededRounding::NEAREST,
            chunks: chunks.into_iter().enumerate().collect(),
        };
        let mut arriving = self
            .engine
            .capture(capture.clone())
            .await
            .expect("the thread lives");
        let mut values = vec![f32::NAN; self.initial.len()];
        while let Some(chunk) = arriving.recv().await {
            let (index, bytes) = chunk.expect("encoded");
            decode(
                CodecKind::Fp32,
                &bytes,
                &mut values[capture.chunks[index].1.range()],
            )
            .expect("sizes agree");
        }
        values
    }
}
