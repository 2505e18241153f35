//! Weights on a card against weights in this machine's memory. A test program of its own: whether
//! there is a card must be asked before libtorch is used without one.

#![expect(clippy::print_stderr, reason = "a test that is skipped says so")]

#[path = "../src/card/comparison.rs"]
mod comparison;

use comparison::compare;
use model::{ModelConfig, Preset};
use schemas::run::{InnerOptimizer, Precision};
use torch::{DeviceChoice, TorchOptions, TorchTrainer};
use trainer::{Batch, StepSettings, Trainer, load_inner};

/// A small model on the first card; `None` where there is no card.
fn on_a_card() -> Option<TorchTrainer> {
    let library = torch::init(DeviceChoice::Auto, 1).expect("the pinned library");
    if library.cuda_devices == 0 {
        eprintln!("skipped: this test needs a CUDA device, and libtorch finds none");
        return None;
    }
    let options = TorchOptions {
        device: DeviceChoice::Cuda(0),
        precision: Precision::Fp32,
        threads: 1,
    };
    let preset = Preset::named("tiny").expect("a preset");
    let ModelConfig::Llama(config) = preset.config else {
        panic!("a model for libtorch");
    };
    Some(TorchTrainer::new(&config, options).expect("a small model"))
}

fn elements(trainer: &TorchTrainer) -> usize {
    usize::try_from(trainer.layout().elements()).expect("a small model")
}

#[test]
fn weights_on_a_card_are_bit_for_bit_those_in_memory() {
    if let Some(mut trainer) = on_a_card() {
        let elements = elements(&trainer);
        compare(&mut *trainer.weights().expect("room for them"), elements);
    }
}

#[test]
fn parameters_and_moments_come_off_a_card_as_they_went_there() {
    let Some(mut trainer) = on_a_card() else {
        return;
    };
    let values: Vec<f32> = (0..elements(&trainer))
        .map(|at| (at % 1013) as f32 * 1e-5 - 0.005)
        .collect();
    trainer.set_parameters(0, &values).expect("fits");
    assert_eq!(trainer.parameters().expect("read"), values);
    let optimizer = InnerOptimizer::adamw(1e-3);
    let settings = StepSettings {
        optimizer: &optimizer,
        learning_rate: 1e-3,
        accumulation: 1,
    };
    let tokens: Vec<u32> = (0..34).collect();
    let batch = Batch::new(&tokens, 2, 16).expect("fits");
    let folder = tempfile::tempdir().expect("a folder");
    let (first, again) = (folder.path().join("first"), folder.path().join("again"));
    trainer.step(&batch, &settings).expect("steps");
    trainer.save_inner(&first).expect("saved");
    let mut resumed = on_a_card().expect("there was one");
    resumed.load_inner(&first).expect("loaded");
    resumed.save_inner(&again).expect("saved");
    let moments = load_inner(&first, trainer.layout()).expect("valid");
    assert!(moments.second.iter().any(|value| *value > 0.0));
    assert_eq!(
        load_inner(&again, trainer.layout()).expect("valid"),
        moments
    );
}
