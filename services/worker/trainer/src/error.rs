//! Errors of trainers.

use model::FileError;
use schemas::Code;

/// The reason why a trainer refused or failed. In every case its parameters and moments are as
/// before.
#[derive(Debug, thiserror::Error)]
pub enum TrainerError {
    /// An argument does not fit the model.
    #[error("{0}")]
    Input(String),
    /// A chunk is not the encoding of its elements.
    #[error(transparent)]
    Codec(#[from] merge::CodecError),
    /// Training has diverged.
    #[error("{what} is {value} at inner step {step}; the step was not taken")]
    NotFinite {
        /// Loss or gradient norm.
        what: &'static str,
        /// The value.
        value: f64,
        /// The optimizer's step count.
        step: u64,
    },
    /// A logit of the model is not finite.
    #[error("the model's output holds {0}")]
    Output(f32),
    /// The library under the trainer refused an operation, or the device failed at it.
    #[error("{0}")]
    Device(String),
    /// The device fails at everything from now on, until the process ends.
    #[error("{0}")]
    DeviceLost(String),
    /// The configured device is not there.
    #[error("{0}")]
    DeviceMissing(String),
    /// libtorch is absent or of another version.
    #[error("{0}")]
    LibraryMissing(String),
    /// A saved inner state cannot be used.
    #[error("inner state: {0}")]
    State(String),
    /// A saved inner state has the right form, but values that no optimizer produces.
    #[error("inner state: {0}")]
    StateValues(String),
}

impl TrainerError {
    /// The code that an operator sees.
    pub const fn code(&self) -> Code {
        match self {
            Self::Input(_) | Self::NotFinite { .. } | Self::Output(_) => Code::TrainingFailed,
            Self::Device(_) => Code::DeviceFailed,
            Self::Codec(_) => Code::SizeMismatch,
            Self::DeviceLost(_) => Code::TrainingThreadLost,
            Self::DeviceMissing(_) => Code::DeviceMissing,
            Self::LibraryMissing(_) => Code::TorchMissing,
            Self::State(_) => Code::WorkerStateInvalid,
            Self::StateValues(_) => Code::InnerStateInvalid,
        }
    }
}

schemas::coded!(TrainerError);

impl From<FileError> for TrainerError {
    fn from(error: FileError) -> Self {
        Self::State(error.to_string())
    }
}
