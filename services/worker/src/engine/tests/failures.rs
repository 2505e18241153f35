//! A device that fails: at one operation, or at everything from then on.

use std::sync::atomic::Ordering;

use schemas::run::InnerOptimizer;

use super::falling::{Device, Falling};
use super::fragments::capture;
use super::*;

/// The file of a state after this many steps.
fn saved(folder: &std::path::Path, steps: u64) -> PathBuf {
    let path = folder.join("inner.safetensors");
    let layout = falling::model().layout();
    trainer::save_inner(&path, &layout, steps, &[0.0; 2], &[1.0; 2]).expect("written");
    path
}

/// Moments from a file are trusted once a result with them counts. Until then the numbers of a
/// result speak against them, and the device at work does not.
#[tokio::test]
async fn a_device_that_fails_while_a_contribution_is_encoded_leaves_the_moments_alone() {
    for error_feedback in [false, true] {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let inner = saved(scratch.path(), 7);
        let (engine, thread, _progress) = start();
        let device = Arc::new(Device::default());
        let adopted = Arc::clone(&device);
        let opening = falling::opening(inner.clone(), error_feedback);
        let adopt = Job::Adopt(Box::new(move || Falling::session(adopted, opening)));
        engine.send(adopt).await.expect("the thread lives");
        device.fails.store(true, Ordering::Relaxed);
        let chunks = engine.capture(capture(1)).await;
        let mut chunks = chunks.expect("the thread lives");
        let answer = chunks.recv().await.expect("one answer");
        let refusal = answer.expect_err("the device fails");
        assert_eq!(refusal.code, Code::DeviceFailed, "{refusal}");
        assert!(refusal.detail.contains("played by the test"), "{refusal}");
        // The unit ends with this refusal.
        device.fails.store(false, Ordering::Relaxed);
        let kept = engine.keep(WorkId(1), ResultEnd::Refused(refusal)).await;
        kept.expect("the thread lives");
        let asked = engine.expect(Fragment(0), Digest::of(b"x"), Alpha::TAKE_OVER);
        asked.await.expect("the model stays");
        assert!(inner.exists(), "the moments stay");
        drop(engine);
        thread.join().expect("it ends in order");
    }
}

/// A state that waits for the disk is whole; the copy of a newer one may fail half done.
#[test]
fn a_state_that_waits_is_written_if_a_newer_one_cannot_be_copied() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let inner = scratch.path().join("run").join("inner.safetensors");
    let device = Arc::new(Device::default());
    let opening = falling::opening(inner.clone(), false);
    let mut session = Falling::session(Arc::clone(&device), opening);
    let saver = Saver::start().expect("a thread");
    let step = |session: &mut Session| {
        let optimizer = InnerOptimizer::adamw(1.0);
        let settings = trainer::StepSettings {
            optimizer: &optimizer,
            learning_rate: 1.0,
            accumulation: 1,
        };
        let batch = trainer::Batch::new(&[0, 0], 1, 1).expect("fits");
        session.trainer.step(&batch, &settings).expect("falls");
    };
    for _ in 0..3 {
        step(&mut session);
    }
    saver.keep(&mut session);
    device.fails.store(true, Ordering::Relaxed);
    step(&mut session);
    saver.keep(&mut session);
    assert!(saver.has_waiting(), "the older one");
    saver.finish();
    let layout = falling::model().layout();
    let written = trainer::load_inner(&inner, &layout).expect("whole");
    assert_eq!(written.steps, 3);
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
        let opening = falling::opening(PathBuf::from("nothing is saved here"), false);
        let adopt = Job::Adopt(Box::new(move || Falling::session(adopted, opening)));
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
            assert_eq!(failed().await, Code::DeviceFailed);
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
