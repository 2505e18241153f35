//! The file of the inner state: taken up when a model is opened, put aside when it is no good.

use std::path::Path;

use schemas::{Code, Refusal};
use trainer::Trainer;

use super::residual;

/// Takes up the saved inner state; returns true when it did. One that does not fit, or cannot be
/// right, is put aside: training goes on with fresh moments.
pub(super) fn resume(trainer: &mut dyn Trainer, path: &Path) -> bool {
    match trainer.load_inner(path) {
        Ok(()) => {
            tracing::info!(path = %path.display(), "inner state taken up again");
            true
        }
        Err(error) => {
            let moved = put_aside(path);
            let (code, path) = (error.code(), path.display());
            tracing::warn!(%code, %path, %error, moved, "the saved inner state is passed over; moments start anew");
            false
        }
    }
}

/// Puts aside a state that led to a refused result.
pub(super) fn drop_state(path: &Path, refusal: &Refusal) {
    let moved = put_aside(path);
    // It went into the same contribution.
    residual::put_aside(path);
    let (code, path) = (Code::InnerStateDropped, path.display());
    tracing::warn!(%code, %path, %refusal, moved, "the inner state is dropped; the next unit begins with fresh moments");
}

/// Sets a refused state aside, so that a person can look at it; the one set aside before is
/// replaced.
fn put_aside(path: &Path) -> bool {
    std::fs::rename(path, path.with_extension("refused")).is_ok()
}

/// True when moments can be why a unit failed: its numbers went astray, here or in the
/// coordinator's eyes.
pub(super) const fn speaks_against_the_state(code: Code) -> bool {
    code.is_about_numbers() || matches!(code, Code::TrainingFailed)
}
