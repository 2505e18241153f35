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

/// Puts a loaded state aside after the first unit that used it failed, or had its result refused.
pub(super) fn put_state_aside(path: &Path, refusal: &Refusal) {
    let moved = put_aside(path);
    // The residual belongs to this state, and is of no use without it.
    residual::put_aside(path);
    let (code, path) = (Code::InnerStateDropped, path.display());
    tracing::warn!(%code, %path, %refusal, moved, "the saved inner state is put aside; the next unit begins with fresh moments");
}

/// Renames a state's file to `.refused`, so that a person can look at it; an earlier `.refused` is
/// overwritten. Returns false if the file could not be renamed.
fn put_aside(path: &Path) -> bool {
    std::fs::rename(path, path.with_extension("refused")).is_ok()
}

/// True if the loaded state may be the cause of a unit's failure: the coordinator refused its
/// numbers, or training failed on this worker.
pub(super) const fn may_be_caused_by_the_state(code: Code) -> bool {
    code.is_about_numbers() || matches!(code, Code::TrainingFailed)
}
