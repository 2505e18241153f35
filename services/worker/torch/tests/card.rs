//! Weights on a card against weights in this machine's memory. This is a test program of its own,
//! since a process must look for a card before it uses libtorch without one.

#![expect(clippy::print_stderr, reason = "a test that is skipped says so")]

#[path = "../src/card/comparison.rs"]
mod comparison;

use std::ops::ControlFlow;

use comparison::{WithFeedback, compare, compare_feedback};
use merge::SeededRounding;
use merge::codec::{decode, encode_difference, encoded_bytes};
use model::{LlamaConfig, ModelConfig, Preset};
use schemas::run::{CodecKind, InnerOptimizer, Precision, Rounding};
use torch::{DeviceChoice, TorchOptions, TorchTrainer};
use trainer::{Arrival, Batch, Feedback, StepSettings, Trainer, Weights, load_inner};

/// A small model on the first card; `None` where there is no card.
fn on_a_card() -> Option<TorchTrainer> {
    let preset = Preset::named("tiny").expect("a preset");
    let ModelConfig::Llama(config) = preset.config else {
        panic!("a model for libtorch");
    };
    model_on_a_card(&config)
}

fn model_on_a_card(config: &LlamaConfig) -> Option<TorchTrainer> {
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
    Some(TorchTrainer::new(config, options).expect("a small model"))
}

struct OnACard(TorchTrainer);

impl WithFeedback for OnACard {
    fn weights(&mut self) -> Box<dyn Weights + '_> {
        self.0.weights().expect("room for them")
    }

    fn feedback(&mut self) -> Box<dyn Feedback + '_> {
        self.0.feedback().expect("room for it")
    }
}

fn elements(trainer: &TorchTrainer) -> usize {
    usize::try_from(trainer.layout().elements()).expect("a small model")
}

#[test]
fn weights_on_a_card_are_bit_for_bit_those_in_memory() {
    if let Some(mut trainer) = on_a_card() {
        let elements = elements(&trainer);
        compare(&mut *trainer.weights().expect("room for them"), elements);
        compare_feedback(&mut OnACard(trainer), elements);
    }
}

/// Copies of several slots, and blocks of work of which the last is not whole.
#[test]
fn vectors_longer_than_all_slots_cross_the_bus_both_ways() {
    let preset = Preset::named("tiny").expect("a preset");
    let ModelConfig::Llama(tiny) = preset.config else {
        panic!("a model for libtorch");
    };
    // 16.8 M values: 64 MiB in fp32, and more than four blocks of work.
    let config = LlamaConfig {
        vocabulary: (1 << 24) / tiny.hidden,
        ..tiny
    };
    let Some(trainer) = model_on_a_card(&config) else {
        return;
    };
    let elements = elements(&trainer);
    let mut card = OnACard(trainer);
    compare_feedback(&mut card, elements);
    let OnACard(mut trainer) = card;
    let value = |at: usize| (at.wrapping_mul(2_654_435_761) as u32 >> 8) as f32 * 1e-9 - 0.005;
    let values: Vec<f32> = (0..elements).map(value).collect();
    trainer.set_parameters(0, &values).expect("fits");
    assert!(trainer.parameters().expect("read") == values);
    let zeros = vec![0.0; elements];
    for codec in CodecKind::ALL.iter().copied() {
        let mut expected = vec![0; encoded_bytes(codec, elements)];
        let rounding = SeededRounding {
            rule: Rounding::Stochastic,
            seed: 5,
            first_element: 0,
        };
        encode_difference(codec, &zeros, &values, rounding, &mut expected).expect("sizes agree");
        let mut taken = Vec::new();
        let mut weights = trainer.weights().expect("room for them");
        let whole = 0..elements;
        weights
            .encode(
                codec,
                rounding,
                std::slice::from_ref(&whole),
                &mut |bytes| {
                    taken.push(bytes);
                    ControlFlow::Continue(())
                },
            )
            .expect("within");
        assert!(taken == [expected.clone()], "{codec:?}");
        weights
            .load(codec, whole.clone(), &expected, Arrival::Waits)
            .expect("fits");
        weights.settle().expect("the device is well");
        let mut decoded = vec![0.0; elements];
        decode(codec, &expected, &mut decoded).expect("sizes agree");
        assert!(weights.read(whole.clone()).expect("within").0 == decoded);
        let nothing = vec![0; 4 * elements];
        weights
            .load(CodecKind::Fp32, whole, &nothing, Arrival::Waits)
            .expect("fits");
    }
}

#[test]
fn a_card_tells_its_memory() {
    if let Some(mut trainer) = on_a_card() {
        let bytes = elements(&trainer) as u64 * 4;
        trainer.weights().expect("room for them");
        let held = trainer.device_memory().expect("a card counts it");
        // Parameters, two moments, global weights.
        assert!(held.get() >= 4 * bytes, "{held}");
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
