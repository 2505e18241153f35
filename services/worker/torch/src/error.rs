//! libtorch's errors, cut to their first line: the rest is a C++ backtrace of several KiB.

use std::fmt;

use tch::TchError;
use trainer::TrainerError;

/// An error message of libtorch.
#[derive(Debug)]
pub(crate) struct TorchError(String);

impl TorchError {
    pub(crate) fn new(text: &str) -> Self {
        Self(
            text.lines()
                .next()
                .unwrap_or("no reason given")
                .trim()
                .to_owned(),
        )
    }
}

impl fmt::Display for TorchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "libtorch: {}", self.0)
    }
}

impl From<TchError> for TorchError {
    fn from(error: TchError) -> Self {
        let text = error.to_string();
        Self::new(text.strip_prefix("Internal torch error: ").unwrap_or(&text))
    }
}

impl From<TorchError> for TrainerError {
    fn from(error: TorchError) -> Self {
        Self::Device(error.to_string())
    }
}
