//! Fragments that sync at their own steps while the others train on.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use model::SyntheticConfig;
use schemas::layout::{Chunk, Layout};
use schemas::run::InnerOptimizer;
use trainer::{
    Arrival, Batch, EvaluationReport, Feedback, HostFeedback, HostResidual, HostWeights,
    InnerState, StepReport, StepSettings, Trainer, TrainerError, Weights,
};

use super::*;

/// A model of two parameters; every step subtracts 2 from each.
struct Falling {
    layout: Layout,
    parameters: Vec<f32>,
    global: Vec<f32>,
    residual: HostResidual,
    device: Arc<Device>,
}

/// A device on which an operation may fail after its call has returned, as on a card.
#[derive(Default)]
struct Device {
    fails: AtomicBool,
    /// It fails at everything.
    lost: AtomicBool,
}

impl Device {
    fn check(&self) -> Result<(), TrainerError> {
        match self.fails.load(Ordering::Relaxed) {
            true => Err(TrainerError::Device("played by the test".to_owned())),
            false => Ok(()),
        }
    }
}

/// Weights whose device may fail.
struct OnADevice<'a> {
    weights: HostWeights<'a>,
    device: &'a Device,
}

impl Weights for OnADevice<'_> {
    fn load(
        &mut self,
        codec: CodecKind,
        range: Range<usize>,
        bytes: &[u8],
        arrival: Arrival,
    ) -> Result<(), TrainerError> {
        self.weights.load(codec, range, bytes, arrival)
    }

    fn blend(&mut self, range: Range<usize>, alpha: Alpha) -> Result<(), TrainerError> {
        self.weights.blend(range, alpha)
    }

    fn encode(
        &mut self,
        codec: CodecKind,
        rounding: SeededRounding,
        pieces: &[Range<usize>],
        take: &mut dyn FnMut(Bytes) -> ControlFlow<()>,
    ) -> Result<(), TrainerError> {
        self.device.check()?;
        self.weights.encode(codec, rounding, pieces, take)
    }

    fn read(&mut self, range: Range<usize>) -> Result<(&[f32], &[f32]), TrainerError> {
        self.weights.read(range)
    }

    fn settle(&mut self) -> Result<(), TrainerError> {
        self.device.check()?;
        self.weights.settle()
    }
}

impl Trainer for Falling {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn set_parameters(&mut self, start: usize, values: &[f32]) -> Result<(), TrainerError> {
        self.parameters[start..start + values.len()].copy_from_slice(values);
        Ok(())
    }

    fn parameters(&mut self) -> Result<&[f32], TrainerError> {
        Ok(&self.parameters)
    }

    fn weights(&mut self) -> Result<Box<dyn Weights + '_>, TrainerError> {
        Ok(Box::new(OnADevice {
            weights: HostWeights::new(&mut self.global, &mut self.parameters),
            device: &self.device,
        }))
    }

    fn feedback(&mut self) -> Result<Box<dyn Feedback + '_>, TrainerError> {
        Ok(Box::new(HostFeedback::new(
            &self.global,
            &self.parameters,
            &mut self.residual,
        )))
    }

    fn step(&mut self, _: &Batch<'_>, _: &StepSettings<'_>) -> Result<StepReport, TrainerError> {
        self.parameters.iter_mut().for_each(|value| *value -= 2.0);
        Ok(StepReport {
            loss: 1.0,
            gradient_norm: 1.0,
            tokens: Tokens(1),
        })
    }

    fn evaluate(&mut self, _: &Batch<'_>) -> Result<EvaluationReport, TrainerError> {
        unreachable!("nothing is evaluated here")
    }

    fn capture_inner(&mut self, _: &mut InnerState) -> Result<(), TrainerError> {
        unreachable!("nothing is saved here")
    }

    fn load_inner(&mut self, _: &Path) -> Result<(), TrainerError> {
        unreachable!("nothing was saved")
    }

    fn generate(&mut self, _: &[u32], _: usize, _: f64, _: u64) -> Result<Vec<u32>, TrainerError> {
        unreachable!("it speaks no language")
    }

    fn check_device(&mut self) -> Result<(), TrainerError> {
        match self.device.lost.load(Ordering::Relaxed) {
            true => Err(TrainerError::DeviceLost("played by the test".to_owned())),
            false => Ok(()),
        }
    }

    fn device(&self) -> String {
        "a test".to_owned()
    }
}

/// A session with two fragments of one parameter each, all starting at 1, and the global value of
/// each fragment as outer steps make it.
struct Streaming {
    session: Session,
    device: Arc<Device>,
    global: [f32; 2],
    versions: u64,
}

/// The difference of a fragment, to be encoded.
fn capture(fragment: u32) -> Capture {
    let chunk = Chunk {
        fragment,
        start: u64::from(fragment),
        elements: 1,
    };
    Capture {
        work: WorkId(1),
        fragment: Fragment(fragment),
        stop: CancellationToken::new(),
        codec: CodecKind::Fp32,
        rounding: SeededRounding::NEAREST,
        chunks: vec![(fragment as usize, chunk)],
    }
}

impl Streaming {
    fn new() -> Self {
        Self::on(Arc::default())
    }

    fn on(device: Arc<Device>) -> Self {
        let model = ModelConfig::Synthetic(SyntheticConfig {
            parameters: 2,
            step_ms: 0,
        });
        let falling = Falling {
            layout: model.layout(),
            parameters: vec![0.0; 2],
            global: vec![0.0; 2],
            residual: HostResidual::default(),
            device: Arc::clone(&device),
        };
        let opening = Opening {
            model,
            precision: Precision::Fp32,
            fragments: vec![0..1, 1..2],
            inner: PathBuf::from("nothing is saved here"),
            owner: String::new(),
            error_feedback: false,
        };
        let mut streaming = Self {
            session: Session::new(opening, Box::new(falling)).expect("it fits"),
            device,
            global: [1.0; 2],
            versions: 0,
        };
        assert!(streaming.session.begin_steps().is_err(), "no weights yet");
        for fragment in 0..2 {
            let arrived = streaming.arrive(fragment, Alpha::TAKE_OVER);
            streaming.blend(arrived);
        }
        streaming.session.begin_steps().expect("all are whole");
        streaming
    }

    fn step(&mut self) {
        let optimizer = InnerOptimizer::adamw(1.0);
        let settings = StepSettings {
            optimizer: &optimizer,
            learning_rate: 1.0,
            accumulation: 1,
        };
        let batch = Batch::new(&[0, 0], 1, 1).expect("fits");
        self.session.trainer.step(&batch, &settings).expect("falls");
    }

    /// The decoded difference of a fragment.
    fn capture(&mut self, fragment: u32) -> f32 {
        let (sender, mut chunks) = mpsc::channel(1);
        let captured = self.session.capture(&capture(fragment), &sender);
        captured.expect("it can be encoded");
        let (_, bytes) = chunks.try_recv().expect("one chunk").expect("encoded");
        let mut difference = [f32::NAN];
        decode(CodecKind::Fp32, &bytes, &mut difference).expect("sizes agree");
        difference[0]
    }

    /// Loads the global value of a fragment; the blend then changes the parameters.
    fn arrive(&mut self, fragment: u32, alpha: Alpha) -> (Fragment, Digest, Alpha) {
        self.versions += 1;
        let weights = Digest::of(&self.versions.to_le_bytes());
        let at = fragment as usize;
        let bytes = self.global[at].to_le_bytes();
        let fragment = Fragment(fragment);
        let here = self.session.expect(fragment, weights, alpha);
        assert!(!here.expect("there is such a fragment"));
        self.session
            .load(fragment, CodecKind::Fp32, at..at + 1, &bytes);
        (fragment, weights, alpha)
    }

    fn blend(&mut self, (fragment, weights, alpha): (Fragment, Digest, Alpha)) {
        self.session
            .blend(fragment, weights, alpha)
            .expect("all was loaded");
    }

    fn local(&mut self) -> (f32, f32) {
        let values = self.session.trainer.parameters().expect("on the CPU");
        (values[0], values[1])
    }
}

/// Two equal replicas. A fragment syncs every six steps, and the two fragments take turns every
/// three. The outer step is SGD with rate 2. The differences are taken `tau` steps before the
/// blend, and the new weights arrive at once, before the steps in between.
fn played(tau: usize, alpha: Alpha) -> (Vec<(f32, f32)>, Vec<f32>) {
    let mut streaming = Streaming::new();
    let (mut locals, mut globals) = (Vec::new(), Vec::new());
    let mut arrived = None;
    for step in 0..=15 {
        if step > 0 {
            streaming.step();
        }
        let sync = step + tau;
        if (3..=15).contains(&sync) && sync.is_multiple_of(3) {
            let fragment = u32::from(sync.is_multiple_of(6));
            let difference = streaming.capture(fragment);
            streaming.global[fragment as usize] -= 2.0 * difference;
            globals.push(streaming.global[fragment as usize]);
            arrived = Some(streaming.arrive(fragment, alpha));
        }
        if step > 0 && step.is_multiple_of(3) {
            streaming.blend(arrived.take().expect("captured before"));
            locals.push(streaming.local());
        }
    }
    globals.truncate(4);
    (locals, globals)
}

#[test]
fn captures_and_blends_come_to_the_golden_values_of_streaming() {
    let pairs = |first: [f32; 5], second: [f32; 5]| first.into_iter().zip(second).collect();
    let keeps: (Vec<(f32, f32)>, _) = (
        pairs(
            [-5.0, -11.0, -17.0, -23.0, -29.0],
            [-5.0, -11.0, -17.0, -23.0, -29.0],
        ),
        vec![-11.0, -23.0, -23.0, -23.0],
    );
    let golden = [
        (
            (0, 0.0),
            pairs(
                [-11.0, -17.0, -35.0, -41.0, -59.0],
                [-5.0, -23.0, -29.0, -47.0, -53.0],
            ),
            vec![-11.0, -23.0, -35.0, -47.0],
        ),
        (
            (0, 0.5),
            pairs(
                [-8.0, -14.0, -24.5, -30.5, -40.25],
                [-5.0, -17.0, -23.0, -32.0, -38.0],
            ),
            vec![-11.0, -23.0, -29.0, -35.0],
        ),
        ((0, 1.0), keeps.0.clone(), keeps.1),
        (
            (1, 0.0),
            pairs(
                [-7.0, -13.0, -27.0, -33.0, -47.0],
                [-5.0, -19.0, -25.0, -39.0, -45.0],
            ),
            vec![-7.0, -19.0, -27.0, -39.0],
        ),
        (
            (1, 0.5),
            pairs(
                [-6.0, -12.0, -21.5, -27.5, -35.75],
                [-5.0, -15.0, -21.0, -29.0, -35.0],
            ),
            vec![-7.0, -19.0, -25.0, -31.0],
        ),
        ((1, 1.0), keeps.0, vec![-7.0, -19.0, -23.0, -23.0]),
    ];
    for ((tau, share), locals, globals) in golden {
        let alpha = Alpha::new(share).expect("a share");
        assert_eq!(played(tau, alpha), (locals, globals), "{tau}, {share}");
    }
    assert_eq!(Alpha::new(0.0), Some(Alpha::TAKE_OVER));
    assert!(Alpha::new(1.5).is_none() && Alpha::new(f32::NAN).is_none());
}

#[test]
fn a_chunk_of_another_fragment_is_refused_both_ways() {
    let mut streaming = Streaming::new();
    let (first, weights) = (Fragment(0), Digest::of(b"new"));
    streaming
        .session
        .expect(first, weights, Alpha::TAKE_OVER)
        .expect("there is such a fragment");
    streaming
        .session
        .load(first, CodecKind::Fp32, 1..2, &9.0_f32.to_le_bytes());
    let refused = streaming.session.blend(first, weights, Alpha::TAKE_OVER);
    assert_eq!(refused.expect_err("outside").code, Code::LayoutMismatch);
    assert_eq!(streaming.local(), (1.0, 1.0));
    let beyond = Fragment(2);
    let refused = streaming.session.expect(beyond, weights, Alpha::TAKE_OVER);
    assert_eq!(refused.expect_err("two of them").code, Code::LayoutMismatch);
}

#[test]
fn a_device_that_fails_at_new_weights_fails_their_blend_and_no_step() {
    for alpha in [Alpha::TAKE_OVER, Alpha::new(0.5).expect("a share")] {
        let mut streaming = Streaming::new();
        streaming.session.end_steps();
        let (fragment, weights, alpha) = streaming.arrive(1, alpha);
        streaming.device.fails.store(true, Ordering::Relaxed);
        let refused = streaming.session.blend(fragment, weights, alpha);
        let refusal = refused.expect_err("the device fails");
        assert!(
            refusal.detail.contains("fragment 1") && refusal.detail.contains("played by the test"),
            "{refusal}"
        );
        assert!(streaming.session.begin_steps().is_err(), "no whole weights");
        streaming.device.fails.store(false, Ordering::Relaxed);
        let arrived = streaming.arrive(1, alpha);
        streaming.blend(arrived);
        streaming.session.begin_steps().expect("all are whole");
    }
}

/// A failure of one call is one unit's. Once the device fails at everything, each further unit
/// would fail too: the thread ends, whatever it was asked to do.
#[tokio::test]
async fn a_lost_device_ends_the_training_thread_and_a_failure_alone_does_not() {
    for capturing in [false, true] {
        let (told, _progress) = watch::channel((WorkId(0), Steps(0)));
        let started = Engine::start(TrainingSection::default(), Arc::default(), told);
        let (engine, running) = started.expect("a thread");
        let device = Arc::new(Device::default());
        let adopted = Arc::clone(&device);
        let adopt = Job::Adopt(Box::new(move || Streaming::on(adopted).session));
        engine.send(adopt).await.expect("the thread lives");
        // Once it answers, the model is at hand.
        let asked = engine
            .expect(Fragment(0), Digest::of(b"x"), Alpha::TAKE_OVER)
            .await;
        asked.expect("there is such a fragment");
        let failed = async || {
            if capturing {
                let chunks = engine.capture(capture(1)).await;
                let mut chunks = chunks.expect("the thread lives");
                let answer = chunks.recv().await.expect("one answer");
                return answer.expect_err("the device fails").code;
            }
            let weights = Digest::of(b"the next");
            let (fragment, alpha) = (Fragment(1), Alpha::TAKE_OVER);
            let here = engine.expect(fragment, weights, alpha).await;
            assert!(!here.expect("there is such a fragment"));
            let (codec, bytes) = (CodecKind::Fp32, vec![0; 4].into());
            let loaded = engine.load(fragment, codec, 1..2, bytes).await;
            loaded.expect("the thread lives");
            let blended = engine.blend(fragment, weights, alpha).await;
            blended.expect_err("the device fails").code
        };
        device.fails.store(true, Ordering::Relaxed);
        for _ in 0..2 {
            assert_eq!(failed().await, Code::TrainingFailed);
        }
        assert!(!running.ended.is_cancelled());
        device.lost.store(true, Ordering::Relaxed);
        assert_eq!(failed().await, Code::TrainingThreadLost);
        running.ended.cancelled().await;
        let joined = tokio::task::spawn_blocking(move || running.thread.join()).await;
        joined.expect("it joins").expect("it ended in order");
        let asked = engine
            .expect(Fragment(0), Digest::of(b"x"), Alpha::TAKE_OVER)
            .await;
        assert_eq!(
            asked.expect_err("nobody is there").code,
            Code::TrainingThreadLost
        );
    }
}

#[test]
fn fragments_cover_the_parameters_one_after_another() {
    let model = ModelConfig::Synthetic(SyntheticConfig {
        parameters: 2,
        step_ms: 0,
    });
    let cuts: [&[std::ops::Range<usize>]; 4] = [&[], &[1..2, 2..2], &[1..2, 0..1], &[0..2, 2..3]];
    for fragments in cuts {
        let opening = Opening {
            model: model.clone(),
            precision: Precision::Fp32,
            fragments: fragments.to_vec(),
            inner: PathBuf::from("nothing is saved here"),
            owner: String::new(),
            error_feedback: false,
        };
        let falling = Falling {
            layout: model.layout(),
            parameters: vec![0.0; 2],
            global: vec![0.0; 2],
            residual: HostResidual::default(),
            device: Arc::default(),
        };
        let refused = Session::new(opening, Box::new(falling)).err();
        let code = refused.map(|refusal| refusal.code);
        assert_eq!(code, Some(Code::LayoutMismatch), "{fragments:?}");
    }
}
