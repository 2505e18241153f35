//! The trainer: batches in, AdamW steps, parameters out.

use std::path::Path;

use model::{LlamaConfig, ModelConfig};
use schemas::layout::Layout;
use schemas::run::Precision;
use schemas::{Bytes, Tokens};
use tch::{Device, Kind, Reduction, Tensor};
use trainer::{
    Batch, EvaluationReport, Feedback, HostFeedback, HostResidual, HostWeights, InnerMoments,
    InnerState, Sampler, StepReport, StepSettings, Trainer, TrainerError, Weights, load_inner,
};

use crate::card::{CardFeedback, CardGlobal, CardResidual, CardWeights};
use crate::decoder::{Decoder, shapes};
use crate::error::TorchError;
use crate::flat::Flat;
use crate::lane::Lane;
use crate::runtime::{DeviceChoice, init, processor_has_bf16, use_threads};
use crate::shim::{self, AdamW, Autocast};

/// Tokens of one forward pass without gradients: bounds memory, large enough for the matrix
/// products.
const FORWARD_TOKENS: usize = 8192;
/// Tokens that each new token of generated text depends on; each new token costs a pass over them.
const GENERATE_TOKENS: usize = 256;

/// Options for the computation of a [`TorchTrainer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TorchOptions {
    /// The device.
    pub device: DeviceChoice,
    /// The arithmetic. Parameters and moments are fp32 in every case.
    pub precision: Precision,
    /// CPU threads. More than there are cores makes it slower than one.
    pub threads: usize,
}

/// The arithmetic of matrix products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arithmetic {
    Fp32,
    Bf16,
}

/// A Llama-style decoder with its AdamW state.
///
/// Weight decay takes every parameter, norms included, as `torch.optim.AdamW` does by default.
#[derive(Debug)]
pub struct TorchTrainer {
    config: LlamaConfig,
    device: Device,
    threads: usize,
    arithmetic: Arithmetic,
    layout: Layout,
    decoder: Decoder,
    /// The vector whose views are the decoder's weights.
    parameters: Flat,
    place: Place,
    steps: u64,
    first: Flat,
    second: Flat,
    first_views: Vec<Tensor>,
    second_views: Vec<Tensor>,
}

/// The place of all vectors, including the global weights and the residual, which take memory only
/// when they are first used.
#[derive(Debug)]
enum Place {
    /// The vectors lie in this machine's memory.
    Host {
        global: Vec<f32>,
        residual: HostResidual,
    },
    /// The vectors lie on a device.
    Card {
        lane: Lane,
        global: Option<CardGlobal>,
        residual: Option<CardResidual>,
    },
}

impl Place {
    fn new(device: Device) -> Result<Self, TorchError> {
        Ok(match device {
            Device::Cpu => Self::Host {
                global: Vec::new(),
                residual: HostResidual::default(),
            },
            _ => Self::Card {
                lane: Lane::open(device)?,
                global: None,
                residual: None,
            },
        })
    }

    fn lane(&mut self) -> Option<&mut Lane> {
        match self {
            Self::Host { .. } => None,
            Self::Card { lane, .. } => Some(lane),
        }
    }
}

impl Arithmetic {
    fn of(precision: Precision, device: Device) -> Self {
        match precision {
            Precision::Fp32 => Self::Fp32,
            Precision::Bf16 => Self::Bf16,
            // CUDA devices have it since Ampere; libtorch's headers for processors do not tell
            // which one this is.
            Precision::Auto if matches!(device, Device::Cuda(_)) || processor_has_bf16() => {
                Self::Bf16
            }
            Precision::Auto => Self::Fp32,
        }
    }
}

impl TorchTrainer {
    /// A trainer with all parameters and moments zero.
    ///
    /// # Errors
    /// libtorch is of another version, the device is not there, or memory does not suffice.
    pub fn new(config: &LlamaConfig, options: TorchOptions) -> Result<Self, TrainerError> {
        let library = init(options.device, options.threads)?;
        let device = options.device.resolve(&library)?;
        let layout = ModelConfig::Llama(config.clone()).layout();
        let elements = usize::try_from(layout.elements()).expect("a model that fits in memory");
        let shapes = shapes(config);
        let vector = || Flat::zeros(elements, device);
        let (parameters, first, second) = (vector()?, vector()?, vector()?);
        let decoder = Decoder::new(config, parameters.views(&shapes, true)?);
        let (first_views, second_views) =
            (first.views(&shapes, false)?, second.views(&shapes, false)?);
        Ok(Self {
            config: config.clone(),
            device,
            threads: options.threads,
            arithmetic: Arithmetic::of(options.precision, device),
            layout,
            decoder,
            parameters,
            place: Place::new(device)?,
            steps: 0,
            first,
            second,
            first_views,
            second_views,
        })
    }

    fn prepare(&self, batch: &Batch<'_>) -> Result<(), TrainerError> {
        use_threads(self.threads)?;
        batch.check(self.config.vocabulary, self.config.positions)
    }

    /// Logits `[sequences, tokens, vocabulary]` in fp32, for token ids `[sequences, tokens]`.
    fn logits(&mut self, tokens: &Tensor, last_only: bool) -> Result<Tensor, TorchError> {
        let autocast = match self.arithmetic {
            Arithmetic::Fp32 => None,
            Arithmetic::Bf16 => Some(Autocast::new(self.device)?),
        };
        let mut hidden = self.decoder.hidden(tokens)?;
        if last_only {
            hidden = hidden.f_narrow(1, hidden.size3()?.1 - 1, 1)?;
        }
        let logits = self.decoder.logits(&hidden)?;
        drop(autocast);
        Ok(logits.f_to_dtype(Kind::Float, false, false)?)
    }

    /// Cross entropy in nats, as a tensor that gradients can be taken of.
    fn loss(&mut self, batch: &Batch<'_>, reduction: Reduction) -> Result<Tensor, TorchError> {
        let (inputs, targets) = self.upload(batch)?;
        let logits = self
            .logits(&inputs, false)?
            .f_view([-1, i64::from(self.config.vocabulary)])?;
        Ok(logits.f_cross_entropy_loss(
            &targets.f_view([-1])?,
            None::<&Tensor>,
            reduction,
            -100,
            0.0,
        )?)
    }

    /// Inputs and targets `[sequences, tokens]` on the device.
    fn upload(&self, batch: &Batch<'_>) -> Result<(Tensor, Tensor), TorchError> {
        let tokens: Vec<i64> = batch
            .tokens()
            .iter()
            .map(|token| i64::from(*token))
            .collect();
        let length = batch.sequence_tokens() as i64;
        let all = Tensor::f_from_slice(&tokens)?
            .f_view([batch.sequences() as i64, length + 1])?
            .f_to(self.device)?;
        Ok((
            all.f_narrow(1, 0, length)?,
            all.f_narrow(1, 1, length)?.f_contiguous()?,
        ))
    }

    fn gradients(&self) -> Vec<Tensor> {
        self.decoder
            .weights()
            .iter()
            .map(Tensor::grad)
            .filter(Tensor::defined)
            .collect()
    }

    /// Clears the gradients before a step, not after it. So no gradients of a failed step are ever
    /// added to, and no further operation that could fail comes between a failure and its report.
    fn clear_gradients(&self) -> Result<(), TorchError> {
        let gradients = self.gradients();
        // Before the first backward pass there is none, which libtorch would refuse to set to zero.
        if gradients.is_empty() {
            Ok(())
        } else {
            shim::zero(&gradients)
        }
    }

    /// Does the backward passes over all micro-batches; returns the mean loss and the summed
    /// gradients' norm.
    fn accumulate(
        &mut self,
        batch: &Batch<'_>,
        accumulation: u32,
    ) -> Result<(f64, f64), TrainerError> {
        let mut loss = 0.0;
        for part in batch.micro(accumulation)? {
            let tensor = self.loss(&part, Reduction::Mean)?;
            loss += item(&tensor)? / f64::from(accumulation);
            backward(&tensor)?;
        }
        let gradients = self.gradients();
        assert_eq!(
            gradients.len(),
            self.decoder.weights().len(),
            "every weight takes part in the loss"
        );
        let norm = shim::norm(&gradients)? / f64::from(accumulation);
        Ok((
            self.finite("loss", loss)?,
            self.finite("gradient norm", norm)?,
        ))
    }

    fn update(&mut self, norm: f64, settings: &StepSettings<'_>) -> Result<(), TorchError> {
        let optimizer = settings.optimizer;
        let clip = if optimizer.clip_norm > 0.0 {
            (norm / optimizer.clip_norm).max(1.0)
        } else {
            1.0
        };
        let numbers = AdamW {
            step: self.steps + 1,
            rate: settings.learning_rate,
            beta1: optimizer.beta1,
            beta2: optimizer.beta2,
            decay: optimizer.weight_decay,
            epsilon: optimizer.epsilon,
            gradient_scale: clip * f64::from(settings.accumulation),
        };
        shim::adamw(
            self.decoder.weights(),
            &self.gradients(),
            &self.first_views,
            &self.second_views,
            &numbers,
        )?;
        self.steps += 1;
        Ok(())
    }

    fn finite(&self, what: &'static str, value: f64) -> Result<f64, TrainerError> {
        if value.is_finite() {
            Ok(value)
        } else {
            Err(TrainerError::NotFinite {
                what,
                value,
                step: self.steps,
            })
        }
    }
}

impl Trainer for TorchTrainer {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn set_parameters(&mut self, start: usize, values: &[f32]) -> Result<(), TrainerError> {
        let _no_grad = tch::no_grad_guard();
        self.parameters.write(self.place.lane(), start, values)
    }

    fn parameters(&mut self) -> Result<&[f32], TrainerError> {
        Ok(self.parameters.read(self.place.lane())?)
    }

    fn weights(&mut self) -> Result<Box<dyn Weights + '_>, TrainerError> {
        let parameters = &mut self.parameters;
        Ok(match &mut self.place {
            Place::Host { global, .. } => {
                let local = parameters.slice_mut();
                global.resize(local.len(), 0.0);
                Box::new(HostWeights::new(global, local))
            }
            Place::Card { lane, global, .. } => {
                let local = parameters.tensor();
                Box::new(CardWeights {
                    global: CardGlobal::of(global, local)?,
                    local,
                    lane,
                })
            }
        })
    }

    fn feedback(&mut self) -> Result<Box<dyn Feedback + '_>, TrainerError> {
        let parameters = &mut self.parameters;
        Ok(match &mut self.place {
            Place::Host { global, residual } => {
                let local = parameters.slice_mut();
                global.resize(local.len(), 0.0);
                Box::new(HostFeedback::new(global, local, residual))
            }
            Place::Card {
                lane,
                global,
                residual,
            } => {
                let local = parameters.tensor();
                Box::new(CardFeedback {
                    global: CardGlobal::of(global, local)?,
                    local,
                    residual: CardResidual::of(residual, local)?,
                    lane,
                })
            }
        })
    }

    fn step(
        &mut self,
        batch: &Batch<'_>,
        settings: &StepSettings<'_>,
    ) -> Result<StepReport, TrainerError> {
        self.prepare(batch)?;
        batch.micro_sequences(settings.accumulation)?;
        self.clear_gradients()?;
        let (loss, norm) = self.accumulate(batch, settings.accumulation)?;
        self.update(norm, settings)?;
        Ok(StepReport {
            loss,
            gradient_norm: norm,
            tokens: Tokens(batch.predicted() as u64),
        })
    }

    fn evaluate(&mut self, batch: &Batch<'_>) -> Result<EvaluationReport, TrainerError> {
        self.prepare(batch)?;
        let _no_grad = tch::no_grad_guard();
        let rows = (FORWARD_TOKENS / batch.sequence_tokens()).max(1);
        let mut loss_sum = 0.0;
        for start in (0..batch.sequences()).step_by(rows) {
            let part = batch.part(start..(start + rows).min(batch.sequences()));
            loss_sum += item(&self.loss(&part, Reduction::Sum)?)?;
        }
        let loss_sum = self.finite("held-out loss", loss_sum)?;
        Ok(EvaluationReport {
            loss_sum,
            tokens: Tokens(batch.predicted() as u64),
        })
    }

    fn capture_inner(&mut self, state: &mut InnerState) -> Result<(), TrainerError> {
        let moments = state.retake(&self.layout, self.steps);
        let mut lane = self.place.lane();
        self.first
            .copy_to(lane.as_deref_mut(), &mut moments.first)?;
        self.second.copy_to(lane, &mut moments.second)?;
        Ok(())
    }

    fn load_inner(&mut self, path: &Path) -> Result<(), TrainerError> {
        let InnerMoments {
            steps,
            first,
            second,
        } = load_inner(path, &self.layout)?;
        let _no_grad = tch::no_grad_guard();
        let mut lane = self.place.lane();
        let written = self
            .first
            .write(lane.as_deref_mut(), 0, &first)
            .and_then(|()| self.second.write(lane, 0, &second));
        if let Err(error) = written {
            // If the file holds one moment and the second is zero, updates would be huge.
            self.first.clear()?;
            self.second.clear()?;
            self.steps = 0;
            return Err(error);
        }
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
        use_threads(self.threads)?;
        let _no_grad = tch::no_grad_guard();
        let mut sampler = Sampler::new(prompt, self.config.vocabulary, count, temperature, seed)?;
        let window = GENERATE_TOKENS.min(self.config.positions as usize);
        let mut tokens: Vec<i64> = prompt.iter().map(|token| i64::from(*token)).collect();
        let mut drawn = Vec::with_capacity(count);
        let mut logits = vec![0.0; self.config.vocabulary as usize];
        for _ in 0..count {
            let recent = &tokens[tokens.len().saturating_sub(window)..];
            self.last_logits(recent, &mut logits)?;
            let token = sampler.draw(&logits)?;
            tokens.push(i64::from(token));
            drawn.push(token);
        }
        Ok(drawn)
    }

    /// After a kernel has failed, or the card has fallen off its bus, every call of the driver
    /// gives that error again, this one too. After an error of one call alone it gives none.
    fn check_device(&mut self) -> Result<(), TrainerError> {
        let settled = self.place.lane().map_or(Ok(()), Lane::settle);
        settled.map_err(|error| TrainerError::DeviceLost(error.to_string()))
    }

    fn device_memory(&self) -> Option<Bytes> {
        let bytes = shim::device_memory(self.device);
        bytes.ok().map(Bytes)
    }

    fn device(&self) -> String {
        let arithmetic = match self.arithmetic {
            Arithmetic::Fp32 => "fp32",
            Arithmetic::Bf16 => "bf16",
        };
        match self.device {
            Device::Cuda(index) => format!("cuda:{index}, {arithmetic}"),
            _ => format!("cpu, {} threads, {arithmetic}", self.threads),
        }
    }
}

impl TorchTrainer {
    fn last_logits(&mut self, recent: &[i64], logits: &mut [f32]) -> Result<(), TorchError> {
        let input = Tensor::f_from_slice(recent)?
            .f_view([1, -1])?
            .f_to(self.device)?;
        let output = self.logits(&input, true)?;
        Ok(output.f_copy_data(logits, logits.len())?)
    }
}

fn item(tensor: &Tensor) -> Result<f64, TorchError> {
    Ok(tensor.f_double_value(&[])?)
}

fn backward(loss: &Tensor) -> Result<(), TorchError> {
    Ok(loss.f_backward()?)
}

#[cfg(test)]
mod tests {
    use schemas::run::InnerOptimizer;

    use super::*;

    #[test]
    fn the_reason_why_the_first_pass_failed_is_what_is_reported() {
        let optimizer = InnerOptimizer {
            final_ratio: 0.1,
            ..InnerOptimizer::adamw(1e-3)
        };
        let settings = StepSettings {
            optimizer: &optimizer,
            learning_rate: 1e-3,
            accumulation: 1,
        };
        let ModelConfig::Llama(config) = model::Preset::named("tiny").expect("a preset").config
        else {
            panic!("a preset for libtorch");
        };
        let options = TorchOptions {
            device: DeviceChoice::Cpu,
            precision: Precision::Fp32,
            threads: 1,
        };
        let mut trainer = TorchTrainer::new(&config, options).expect("a small model");
        let tokens = [1; 5];
        let batch = Batch::new(&tokens, 1, 4).expect("fits");
        // A device that no machine has: the tokens do not get there, as when its memory is full.
        trainer.device = Device::Cuda(100);
        let reason = trainer
            .evaluate(&batch)
            .expect_err("there is no such device");
        let error = trainer
            .step(&batch, &settings)
            .expect_err("there is no such device");
        assert_eq!(error.to_string(), reason.to_string());
        trainer
            .check_device()
            .expect("one call has failed, and no device");
        trainer.device = Device::Cpu;
        trainer
            .step(&batch, &settings)
            .expect("nothing was left behind");
    }
}
