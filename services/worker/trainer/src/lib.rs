//! Training: the trait [`Trainer`], and the two implementations that need no libtorch. `reference`
//! is a small language model in plain Rust, for tests; `synthetic` does no mathematics, for load.
//! The third, `torch`, is a crate of its own.

mod adamw;
mod batch;
mod error;
mod feedback;
mod inner;
mod rate;
mod reference;
mod sampling;
mod synthetic;
mod weights;

use std::path::Path;

use model::ModelConfig;
use schemas::layout::Layout;
use schemas::run::InnerOptimizer;
use schemas::{Bytes, Tokens};

pub use batch::Batch;
pub use error::TrainerError;
pub use feedback::{Feedback, HostFeedback, HostResidual};
pub use inner::{InnerMoments, InnerState, inner_name, load_inner, save_inner};
pub use rate::inner_rate;
pub use reference::ReferenceTrainer;
pub use sampling::Sampler;
pub use synthetic::SyntheticTrainer;
pub use weights::{Arrival, HostWeights, Weights, check_range};

/// A model with its inner optimizer, on one device. All parameters are one flat fp32 vector in the
/// order of the layout.
///
/// A new trainer's parameters are zeros: set them before the first step.
pub trait Trainer: Send {
    /// The layout of the parameters.
    fn layout(&self) -> &Layout;

    /// Overwrites the parameters from element `start` of the flat vector on. The optimizer's
    /// moments stay.
    ///
    /// # Errors
    /// `values` reaches past the end, or the device failed.
    fn set_parameters(&mut self, start: usize, values: &[f32]) -> Result<(), TrainerError>;

    /// The flat vector: the live one on the CPU, a copy of it elsewhere.
    ///
    /// # Errors
    /// The device failed.
    fn parameters(&mut self) -> Result<&[f32], TrainerError>;

    /// One inner step: forward and backward over every micro-batch, clipping, AdamW.
    ///
    /// # Errors
    /// The batch does not fit the model, the device failed, or the loss or the gradient's norm is
    /// not finite. Parameters and moments are then as before.
    fn step(
        &mut self,
        batch: &Batch<'_>,
        settings: &StepSettings<'_>,
    ) -> Result<StepReport, TrainerError>;

    /// The loss on a batch; changes nothing.
    ///
    /// # Errors
    /// The batch does not fit the model, the device failed, or the loss is not finite.
    fn evaluate(&mut self, batch: &Batch<'_>) -> Result<EvaluationReport, TrainerError>;

    /// The weights that sync: the global weights, and the parameters as local weights. Changing
    /// them does not change the optimizer's moments.
    ///
    /// # Errors
    /// The device has no room for the global weights.
    fn weights(&mut self) -> Result<Box<dyn Weights + '_>, TrainerError>;

    /// Error feedback for [`Trainer::weights`].
    ///
    /// # Errors
    /// The device has no room for the residual.
    fn feedback(&mut self) -> Result<Box<dyn Feedback + '_>, TrainerError>;

    /// Copies moments and step count of the inner optimizer into `state`, whose memory is used
    /// again.
    ///
    /// # Errors
    /// The device failed.
    fn capture_inner(&mut self, state: &mut InnerState) -> Result<(), TrainerError>;

    /// Saves moments and step count of the inner optimizer to a safetensors file, atomically.
    ///
    /// # Errors
    /// The device failed, or the file cannot be written.
    fn save_inner(&mut self, path: &Path) -> Result<(), TrainerError> {
        let mut state = InnerState::default();
        self.capture_inner(&mut state)?;
        state.write(path)
    }

    /// Loads a state that [`Trainer::save_inner`] saved. Training then continues bit for bit as if
    /// it had not stopped.
    ///
    /// # Errors
    /// The file cannot be read or belongs to another layout; the trainer is as before.
    fn load_inner(&mut self, path: &Path) -> Result<(), TrainerError>;

    /// Continues `prompt` by `count` tokens drawn at `temperature` (0: the likeliest each time),
    /// from `seed`.
    ///
    /// # Errors
    /// A token or the temperature is out of bounds, or the device failed.
    fn generate(
        &mut self,
        prompt: &[u32],
        count: usize,
        temperature: f64,
        seed: u64,
    ) -> Result<Vec<u32>, TrainerError>;

    /// Asks the device, after an operation on it has failed, whether it still works.
    ///
    /// # Errors
    /// [`TrainerError::DeviceLost`].
    fn check_device(&mut self) -> Result<(), TrainerError> {
        Ok(())
    }

    /// Bytes of the device that the trainer holds; `None` where it computes on the processor.
    fn device_memory(&self) -> Option<Bytes> {
        None
    }

    /// The device and the arithmetic, for people: `cpu, 1 thread, bf16`.
    fn device(&self) -> String;
}

/// The share of the local weights when global weights arrive: `alpha * local + (1 - alpha) *
/// global`. In other software the same name stands for the share of the global weights. Here 0
/// takes over the global weights, and 1 keeps the local ones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Alpha(f32);

impl Alpha {
    /// The global weights replace the local ones.
    pub const TAKE_OVER: Self = Self(0.0);

    /// A share from 0 to 1.
    pub fn new(share: f32) -> Option<Self> {
        (0.0..=1.0).contains(&share).then_some(Self(share))
    }

    /// The share of the local weights.
    pub const fn share(self) -> f32 {
        self.0
    }
}

/// Settings of an inner step besides its batch.
#[derive(Clone, Copy, Debug)]
pub struct StepSettings<'a> {
    /// The run's inner optimizer.
    pub optimizer: &'a InnerOptimizer,
    /// This step's learning rate, from [`inner_rate`].
    pub learning_rate: f64,
    /// Micro-batches that the batch is cut into; divides its number of sequences.
    pub accumulation: u32,
}

/// The outcome of an inner step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Mean loss before the step, in nats a token.
    pub loss: f64,
    /// Euclidean norm of the gradient of the mean loss, before clipping.
    pub gradient_norm: f64,
    /// Tokens predicted.
    pub tokens: Tokens,
}

/// Loss on some text.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EvaluationReport {
    /// Sum over the tokens, in nats.
    pub loss_sum: f64,
    /// Tokens predicted.
    pub tokens: Tokens,
}

impl EvaluationReport {
    /// Mean loss in nats a token; `None` when there were no tokens.
    pub fn mean(&self) -> Option<f64> {
        (self.tokens.get() > 0).then(|| self.loss_sum / self.tokens.get() as f64)
    }
}

/// The trainer of a model that needs no libtorch; `None` for one that does.
pub fn plain(config: &ModelConfig) -> Option<Box<dyn Trainer>> {
    match config {
        ModelConfig::Reference(config) => Some(Box::new(ReferenceTrainer::new(config))),
        ModelConfig::Synthetic(config) => Some(Box::new(SyntheticTrainer::new(config))),
        ModelConfig::Llama(_) => None,
    }
}
