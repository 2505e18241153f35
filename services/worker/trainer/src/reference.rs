//! The trainer `reference`: a feed-forward language model in plain loops (Bengio et al. 2003). One
//! thread, fixed order, so the same inputs give the same bits on one machine; it learns byte text
//! well below its unigram entropy in seconds.

use std::ops::Range;
use std::path::Path;

use model::{ModelConfig, ReferenceConfig};
use schemas::Tokens;
use schemas::layout::Layout;

use crate::inner::{InnerMoments, InnerState, load_inner};
use crate::sampling::Sampler;
use crate::synthetic::copy_into;
use crate::{
    Batch, EvaluationReport, Feedback, HostFeedback, HostResidual, HostWeights, StepReport,
    StepSettings, Trainer, TrainerError, Weights, adamw,
};

/// Embeddings of the last tokens, softsign hidden layer, softmax.
#[derive(Debug)]
pub struct ReferenceTrainer {
    config: ReferenceConfig,
    layout: Layout,
    places: Places,
    parameters: Vec<f32>,
    global: Vec<f32>,
    residual: HostResidual,
    gradient: Vec<f32>,
    moments: InnerMoments,
    scratch: Scratch,
}

/// The place of each tensor in the flat vector.
#[derive(Clone, Debug)]
struct Places {
    embedding: Range<usize>,
    hidden: Range<usize>,
    hidden_bias: Range<usize>,
    output: Range<usize>,
    output_bias: Range<usize>,
}

/// Values of one position, kept between forward and backward.
#[derive(Clone, Debug)]
struct Scratch {
    /// Embeddings of the context, oldest first; zeros before the start of a sequence.
    input: Vec<f32>,
    /// Sums of the hidden layer, before softsign.
    sums: Vec<f32>,
    hidden: Vec<f32>,
    /// Logits, then their gradient.
    logits: Vec<f32>,
    hidden_gradient: Vec<f32>,
    input_gradient: Vec<f32>,
}

impl ReferenceTrainer {
    /// A trainer with all parameters zero.
    pub fn new(config: &ReferenceConfig) -> Self {
        let layout = ModelConfig::Reference(config.clone()).layout();
        let mut spans = layout
            .spans()
            .map(|(_, span)| span.start as usize..span.end as usize);
        let mut next = || {
            spans
                .next()
                .expect("the layout of this model has five tensors")
        };
        let places = Places {
            embedding: next(),
            hidden: next(),
            hidden_bias: next(),
            output: next(),
            output_bias: next(),
        };
        let count = places.output_bias.end;
        let zeros = |size: usize| vec![0.0; size];
        let (input, hidden) = (
            (config.context * config.embedding) as usize,
            config.hidden as usize,
        );
        let scratch = Scratch {
            input: zeros(input),
            sums: zeros(hidden),
            hidden: zeros(hidden),
            logits: zeros(config.vocabulary as usize),
            hidden_gradient: zeros(hidden),
            input_gradient: zeros(input),
        };
        let moments = InnerMoments {
            steps: 0,
            first: zeros(count),
            second: zeros(count),
        };
        drop(spans);
        let (parameters, global, gradient) = (zeros(count), zeros(count), zeros(count));
        Self {
            config: config.clone(),
            layout,
            places,
            parameters,
            global,
            residual: HostResidual::default(),
            gradient,
            moments,
            scratch,
        }
    }

    fn check(&self, batch: &Batch<'_>) -> Result<(), TrainerError> {
        batch.check(self.config.vocabulary, schemas::limits::SEQUENCE_TOKENS_MAX)
    }

    /// Puts the logits after `before` into the scratch space.
    fn forward(&mut self, before: &[u32]) {
        let width = self.config.embedding as usize;
        let (places, scratch) = (&self.places, &mut self.scratch);
        let embedding = &self.parameters[places.embedding.clone()];
        let context = self.config.context as usize;
        for (slot, part) in scratch.input.chunks_exact_mut(width).enumerate() {
            match (before.len() + slot).checked_sub(context) {
                Some(at) => {
                    let token = before[at] as usize;
                    part.copy_from_slice(&embedding[token * width..(token + 1) * width]);
                }
                None => part.fill(0.0),
            }
        }
        let (weight, bias) = (
            &self.parameters[places.hidden.clone()],
            &self.parameters[places.hidden_bias.clone()],
        );
        multiply(weight, &scratch.input, bias, &mut scratch.sums);
        for (hidden, sum) in scratch.hidden.iter_mut().zip(&scratch.sums) {
            *hidden = sum / (1.0 + sum.abs());
        }
        let (weight, bias) = (
            &self.parameters[places.output.clone()],
            &self.parameters[places.output_bias.clone()],
        );
        multiply(weight, &scratch.hidden, bias, &mut scratch.logits);
    }

    /// The loss of `target` under the logits, which become probabilities.
    fn loss(&mut self, target: u32) -> f64 {
        let logits = &mut self.scratch.logits;
        let largest = logits.iter().copied().fold(f32::MIN, f32::max);
        let mut total = 0.0;
        for logit in logits.iter_mut() {
            *logit = (*logit - largest).exp();
            total += *logit;
        }
        for logit in logits.iter_mut() {
            *logit /= total;
        }
        -f64::from(logits[target as usize])
            .max(f64::from(f32::MIN_POSITIVE))
            .ln()
    }

    /// Adds the gradient of `scale` times the loss of `target`, after [`Self::forward`] and
    /// [`Self::loss`].
    fn backward(&mut self, before: &[u32], target: u32, scale: f32) {
        let (places, scratch) = (&self.places, &mut self.scratch);
        scratch.logits[target as usize] -= 1.0;
        scratch.logits.iter_mut().for_each(|value| *value *= scale);
        let gradient = &mut self.gradient;
        let weight = &self.parameters[places.output.clone()];
        add(
            &mut gradient[places.output_bias.clone()],
            1.0,
            &scratch.logits,
        );
        outer(
            &mut gradient[places.output.clone()],
            &scratch.logits,
            &scratch.hidden,
        );
        multiply_transposed(weight, &scratch.logits, &mut scratch.hidden_gradient);
        for (value, sum) in scratch.hidden_gradient.iter_mut().zip(&scratch.sums) {
            let slope = 1.0 / (1.0 + sum.abs());
            *value *= slope * slope;
        }
        let weight = &self.parameters[places.hidden.clone()];
        add(
            &mut gradient[places.hidden_bias.clone()],
            1.0,
            &scratch.hidden_gradient,
        );
        outer(
            &mut gradient[places.hidden.clone()],
            &scratch.hidden_gradient,
            &scratch.input,
        );
        multiply_transposed(
            weight,
            &scratch.hidden_gradient,
            &mut scratch.input_gradient,
        );
        let width = self.config.embedding as usize;
        let embedding = &mut gradient[places.embedding.clone()];
        let context = self.config.context as usize;
        for (slot, part) in scratch.input_gradient.chunks_exact(width).enumerate() {
            if let Some(at) = (before.len() + slot).checked_sub(context) {
                let token = before[at] as usize;
                add(
                    &mut embedding[token * width..(token + 1) * width],
                    1.0,
                    part,
                );
            }
        }
    }

    /// Puts the gradient of the mean loss into `gradient`, and returns the sum of the loss over all
    /// tokens.
    fn gradient(&mut self, batch: &Batch<'_>) -> f64 {
        self.gradient.fill(0.0);
        let scale = 1.0 / batch.predicted() as f32;
        let mut sum = 0.0;
        for row in batch.rows() {
            for at in 1..row.len() {
                self.forward(&row[..at]);
                sum += self.loss(row[at]);
                self.backward(&row[..at], row[at], scale);
            }
        }
        sum
    }

    fn finite(&self, what: &'static str, value: f64) -> Result<f64, TrainerError> {
        let step = self.moments.steps;
        if value.is_finite() {
            Ok(value)
        } else {
            Err(TrainerError::NotFinite { what, value, step })
        }
    }
}

impl Trainer for ReferenceTrainer {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn set_parameters(&mut self, start: usize, values: &[f32]) -> Result<(), TrainerError> {
        copy_into(&mut self.parameters, start, values)
    }

    fn parameters(&mut self) -> Result<&[f32], TrainerError> {
        Ok(&self.parameters)
    }

    fn weights(&mut self) -> Result<Box<dyn Weights + '_>, TrainerError> {
        Ok(Box::new(HostWeights::new(
            &mut self.global,
            &mut self.parameters,
        )))
    }

    fn feedback(&mut self) -> Result<Box<dyn Feedback + '_>, TrainerError> {
        Ok(Box::new(HostFeedback::new(
            &self.global,
            &self.parameters,
            &mut self.residual,
        )))
    }

    fn step(
        &mut self,
        batch: &Batch<'_>,
        settings: &StepSettings<'_>,
    ) -> Result<StepReport, TrainerError> {
        self.check(batch)?;
        // Plain loops hold one position at a time, so micro-batches would change nothing.
        batch.micro_sequences(settings.accumulation)?;
        let tokens = batch.predicted();
        let loss = self.gradient(batch) / tokens as f64;
        let loss = self.finite("loss", loss)?;
        let gradient_norm = self.finite("gradient norm", adamw::norm(&self.gradient))?;
        let StepSettings {
            optimizer,
            learning_rate,
            ..
        } = *settings;
        let moments = &mut self.moments;
        adamw::step(
            &mut self.parameters,
            &self.gradient,
            gradient_norm,
            moments,
            optimizer,
            learning_rate,
        );
        Ok(StepReport {
            loss,
            gradient_norm,
            tokens: Tokens(tokens as u64),
        })
    }

    fn evaluate(&mut self, batch: &Batch<'_>) -> Result<EvaluationReport, TrainerError> {
        self.check(batch)?;
        let mut sum = 0.0;
        for row in batch.rows() {
            for at in 1..row.len() {
                self.forward(&row[..at]);
                sum += self.loss(row[at]);
            }
        }
        let loss_sum = self.finite("held-out loss", sum)?;
        Ok(EvaluationReport {
            loss_sum,
            tokens: Tokens(batch.predicted() as u64),
        })
    }

    fn capture_inner(&mut self, state: &mut InnerState) -> Result<(), TrainerError> {
        let moments = &self.moments;
        state
            .retake(&self.layout, moments.steps)
            .copy(&moments.first, &moments.second);
        Ok(())
    }

    fn load_inner(&mut self, path: &Path) -> Result<(), TrainerError> {
        self.moments = load_inner(path, &self.layout)?;
        Ok(())
    }

    fn generate(
        &mut self,
        prompt: &[u32],
        count: usize,
        temperature: f64,
        seed: u64,
    ) -> Result<Vec<u32>, TrainerError> {
        let mut sampler = Sampler::new(prompt, self.config.vocabulary, count, temperature, seed)?;
        let mut tokens = prompt.to_vec();
        for _ in 0..count {
            self.forward(&tokens);
            tokens.push(sampler.draw(&self.scratch.logits)?);
        }
        Ok(tokens.split_off(prompt.len()))
    }

    fn device(&self) -> String {
        "cpu, 1 thread, fp32, reference".to_owned()
    }
}

/// `out = weight * input + bias`, `weight` row-major.
fn multiply(weight: &[f32], input: &[f32], bias: &[f32], out: &mut [f32]) {
    for ((out, bias), row) in out
        .iter_mut()
        .zip(bias)
        .zip(weight.chunks_exact(input.len()))
    {
        *out = bias + dot(row, input);
    }
}

/// `out = weight^T * input`.
fn multiply_transposed(weight: &[f32], input: &[f32], out: &mut [f32]) {
    out.fill(0.0);
    for (value, row) in input.iter().zip(weight.chunks_exact(out.len())) {
        add(out, *value, row);
    }
}

/// `matrix += left * right^T`.
fn outer(matrix: &mut [f32], left: &[f32], right: &[f32]) {
    for (value, row) in left.iter().zip(matrix.chunks_exact_mut(right.len())) {
        add(row, *value, right);
    }
}

/// `to += scale * from`.
fn add(to: &mut [f32], scale: f32, from: &[f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += scale * from;
    }
}

/// A dot product over eight running sums, which the compiler keeps in vector registers.
fn dot(left: &[f32], right: &[f32]) -> f32 {
    let mut sums = [0.0_f32; 8];
    let (left, right) = (left.chunks_exact(8), right.chunks_exact(8));
    let tail: f32 = left
        .remainder()
        .iter()
        .zip(right.remainder())
        .map(|(a, b)| a * b)
        .sum();
    for (a, b) in left.zip(right) {
        for lane in 0..8 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f32>() + tail
}

#[cfg(test)]
mod tests {
    use schemas::run::InnerOptimizer;

    use super::*;

    const OPTIMIZER: InnerOptimizer = InnerOptimizer {
        weight_decay: 0.01,
        ..InnerOptimizer::adamw(1e-2)
    };
    const SETTINGS: StepSettings<'static> = StepSettings {
        optimizer: &OPTIMIZER,
        learning_rate: 1e-2,
        accumulation: 1,
    };

    fn trainer(vocabulary: u32) -> ReferenceTrainer {
        let config = ReferenceConfig {
            vocabulary,
            context: 3,
            embedding: 5,
            hidden: 12,
        };
        let mut trainer = ReferenceTrainer::new(&config);
        let initial = ModelConfig::Reference(config).initial(11);
        let mut values = vec![0.0; initial.elements() as usize];
        initial.fill(0, &mut values);
        trainer.set_parameters(0, &values).expect("fits");
        trainer
    }

    /// Text-like tokens: each row counts upwards by its own stride.
    fn tokens(vocabulary: u32, rows: u32, row: u32) -> Vec<u32> {
        (0..rows)
            .flat_map(|r| (0..row).map(move |i| (r + i * (1 + r % 3)) % vocabulary))
            .collect()
    }

    fn train(trainer: &mut ReferenceTrainer, batch: &Batch<'_>, steps: Range<u64>) {
        for _ in steps {
            trainer.step(batch, &SETTINGS).expect("steps");
        }
    }

    #[test]
    fn starts_at_the_entropy_of_a_guess() {
        let tokens = tokens(64, 4, 9);
        let report = trainer(64)
            .evaluate(&Batch::new(&tokens, 4, 8).expect("fits"))
            .expect("evaluates");
        let mean = report.mean().expect("tokens");
        assert_eq!(report.tokens, Tokens(32));
        assert!((mean - 64_f64.ln()).abs() < 0.05, "{mean}");
    }

    #[test]
    fn gradient_agrees_with_finite_differences() {
        let tokens = tokens(16, 3, 6);
        let batch = Batch::new(&tokens, 3, 5).expect("fits");
        let mut trainer = trainer(16);
        // Larger output weights than at the start, so that no part of the gradient is lost in
        // rounding.
        let output = trainer.places.output.clone();
        trainer.parameters[output]
            .iter_mut()
            .for_each(|value| *value *= 20.0);
        trainer.gradient(&batch);
        let gradient = trainer.gradient.clone();
        let mut mean_at = |index: usize, value: f32| {
            let before = std::mem::replace(&mut trainer.parameters[index], value);
            let mean = trainer
                .evaluate(&batch)
                .expect("evaluates")
                .mean()
                .expect("tokens");
            trainer.parameters[index] = before;
            (mean, before)
        };
        let mut compared = 0;
        for index in (0..gradient.len()).step_by(7) {
            let (_, value) = mean_at(index, 0.0);
            let width = 1e-2;
            let slope = (mean_at(index, value + width).0 - mean_at(index, value - width).0)
                / (2.0 * f64::from(width));
            let got = f64::from(gradient[index]);
            assert!(
                (got - slope).abs() < 1e-4 + 0.02 * slope.abs(),
                "element {index}: {got}, differences say {slope}"
            );
            compared += usize::from(slope.abs() > 1e-3);
        }
        assert!(
            compared > 20,
            "only {compared} slopes were large enough to mean something"
        );
    }

    #[test]
    fn learns_and_repeats_and_resumes_bit_for_bit() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("inner");
        let tokens = tokens(32, 8, 17);
        let batch = Batch::new(&tokens, 8, 16).expect("fits");
        let mut whole = trainer(32);
        let first = whole.step(&batch, &SETTINGS).expect("steps");
        train(&mut whole, &batch, 1..60);
        let last = whole
            .step(
                &batch,
                &StepSettings {
                    accumulation: 4,
                    ..SETTINGS
                },
            )
            .expect("steps");
        assert!(
            first.loss > 3.3 && last.loss < 1.7,
            "{} then {}",
            first.loss,
            last.loss
        );

        let mut half = trainer(32);
        train(&mut half, &batch, 0..30);
        half.save_inner(&path).expect("saved");
        let parameters = half.parameters().expect("on the CPU").to_vec();
        let mut resumed = trainer(32);
        resumed.set_parameters(0, &parameters).expect("fits");
        resumed.load_inner(&path).expect("loaded");
        train(&mut resumed, &batch, 30..61);
        assert!(resumed.parameters().expect("here") == whole.parameters().expect("here"));
    }

    #[test]
    fn bad_input_and_bad_numbers_change_nothing() {
        let mut trainer = trainer(32);
        let outside = [0, 1, 32];
        assert!(
            trainer
                .step(&Batch::new(&outside, 1, 2).expect("fits"), &SETTINGS)
                .is_err()
        );
        let tokens = [1; 10];
        let batch = Batch::new(&tokens, 2, 4).expect("fits");
        assert!(
            trainer
                .step(
                    &batch,
                    &StepSettings {
                        accumulation: 3,
                        ..SETTINGS
                    }
                )
                .is_err()
        );
        trainer.parameters[3] = f32::NAN;
        trainer.parameters[5 + 3] = f32::NAN;
        let before: Vec<u32> = trainer
            .parameters
            .iter()
            .map(|value| value.to_bits())
            .collect();
        let error = trainer
            .step(&batch, &SETTINGS)
            .expect_err("the loss is not a number");
        assert_eq!(error.code(), schemas::Code::TrainingFailed);
        assert!(
            trainer
                .parameters
                .iter()
                .map(|value| value.to_bits())
                .eq(before)
        );
        assert_eq!(trainer.moments.steps, 0);
    }

    #[test]
    fn continues_a_pattern() {
        let tokens: Vec<u32> = (0..170).map(|i| i % 10).collect();
        let batch = Batch::new(&tokens, 10, 16).expect("fits");
        let mut trainer = trainer(10);
        train(&mut trainer, &batch, 0..150);
        let drawn = trainer.generate(&[3, 4, 5], 8, 0.0, 0).expect("draws");
        assert_eq!(drawn, [6, 7, 8, 9, 0, 1, 2, 3]);
        assert!(trainer.generate(&[10], 1, 0.0, 0).is_err());
    }
}
