//! A trainer played by the tests, on a device that fails when it is told to.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use model::SyntheticConfig;
use schemas::layout::Layout;
use trainer::{
    Arrival, Batch, EvaluationReport, Feedback, HostFeedback, HostResidual, HostWeights,
    InnerState, StepReport, StepSettings, Trainer, TrainerError, Weights,
};

use super::*;

/// A model of two parameters; every step subtracts 2 from each.
pub(super) struct Falling {
    layout: Layout,
    parameters: Vec<f32>,
    global: Vec<f32>,
    residual: HostResidual,
    device: Arc<Device>,
    steps: u64,
}

/// A device on which an operation may fail after its call has returned, as on a card.
#[derive(Default)]
pub(super) struct Device {
    pub(super) fails: AtomicBool,
    /// It fails at everything.
    pub(super) lost: AtomicBool,
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

/// Error feedback on a device that may fail.
struct FeedbackOnADevice<'a> {
    feedback: HostFeedback<'a>,
    device: &'a Device,
}

impl Feedback for FeedbackOnADevice<'_> {
    fn owe(&mut self, start: usize, values: &[f32]) -> Result<(), TrainerError> {
        self.feedback.owe(start, values)
    }

    fn encode(
        &mut self,
        codec: CodecKind,
        rounding: SeededRounding,
        pieces: &[Range<usize>],
        take: &mut dyn FnMut(Bytes) -> ControlFlow<()>,
    ) -> Result<(), TrainerError> {
        self.device.check()?;
        self.feedback.encode(codec, rounding, pieces, take)
    }

    fn keep(&mut self, range: Range<usize>) -> Result<bool, TrainerError> {
        self.feedback.keep(range)
    }

    fn forget(&mut self, range: Range<usize>) -> Result<(), TrainerError> {
        self.device.check()?;
        self.feedback.forget(range)
    }

    fn copy_owed(&mut self, values: &mut Vec<f32>) -> Result<(), TrainerError> {
        self.feedback.copy_owed(values)
    }
}

impl Falling {
    pub(super) fn new(device: Arc<Device>) -> Self {
        Self {
            layout: model().layout(),
            parameters: vec![0.0; 2],
            global: vec![0.0; 2],
            residual: HostResidual::default(),
            device,
            steps: 0,
        }
    }

    /// A session with it, in two fragments of one parameter each.
    pub(super) fn session(device: Arc<Device>, opening: Opening) -> Session {
        Session::new(opening, Box::new(Self::new(device))).expect("it fits")
    }
}

/// Opens a [`Falling`] whose inner state lies in this file.
pub(super) fn opening(inner: PathBuf, error_feedback: bool) -> Opening {
    Opening {
        model: model(),
        precision: Precision::Fp32,
        fragments: vec![0..1, 1..2],
        inner,
        owner: String::new(),
        error_feedback,
        privacy: None,
        masked: false,
    }
}

pub(super) fn model() -> ModelConfig {
    ModelConfig::Synthetic(SyntheticConfig {
        parameters: 2,
        step_ms: 0,
    })
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
        let (global, local) = (&self.global, &self.parameters);
        Ok(Box::new(FeedbackOnADevice {
            feedback: HostFeedback::new(global, local, &mut self.residual),
            device: &self.device,
        }))
    }

    fn step(&mut self, _: &Batch<'_>, _: &StepSettings<'_>) -> Result<StepReport, TrainerError> {
        self.parameters.iter_mut().for_each(|value| *value -= 2.0);
        self.steps += 1;
        Ok(StepReport {
            loss: 1.0,
            gradient_norm: 1.0,
            tokens: Tokens(1),
        })
    }

    fn evaluate(&mut self, _: &Batch<'_>) -> Result<EvaluationReport, TrainerError> {
        unreachable!("nothing is evaluated here")
    }

    /// The copy is half done when the device fails.
    fn capture_inner(&mut self, state: &mut InnerState) -> Result<(), TrainerError> {
        let moments = state.retake(&self.layout, self.steps);
        moments.copy(&[0.0; 2], &[1.0; 2]);
        self.device.check()
    }

    fn load_inner(&mut self, path: &Path) -> Result<(), TrainerError> {
        self.steps = trainer::load_inner(path, &self.layout)?.steps;
        Ok(())
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
