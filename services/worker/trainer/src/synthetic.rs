//! The trainer `synthetic`: each step takes a given time and moves parameters by a fixed pattern,
//! so that contributions have the right size and never the same bytes twice.

use std::path::Path;
use std::thread;
use std::time::Duration;

use model::{ModelConfig, SyntheticConfig};
use schemas::Tokens;
use schemas::layout::Layout;

use crate::inner::{InnerMoments, InnerState, load_inner};
use crate::sampling::Sampler;
use crate::{
    Batch, EvaluationReport, Feedback, HostFeedback, HostResidual, HostWeights, StepReport,
    StepSettings, Trainer, TrainerError, Weights,
};

/// Parameters that one step moves: 4 MiB, so that a step of 0 ms stays cheap at any size.
const WINDOW_ELEMENTS: usize = 1 << 20;
/// The loss that is reported at first; it falls with the number of steps, so that progress displays
/// have something to show.
const LOSS_FIRST: f64 = 6.0;

/// No mathematics, any size. It keeps no moments: its saved state is the step count alone.
#[derive(Debug)]
pub struct SyntheticTrainer {
    layout: Layout,
    step_time: Duration,
    parameters: Vec<f32>,
    global: Vec<f32>,
    residual: HostResidual,
    steps: u64,
}

impl SyntheticTrainer {
    /// A trainer with all parameters zero.
    pub fn new(config: &SyntheticConfig) -> Self {
        let layout = ModelConfig::Synthetic(config.clone()).layout();
        let parameters = vec![0.0; layout.elements() as usize];
        Self {
            layout,
            step_time: Duration::from_millis(config.step_ms),
            global: vec![0.0; parameters.len()],
            residual: HostResidual::default(),
            parameters,
            steps: 0,
        }
    }

    fn no_moments(&self) -> Layout {
        Layout {
            tensors: Vec::new(),
            ..self.layout.clone()
        }
    }

    fn loss(&self) -> f64 {
        LOSS_FIRST / (1.0 + self.steps as f64).powf(0.1)
    }
}

impl Trainer for SyntheticTrainer {
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
        batch.micro_sequences(settings.accumulation)?;
        thread::sleep(self.step_time);
        let windows = self.parameters.len().div_ceil(WINDOW_ELEMENTS) as u64;
        let start = (self.steps % windows) as usize * WINDOW_ELEMENTS;
        let end = (start + WINDOW_ELEMENTS).min(self.parameters.len());
        let rate = settings.learning_rate as f32;
        // Two workers read different text. Without a part that depends on the text they would hand
        // in the same bytes, which a store keeps once.
        let text = batch
            .tokens()
            .iter()
            .fold(0_u32, |sum, token| sum.rotate_left(5) ^ token);
        for (index, parameter) in
            (self.steps + u64::from(text)..).zip(&mut self.parameters[start..end])
        {
            // The top bits of a multiplicative hash: cheap, and without pattern at the scale of a
            // chunk.
            let hash = index.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
            *parameter += rate * (hash as f32 / (1_u32 << 24) as f32 - 0.5);
        }
        self.steps += 1;
        Ok(StepReport {
            loss: self.loss(),
            gradient_norm: 1.0,
            tokens: Tokens(batch.predicted() as u64),
        })
    }

    fn evaluate(&mut self, batch: &Batch<'_>) -> Result<EvaluationReport, TrainerError> {
        let tokens = batch.predicted() as u64;
        Ok(EvaluationReport {
            loss_sum: self.loss() * tokens as f64,
            tokens: Tokens(tokens),
        })
    }

    fn capture_inner(&mut self, state: &mut InnerState) -> Result<(), TrainerError> {
        state.retake(&self.no_moments(), self.steps).copy(&[], &[]);
        Ok(())
    }

    fn load_inner(&mut self, path: &Path) -> Result<(), TrainerError> {
        let InnerMoments { steps, .. } = load_inner(path, &self.no_moments())?;
        self.steps = steps;
        Ok(())
    }

    fn generate(
        &mut self,
        prompt: &[u32],
        count: usize,
        temperature: f64,
        seed: u64,
    ) -> Result<Vec<u32>, TrainerError> {
        Sampler::new(prompt, u32::MAX, count, temperature, seed)?;
        Ok(prompt.iter().copied().cycle().take(count).collect())
    }

    fn device(&self) -> String {
        "no device, synthetic".to_owned()
    }
}

/// Overwrites a part of a flat vector, after a check that the part lies within it.
pub(crate) fn copy_into(
    parameters: &mut [f32],
    start: usize,
    values: &[f32],
) -> Result<(), TrainerError> {
    let elements = parameters.len();
    let part = start
        .checked_add(values.len())
        .and_then(|end| parameters.get_mut(start..end));
    let outside = || {
        TrainerError::Input(format!(
            "{} values from {start} on, of {elements} parameters",
            values.len()
        ))
    };
    part.ok_or_else(outside)?.copy_from_slice(values);
    Ok(())
}

#[cfg(test)]
mod tests {
    use schemas::run::InnerOptimizer;

    use super::*;

    const OPTIMIZER: InnerOptimizer = InnerOptimizer {
        weight_decay: 0.0,
        clip_norm: 0.0,
        ..InnerOptimizer::adamw(1e-2)
    };

    #[test]
    fn moves_parameters_the_same_way_each_time() {
        let trained = || {
            let mut trainer = SyntheticTrainer::new(&SyntheticConfig {
                parameters: 3_000_000,
                step_ms: 0,
            });
            let tokens = [1; 10];
            let batch = Batch::new(&tokens, 2, 4).expect("fits");
            let settings = StepSettings {
                optimizer: &OPTIMIZER,
                learning_rate: 1e-2,
                accumulation: 2,
            };
            let reports: Vec<_> = (0..4)
                .map(|_| trainer.step(&batch, &settings).expect("steps"))
                .collect();
            assert!(reports.windows(2).all(|pair| pair[1].loss < pair[0].loss));
            assert_eq!(reports[0].tokens, Tokens(8));
            trainer.parameters().expect("on the CPU").to_vec()
        };
        let values = trained();
        assert_eq!(trained(), values);
        let moved = values.iter().filter(|value| **value != 0.0).count();
        assert!(moved > 2_900_000, "{moved}");
    }

    #[test]
    fn refuses_values_outside_and_resumes_its_count() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("inner");
        let mut trainer = SyntheticTrainer::new(&SyntheticConfig {
            parameters: 8,
            step_ms: 0,
        });
        assert!(trainer.set_parameters(6, &[1.0; 3]).is_err());
        assert!(trainer.set_parameters(usize::MAX, &[1.0; 3]).is_err());
        trainer.set_parameters(6, &[1.0; 2]).expect("fits");
        trainer.steps = 9;
        trainer.save_inner(&path).expect("saved");
        trainer.steps = 0;
        trainer.load_inner(&path).expect("loaded");
        assert_eq!(trainer.steps, 9);
    }
}
