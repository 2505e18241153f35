//! The trainer as its users see it: it learns, repeats, resumes, and refuses bad input.

use std::path::Path;

use model::{LlamaConfig, ModelConfig};
use schemas::run::{InnerOptimizer, Precision, TrainerKind};
use schemas::{Code, Tokens};
use torch::{DeviceChoice, TorchOptions, TorchTrainer};
use trainer::{Batch, InnerMoments, StepReport, StepSettings, Trainer, load_inner, save_inner};

const OPTIMIZER: InnerOptimizer = InnerOptimizer::adamw(3e-3);
const SETTINGS: StepSettings<'static> = StepSettings {
    optimizer: &OPTIMIZER,
    learning_rate: 3e-3,
    accumulation: 1,
};
const VOCABULARY: u32 = 61;
const SEQUENCES: usize = 4;
const SEQUENCE_TOKENS: usize = 16;

fn config(tied: bool) -> LlamaConfig {
    let json = format!(
        r#"{{"model_type": "llama", "vocab_size": {VOCABULARY}, "hidden_size": 32, "intermediate_size": 64,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 64, "tie_word_embeddings": {tied}}}"#
    );
    match ModelConfig::parse(TrainerKind::Torch, json.as_bytes()) {
        Ok(ModelConfig::Llama(config)) => config,
        other => panic!("{other:?}"),
    }
}

fn trainer(tied: bool, precision: Precision) -> TorchTrainer {
    let config = config(tied);
    let options = TorchOptions {
        device: DeviceChoice::Cpu,
        precision,
        threads: 1,
    };
    let mut trainer = TorchTrainer::new(&config, options).expect("a trainer");
    let initial = ModelConfig::Llama(config).initial(7);
    let mut values = vec![0.0; initial.elements() as usize];
    initial.fill(0, &mut values);
    trainer.set_parameters(0, &values).expect("fits");
    trainer
}

fn tokens() -> Vec<u32> {
    let row = |row: u32| {
        (0..=SEQUENCE_TOKENS as u32).map(move |i| (row * 17 + i * i * (row + 3)) % VOCABULARY)
    };
    (0..SEQUENCES as u32).flat_map(row).collect()
}

fn batch(tokens: &[u32]) -> Batch<'_> {
    Batch::new(tokens, SEQUENCES, SEQUENCE_TOKENS).expect("fits")
}

fn train(trainer: &mut TorchTrainer, steps: u32) -> StepReport {
    let tokens = tokens();
    let step = |_| trainer.step(&batch(&tokens), &SETTINGS).expect("steps");
    (0..steps).map(step).last().expect("at least one step")
}

fn parameters(trainer: &mut TorchTrainer) -> Vec<f32> {
    trainer.parameters().expect("on the CPU").to_vec()
}

/// The gradient of one step, from the first moment that it leaves.
fn gradient(
    trainer: &mut TorchTrainer,
    batch: &Batch<'_>,
    settings: &StepSettings<'_>,
    folder: &Path,
) -> Vec<f32> {
    let path = folder.join("inner.safetensors");
    trainer.step(batch, settings).expect("steps");
    trainer.save_inner(&path).expect("saved");
    let moments = load_inner(&path, trainer.layout()).expect("loaded");
    assert_eq!(moments.steps, 1);
    let part = 1.0 - settings.optimizer.beta1 as f32;
    moments.first.iter().map(|value| value / part).collect()
}

#[test]
fn starts_at_the_entropy_of_a_guess() {
    let tokens = tokens();
    for tied in [true, false] {
        let report = trainer(tied, Precision::Fp32)
            .evaluate(&batch(&tokens))
            .expect("evaluates");
        let mean = report.mean().expect("tokens");
        assert_eq!(report.tokens, Tokens(64));
        assert!((mean - f64::from(VOCABULARY).ln()).abs() < 0.1, "{mean}");
    }
}

#[test]
fn learns_a_batch_by_heart_in_both_precisions() {
    for precision in [Precision::Fp32, Precision::Bf16] {
        let mut trainer = trainer(false, precision);
        let first = train(&mut trainer, 1);
        let last = train(&mut trainer, 150);
        assert!(
            first.loss > 4.0 && last.loss < 0.1,
            "{precision:?}: {} then {}",
            first.loss,
            last.loss
        );
        assert!(first.gradient_norm.is_finite() && first.tokens == Tokens(64));
    }
}

#[test]
fn gradient_agrees_with_finite_differences() {
    let folder = tempfile::tempdir().expect("a folder");
    let tokens = tokens();
    let optimizer = InnerOptimizer {
        clip_norm: 0.0,
        ..OPTIMIZER
    };
    let settings = StepSettings {
        optimizer: &optimizer,
        learning_rate: 0.0,
        accumulation: 1,
    };
    let mut trainer = trainer(true, Precision::Fp32);
    // Larger weights than at the start, so that differences stand out from rounding.
    let values: Vec<f32> = parameters(&mut trainer)
        .iter()
        .map(|v| if *v == 1.0 { 1.0 } else { v * 8.0 })
        .collect();
    trainer.set_parameters(0, &values).expect("fits");
    let gradient = gradient(&mut trainer, &batch(&tokens), &settings, folder.path());
    let mut mean_at = |index: usize, value: f32| {
        trainer.set_parameters(index, &[value]).expect("fits");
        trainer
            .evaluate(&batch(&tokens))
            .expect("evaluates")
            .mean()
            .expect("tokens")
    };
    let mut compared = 0;
    for index in (0..gradient.len()).step_by(41) {
        let width = 4e-3;
        let above = mean_at(index, values[index] + width);
        let below = mean_at(index, values[index] - width);
        mean_at(index, values[index]);
        let slope = (above - below) / (2.0 * f64::from(width));
        let got = f64::from(gradient[index]);
        assert!(
            (got - slope).abs() < 1e-3 + 0.03 * slope.abs(),
            "element {index}: {got}, differences say {slope}"
        );
        compared += usize::from(slope.abs() > 1e-2);
    }
    assert!(
        compared > 20,
        "only {compared} slopes were large enough to mean something"
    );
}

#[test]
fn micro_batches_and_clipping_change_the_gradient_as_they_should() {
    let folder = tempfile::tempdir().expect("a folder");
    let tokens = tokens();
    let optimizer = InnerOptimizer {
        clip_norm: 0.0,
        ..OPTIMIZER
    };
    let one = |settings: &StepSettings<'_>| {
        gradient(
            &mut trainer(false, Precision::Fp32),
            &batch(&tokens),
            settings,
            folder.path(),
        )
    };
    let norm = |values: &[f32]| {
        values
            .iter()
            .map(|v| f64::from(*v).powi(2))
            .sum::<f64>()
            .sqrt()
    };
    let whole = one(&StepSettings {
        optimizer: &optimizer,
        ..SETTINGS
    });
    let parts = one(&StepSettings {
        optimizer: &optimizer,
        accumulation: 4,
        ..SETTINGS
    });
    let difference: Vec<f32> = whole.iter().zip(&parts).map(|(a, b)| a - b).collect();
    assert!(norm(&difference) < 1e-5 * norm(&whole));
    let bound = norm(&whole) / 3.0;
    let optimizer = InnerOptimizer {
        clip_norm: bound,
        ..OPTIMIZER
    };
    let clipped = one(&StepSettings {
        optimizer: &optimizer,
        accumulation: 2,
        ..SETTINGS
    });
    assert!(
        (norm(&clipped) / bound - 1.0).abs() < 1e-4,
        "{} and {bound}",
        norm(&clipped)
    );
    let report = trainer(false, Precision::Fp32)
        .step(&batch(&tokens), &SETTINGS)
        .expect("steps");
    assert!(
        (report.gradient_norm / norm(&whole) - 1.0).abs() < 1e-4,
        "the norm is reported before clipping"
    );
}

#[test]
fn the_same_steps_give_the_same_bits() {
    for precision in [Precision::Fp32, Precision::Bf16] {
        let run = || {
            let mut trainer = trainer(true, precision);
            train(&mut trainer, 5);
            parameters(&mut trainer)
        };
        assert!(run() == run(), "{precision:?}");
    }
}

#[test]
fn resumes_bit_for_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("inner.safetensors");
    let mut whole = trainer(true, Precision::Fp32);
    train(&mut whole, 8);
    let mut half = trainer(true, Precision::Fp32);
    train(&mut half, 4);
    half.save_inner(&path).expect("saved");
    let values = parameters(&mut half);
    let mut resumed = trainer(true, Precision::Fp32);
    train(&mut resumed, 2);
    resumed.load_inner(&path).expect("loaded");
    resumed.set_parameters(0, &values).expect("fits");
    train(&mut resumed, 4);
    assert!(parameters(&mut resumed) == parameters(&mut whole));
    let error = trainer(false, Precision::Fp32)
        .load_inner(&path)
        .expect_err("another layout");
    assert_eq!(error.code(), Code::WorkerStateInvalid);
}

/// A change to a state, with its name.
type Poison<'a> = (&'a str, &'a dyn Fn(&mut InnerMoments));

/// The trainer itself wrote each state, so its form is right; then the test changed some of its
/// numbers.
#[test]
fn a_state_that_cannot_be_is_refused_by_its_values_and_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("inner.safetensors");
    let mut trained = trainer(true, Precision::Fp32);
    train(&mut trained, 3);
    trained.save_inner(&path).expect("saved");
    let good =
        load_inner(&path, trained.layout()).expect("the state of a trainer is taken up again");
    let largest =
        (0..good.first.len()).max_by(|a, b| good.first[*a].abs().total_cmp(&good.first[*b].abs()));
    let at = largest.expect("parameters");
    assert!(
        good.first[at] != 0.0 && good.second[at] > 0.0,
        "the gradient reached it"
    );
    let poisons: [Poison<'_>; 10] = [
        ("second NaN", &|moments| moments.second[at] = f32::NAN),
        ("second infinite", &|moments| {
            moments.second[at] = f32::INFINITY
        }),
        ("second negative", &|moments| {
            moments.second[at] = -moments.second[at]
        }),
        ("second zero where the first is none", &|moments| {
            moments.second[at] = 0.0
        }),
        ("second zero everywhere", &|moments| {
            moments.second.fill(0.0)
        }),
        ("first NaN", &|moments| moments.first[at] = f32::NAN),
        ("first infinite", &|moments| {
            moments.first[at] = f32::NEG_INFINITY
        }),
        ("first too large for its second", &|moments| {
            moments.first[at] = 1e5 * moments.second[at].sqrt()
        }),
        ("moments without a step", &|moments| moments.steps = 0),
        ("steps that no run has", &|moments| moments.steps = u64::MAX),
    ];
    let values = parameters(&mut trained);
    for (name, poison) in poisons {
        let mut moments = good.clone();
        poison(&mut moments);
        save_inner(
            &path,
            trained.layout(),
            moments.steps,
            &moments.first,
            &moments.second,
        )
        .expect("written");
        let error = trained.load_inner(&path).expect_err(name);
        assert_eq!(error.code(), Code::InnerStateInvalid, "{name}: {error}");
        assert!(
            error.to_string().contains("inner.safetensors"),
            "{name}: {error}"
        );
    }
    assert!(
        parameters(&mut trained) == values,
        "the parameters are as they were"
    );
    // So are the moments: the next steps are those of a trainer that was never offered that state.
    train(&mut trained, 2);
    let mut untouched = trainer(true, Precision::Fp32);
    train(&mut untouched, 5);
    assert!(parameters(&mut trained) == parameters(&mut untouched));
}

#[test]
fn a_state_of_another_shape_is_refused_and_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("inner.safetensors");
    let mut trained = trainer(true, Precision::Fp32);
    train(&mut trained, 3);
    trained.save_inner(&path).expect("saved");
    let whole = std::fs::read(&path).expect("bytes");
    let moments = load_inner(&path, trained.layout()).expect("read");
    // The fingerprint is that of the right layout, the vectors have an element less.
    let metadata = model::TensorFile::open(&path).expect("opens");
    let keys = ["kind", "layout", "steps"];
    let metadata = keys
        .map(|key| {
            (
                key.to_owned(),
                metadata.metadata(key).expect("it is there").to_owned(),
            )
        })
        .into_iter()
        .collect();
    let shorter = moments.first.len() - 1;
    let shape = [shorter as u64];
    let tensors = [
        ("first_moment", &moments.first),
        ("second_moment", &moments.second),
    ];
    let tensors = tensors.map(|(name, values)| model::NamedTensor {
        name,
        shape: &shape,
        values: &values[..shorter],
    });
    model::write_tensors(&path, &metadata, tensors.to_vec()).expect("written");
    let short = std::fs::read(&path).expect("bytes");
    for (name, bytes) in [
        ("an element less", &short[..]),
        ("cut off", &whole[..whole.len() - 4]),
        ("empty", &[]),
    ] {
        std::fs::write(&path, bytes).expect("written");
        let error = trained.load_inner(&path).expect_err(name);
        assert_eq!(error.code(), Code::WorkerStateInvalid, "{name}: {error}");
    }
    train(&mut trained, 2);
    let mut untouched = trainer(true, Precision::Fp32);
    train(&mut untouched, 5);
    assert!(parameters(&mut trained) == parameters(&mut untouched));
}

#[test]
fn bf16_stays_close_to_fp32() {
    let tokens = tokens();
    let [exact, rounded] = [Precision::Fp32, Precision::Bf16].map(|precision| {
        let mut trainer = trainer(true, precision);
        let step = train(&mut trainer, 20);
        (
            step,
            trainer
                .evaluate(&batch(&tokens))
                .expect("evaluates")
                .mean()
                .expect("tokens"),
        )
    });
    assert!(
        (exact.1 - rounded.1).abs() < 0.05 * exact.1,
        "{exact:?} and {rounded:?}"
    );
    assert!(exact.1 != rounded.1, "bf16 was on");
}

#[test]
fn numbers_that_are_not_finite_stop_the_step_and_change_nothing() {
    let tokens = tokens();
    let mut trainer = trainer(true, Precision::Fp32);
    train(&mut trainer, 1);
    let good = parameters(&mut trainer);
    trainer.set_parameters(100, &[f32::NAN]).expect("fits");
    let bits = |trainer: &mut TorchTrainer| {
        parameters(trainer)
            .iter()
            .map(|v| v.to_bits())
            .collect::<Vec<_>>()
    };
    let before = bits(&mut trainer);
    let error = trainer
        .step(&batch(&tokens), &SETTINGS)
        .expect_err("the loss is not a number");
    assert_eq!(error.code(), Code::TrainingFailed);
    assert!(error.to_string().contains("NaN"), "{error}");
    assert!(bits(&mut trainer) == before);
    assert!(trainer.evaluate(&batch(&tokens)).is_err());
    // The failed step leaves no gradient behind: going on is the same as if it had not been tried.
    trainer.set_parameters(0, &good).expect("fits");
    train(&mut trainer, 1);
    let mut other = self::trainer(true, Precision::Fp32);
    train(&mut other, 2);
    assert!(parameters(&mut trainer) == parameters(&mut other));
}

#[test]
fn bad_input_is_an_error_and_not_a_panic() {
    let mut trainer = trainer(true, Precision::Fp32);
    let outside = [VOCABULARY; 17];
    assert!(
        trainer
            .step(&Batch::new(&outside, 1, 16).expect("fits"), &SETTINGS)
            .is_err()
    );
    let long = [0; 66];
    assert!(
        trainer
            .evaluate(&Batch::new(&long, 1, 65).expect("fits"))
            .is_err()
    );
    let tokens = tokens();
    assert!(
        trainer
            .step(
                &batch(&tokens),
                &StepSettings {
                    accumulation: 3,
                    ..SETTINGS
                }
            )
            .is_err()
    );
    assert!(trainer.set_parameters(usize::MAX, &[0.0]).is_err());
    let count = parameters(&mut trainer).len();
    assert!(trainer.set_parameters(count, &[0.0]).is_err());
    assert!(trainer.generate(&[VOCABULARY], 1, 1.0, 0).is_err());
    assert!(trainer.load_inner(Path::new("/nonexistent/inner")).is_err());
    let options = TorchOptions {
        device: DeviceChoice::Cpu,
        precision: Precision::Fp32,
        threads: 0,
    };
    assert!(TorchTrainer::new(&config(true), options).is_err());
}

#[test]
fn continues_what_it_has_learnt() {
    let tokens: Vec<u32> = (0..SEQUENCES as u32 * 17).map(|i| i % 10).collect();
    let mut trainer = trainer(false, Precision::Bf16);
    for _ in 0..120 {
        trainer.step(&batch(&tokens), &SETTINGS).expect("steps");
    }
    assert_eq!(
        trainer.generate(&[2, 3, 4, 5], 8, 0.0, 0).expect("draws"),
        [6, 7, 8, 9, 0, 1, 2, 3]
    );
    let draw = |trainer: &mut TorchTrainer| trainer.generate(&[2], 20, 2.0, 9).expect("draws");
    assert_eq!(draw(&mut trainer), draw(&mut trainer));
}

#[test]
fn trains_on_whichever_thread_it_is_sent_to() {
    let mut here = trainer(true, Precision::Fp32);
    train(&mut here, 3);
    let mut sent: Box<dyn Trainer> = Box::new(trainer(true, Precision::Fp32));
    let there = std::thread::spawn(move || {
        let tokens = tokens();
        for _ in 0..3 {
            sent.step(&batch(&tokens), &SETTINGS).expect("steps");
        }
        sent.parameters().expect("on the CPU").to_vec()
    });
    assert!(there.join().expect("no panic") == parameters(&mut here));
}
