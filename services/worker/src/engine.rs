//! The engine: a session with one model on a thread of its own, which takes jobs between two inner
//! steps.
//!
//! * **The training thread owns the trainer,** and the trainer owns all tensors that change: the
//!   local parameters, the global weights that they started from, the moments and the residual, in
//!   memory or on a card. Only copies leave the thread: encoded chunks, and what is saved.
//! * **Jobs are done in the order in which they come.** While inner steps are done, the thread
//!   takes between two of them what may happen there: weights that arrive ([`Engine::expect`],
//!   [`Engine::load`]), [`Engine::capture`], [`Engine::blend`] and [`Engine::keep`]. The first job
//!   that needs the steps to be over waits, and with it all that come after it. A unit's stop flag
//!   ends its steps at the next such moment.
//! * **Everything that syncs is keyed by its fragment.** A sync of a fragment goes: capture, which
//!   encodes the difference; then, when its new weights come, expect, load chunk by chunk, blend.
//!   Other fragments and the steps go on meanwhile.
//! * **A capture encodes on this thread**, since only it may read parameters, and at once, since
//!   the next step would change them. The encoded chunks are in memory until they are uploaded: 2
//!   bytes a parameter of the fragment in bf16, and the thread never waits for an upload.
//! * **A save copies** the moments on this thread (8 bytes a parameter, and 4 of the residual with
//!   error feedback, kept for the next copy; as much again while a write takes longer than a unit,
//!   and a third time while it takes longer than two) and the lane in [`saver`] writes them beside
//!   the next steps.
//!
//! | file | what |
//! | --- | --- |
//! | `session` | a model, its fragments and their weights |
//! | `capture` | encoding the difference of a fragment |
//! | `steps` | inner steps and evaluations |
//! | `inner` | the file of the inner state: taken up, or put aside |
//! | `residual` | what the codec took from contributions, for the next one |
//! | `saver` | the lane that writes both |

mod capture;
mod inner;
mod residual;
mod saver;
mod session;
mod steps;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use model::ModelConfig;
use schemas::contribution::Evaluation;
use schemas::run::{CodecKind, Precision, Privacy};
use schemas::{Code, Digest, Fragment, Refusal, Steps};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use trainer::Alpha;
use worker_core::{ResultEnd, Trained, WorkId};

use crate::config::TrainingSection;
use crate::meter::{Meter, WorkLane};
use crate::trainers;

pub(crate) use capture::{Capture, EncodedChunks};
use saver::Saver;
use session::Session;
use steps::Stepping;
pub(crate) use steps::{Evaluating, Training};

/// Most jobs that wait: a few chunks of weights, so that the next one is downloaded while one is
/// decoded, and few are in memory.
const JOBS_MAX: usize = 4;

/// A job of the training thread.
enum Job {
    Open(Box<Opening>, Answer<()>),
    Expect(Fragment, Digest, Alpha, Answer<bool>),
    Load {
        fragment: Fragment,
        codec: CodecKind,
        range: Range<usize>,
        bytes: Bytes,
    },
    Blend(Fragment, Digest, Alpha, Answer<()>),
    Train(Box<Training>, Answer<Trained>),
    Evaluate(Box<Evaluating>, Answer<Evaluation>),
    Capture(Capture, capture::Sender),
    Keep(WorkId, ResultEnd),
    #[cfg(test)]
    Panic,
    /// Takes the place of the model at hand.
    #[cfg(test)]
    Adopt(Box<dyn FnOnce() -> Session + Send>),
}

type Answer<T> = oneshot::Sender<Result<T, Refusal>>;

impl Job {
    /// True for a job that may be done between two steps of a unit.
    fn fits_between_steps(&self) -> bool {
        match self {
            Self::Expect(..) | Self::Load { .. } | Self::Blend(..) | Self::Capture(..) => true,
            // The refusal may drop the model.
            Self::Keep(_, ResultEnd::Refused(_)) => false,
            Self::Keep(..) => true,
            #[cfg(test)]
            Self::Panic | Self::Adopt(_) => true,
            Self::Open(..) | Self::Train(..) | Self::Evaluate(..) => false,
        }
    }
}

/// A model to train.
#[derive(Clone, Debug)]
pub(crate) struct Opening {
    /// The model.
    pub(crate) model: ModelConfig,
    /// The arithmetic that it is trained in.
    pub(crate) precision: Precision,
    /// The elements of each fragment; together they cover the parameters.
    pub(crate) fragments: Vec<Range<usize>>,
    /// The file that keeps the inner optimizer's state; the residual lies beside it.
    pub(crate) inner: PathBuf,
    /// The owner of the state: the trust domain, the run, and the digest of its settings.
    pub(crate) owner: String,
    /// True if contributions bring back the part that the codec took from earlier ones.
    pub(crate) error_feedback: bool,
    /// The clipping and noise of contributions, in a private run.
    pub(crate) privacy: Option<Privacy>,
    /// True in a run with secure aggregation, which tells no number of one worker's data.
    pub(crate) masked: bool,
}

/// Sends jobs to the training thread. Cheap to clone; the thread ends when the last clone is gone,
/// after the last inner state is written.
#[derive(Clone)]
pub(crate) struct Engine(mpsc::Sender<Job>);

impl Engine {
    /// Starts the thread, which reports progress as `(work, steps done)`.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(crate) fn start(
        section: TrainingSection,
        meter: Arc<Meter>,
        progress: watch::Sender<(WorkId, Steps)>,
    ) -> std::io::Result<(Self, RunningThread)> {
        let (jobs, queue) = mpsc::channel(JOBS_MAX);
        let ended = CancellationToken::new();
        let thread = TrainingThread {
            _alive: ended.clone().drop_guard(),
            section,
            meter,
            progress,
            queue,
            next: None,
            session: None,
            saver: Saver::start()?,
            lost: false,
        };
        let thread = std::thread::Builder::new()
            .name("training".to_owned())
            .spawn(move || thread.work())?;
        Ok((Self(jobs), RunningThread { thread, ended }))
    }

    /// Makes the trainer of a model, or keeps it when it is the one at hand.
    pub(crate) async fn open(&self, opening: Opening) -> Result<(), Refusal> {
        self.ask(|answer| Job::Open(Box::new(opening), answer))
            .await
    }

    /// Prepares for global weights of a fragment that will be blended in by `alpha`. Returns true
    /// if the weights are loaded already; otherwise all their chunks must be loaded.
    pub(crate) async fn expect(
        &self,
        fragment: Fragment,
        weights: Digest,
        alpha: Alpha,
    ) -> Result<bool, Refusal> {
        self.ask(|answer| Job::Expect(fragment, weights, alpha, answer))
            .await
    }

    /// Decodes a chunk of global weights into its place. [`Engine::blend`] reports its faults.
    pub(crate) async fn load(
        &self,
        fragment: Fragment,
        codec: CodecKind,
        range: Range<usize>,
        bytes: Bytes,
    ) -> Result<(), Refusal> {
        self.send(Job::Load {
            fragment,
            codec,
            range,
            bytes,
        })
        .await
    }

    /// Blends the weights of a fragment, whose chunks were all loaded, into the parameters.
    pub(crate) async fn blend(
        &self,
        fragment: Fragment,
        weights: Digest,
        alpha: Alpha,
    ) -> Result<(), Refusal> {
        self.ask(|answer| Job::Blend(fragment, weights, alpha, answer))
            .await
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

    /// Encodes global weights minus parameters of a fragment, as they are when the job's turn
    /// comes. The chunks are sent in order, each while the next ones are made.
    pub(crate) async fn capture(&self, capture: Capture) -> Result<EncodedChunks, Refusal> {
        // The channel has room for all chunks: between two steps the thread cannot wait for an
        // upload.
        let (chunks, receiver) = mpsc::channel(capture.chunks.len().max(1));
        self.send(Job::Capture(capture, chunks)).await?;
        Ok(receiver)
    }

    /// Keeps a copy of the inner optimizer's state as it is when the job's turn comes, after a
    /// training unit that ended in this way. A result that counts proves a state that came from a
    /// file; one that is refused for its numbers drops the state instead.
    pub(crate) async fn keep(&self, work: WorkId, end: ResultEnd) -> Result<(), Refusal> {
        self.send(Job::Keep(work, end)).await
    }

    async fn ask<T>(&self, job: impl FnOnce(Answer<T>) -> Job) -> Result<T, Refusal> {
        let (answer, answered) = oneshot::channel();
        self.send(job(answer)).await?;
        answered.await.map_err(|_| ended())?
    }

    async fn send(&self, job: Job) -> Result<(), Refusal> {
        self.0.send(job).await.map_err(|_| ended())
    }
}

/// The training thread, seen from outside.
pub(crate) struct RunningThread {
    pub(crate) thread: JoinHandle<()>,
    /// Cancelled when the thread ends. Before all engines are gone it ends by a panic only, or
    /// because its device is lost.
    pub(crate) ended: CancellationToken,
}

/// The state of the training thread.
struct TrainingThread {
    /// Dropped first when the thread panics, so that the process hears of it before the last state
    /// is written.
    _alive: DropGuard,
    section: TrainingSection,
    meter: Arc<Meter>,
    progress: watch::Sender<(WorkId, Steps)>,
    queue: mpsc::Receiver<Job>,
    /// The job that waits for the end of the steps.
    next: Option<Job>,
    session: Option<Session>,
    saver: Saver,
    /// The device fails at everything: no other job can be done.
    lost: bool,
}

impl TrainingThread {
    fn work(mut self) {
        while !self.lost
            && let Some(job) = self.next.take().or_else(|| self.queue.blocking_recv())
        {
            self.perform(job);
        }
        self.saver.finish();
    }

    /// Does one job.
    fn perform(&mut self, job: Job) {
        match job {
            Job::Open(opening, answer) => {
                let opened = self.open(*opening);
                self.answer(answer, opened);
            }
            Job::Expect(fragment, weights, alpha, answer) => {
                let session = self.at_hand();
                let here = session.and_then(|open| open.expect(fragment, weights, alpha));
                self.answer(answer, here);
            }
            Job::Load {
                fragment,
                codec,
                range,
                bytes,
            } => {
                // Without a model the blend is refused.
                if let Ok(session) = self.at_hand() {
                    session.load(fragment, codec, range, &bytes);
                }
            }
            Job::Blend(fragment, weights, alpha, answer) => {
                let session = self.at_hand();
                let blended = session.and_then(|open| open.blend(fragment, weights, alpha));
                self.answer(answer, blended);
            }
            Job::Train(training, answer) => {
                let trained = self.train(*training).map_err(|why| self.judged(why));
                if let Err(refusal) = &trained {
                    self.drop_if_doubtful(refusal);
                }
                drop(answer.send(trained));
            }
            Job::Evaluate(evaluating, answer) => {
                let evaluated = self.evaluate(&evaluating);
                self.answer(answer, evaluated);
            }
            Job::Capture(capture, chunks) => {
                let captured = self.capture(&capture, &chunks);
                if let Err(refusal) = captured.map_err(|why| self.judged(why)) {
                    tell_uncaptured(refusal, &capture, &chunks);
                }
            }
            Job::Keep(work, end) => {
                if let ResultEnd::Refused(refusal) = &end {
                    self.drop_if_doubtful(refusal);
                }
                if let Some(session) = &mut self.session
                    && let Err(refusal) = session.unit_ended(work, &end)
                {
                    let Refusal { code, detail, .. } = self.judged(refusal);
                    if self.lost {
                        // A state that waits for the disk is still written.
                        return;
                    }
                    tracing::warn!(%code, detail, work = work.0, "the residual could not be updated; the next contribution begins without the part that was sent");
                }
                self.save();
            }
            #[cfg(test)]
            Job::Panic => panic!("asked for by a test"),
            #[cfg(test)]
            Job::Adopt(session) => self.session = Some(session()),
        }
    }

    /// Answers a job. An answer that nobody waits for any more is dropped.
    fn answer<T>(&mut self, answer: Answer<T>, outcome: Result<T, Refusal>) {
        drop(answer.send(outcome.map_err(|why| self.judged(why))));
    }

    /// The reason why a job failed: its own, or that the device is lost, for this job and for every
    /// other. Then the thread ends.
    fn judged(&mut self, refusal: Refusal) -> Refusal {
        let device = self
            .session
            .as_mut()
            .map(|open| open.trainer.check_device());
        let Some(Err(lost)) = device else {
            return refusal;
        };
        let (code, error) = (lost.code(), &refusal.detail);
        tracing::error!(%code, error, lost = %lost, "the device is lost; the training thread ends");
        self.lost = true;
        lost.into()
    }

    /// Encodes a fragment, after the residual has left the disk: it must not be sent a second time.
    fn capture(&mut self, capture: &Capture, chunks: &capture::Sender) -> Result<(), Refusal> {
        let session = self.session.as_mut().ok_or_else(nothing_open)?;
        if session.begin_contribution(capture.work)? {
            self.saver.withdraw(session.inner_path())?;
            session.residual_withdrawn();
        }
        let _timed = self.meter.timed(WorkLane::Encode);
        session.capture(capture, chunks)
    }

    fn at_hand(&mut self) -> Result<&mut Session, Refusal> {
        self.session.as_mut().ok_or_else(nothing_open)
    }

    fn open(&mut self, opening: Opening) -> Result<(), Refusal> {
        if self
            .session
            .as_ref()
            .is_some_and(|session| session.is_of(&opening))
        {
            return Ok(());
        }
        // Memory may not suffice for two models at once.
        self.session = None;
        let trainer = trainers::build(&opening.model, &self.section, opening.precision)?;
        self.session = Some(Session::new(opening, trainer)?);
        Ok(())
    }

    fn train(&mut self, training: Training) -> Result<Trained, Refusal> {
        self.at_hand()?.begin_steps()?;
        self.saver.steps_begin();
        let trained = self.step(Stepping::new(training));
        self.at_hand()?.end_steps();
        trained
    }

    fn step(&mut self, mut stepping: Stepping) -> Result<Trained, Refusal> {
        loop {
            if stepping.is_stopped() {
                return Err(steps::stopped());
            }
            self.between_steps();
            let session = self.session.as_mut();
            let session = session.expect("no job between two steps drops the model");
            if let Some(trained) = stepping.next(session, &self.meter, &self.progress)? {
                return Ok(trained);
            }
        }
    }

    /// Does the waiting jobs, up to the first one that needs the steps to be over.
    fn between_steps(&mut self) {
        while self.next.is_none()
            && let Ok(job) = self.queue.try_recv()
        {
            if job.fits_between_steps() {
                self.perform(job);
            } else {
                self.next = Some(job);
            }
        }
    }

    fn evaluate(&mut self, evaluating: &Evaluating) -> Result<Evaluation, Refusal> {
        let progress = self.progress.clone();
        steps::evaluate(self.at_hand()?, evaluating, &progress)
    }

    /// Copies the inner state, and passes it to the lane that writes it. A state that came from a
    /// file, and has led to no result that counts yet, is not written: the file stays as it is
    /// until the state is proved good.
    fn save(&mut self) {
        if let Some(session) = self
            .session
            .as_mut()
            .filter(|session| session.keeps_state())
        {
            self.saver.keep(session);
        }
    }

    /// Drops a model whose moments came from a file and have led to no result that counts; the next
    /// unit opens it with fresh moments.
    fn drop_if_doubtful(&mut self, refusal: &Refusal) {
        if inner::may_be_caused_by_the_state(refusal.code)
            && let Some(session) = self.session.take_if(|session| session.unproven)
        {
            inner::put_state_aside(session.inner_path(), refusal);
        }
    }
}

/// Tells why a fragment could not be encoded.
fn tell_uncaptured(refusal: Refusal, capture: &Capture, chunks: &capture::Sender) {
    if capture.stop.is_cancelled() {
        // The unit is over.
        let (code, detail) = (refusal.code, &refusal.detail);
        tracing::warn!(%code, detail, "a stopped unit's contribution could not be encoded");
    } else {
        // There is room for one; without a receiver nobody wants to know.
        drop(chunks.try_send(Err(refusal)));
    }
}

fn nothing_open() -> Refusal {
    Refusal::new(Code::Internal, "no model was opened for this job")
}

/// The refusal of every job after the training thread has ended.
pub(crate) fn ended() -> Refusal {
    let detail = "the thread that trains has ended; its log line says why";
    Refusal::new(Code::TrainingThreadLost, detail)
}

#[cfg(test)]
mod tests;
