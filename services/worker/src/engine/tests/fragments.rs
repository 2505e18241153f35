//! Fragments that sync at their own steps while the others train on.

use std::sync::atomic::Ordering;

use schemas::layout::Chunk;
use schemas::run::InnerOptimizer;
use trainer::{Batch, StepSettings};

use super::falling::{Device, Falling};
use super::*;

/// A session with two fragments of one parameter each, all starting at 1, and the global value of
/// each fragment as outer steps make it.
struct Streaming {
    session: Session,
    device: Arc<Device>,
    global: [f32; 2],
    versions: u64,
}

/// The difference of a fragment, to be encoded.
pub(super) fn capture(fragment: u32) -> Capture {
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
        let opening = falling::opening(PathBuf::from("nothing is saved here"), false);
        let mut streaming = Self {
            session: Falling::session(Arc::clone(&device), opening),
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

#[test]
fn fragments_cover_the_parameters_one_after_another() {
    let cuts: [&[std::ops::Range<usize>]; 4] = [&[], &[1..2, 2..2], &[1..2, 0..1], &[0..2, 2..3]];
    for fragments in cuts {
        let inner = PathBuf::from("nothing is saved here");
        let opening = Opening {
            fragments: fragments.to_vec(),
            ..falling::opening(inner, false)
        };
        let falling = Falling::new(Arc::default());
        let refused = Session::new(opening, Box::new(falling)).err();
        let code = refused.map(|refusal| refusal.code);
        assert_eq!(code, Some(Code::LayoutMismatch), "{fragments:?}");
    }
}
