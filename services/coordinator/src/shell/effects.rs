//! Carries out effects in their order. Effects that take time run beside the loop.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use coordinator_core::{
    Answer, Collect, Effect, Input, Purging, Quarantine, ReplyId, Stop, Stopping, Uploads,
};
use identity::ManifestKey;
use ledger::State;
use objects::key::StoppedUrls;
use runtime::{Failure, clock};
use schemas::control::View;
use schemas::hold::AtStore;
use schemas::lease::{ClaimOutcome, ClaimReply, MANIFEST_TYPE, Manifest};
use schemas::masking::CohortSeal;
use schemas::member::Session;
use schemas::public::{COMMAND_TYPE, Command, CommandVerb, Status};
use schemas::subject::{command_subject, status_subject};
use schemas::{AccountId, Code, Message as _, ObjectRef, Refusal, RunId, V, WorkerId};
use serde_bytes::ByteArray;
use tracing::Instrument as _;

use super::Shell;
use crate::answer::ReplyTo;
use crate::arrival::Arrival;
use crate::check;
use crate::checkpoint;
use crate::collection;
use crate::foundry::Maker;
use crate::grants;
use crate::guard::answered;
use crate::leading::Leading;
use crate::purge::{self, Purged};
use crate::queue;
use crate::signer::ManifestSigner;
use crate::stopped::{named, wanted};
use crate::store::{Store, incoming_key};

/// Time after its signature in which a command is valid: enough for clocks that differ, and no
/// more.
const COMMAND_LIFE_SECONDS: u64 = 120;

/// Signs the leases among `effects`, in their order. Returns the answers to their claims.
pub(super) fn sign_leases(
    signer: &mut ManifestSigner,
    store: &Store,
    effects: &mut [Effect],
) -> VecDeque<Result<Answer, Refusal>> {
    let mut signed = VecDeque::new();
    for effect in effects {
        if let Effect::Lease { manifest, .. } = effect {
            signed.push_back(signer.key().and_then(|key| {
                manifest.iss = key.public().to_string();
                sign_lease(key, store, manifest)
            }));
        }
    }
    signed
}

/// Signs the statement that the ledger has a cohort, into the answer with its shares. The event of
/// the cohort was appended before this answer.
fn sealed(maker: &Maker, answer: Answer) -> Answer {
    match answer {
        Answer::Mask {
            mut reply,
            seals: Some(statement),
        } => {
            let signature = maker.key.sign_statement(&maker.domain, &statement.encode());
            reply.seal = Some(CohortSeal {
                key: maker.key.public().clone(),
                signature: ByteArray::new(signature),
            });
            Answer::Mask { reply, seals: None }
        }
        other => other,
    }
}

fn sign_lease(key: &ManifestKey, store: &Store, manifest: &Manifest) -> Result<Answer, Refusal> {
    let compact = key
        .sign_document(MANIFEST_TYPE, manifest)
        .map_err(|error| {
            Refusal::new(Code::Internal, format!("lease {}: {error}", manifest.lease))
        })?;
    let holder = manifest.aud.as_str().parse();
    let holder = holder.map_err(|_| {
        let text = format!("lease {}: its worker has no key", manifest.lease);
        Refusal::new(Code::Internal, text)
    })?;
    Ok(Answer::Claim(ClaimReply {
        base: grants::of_base(store, &manifest.run, &manifest.base.chunks, &holder),
        ..ClaimReply::of(ClaimOutcome::Lease(compact))
    }))
}

impl Shell {
    /// Carries out an effect that is neither an append nor the end.
    pub(super) async fn perform(&mut self, effect: Effect) -> Result<(), Failure> {
        match effect {
            Effect::Append { .. } | Effect::Stop { .. } => {
                unreachable!("carry_out does these itself")
            }
            Effect::Reply { reply, answer } => self.reply(reply, answer).await,
            Effect::Lease { reply, .. } => {
                let answer = self.signed.pop_front();
                let answer = answer.expect("each lease was signed before its effect");
                self.reply(reply, answer).await;
            }
            Effect::ShowKeys { reply } => {
                let answer = self.signer.published();
                self.reply(reply, answer).await;
            }
            Effect::GrantGet {
                reply,
                run,
                objects,
            } => {
                if let Some((_, to)) = self.tables.replies.remove(&reply) {
                    let answer = grants::get(&self.store, run, &objects, to.asker());
                    to.send(&self.bus, Ok(answer)).await;
                }
            }
            Effect::GrantPut {
                reply,
                place,
                objects,
            } => self.grant_put(reply, place, &objects).await,
            Effect::CheckUploads {
                reply,
                place,
                objects,
            } => self.check_uploads(reply, place, objects),
            Effect::Promote {
                reply,
                place,
                objects,
            } => self.promote(reply, place, objects),
            Effect::CheckRun { reply, spec } => {
                let (store, domain) = (self.store.clone(), self.domain.clone());
                self.beside(async move {
                    let checked = check::run(&store, &domain, *spec);
                    let verdict = answered("check of a run", checked).await;
                    Arrival::Input(Input::RunChecked { reply, verdict })
                });
            }
            Effect::Offer { run, unit } => self.offers.publish(run, unit),
            Effect::Settle { delivery } => {
                if let Some(ack) = self.tables.deliveries.settle(delivery) {
                    queue::settle(self.bus.clone(), ack).await;
                }
            }
            Effect::Hold { delivery } => {
                if let Some(ack) = self.tables.deliveries.ack(delivery) {
                    queue::hold(self.bus.clone(), ack).await;
                }
            }
            Effect::Sweep { place, objects } => {
                self.sweeper.sweep(
                    objects
                        .into_iter()
                        .map(|digest| incoming_key(&place, digest))
                        .collect(),
                );
            }
            Effect::Purge {
                reply,
                run,
                uploads,
                stop,
                told,
            } => {
                let concerned = stop.map(|stop| self.stop(stop));
                self.purge(reply, (run, uploads), concerned, *told).await;
            }
            Effect::StopUrls { reply, stop, told } => {
                let concerned = self.stop(stop);
                self.stop_urls(reply, concerned, *told);
            }
            Effect::UrlsEnd { run, at } => self.store.stopped.end(&run, at),
            Effect::CheckSnapshot {
                spec,
                round,
                manifest,
            } => {
                let (store, run) = (self.store.clone(), spec.run.clone());
                self.beside(async move {
                    let read = check::snapshot(&store, *spec, round, manifest);
                    let verdict = answered("check of a snapshot", read).await;
                    Arrival::Input(Input::SnapshotChecked { run, verdict })
                });
            }
            Effect::Collect(step) => self.collect(step),
            Effect::Foundry { run, order } => self.order(run, order).await?,
            Effect::Command {
                account,
                run,
                worker,
                session,
                verb,
            } => self.command(&account, run, (worker, session), verb).await,
            Effect::Publish(status) => self.publish(&status).await,
            Effect::WriteCheckpoint { state } => self.write_checkpoint(state),
            Effect::DiscardCheckpoint { object } => {
                let store = self.store.clone();
                tokio::spawn(async move { checkpoint::discard(&store, object).await });
            }
            Effect::ShowHeartbeat {
                run,
                worker,
                heartbeat,
            } => self.workers.heard(run, worker, *heartbeat),
        }
        Ok(())
    }

    async fn reply(&mut self, reply: ReplyId, mut answer: Result<Answer, Refusal>) {
        if let Ok(Answer::View(reply)) = &mut answer {
            match &mut reply.view {
                View::Coordinator(view) => {
                    let key = self.signer.key().ok();
                    view.manifest_key = key.map(|key| key.public().clone());
                    view.log = self.heads.view(clock::now());
                }
                View::Runs(runs) => self.store.tell_away(runs),
                View::Run(detail) => self.store.tell_away([&mut detail.view]),
                _ => {}
            }
        }
        if let Some((_, to)) = self.tables.replies.remove(&reply) {
            let answer = answer.map(|answer| sealed(&self.maker, answer));
            to.send(&self.bus, answer).await;
        }
    }

    async fn grant_put(&mut self, reply: ReplyId, place: Quarantine, objects: &[ObjectRef]) {
        let uploads = self.tables.granted.mark(&place, objects);
        let Some((_, to)) = self.tables.replies.remove(&reply) else {
            return;
        };
        let (store, bus) = (self.store.clone(), self.bus.clone());
        tokio::spawn(async move {
            let answer = grants::put(&store, &place, uploads, to.asker()).await;
            to.send(&bus, answer).await;
        });
    }

    /// Tells if this process still leads.
    pub(crate) fn leading(&self) -> Leading {
        Leading::new(self.ledger.reader(), self.known.subscribe())
    }

    /// Notes which URLs are stopped from now on. Returns those that the order concerns.
    fn stop(&self, stop: Stop) -> BTreeSet<StoppedUrls> {
        self.store.stopped.want(wanted(stop.holders));
        named(stop.concerned)
    }

    /// Answers an operator once uploads are deleted, or when that takes too long. Before, the store
    /// is told which URLs are stopped: otherwise they would bring more.
    async fn purge(
        &mut self,
        reply: ReplyId,
        (run, uploads): (RunId, Uploads),
        concerned: Option<BTreeSet<StoppedUrls>>,
        told: Purging,
    ) {
        let Some((_, to)) = self.tables.replies.remove(&reply) else {
            return;
        };
        let (store, leading) = (self.store.clone(), self.leading());
        let of = (run.clone(), uploads.clone());
        let work = |deleted: Arc<AtomicU32>| async move {
            let at_store = match concerned {
                Some(concerned) => {
                    let stopped = &store.stopped;
                    let leads = leading.clone().leads();
                    stopped.tell_first(&store, concerned, leads).await
                }
                None => AtStore::Later,
            };
            let purge = purge::purge(&store, &run, &uploads, &deleted);
            let whole = purge::as_leader(leading.leads(), purge).await;
            Purged { whole, at_store }
        };
        if let Err(order) = self.purges.begin(of, (to, told), work) {
            self.answer_orders(vec![order], None, AtStore::Later).await;
        }
    }

    /// Answers an operator once the store does with these URLs what it should, when that takes too
    /// long, or when this process ends.
    fn stop_urls(&mut self, reply: ReplyId, concerned: BTreeSet<StoppedUrls>, told: Stopping) {
        let Some((_, to)) = self.tables.replies.remove(&reply) else {
            return;
        };
        let (store, bus, leads) = (self.store.clone(), self.bus.clone(), self.leading().leads());
        let telling = async move { store.stopped.tell_soon(&store, concerned, leads).await };
        self.waiting.begin(telling, move |at_store| async move {
            to.send(&bus, Ok(told.with(at_store))).await;
        });
    }

    /// Answers orders with the number of uploads that were deleted, none if that is not known, and
    /// with what the store does about URLs.
    pub(super) async fn answer_orders(
        &self,
        orders: Vec<(ReplyTo, Purging)>,
        uploads: Option<u32>,
        at_store: AtStore,
    ) {
        for (to, told) in orders {
            to.send(&self.bus, Ok(told.with(uploads, at_store))).await;
        }
    }

    fn collect(&self, step: Collect) {
        let store = self.store.clone();
        match step {
            Collect::KeepWritten => store.keeper.begin(),
            Collect::End => store.keeper.end(),
            Collect::Look {
                state,
                run,
                through,
                needed,
            } => {
                let history = self.ledger.again();
                self.beside(async move {
                    let found = collection::look(&store, history, state, &run, through, needed);
                    let outcome = answered("search for old objects", found).await;
                    Arrival::Input(Input::Looked { outcome })
                });
            }
            Collect::Delete { groups } => self.beside(async move {
                let deleted = collection::delete(&store, groups);
                let outcome = answered("deletion of old objects", deleted).await;
                Arrival::Input(Input::Collected { outcome })
            }),
        }
    }

    fn check_uploads(&self, reply: ReplyId, place: Quarantine, objects: Vec<ObjectRef>) {
        let store = self.store.clone();
        self.beside(async move {
            let verdict = answered(
                "check of an operator's uploads",
                grants::check(&store, &place, objects),
            )
            .await;
            Arrival::Input(Input::UploadsChecked { reply, verdict })
        });
    }

    fn promote(&self, reply: ReplyId, place: Quarantine, objects: Vec<ObjectRef>) {
        let (store, sweeper) = (self.store.clone(), self.sweeper.clone());
        self.beside(async move {
            let outcome = answered(
                "promotion of an operator's uploads",
                grants::promote(&store, &place, &objects),
            )
            .await;
            if outcome.is_ok() {
                sweeper.sweep(
                    objects
                        .iter()
                        .map(|object| incoming_key(&place, object.digest))
                        .collect(),
                );
            }
            Arrival::Input(Input::Promoted { reply, outcome })
        });
    }

    async fn command(
        &mut self,
        account: &AccountId,
        run: RunId,
        (worker, session): (WorkerId, Session),
        verb: CommandVerb,
    ) {
        let subject = command_subject(account, &run, &worker, verb);
        let now = clock::now();
        let issued = now.get() / 1000;
        let key = match self.signer.key() {
            Ok(key) => key,
            Err(refusal) => {
                let code = refusal.code;
                tracing::error!(%code, next = code.next_step(), subject, "command not sent: {refusal}");
                return;
            }
        };
        let command = Command {
            v: V,
            iss: key.public().to_string(),
            jti: format!("{run}/{worker}/{}/{now}", verb.token()),
            run,
            aud: worker,
            session,
            iat: issued,
            exp: issued + COMMAND_LIFE_SECONDS,
            verb,
        };
        let sent = match key.sign_document(COMMAND_TYPE, &command) {
            Ok(compact) => self
                .bus
                .publish(&subject, compact.into())
                .await
                .map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(reason) = sent {
            tracing::warn!(subject, reason, "command not sent");
        }
    }

    async fn publish(&mut self, status: &Status) {
        self.tables.tell_trouble(&status.view);
        let subject = status_subject(&status.view.run);
        if let Err(error) = self.bus.publish(&subject, status.encode().into()).await {
            tracing::debug!(%error, "status not published");
        }
    }

    fn write_checkpoint(&self, state: Arc<State>) {
        let taken = self.ledger.taken();
        let taken = taken.expect("the event that takes a checkpoint is appended before its effect");
        let store = self.store.clone();
        self.beside(async move {
            let written = checkpoint::write(&store, state, taken);
            let outcome = answered("checkpoint of the ledger", written).await;
            if let Err(refusal) = &outcome {
                checkpoint::tell_unsaved(refusal);
            }
            Arrival::Input(Input::CheckpointWritten { outcome })
        });
    }

    /// Runs `work` beside the loop; its outcome comes as an arrival. If the loop has ended, nobody
    /// needs it.
    fn beside(&self, work: impl Future<Output = Arrival> + Send + 'static) {
        let arrivals = self.arrivals.clone();
        let work = async move {
            let arrival = work.await;
            let _ = arrivals.send(arrival).await;
        };
        tokio::spawn(work.in_current_span());
    }
}
