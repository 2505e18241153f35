//! `diloco-worker devices`: the trainers and devices that this build and machine have.

use std::io::Write as _;

use runtime::Failure;

use crate::config::TrainingSection;
use crate::trainers::{self, AVAILABLE};

/// Prints trainers and device.
///
/// # Errors
/// libtorch is of another version than this build needs.
pub fn devices() -> Result<(), Failure> {
    let (_, device) = trainers::offered(&TrainingSection::default())?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let names: Vec<String> = AVAILABLE
        .iter()
        .map(|kind| format!("{kind:?}").to_lowercase())
        .collect();
    // The reader may have closed the pipe, and wants no more.
    let _ = writeln!(
        std::io::stdout(),
        "trainers: {}\ndevice: {device}\ncores: {cores}",
        names.join(", ")
    );
    Ok(())
}
