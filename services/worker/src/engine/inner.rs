//! The file of the inner state: loaded when a model is opened, and put aside when it is no good.

use std::path::Path;

use schemas::{Code, Refusal};
use trainer::Trainer;

use super::residual;

/// Loads the saved inner state. Returns true if it did. A state that does not fit, or whose values
/// are impossible, is put aside, and training goes on with fresh moments.
pub(super) fn resume(trainer: &mut dyn Trainer, path: &Path) -> bool {
    match trainer.load_inner(path) {
        Ok(()) => {
            tracing::info!(path = %path.display(), "inner state taken up again");
            true
        }
        Err(error) => {
            let moved = put_aside(path);
            let (code, path) = (error.code(), path.display());
            tracing::warn!(%code, %path, %error, moved, "the saved inner state is not used; moments start anew");
            false
        }
    }
}

/// Puts a state aside that led to a refused result.
pub(super) fn drop_state(path: &Path, refusal: &Refusal) {
    let moved = put_aside(path);
    // The residual went into the same contribution.
    residual::put_aside(path);
    let (code, path) = (Code::InnerStateDropped, path.display());
    tracing::warn!(%code, %path, %refusal, moved, "the inner state is dropped; the next unit begins with fresh moments");
}

/// Puts a refused state aside, so that a person can look at it. It replaces the one put aside
/// before.
fn put_aside(path: &Path) -> bool {
    std::fs::rename(path, path.with_extension("refused")).is_ok()
}

/// True if the moments may be the cause of a unit's failure: its numbers went astray, as seen here
/// or by the coordinator.
pub(super) const fn speaks_against_the_state(code: Code) -> bool {
    code.is_about_numbers() || matches!(code, Code::TrainingFailed)
}
