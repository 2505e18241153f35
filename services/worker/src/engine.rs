//! The training thread. The trainer lives here and nowhere else; the rest of the process sends it
//! jobs through a bounded channel and they are done one after another. A running job ends early
//! when its stop flag is set, between two steps or two chunks.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use bytes::Bytes;
use data::{HeldOut, UnitSampler};
use merge::SeededRounding;
use merge::codec::{decode, encode_difference, encoded_bytes};
use model::ModelConfig;
use schemas::contribution::Evaluation;
use schemas::layout::Chunk;
use schemas::run::{CodecKind, InnerOptimizer, Precision};
use schemas::{Code, Digest, Refusal, Steps, Tokens};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use trainer::{Batch, StepSettings, Trainer, inner_rate};
use worker_core::{Trained, WorkId};

use crate::config::TrainingSection;
use crate::meter::Meter;
use crate::trainers;

/// Jobs that wait: a few chunks of weights, so that the next is downloaded while one is decoded,
/// and no more in memory.
const JOBS_MAX: usize = 4;
/// Encoded chunks that wait for their upload.
const ENCODED_MAX: usize = 2;

/// Something for the training thread to do.
enum Job {
    Open(Box<Opening>, Answer<()>),
    Begin {
        base: Digest,
        answer: Answer<bool>,
    },
    Load {
        codec: CodecKind,
        range: Range<usize>,
        bytes: Bytes,
    },
    Loaded {
        base: Digest,
        answer: Answer<()>,
    },
    Train(Box<Training>, Answer<Trained>),
    Evaluate(Box<Evaluating>, Answer<Evaluation>),
    Encode {
        encoding: Encoding,
        chunks: mpsc::Sender<Result<(usize, Bytes), Refusal>>,
    },
    Save,
    Doubt(Refusal),
}

type Answer<T> = oneshot::Sender<Result<T, Refusal>>;

/// A model to train.
#[derive(Clone, Debug)]
pub(crate) struct Opening {
    /// What it is.
    pub(crate) model: ModelConfig,
    /// In which arithmetic.
    pub(crate) precision: Precision,
    /// Where the inner optimizer's state is kept.
    pub(crate) inner: PathBuf,
}

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
    /// Sequences of one pass: those of a micro-batch, which fit the memory.
    pub(crate) batch_sequences: u32,
    pub(crate) sequence_tokens: u32,
}

/// A contribution to encode.
#[derive(Clone, Debug)]
pub(crate) struct Encoding {
    pub(crate) stop: CancellationToken,
    pub(crate) codec: CodecKind,
    pub(crate) rounding: SeededRounding,
    pub(crate) chunks: Vec<Chunk>,
}

/// Sends jobs to the training thread. Cheap to clone; the thread ends when the last clone is gone.
#[derive(Clone)]
pub(crate) struct Engine(mpsc::Sender<Job>);

impl Engine {
    /// Starts the thread. Progress is told as `(work, steps done)`.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(crate) fn start(
        section: TrainingSection,
        meter: Arc<Meter>,
        progress: watch::Sender<(WorkId, Steps)>,
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (jobs, queue) = mpsc::channel(JOBS_MAX);
        let thread = TrainingThread {
            section,
            meter,
            progress,
            open: None,
        };
        let thread = std::thread::Builder::new()
            .name("training".to_owned())
            .spawn(move || thread.work(queue))?;
        Ok((Self(jobs), thread))
    }

    /// Makes the trainer of a model, or keeps it when it is the one at hand.
    pub(crate) async fn open(&self, opening: Opening) -> Result<(), Refusal> {
        self.ask(|answer| Job::Open(Box::new(opening), answer))
            .await
    }

    /// Prepares for base weights with this digest. When they are here already, the parameters are
    /// set to them and the answer is true; otherwise all chunks are to be loaded.
    pub(crate) async fn begin(&self, base: Digest) -> Result<bool, Refusal> {
        self.ask(|answer| Job::Begin { base, answer }).await
    }

    /// Decodes a chunk of base weights into its place. What is wrong with it is said by
    /// [`Engine::loaded`].
    pub(crate) async fn load(
        &self,
        codec: CodecKind,
        range: Range<usize>,
        bytes: Bytes,
    ) -> Result<(), Refusal> {
        self.0
            .send(Job::Load {
                codec,
                range,
                bytes,
            })
            .await
            .map_err(|_| ended())
    }

    /// All chunks were sent: are the base weights complete?
    pub(crate) async fn loaded(&self, base: Digest) -> Result<(), Refusal> {
        self.ask(|answer| Job::Loaded { base, answer }).await
    }

    /// Does inner steps.
    pub(crate) async fn train(&self, training: Training) -> Result<Trained, Refusal> {
        self.ask(|answer| Job::Train(Box::new(training), answer))
            .await
    }

    /// Computes a held-out loss.
    pub(crate) async fn evaluate(&self, evaluating: Evaluating) -> Result<Evaluation, Refusal> {
        self.ask(|answer| Job::Evaluate(Box::new(evaluating), answer))
            .await
    }

    /// Encodes base minus parameters; the chunks come in order while the next ones are made.
    pub(crate) async fn encode(
        &self,
        encoding: Encoding,
    ) -> Result<mpsc::Receiver<Result<(usize, Bytes), Refusal>>, Refusal> {
        let (chunks, receiver) = mpsc::channel(ENCODED_MAX);
        self.0
            .send(Job::Encode { encoding, chunks })
            .await
            .map_err(|_| ended())?;
        Ok(receiver)
    }

    /// Saves the inner optimizer's state after the jobs that were sent before.
    pub(crate) async fn save(&self) -> Result<(), Refusal> {
        self.0.send(Job::Save).await.map_err(|_| ended())
    }

    /// A result of the trainer was refused: if it stems from a saved state that was just taken up,
    /// that is dropped.
    pub(crate) async fn doubt(&self, refusal: Refusal) -> Result<(), Refusal> {
        self.0.send(Job::Doubt(refusal)).await.map_err(|_| ended())
    }

    async fn ask<T>(&self, job: impl FnOnce(Answer<T>) -> Job) -> Result<T, Refusal> {
        let (answer, answered) = oneshot::channel();
        self.0.send(job(answer)).await.map_err(|_| ended())?;
        answered.await.map_err(|_| ended())?
    }
}

/// What the thread has on its table.
struct TrainingThread {
    section: TrainingSection,
    meter: Arc<Meter>,
    progress: watch::Sender<(WorkId, Steps)>,
    open: Option<Open>,
}

/// A model at hand.
struct Open {
    opening: Opening,
    trainer: Box<dyn Trainer>,
    /// The base weights, decoded once: training starts from them and the contribution is measured
    /// against them.
    base: Vec<f32>,
    /// Whose they are, once complete.
    base_of: Option<Digest>,
    /// Elements loaded since the last begin.
    loaded: usize,
    fault: Option<Refusal>,
    /// The moments were taken up from a file, and no unit that was trained with them has counted
    /// yet.
    unproven: bool,
}

impl TrainingThread {
    fn work(mut self, mut queue: mpsc::Receiver<Job>) {
        while let Some(job) = queue.blocking_recv() {
            // Whoever asked may have gone; the answer is then for nobody.
            match job {
                Job::Open(opening, answer) => drop(answer.send(self.open(*opening))),
                Job::Begin { base, answer } => {
                    drop(answer.send(self.at_hand().and_then(|open| open.begin(base))))
                }
                Job::Load {
                    codec,
                    range,
                    bytes,
                } => {
                    if let Ok(open) = self.at_hand() {
                        open.load(codec, range, &bytes);
                    }
                }
                Job::Loaded { base, answer } => {
                    drop(answer.send(self.at_hand().and_then(|open| open.complete(base))))
                }
                Job::Train(training, answer) => {
                    let trained = self.train(*training);
                    if let Err(refusal) = &trained {
                        self.doubt(refusal);
                    }
                    drop(answer.send(trained));
                }
                Job::Evaluate(evaluating, answer) => drop(answer.send(self.evaluate(&evaluating))),
                Job::Encode { encoding, chunks } => match self.at_hand() {
                    Ok(open) => open.encode(&encoding, &chunks),
                    Err(refusal) => drop(chunks.blocking_send(Err(refusal))),
                },
                Job::Save => self.save(),
                Job::Doubt(refusal) => self.doubt(&refusal),
            }
        }
    }

    fn at_hand(&mut self) -> Result<&mut Open, Refusal> {
        self.open
            .as_mut()
            .ok_or_else(|| Refusal::new(Code::Internal, "no model was opened for this job"))
    }

    fn open(&mut self, opening: Opening) -> Result<(), Refusal> {
        let same = |open: &Open| {
            open.opening.model == opening.model && open.opening.precision == opening.precision
        };
        if self.open.as_ref().is_some_and(same) {
            return Ok(());
        }
        // Two models at once may not fit.
        self.open = None;
        let mut trainer = trainers::build(&opening.model, &self.section, opening.precision)?;
        let unproven = opening.inner.exists() && resume(trainer.as_mut(), &opening.inner);
        let elements = usize::try_from(trainer.layout().elements())
            .expect("the trainer holds as many in memory");
        tracing::info!(
            parameters = elements,
            device = trainer.device(),
            "the model is open"
        );
        let base = vec![0.0; elements];
        self.open = Some(Open {
            opening,
            trainer,
            base,
            base_of: None,
            loaded: 0,
            fault: None,
            unproven,
        });
        Ok(())
    }

    fn train(&mut self, mut training: Training) -> Result<Trained, Refusal> {
        let (meter, progress) = (Arc::clone(&self.meter), self.progress.clone());
        let open = self.at_hand()?;
        let begun = Instant::now();
        let (mut loss_sum, mut tokens) = (0.0, 0_u64);
        let (sequences, length) = (
            training.sequences as usize,
            training.sequence_tokens as usize,
        );
        let mut rows = Vec::new();
        for done in 0..training.steps.get() {
            if training.stop.is_cancelled() {
                return Err(stopped());
            }
            let started = Instant::now();
            training.sampler.next_batch(sequences, &mut rows);
            let batch = Batch::new(&rows, sequences, length)?;
            let step = Steps(training.steps_before.get().saturating_add(done));
            let learning_rate = inner_rate(step, training.steps_total, &training.optimizer);
            let settings = StepSettings {
                optimizer: &training.optimizer,
                learning_rate,
                accumulation: training.accumulation,
            };
            let report = open.trainer.step(&batch, &settings)?;
            loss_sum += report.loss * report.tokens.get() as f64;
            tokens += report.tokens.get();
            meter.stepped(report.tokens, report.loss, started.elapsed());
            progress.send_replace((training.work, Steps(done + 1)));
        }
        let train_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let loss = loss_sum / tokens.max(1) as f64;
        Ok(Trained {
            tokens: Tokens(tokens),
            steps: training.steps,
            loss,
            train_ms,
        })
    }

    fn evaluate(&mut self, evaluating: &Evaluating) -> Result<Evaluation, Refusal> {
        let progress = self.progress.clone();
        let open = self.at_hand()?;
        let length = evaluating.sequence_tokens as usize;
        let mut sum = Evaluation {
            loss_sum: 0.0,
            tokens: Tokens(0),
        };
        let count = evaluating.held_out.sequences();
        let mut rows = Vec::new();
        for (done, start) in
            (1..).zip((0..count).step_by(evaluating.batch_sequences.max(1) as usize))
        {
            if evaluating.stop.is_cancelled() {
                return Err(stopped());
            }
            let sequences = start..(start + evaluating.batch_sequences.max(1) as usize).min(count);
            evaluating.held_out.batch(sequences.clone(), &mut rows);
            let batch = Batch::new(&rows, sequences.len(), length)?;
            let report = open.trainer.evaluate(&batch)?;
            sum.loss_sum += report.loss_sum;
            sum.tokens += report.tokens;
            progress.send_replace((evaluating.work, Steps(done)));
        }
        Ok(sum)
    }

    fn save(&mut self) {
        let Some(open) = &mut self.open else { return };
        let begun = Instant::now();
        let folder = open
            .opening
            .inner
            .parent()
            .map_or(Ok(()), identity::secret::create_private_subfolder);
        let saved = folder.map_err(|error| error.to_string()).and_then(|()| {
            open.trainer
                .save_inner(&open.opening.inner)
                .map_err(|error| error.to_string())
        });
        match saved {
            Ok(()) => {
                // It is saved after a result that counts.
                open.unproven = false;
                tracing::debug!(ms = begun.elapsed().as_millis() as u64, "inner state saved");
            }
            Err(error) => {
                tracing::warn!(code = %Code::WorkerStateInvalid, error, "inner state not saved; it stays in memory")
            }
        }
    }
}

impl TrainingThread {
    /// Drops a model whose moments were taken up from a file and led to nothing: the next unit
    /// opens it with fresh ones.
    fn doubt(&mut self, refusal: &Refusal) {
        if !speaks_against_the_state(refusal.code) {
            return;
        }
        if let Some(open) = self.open.take_if(|open| open.unproven) {
            let (code, path) = (Code::InnerStateDropped, open.opening.inner.display());
            let moved = put_aside(&open.opening.inner);
            tracing::warn!(%code, %path, %refusal, moved, "the inner state is dropped; the next unit begins with fresh moments");
        }
    }
}

impl Open {
    fn begin(&mut self, base: Digest) -> Result<bool, Refusal> {
        self.fault = None;
        self.loaded = 0;
        if self.base_of == Some(base) {
            self.trainer.set_parameters(0, &self.base)?;
            return Ok(true);
        }
        self.base_of = None;
        Ok(false)
    }

    fn load(&mut self, codec: CodecKind, range: Range<usize>, bytes: &[u8]) {
        let start = range.start;
        let Some(place) = self.base.get_mut(range) else {
            self.fault = Some(Refusal::new(
                Code::LayoutMismatch,
                "a chunk lies outside the model",
            ));
            return;
        };
        let decoded = decode(codec, bytes, place)
            .map_err(|error| Refusal::new(Code::SizeMismatch, error.to_string()));
        let loaded = decoded.and_then(|()| Ok(self.trainer.set_parameters(start, place)?));
        match loaded {
            Ok(()) => self.loaded += place.len(),
            Err(refusal) => self.fault = Some(refusal),
        }
    }

    fn complete(&mut self, base: Digest) -> Result<(), Refusal> {
        if let Some(fault) = self.fault.take() {
            return Err(fault);
        }
        if self.loaded != self.base.len() {
            let detail = format!(
                "{} of {} parameters were loaded",
                self.loaded,
                self.base.len()
            );
            return Err(Refusal::new(Code::LayoutMismatch, detail));
        }
        self.base_of = Some(base);
        Ok(())
    }

    fn encode(
        &mut self,
        encoding: &Encoding,
        chunks: &mpsc::Sender<Result<(usize, Bytes), Refusal>>,
    ) {
        let local = match self.trainer.parameters() {
            Ok(local) => local,
            Err(error) => return drop(chunks.blocking_send(Err(error.into()))),
        };
        for (index, chunk) in encoding.chunks.iter().enumerate() {
            if encoding.stop.is_cancelled() {
                return;
            }
            let range = chunk.range();
            let encoded = match (self.base.get(range.clone()), local.get(range.clone())) {
                (Some(base), Some(local)) => encode_chunk(encoding, range.start, base, local),
                _ => Err(Refusal::new(
                    Code::LayoutMismatch,
                    "a chunk lies outside the model",
                )),
            };
            let failed = encoded.is_err();
            // Nobody waits for it any more, or it cannot be made.
            if chunks
                .blocking_send(encoded.map(|bytes| (index, bytes)))
                .is_err()
                || failed
            {
                return;
            }
        }
    }
}

fn encode_chunk(
    encoding: &Encoding,
    start: usize,
    base: &[f32],
    local: &[f32],
) -> Result<Bytes, Refusal> {
    let mut out = vec![0; encoded_bytes(encoding.codec, base.len())];
    encode_difference(
        encoding.codec,
        base,
        local,
        encoding.rounding.skip(start),
        &mut out,
    )
    .map_err(|error| Refusal::new(Code::Internal, error.to_string()))?;
    Ok(out.into())
}

/// Takes up the saved inner state; whether it did. One that does not fit, or cannot be right, is
/// put aside: training goes on with fresh moments.
fn resume(trainer: &mut dyn Trainer, path: &std::path::Path) -> bool {
    match trainer.load_inner(path) {
        Ok(()) => {
            tracing::info!(path = %path.display(), "inner state taken up again");
            true
        }
        Err(error) => {
            let moved = put_aside(path);
            let (code, path) = (error.code(), path.display());
            tracing::warn!(%code, %path, %error, moved, "the saved inner state is passed over; moments start anew");
            false
        }
    }
}

/// Sets a refused state aside, so that a person can look at it; the one set aside before is
/// replaced.
fn put_aside(path: &std::path::Path) -> bool {
    std::fs::rename(path, path.with_extension("refused")).is_ok()
}

/// Whether moments can be why a unit failed: its numbers went astray, here or in the coordinator's
/// eyes.
const fn speaks_against_the_state(code: Code) -> bool {
    code.is_about_numbers() || matches!(code, Code::TrainingFailed)
}

fn stopped() -> Refusal {
    Refusal::new(Code::Interrupted, "the work was stopped")
}

fn ended() -> Refusal {
    Refusal::new(Code::Internal, "the training thread has ended")
}

#[cfg(test)]
mod tests;
