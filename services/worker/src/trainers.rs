//! The trainers of this build, and how they are made.

use model::ModelConfig;
use runtime::Failure;
use schemas::run::{Precision, TrainerKind};
use schemas::{Code, Refusal};
use trainer::Trainer;

use crate::config::TrainingSection;

/// The trainers of this build.
pub(crate) const AVAILABLE: &[TrainerKind] = if cfg!(feature = "torch") {
    &[
        TrainerKind::Torch,
        TrainerKind::Reference,
        TrainerKind::Synthetic,
    ]
} else {
    &[TrainerKind::Reference, TrainerKind::Synthetic]
};

/// The trainers that the configuration offers, and the name of the device that they compute on.
/// Prepares libtorch if one of them needs it.
///
/// # Errors
/// A trainer that this build does not have, a libtorch of another version, a device that is
/// missing.
pub(crate) fn offered(section: &TrainingSection) -> Result<(Vec<TrainerKind>, String), Failure> {
    let mut offered = if section.trainers.is_empty() {
        AVAILABLE.to_vec()
    } else {
        section.trainers.clone()
    };
    offered.sort_unstable();
    offered.dedup();
    if let Some(missing) = offered.iter().find(|kind| !AVAILABLE.contains(kind)) {
        let detail = format!("training.trainers names {missing:?}, this build has {AVAILABLE:?}");
        return Err(Failure::new(Code::TrainerMissing, detail));
    }
    let device = match offered.contains(&TrainerKind::Torch) {
        true => prepare_torch(section)?,
        false => format!("cpu x{}", section.threads),
    };
    Ok((offered, device))
}

/// A trainer for `config`, all parameters zero.
///
/// # Errors
/// This build has no trainer for it, or the device has no room for it.
pub(crate) fn build(
    config: &ModelConfig,
    section: &TrainingSection,
    precision: Precision,
) -> Result<Box<dyn Trainer>, Refusal> {
    match trainer::plain(config) {
        Some(trainer) => Ok(trainer),
        None => build_torch(config, section, precision),
    }
}

#[cfg(feature = "torch")]
fn prepare_torch(section: &TrainingSection) -> Result<String, Failure> {
    let choice = device(section).map_err(Failure::from)?;
    let library = torch::init(choice, section.threads)
        .map_err(|error| Failure::from(Refusal::from(error)))?;
    tracing::info!(
        version = library.version,
        cuda_devices = library.cuda_devices,
        "libtorch is ready"
    );
    Ok(match (choice, library.cuda_devices) {
        (torch::DeviceChoice::Cpu, _) | (torch::DeviceChoice::Auto, 0) => {
            format!("cpu x{}", section.threads)
        }
        (torch::DeviceChoice::Auto, _) => "cuda:0".to_owned(),
        (choice @ torch::DeviceChoice::Cuda(_), _) => choice.to_string(),
    })
}

#[cfg(feature = "torch")]
fn build_torch(
    config: &ModelConfig,
    section: &TrainingSection,
    precision: Precision,
) -> Result<Box<dyn Trainer>, Refusal> {
    let ModelConfig::Llama(config) = config else {
        return Err(Refusal::new(
            Code::TrainerMissing,
            "the model is none that libtorch trains",
        ));
    };
    let options = torch::TorchOptions {
        device: device(section)?,
        precision,
        threads: section.threads,
    };
    Ok(Box::new(torch::TorchTrainer::new(config, options)?))
}

#[cfg(feature = "torch")]
fn device(section: &TrainingSection) -> Result<torch::DeviceChoice, Refusal> {
    section
        .device
        .parse()
        .map_err(|error| Refusal::new(Code::ConfigInvalid, format!("training.device: {error}")))
}

#[cfg(not(feature = "torch"))]
fn prepare_torch(section: &TrainingSection) -> Result<String, Failure> {
    unreachable!(
        "a build without libtorch does not offer it, with {} threads or any",
        section.threads
    )
}

#[cfg(not(feature = "torch"))]
fn build_torch(
    config: &ModelConfig,
    _: &TrainingSection,
    _: Precision,
) -> Result<Box<dyn Trainer>, Refusal> {
    let detail = format!(
        "the model needs trainer {:?}, this build has {AVAILABLE:?}",
        config.trainer()
    );
    Err(Refusal::new(Code::TrainerMissing, detail))
}
