//! The dispatcher of a foundry: it takes orders one by one and passes each on, so that a check
//! never waits for a merge.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use recompute::Objects;
use schemas::contribution::Statement;
use schemas::foundry::{Answer, Order, ScreeningId, SignedProvenance};
use schemas::lease::LeaseRef;
use schemas::snapshot::MergeInput;
use schemas::{
    Chunks, Code, Digest, Listed, Message as _, ObjectRef, PublicKey, Refusal, Round, WorkerId,
};
use tokio::sync::mpsc;

use super::Answers;
use super::executor::{self, WeightsOrder};
use super::save::Maker;
use super::screen::{self, KeptChunks, Source, Staged};
use crate::guard::answered;
use crate::store::{Kept, Store};

/// An order from outside, or the end of a check from its own task.
#[derive(Debug)]
pub(super) enum Message {
    Order(Order),
    /// A result has passed its check; `kept` are its chunks in memory. The answer follows this
    /// message, and so does the order to merge the result.
    Passed {
        lease: LeaseRef,
        kept: KeptChunks,
    },
}

/// The memory of a run's foundry. If it is lost, each chunk has to be fetched again.
pub(super) struct Dispatcher {
    domain: String,
    store: Store,
    answers: Answers,
    /// A way to send itself messages; they come after the orders that wait.
    messages: mpsc::Sender<Message>,
    executor: executor::Handle,
    /// Checks ahead of their submit, by lease.
    staged: BTreeMap<LeaseRef, Staged>,
    /// Chunks in memory of results that passed, by lease.
    kept: BTreeMap<LeaseRef, KeptChunks>,
}

/// The store, and in front of it the chunks in memory.
struct InMemory {
    kept: BTreeMap<Digest, Arc<Kept>>,
    store: Store,
}

#[async_trait]
impl Objects for InMemory {
    async fn fetch(&self, object: ObjectRef) -> Result<Bytes, Refusal> {
        match self.kept.get(&object.digest) {
            Some(kept) => Ok(kept.bytes.clone()),
            None => self.store.fetch(object).await,
        }
    }
}

/// A result to check.
struct Submitted {
    screening: ScreeningId,
    worker: WorkerId,
    audit_key: PublicKey,
    statement: Vec<u8>,
    signature: [u8; 64],
    provenance: Option<Box<SignedProvenance>>,
}

impl Dispatcher {
    pub(super) fn new(
        maker: Maker,
        store: Store,
        answers: Answers,
        messages: mpsc::Sender<Message>,
    ) -> Self {
        Self {
            domain: maker.domain.clone(),
            executor: executor::Handle::start(store.for_rounds(), maker, answers.clone()),
            store,
            answers,
            messages,
            staged: BTreeMap::new(),
            kept: BTreeMap::new(),
        }
    }

    /// Takes orders until the run is forgotten.
    pub(super) async fn run(mut self, mut messages: mpsc::Receiver<Message>) {
        while let Some(message) = messages.recv().await {
            match message {
                Message::Order(Order::Forget) => return,
                Message::Order(order) => self.take(order),
                Message::Passed { lease, kept } => drop(self.kept.insert(lease, kept)),
            }
        }
    }

    fn take(&mut self, order: Order) {
        match order {
            Order::Restore {
                spec,
                snapshot,
                version,
                merges,
            } => {
                let work = WeightsOrder::Restore {
                    spec,
                    snapshot: snapshot.map(|manifest| (version, manifest)),
                    merges,
                };
                self.hand(work, |refusal| Answer::Restored {
                    outcome: Err(refusal),
                });
            }
            Order::Stage {
                lease,
                worker,
                index,
                object,
            } => self.stage(lease, worker, index, object),
            Order::Unstage { lease } => {
                self.staged.remove(&lease);
                self.kept.remove(&lease);
            }
            Order::Screen {
                screening,
                worker,
                audit_key,
                statement,
                signature,
                provenance,
            } => self.screen(Submitted {
                screening,
                worker,
                audit_key,
                statement: statement.into_vec(),
                signature: signature.into_array(),
                provenance,
            }),
            Order::Compare { round, inputs } => self.compare(round, inputs),
            Order::Merge {
                sync,
                base,
                inputs,
                unmasking,
            } => {
                let kept = self.take_kept(sync.round, &inputs);
                let work = WeightsOrder::Merge {
                    sync,
                    base,
                    inputs,
                    unmasking,
                    kept,
                };
                self.hand(work, |refusal| Answer::Merged {
                    sync,
                    outcome: Err(refusal),
                });
            }
            Order::Save {
                round,
                parent,
                merges,
            } => {
                let work = WeightsOrder::Save {
                    round,
                    parent,
                    merges,
                };
                self.hand(work, |refusal| Answer::Saved {
                    round,
                    outcome: Err(refusal),
                });
            }
            Order::ReadList { listed } => self.read_list(listed),
            Order::Forget => unreachable!("the dispatcher ends with this order"),
        }
    }

    /// Compares the directions of contributions beside everything else. The chunks in memory stay
    /// there for the merge.
    fn compare(&self, round: Round, inputs: Vec<MergeInput>) {
        let kept = inputs
            .iter()
            .filter_map(|input| self.kept.get(&input.lease));
        let kept = kept.flatten().flatten();
        let objects = InMemory {
            kept: kept.map(|kept| (kept.digest, Arc::clone(kept))).collect(),
            store: self.store.for_rounds(),
        };
        let mut context = self.executor.context();
        let answers = self.answers.clone();
        tokio::spawn(async move {
            let work = async {
                let unknown = || Refusal::new(Code::NoAnswer, "the run's layout is not loaded yet");
                let context = context.wait_for(Option::is_some).await;
                let context = context.map_err(|_| unknown())?.clone();
                let context = context.ok_or_else(unknown)?;
                let started = std::time::Instant::now();
                let cosines = recompute::compare(&objects, &context, &inputs).await?;
                tracing::info!(
                    run = %context.spec.run,
                    round = round.get(),
                    inputs = inputs.len(),
                    took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
                    "directions compared"
                );
                Ok(cosines)
            };
            let outcome = answered("comparison", work).await;
            answers.give(Answer::Compared { round, outcome }).await;
        });
    }

    /// Reads a list beside everything else.
    fn read_list(&self, listed: Listed) {
        let (store, answers) = (self.store.for_rounds(), self.answers.clone());
        tokio::spawn(async move {
            let list = listed.list.digest;
            let read = async {
                let chunks = store.chunks(&Chunks::Listed(listed)).await?;
                Ok(chunks.into_iter().map(|chunk| chunk.digest).collect())
            };
            let outcome = answered("read of a list", read).await;
            answers.give(Answer::ListRead { list, outcome }).await;
        });
    }

    /// Passes work on the weights to the executor, or answers why that is not possible.
    fn hand(&self, work: WeightsOrder, refused: impl FnOnce(Refusal) -> Answer) {
        if let Err(refusal) = self.executor.hand(work) {
            self.answers.give_beside(refused(refusal));
        }
    }

    /// Starts to check a chunk. Without the run's context there is nothing to check it against yet,
    /// and the submit will do it; the submit also refuses what cannot be a chunk.
    fn stage(&mut self, lease: LeaseRef, worker: WorkerId, index: u32, object: ObjectRef) {
        let Some(context) = self.executor.context().borrow().clone() else {
            return;
        };
        let run = context.spec.run.clone();
        let source = Source { run, lease, worker };
        let staged = self.staged.entry(lease).or_default();
        let _ = screen::begin(staged, &self.store, &context, &source, index, object);
    }

    /// Starts to check a result.
    fn screen(&mut self, submitted: Submitted) {
        let screening = submitted.screening;
        let statement = match Statement::decode(&submitted.statement) {
            Ok(statement) => statement,
            Err(error) => {
                let refusal = Refusal::new(Code::StatementInvalid, error.to_string());
                let verdict = Err(refusal);
                return self
                    .answers
                    .give_beside(Answer::Screened { screening, verdict });
            }
        };
        let lease = statement.lease;
        let staged = self.staged.remove(&lease).unwrap_or_default();
        let mut context = self.executor.context();
        let (store, domain) = (self.store.clone(), self.domain.clone());
        let (answers, messages) = (self.answers.clone(), self.messages.clone());
        tokio::spawn(async move {
            let checked = async {
                let unknown = || {
                    let text = "the run's layout is not loaded yet; submit again";
                    Refusal::new(Code::NoAnswer, text)
                };
                let context = context.wait_for(Option::is_some).await;
                let context = context.map_err(|_| unknown())?.clone();
                let context = context.ok_or_else(unknown)?;
                let signed = screen::Signed {
                    audit_key: &submitted.audit_key,
                    bytes: &submitted.statement,
                    signature: &submitted.signature,
                    provenance: submitted.provenance.as_deref(),
                };
                let worker = &submitted.worker;
                screen::check(
                    &store, &context, &domain, worker, signed, &statement, staged,
                )
                .await
            };
            let verdict = match answered("check of a result", checked).await {
                Ok((screened, kept)) => {
                    // The dispatcher gets this message before the answer can lead to a merge. If it
                    // has ended, nothing will be merged.
                    let _ = messages.send(Message::Passed { lease, kept }).await;
                    Ok(screened)
                }
                Err(refusal) => Err(refusal),
            };
            answers.give(Answer::Screened { screening, verdict }).await;
        });
    }

    /// Takes the chunks in memory of a round's inputs, and drops those of its other contributions.
    fn take_kept(&mut self, round: Round, inputs: &[MergeInput]) -> BTreeMap<LeaseRef, KeptChunks> {
        let take = |input: &MergeInput| Some((input.lease, self.kept.remove(&input.lease)?));
        let kept = inputs.iter().filter_map(take).collect();
        self.kept.retain(|lease, _| lease.unit.round > round);
        kept
    }
}

#[cfg(test)]
mod tests {
    use identity::AuditKey;
    use schemas::RunId;

    use super::*;
    use crate::arrival::Arrival;
    use crate::foundry::FoundryNumber;
    use crate::store::tests::away_and_full_of_checks;

    /// With every permit of the checks taken, merges, restores and lists still come to the store
    /// (which is away, and so refuses each).
    #[tokio::test]
    async fn a_result_of_any_size_delays_neither_weights_nor_lists() {
        let (store, _permits) = away_and_full_of_checks().await;
        let (arrivals, mut heard) = mpsc::channel(4);
        let run: RunId = "demo".parse().expect("a name");
        let answers = Answers::new(run, FoundryNumber(1), arrivals);
        let (messages, _told) = mpsc::channel(4);
        let maker = Maker {
            domain: "domain".to_owned(),
            key: Arc::new(AuditKey::generate()),
            release: "0.0.0".to_owned(),
        };
        let mut dispatcher = Dispatcher::new(maker, store, answers, messages);
        let spec = Box::new(kit::run_spec().build());
        let restore = Order::Restore {
            spec,
            snapshot: None,
            version: Round(0),
            merges: Vec::new(),
        };
        dispatcher.take(restore);
        let (listed, _) = Listed::of(&[ObjectRef::of(b"a chunk")]);
        dispatcher.take(Order::ReadList { listed });
        let mut codes = Vec::new();
        for _ in 0..2 {
            let Some(Arrival::Foundry { answer, .. }) = heard.recv().await else {
                panic!("a foundry answers")
            };
            codes.push(match answer {
                Answer::Restored { outcome } => outcome.expect_err("the store is away").code,
                Answer::ListRead { outcome, .. } => outcome.expect_err("the store is away").code,
                other => panic!("nobody asked for {other:?}"),
            });
        }
        assert_eq!(codes, [Code::StoreUnreachable; 2]);
    }
}
