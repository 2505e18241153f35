//! The merge executor of one run: an async task that holds the run's weights and does one order on
//! them at a time. It may lose the weights at any moment without harm: everything since the last
//! full snapshot can be done again from objects.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::try_join_all;
use schemas::foundry::{Answer, Merged, Saved};
use schemas::lease::{LeaseRef, Weights as Published};
use schemas::masking::Unmasking;
use schemas::run::RunSpec;
use schemas::snapshot::{MergeInput, MergeRecord};
use schemas::{Code, Digest, Refusal, Round, SyncId};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::Answers;
use super::save::{self, Snapshot};
use super::screen::KeptChunks;
use crate::guard::answered;
use crate::store::Store;
use recompute::RunContext;
use recompute::inputs::{self, Input};
use recompute::masked::unmasked;
use recompute::restore::{self, Origin};
use recompute::{Part, Step, Stepped, Weights};

/// Orders that wait for an executor: the core gives one order at a time, and a save beside it.
const WORK_MAX: usize = 8;

/// An order on the weights.
#[derive(Debug)]
pub(super) enum WeightsOrder {
    Restore {
        spec: Box<RunSpec>,
        snapshot: Option<Origin>,
        merges: Vec<MergeRecord>,
    },
    Merge {
        sync: SyncId,
        base: Round,
        inputs: Vec<MergeInput>,
        unmasking: Option<Box<Unmasking>>,
        kept: BTreeMap<LeaseRef, KeptChunks>,
    },
    Save {
        round: Round,
        parent: Option<Digest>,
        merges: Vec<MergeRecord>,
    },
}

/// A running executor, as the dispatcher sees it. Dropping it ends the executor.
#[derive(Debug)]
pub(crate) struct Handle {
    work: mpsc::Sender<WeightsOrder>,
    context: watch::Receiver<Option<Arc<RunContext>>>,
    task: JoinHandle<()>,
}

/// The snapshot that the weights came from, and the merges since.
#[derive(Debug, Default)]
struct History {
    snapshot: Option<Origin>,
    merges: Vec<MergeRecord>,
}

impl History {
    /// Begins the history at a newer full snapshot, of the weights that `round` starts from. The
    /// snapshot includes the merges before it.
    fn shorten(&mut self, saved: Option<Origin>) {
        let Some((round, manifest)) = saved else {
            return;
        };
        self.snapshot = Some((round, manifest));
        self.merges.retain(|merge| merge.round >= round);
    }
}

struct Executor {
    store: Store,
    answers: Answers,
    publish_context: watch::Sender<Option<Arc<RunContext>>>,
    context: Option<Arc<RunContext>>,
    history: History,
    weights: Option<Weights>,
    /// The maker of the statements about snapshots.
    maker: save::Maker,
    /// The newest full snapshot, from the task that saved it.
    saved: watch::Sender<Option<Origin>>,
}

impl Handle {
    pub(super) fn start(store: Store, maker: save::Maker, answers: Answers) -> Self {
        let (work, queue) = mpsc::channel(WORK_MAX);
        let (publish_context, context) = watch::channel(None);
        let executor = Executor {
            store,
            answers,
            publish_context,
            context: None,
            history: History::default(),
            weights: None,
            maker,
            saved: watch::Sender::new(None),
        };
        Self {
            work,
            context,
            task: tokio::spawn(executor.run(queue)),
        }
    }

    /// Passes work to the executor.
    ///
    /// # Errors
    /// Too much work waits, or the executor has ended.
    pub(super) fn hand(&self, work: WeightsOrder) -> Result<(), Refusal> {
        let failed = |error: mpsc::error::TrySendError<WeightsOrder>| {
            Refusal::new(Code::Internal, format!("executor: {error}"))
        };
        self.work.try_send(work).map_err(failed)
    }

    /// The run's context, once it is known.
    pub(super) fn context(&self) -> watch::Receiver<Option<Arc<RunContext>>> {
        self.context.clone()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Executor {
    async fn run(mut self, mut queue: mpsc::Receiver<WeightsOrder>) {
        while let Some(work) = queue.recv().await {
            match work {
                WeightsOrder::Restore {
                    spec,
                    snapshot,
                    merges,
                } => self.restore(*spec, snapshot, merges).await,
                WeightsOrder::Merge {
                    sync,
                    base,
                    inputs,
                    unmasking,
                    kept,
                } => {
                    let set = (inputs, unmasking.map(|unmasking| *unmasking));
                    let outcome = answered("merge", self.merge(sync, base, set, kept)).await;
                    if let Err(refusal) = &outcome {
                        tracing::warn!(run = %self.answers.run(), %sync, %refusal, "not merged");
                    }
                    self.answers.give(Answer::Merged { sync, outcome }).await;
                }
                WeightsOrder::Save {
                    round,
                    parent,
                    merges,
                } => self.save(round, parent, merges),
            }
        }
    }

    async fn restore(&mut self, spec: RunSpec, snapshot: Option<Origin>, merges: Vec<MergeRecord>) {
        self.history = History { snapshot, merges };
        // A save that is under way is of weights that may not be the run's any more.
        self.saved = watch::Sender::new(None);
        self.weights = None;
        let outcome = answered("restore", self.load(spec)).await;
        if let Err(refusal) = &outcome {
            tracing::warn!(run = %self.answers.run(), %refusal, "weights not restored");
        }
        self.answers.give(Answer::Restored { outcome }).await;
    }

    /// Loads context, data manifest and weights.
    async fn load(&mut self, spec: RunSpec) -> Result<(), Refusal> {
        let data = spec.data;
        let context = Arc::new(RunContext::load(&self.store, spec).await?);
        self.context = Some(Arc::clone(&context));
        self.publish_context
            .send_replace(Some(Arc::clone(&context)));
        let data = Box::new(crate::check::data(&self.store, data).await?);
        self.answers.give(Answer::DataLoaded { data }).await;
        let History { snapshot, merges } = &self.history;
        self.weights = Some(restore::weights(&self.store, &context, *snapshot, merges).await?);
        Ok(())
    }

    async fn merge(
        &mut self,
        sync: SyncId,
        base: Round,
        (inputs, unmasking): (Vec<MergeInput>, Option<Unmasking>),
        kept: BTreeMap<LeaseRef, KeptChunks>,
    ) -> Result<Merged, Refusal> {
        let SyncId { round, fragment } = sync;
        let internal = |detail: String| Refusal::new(Code::Internal, detail);
        let context = self
            .context
            .clone()
            .ok_or_else(|| internal(format!("merge of round {round} before a restore")))?;
        self.history.shorten(*self.saved.borrow());
        // The weights are taken out, so that a merge that breaks off half-way leaves none that
        // could be used.
        let mut weights = match self.weights.take() {
            Some(weights) => weights,
            None => {
                restore::weights(
                    &self.store,
                    &context,
                    self.history.snapshot,
                    &self.history.merges,
                )
                .await?
            }
        };
        // A restore repeats merges in the order of their rounds, so a merge out of order could not
        // be recomputed.
        if weights.round != base || base != round {
            let held = weights.round;
            self.weights = Some(weights);
            return Err(internal(format!(
                "merge of {sync} into version {base}, but the weights are of version {held}"
            )));
        }
        let started = std::time::Instant::now();
        let unmasking = unmasking.map(Arc::new);
        let set = (&inputs[..], unmasking.as_ref());
        let merged = step_all(&self.store, &context, &mut weights, set, kept).await?;
        let broadcast = merged.broadcast.digest();
        tracing::info!(
            run = %context.spec.run,
            round = round.get(),
            inputs = inputs.len(),
            took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            "merged"
        );
        self.history.merges.push(MergeRecord {
            round,
            fragment,
            inputs,
            broadcast,
            unmasking: unmasking.map(Arc::unwrap_or_clone),
        });
        self.weights = Some(weights);
        Ok(merged)
    }

    /// Starts a task that saves the present chunks. Nobody waits for it: the next merge may begin.
    fn save(&self, round: Round, parent: Option<Digest>, merges: Vec<MergeRecord>) {
        let held = self.weights.clone().filter(|held| held.round == round);
        let snapshot = self
            .context
            .clone()
            .zip(held)
            .map(|(context, weights)| Snapshot {
                context,
                weights,
                parent,
                merges,
            });
        let (store, answers, saved) =
            (self.store.clone(), self.answers.clone(), self.saved.clone());
        let maker = self.maker.clone();
        tokio::spawn(async move {
            let work = async {
                let missing = || {
                    let text = format!("the weights of round {round} are not held");
                    Refusal::new(Code::SnapshotMissing, text)
                };
                let snapshot = snapshot.ok_or_else(missing)?;
                let objects = save::save(&store, &maker, snapshot).await?;
                saved.send_replace(Some((round, objects.manifest)));
                Ok(objects)
            };
            tell_saved(&answers, round, work).await;
        });
    }
}

/// Saves, and reports the outcome in any case: without an answer no later round would be saved.
async fn tell_saved(
    answers: &Answers,
    round: Round,
    save: impl Future<Output = Result<Saved, Refusal>>,
) {
    let outcome = answered("save", save).await;
    if let Err(refusal) = &outcome {
        tracing::warn!(run = %answers.run(), round = round.get(), %refusal, "full snapshot not saved");
    }
    answers.give(Answer::Saved { round, outcome }).await;
}

/// Makes the outer step chunk by chunk: while one chunk is merged, the next is fetched, and earlier
/// ones are stored.
async fn step_all(
    store: &Store,
    context: &Arc<RunContext>,
    weights: &mut Weights,
    (inputs, unmasking): (&[MergeInput], Option<&Arc<Unmasking>>),
    mut kept: BTreeMap<LeaseRef, KeptChunks>,
) -> Result<Merged, Refusal> {
    let round = weights.round;
    let first = weights.is_first();
    let step = Step::new(&context.spec, round, first);
    let count = context.chunks.len();
    let mut uploads = Vec::with_capacity(count);
    let mut sum_of_squares = 0.0;
    let mut names = Names::new(store, inputs, count);
    let mut next = names.gather(&mut kept, 0).await?;
    for index in 0..count {
        let parts = joined(&mut next).await??;
        if index + 1 < count {
            next = names.gather(&mut kept, index + 1).await?;
        }
        // The permit limits the encoded chunks that wait to be stored.
        let permit = store.transfer().await;
        let mut piece = std::mem::take(&mut weights.pieces[index]);
        let place = context.place(index);
        let (of_run, unmasking) = (Arc::clone(context), unmasking.cloned());
        let work = tokio::task::spawn_blocking(move || {
            let (spec, elements) = (&of_run.spec, of_run.elements(index));
            let parts = unmasked(spec, unmasking.as_deref(), place.start, elements, parts);
            let stepped = parts.and_then(|parts| {
                let stepped = step.run(&mut piece, &parts, &place);
                stepped.map_err(|error| Refusal::new(Code::Internal, error.to_string()))
            });
            (piece, stepped)
        });
        let (piece, stepped) = work
            .await
            .map_err(|error| Refusal::new(Code::Internal, format!("merge: {error}")))?;
        let stepped: Stepped = stepped.map_err(|refusal| {
            let detail = format!("merge of chunk {index}: {}", refusal.detail);
            Refusal::new(refusal.code, detail)
        })?;
        if !stepped.finite {
            let detail = format!(
                "round {round}: chunk {index} of the weights is no longer finite after the outer step"
            );
            return Err(Refusal::new(Code::NotFinite, detail));
        }
        weights.pieces[index] = piece;
        sum_of_squares += stepped.sum_of_squares;
        let (store, bytes) = (store.clone(), Bytes::from(stepped.broadcast));
        uploads.push(AbortOnDrop(tokio::spawn(async move {
            let stored = store.publish(bytes).await;
            drop(permit);
            stored
        })));
    }
    let mut chunks = Vec::with_capacity(count);
    for upload in &mut uploads {
        chunks.push(joined(upload).await??);
    }
    let broadcast = Published {
        round: round.next(),
        codec: context.spec.download,
        chunks: store.name_chunks(&context.spec, chunks).await?,
    };
    weights.round = round.next();
    weights.broadcast = broadcast.clone();
    Ok(Merged {
        broadcast,
        norm: sum_of_squares.sqrt(),
    })
}

/// A task that is ended when this is dropped.
struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn joined<T>(task: &mut AbortOnDrop<T>) -> Result<T, Refusal> {
    (&mut task.0)
        .await
        .map_err(|error| Refusal::new(Code::Internal, format!("merge: {error}")))
}

/// The contributions of a merge, with the names of those of their chunks that come next.
struct Names<'a> {
    store: &'a Store,
    inputs: &'a [MergeInput],
    windows: VecDeque<Range<usize>>,
    /// The chunks that are named now.
    window: Range<usize>,
    named: Vec<Input>,
}

impl<'a> Names<'a> {
    fn new(store: &'a Store, inputs: &'a [MergeInput], count: usize) -> Self {
        Self {
            store,
            inputs,
            windows: inputs::windows(inputs.len(), count).collect(),
            window: 0..0,
            named: Vec::new(),
        }
    }

    /// Begins to bring chunk `index` of every input together, from memory or from the store. The
    /// chunks come one after another.
    async fn gather(
        &mut self,
        kept: &mut BTreeMap<LeaseRef, KeptChunks>,
        index: usize,
    ) -> Result<AbortOnDrop<Result<Vec<Part>, Refusal>>, Refusal> {
        if !self.window.contains(&index) {
            let window = self.windows.pop_front();
            self.window = window.expect("the windows together are all chunks");
            // What is named now goes first: the memory is set aside once.
            self.named = Vec::new();
            self.named = inputs::read(self.store, self.inputs, &self.window).await?;
        }
        gather(self.store, &self.named, kept, index)
    }
}

/// Brings chunk `index` of every input together.
fn gather(
    store: &Store,
    inputs: &[Input],
    kept: &mut BTreeMap<LeaseRef, KeptChunks>,
    index: usize,
) -> Result<AbortOnDrop<Result<Vec<Part>, Refusal>>, Refusal> {
    let mut sources = Vec::with_capacity(inputs.len());
    for input in inputs {
        let object = input.chunk(index).ok_or_else(|| {
            Refusal::new(
                Code::LayoutMismatch,
                format!("{} has no chunk {index}", input.lease),
            )
        })?;
        let held = kept
            .get_mut(&input.lease)
            .and_then(|chunks| chunks.get_mut(index))
            .and_then(Option::take);
        sources.push((input.weight, input.norm, object, held));
    }
    let store = store.clone();
    Ok(AbortOnDrop(tokio::spawn(async move {
        let parts = sources.into_iter().map(|(weight, norm, object, held)| {
            let store = &store;
            async move {
                let bytes = match held {
                    // The room in the bound is given back with the last place of these bytes, a
                    // moment before the bytes themselves.
                    Some(kept) => kept.bytes.clone(),
                    None => store.fetch(object).await?,
                };
                Ok::<Part, Refusal>(Part {
                    weight,
                    norm,
                    // The seal weighs nothing that the comparison leaves out.
                    cosine: None,
                    bytes,
                })
            }
        });
        try_join_all(parts).await
    })))
}

#[cfg(test)]
mod tests {
    use schemas::RunId;

    use schemas::ObjectRef;

    use super::*;
    use crate::arrival::Arrival;
    use crate::foundry::FoundryNumber;

    #[tokio::test]
    async fn a_save_that_panics_is_told_as_one_that_failed() {
        let (arrivals, mut heard) = mpsc::channel(1);
        let run: RunId = "demo".parse().expect("a name");
        let answers = Answers::new(run, FoundryNumber(1), arrivals);
        let broken = "an empty list is not saved";
        let save = async move {
            if broken.is_empty() {
                let manifest = ObjectRef::of(b"x");
                Ok(Saved {
                    manifest,
                    statement: manifest,
                })
            } else {
                panic!("{broken}")
            }
        };
        // Spawned in the same way as by the executor: the task itself ends well.
        let task = tokio::spawn(async move { tell_saved(&answers, Round(3), save).await });
        match heard.recv().await {
            Some(Arrival::Foundry {
                answer:
                    Answer::Saved {
                        round: Round(3),
                        outcome: Err(refusal),
                    },
                ..
            }) => {
                assert_eq!(refusal.code, Code::Internal);
                assert!(refusal.detail.contains(broken), "{}", refusal.detail);
            }
            other => panic!("the core was told {other:?}"),
        }
        task.await.expect("it caught the panic");
    }
}
