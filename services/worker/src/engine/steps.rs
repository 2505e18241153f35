//! Inner steps, one at a time, and evaluations.

use std::time::Instant;

use data::{HeldOut, UnitSampler};
use schemas::contribution::Evaluation;
use schemas::run::InnerOptimizer;
use schemas::{Code, Refusal, Steps, Tokens};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use trainer::{Batch, StepSettings, inner_rate};
use worker_core::{Trained, WorkId};

use super::session::Session;
use crate::meter::Meter;

/// Inner steps to do.
pub(crate) struct Training {
    pub(crate) work: WorkId,
    pub(crate) stop: CancellationToken,
    pub(crate) sampler: UnitSampler,
    pub(crate) optimizer: InnerOptimizer,
    pub(crate) steps: Steps,
    pub(crate) steps_before: Steps,
    pub(crate) steps_total: Steps,
    pub(crate) sequences: u32,
    pub(crate) accumulation: u32,
    pub(crate) sequence_tokens: u32,
}

/// A held-out loss to compute.
pub(crate) struct Evaluating {
    pub(crate) work: WorkId,
    pub(crate) stop: CancellationToken,
    pub(crate) held_out: HeldOut,
    /// Sequences of one pass: as many as in a micro-batch, which fits into memory.
    pub(crate) batch_sequences: u32,
    pub(crate) sequence_tokens: u32,
}

/// The steps of a unit that are done so far.
pub(super) struct Stepping {
    training: Training,
    begun: Instant,
    done: u64,
    loss_sum: f64,
    tokens: u64,
    rows: Vec<u32>,
}

impl Stepping {
    pub(super) fn new(training: Training) -> Self {
        Self {
            training,
            begun: Instant::now(),
            done: 0,
            loss_sum: 0.0,
            tokens: 0,
            rows: Vec::new(),
        }
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.training.stop.is_cancelled()
    }

    /// Does the next step; after the last one, returns their outcome.
    pub(super) fn next(
        &mut self,
        session: &mut Session,
        meter: &Meter,
        progress: &watch::Sender<(WorkId, Steps)>,
    ) -> Result<Option<Trained>, Refusal> {
        let training = &mut self.training;
        if self.done == training.steps.get() {
            return Ok(Some(self.result()));
        }
        let started = Instant::now();
        let (sequences, length) = (
            training.sequences as usize,
            training.sequence_tokens as usize,
        );
        training.sampler.next_batch(sequences, &mut self.rows);
        let batch = Batch::new(&self.rows, sequences, length)?;
        let step = Steps(training.steps_before.get().saturating_add(self.done));
        let settings = StepSettings {
            optimizer: &training.optimizer,
            learning_rate: inner_rate(step, training.steps_total, &training.optimizer),
            accumulation: training.accumulation,
        };
        let report = session.trainer.step(&batch, &settings)?;
        self.loss_sum += report.loss * report.tokens.get() as f64;
        self.tokens += report.tokens.get();
        self.done += 1;
        meter.stepped(report.tokens, session.shown(report.loss), started.elapsed());
        meter.holds(session.trainer.device_memory());
        progress.send_replace((training.work, Steps(self.done)));
        Ok(None)
    }

    fn result(&self) -> Trained {
        Trained {
            tokens: Tokens(self.tokens),
            steps: self.training.steps,
            loss: self.loss_sum / self.tokens.max(1) as f64,
            train_ms: u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }
}

pub(super) fn evaluate(
    session: &mut Session,
    evaluating: &Evaluating,
    progress: &watch::Sender<(WorkId, Steps)>,
) -> Result<Evaluation, Refusal> {
    let length = evaluating.sequence_tokens as usize;
    let mut sum = Evaluation {
        loss_sum: 0.0,
        tokens: Tokens(0),
    };
    let count = evaluating.held_out.sequences();
    let at_once = evaluating.batch_sequences.max(1) as usize;
    let mut rows = Vec::new();
    for (done, start) in (1..).zip((0..count).step_by(at_once)) {
        if evaluating.stop.is_cancelled() {
            return Err(stopped());
        }
        let sequences = start..(start + at_once).min(count);
        evaluating.held_out.batch(sequences.clone(), &mut rows);
        let batch = Batch::new(&rows, sequences.len(), length)?;
        let report = session.trainer.evaluate(&batch)?;
        sum.loss_sum += report.loss_sum;
        sum.tokens += report.tokens;
        progress.send_replace((evaluating.work, Steps(done)));
    }
    Ok(sum)
}

pub(super) fn stopped() -> Refusal {
    Refusal::new(Code::Interrupted, "the work was stopped")
}
