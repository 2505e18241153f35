//! Effects, carried out in their order. What takes time runs beside the loop.

use coordinator_core::{Answer, Effect, Input, Quarantine, ReplyId};
use runtime::{Failure, clock};
use schemas::lease::{ClaimOutcome, ClaimReply, LeaseRef, MANIFEST_TYPE, Manifest};
use schemas::public::{COMMAND_TYPE, Command, CommandVerb, Status};
use schemas::snapshot::MergeInput;
use schemas::subject::{command_subject, status_subject};
use schemas::{AccountId, Code, Message as _, ObjectRef, Refusal, RunId, SyncId, V, WorkerId};
use tracing::Instrument as _;

use super::Shell;
use crate::arrival::Arrival;
use crate::check;
use crate::executor::{Handle, Order};
use crate::grants;
use crate::guard::answered;
use crate::queue;
use crate::screen::{self, Source};
use crate::store::incoming_key;

/// How long a command may be obeyed after it was signed: covers clocks that differ, not more.
const COMMAND_LIFE_SECONDS: u64 = 120;

impl Shell {
    /// Everything but appends and the end.
    pub(super) async fn perform(&mut self, effect: Effect) -> Result<(), Failure> {
        match effect {
            Effect::Append { .. } | Effect::Stop { .. } => {
                unreachable!("carry_out does these itself")
            }
            Effect::Reply { reply, answer } => self.reply(reply, answer).await,
            Effect::Lease { reply, manifest } => self.lease(reply, *manifest).await,
            Effect::GrantGet { reply, objects } => {
                let answer = grants::get(&self.store, &objects);
                self.reply(reply, Ok(answer)).await;
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
                let store = self.store.clone();
                self.beside(async move {
                    let verdict = answered("check of a run", check::run(&store, *spec)).await;
                    Arrival::Input(Input::RunChecked { reply, verdict })
                });
            }
            Effect::Offer { run, unit } => {
                drop(tokio::spawn(queue::offer(self.bus.clone(), run, unit)))
            }
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
            Effect::Stage {
                run,
                lease,
                worker,
                index,
                object,
            } => self.stage(run, lease, worker, index, object),
            Effect::Unstage { run, lease } => {
                self.tables.staged.remove(&(run.clone(), lease));
                self.tables.kept.remove(&(run, lease));
            }
            Effect::Sweep { place, objects } => {
                self.sweeper.sweep(
                    objects
                        .into_iter()
                        .map(|digest| incoming_key(&place, digest))
                        .collect(),
                );
            }
            Effect::Screen { .. } => self.screen(effect),
            Effect::Merge { run, sync, inputs } => self.merge(&run, sync, inputs)?,
            Effect::Save {
                run,
                round,
                parent,
                merges,
            } => {
                self.order(
                    &run,
                    Order::Save {
                        round,
                        parent,
                        merges,
                    },
                )?;
            }
            Effect::Restore {
                spec,
                snapshot,
                merges,
            } => {
                let run = spec.run.clone();
                self.tables.executors.entry(run.clone()).or_insert_with(|| {
                    Handle::start(
                        self.store.clone(),
                        self.pointer.clone(),
                        self.arrivals.clone(),
                    )
                });
                self.order(
                    &run,
                    Order::Restore {
                        spec,
                        snapshot,
                        merges,
                    },
                )?;
            }
            Effect::Forget { run } => self.tables.forget(&run),
            Effect::Command {
                account,
                run,
                worker,
                verb,
            } => self.command(&account, run, worker, verb).await,
            Effect::Publish(status) => self.publish(&status).await,
        }
        Ok(())
    }

    async fn reply(&mut self, reply: ReplyId, answer: Result<Answer, Refusal>) {
        if let Some((_, to)) = self.tables.replies.remove(&reply) {
            to.send(&self.bus, answer).await;
        }
    }

    async fn lease(&mut self, reply: ReplyId, mut manifest: Manifest) {
        manifest.iss = self.manifest_key.public().to_string();
        let signed = self.manifest_key.sign_document(MANIFEST_TYPE, &manifest);
        let answer = signed
            .map(|compact| {
                Answer::Claim(ClaimReply {
                    v: V,
                    outcome: ClaimOutcome::Lease(compact),
                })
            })
            .map_err(|error| {
                Refusal::new(Code::Internal, format!("lease {}: {error}", manifest.lease))
            });
        self.reply(reply, answer).await;
    }

    async fn grant_put(&mut self, reply: ReplyId, place: Quarantine, objects: &[ObjectRef]) {
        let uploads = self.tables.granted.mark(&place, objects);
        let Some((_, to)) = self.tables.replies.remove(&reply) else {
            return;
        };
        let (store, bus) = (self.store.clone(), self.bus.clone());
        tokio::spawn(async move {
            let answer = grants::put(&store, &place, uploads).await;
            to.send(&bus, answer).await;
        });
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

    /// A hint: without the run's context there is nothing to check a chunk against yet, and the
    /// submit will do it.
    fn stage(
        &mut self,
        run: RunId,
        lease: LeaseRef,
        worker: WorkerId,
        index: u32,
        object: ObjectRef,
    ) {
        let context = self
            .tables
            .executors
            .get(&run)
            .and_then(|executor| executor.context().borrow().clone());
        let Some(context) = context else { return };
        let staged = self.tables.staged.entry((run.clone(), lease)).or_default();
        screen::stage(
            staged,
            &self.store,
            &context,
            Source { run, lease, worker },
            index,
            object,
        );
    }

    fn screen(&mut self, effect: Effect) {
        let Effect::Screen {
            screening,
            spec,
            worker,
            audit_key,
            submission,
        } = effect
        else {
            return;
        };
        let (run, lease) = (spec.run, submission.statement.lease);
        let staged = self
            .tables
            .staged
            .remove(&(run.clone(), lease))
            .unwrap_or_default();
        let context = self.tables.executors.get(&run).map(Handle::context);
        let (store, domain) = (self.store.clone(), self.domain.clone());
        self.beside(async move {
            let verdict = async {
                let unknown = || {
                    Refusal::new(
                        Code::NoAnswer,
                        "the run's layout is not loaded yet; submit again",
                    )
                };
                let mut context = context.ok_or_else(unknown)?;
                let context = context
                    .wait_for(Option::is_some)
                    .await
                    .map_err(|_| unknown())?
                    .clone();
                let context = context.ok_or_else(unknown)?;
                screen::check(
                    &store,
                    &context,
                    &domain,
                    &worker,
                    &audit_key,
                    &submission,
                    staged,
                )
                .await
            };
            let verdict = answered("check of a result", verdict).await;
            Arrival::Screened {
                screening,
                run,
                lease,
                verdict,
            }
        });
    }

    fn merge(&mut self, run: &RunId, sync: SyncId, inputs: Vec<MergeInput>) -> Result<(), Failure> {
        let kept = self.tables.take_kept(run, sync.round, &inputs);
        self.order(run, Order::Merge { sync, inputs, kept })
    }

    fn order(&self, run: &RunId, order: Order) -> Result<(), Failure> {
        let executor = self.tables.executors.get(run);
        let executor = executor
            .ok_or_else(|| Failure::new(Code::Internal, format!("run {run} was never restored")))?;
        Ok(executor.order(order)?)
    }

    async fn command(&self, account: &AccountId, run: RunId, worker: WorkerId, verb: CommandVerb) {
        let subject = command_subject(account, &run, &worker, verb);
        let now = clock::now();
        let issued = now.get() / 1000;
        let command = Command {
            v: V,
            iss: self.manifest_key.public().to_string(),
            jti: format!("{run}/{worker}/{}/{now}", verb.token()),
            run,
            aud: worker,
            iat: issued,
            exp: issued + COMMAND_LIFE_SECONDS,
            verb,
        };
        let sent = match self.manifest_key.sign_document(COMMAND_TYPE, &command) {
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

    /// Runs beside the loop; what comes of it is an arrival. When the loop has ended nobody needs
    /// it.
    fn beside(&self, work: impl Future<Output = Arrival> + Send + 'static) {
        let arrivals = self.arrivals.clone();
        let work = async move {
            let arrival = work.await;
            let _ = arrivals.send(arrival).await;
        };
        tokio::spawn(work.in_current_span());
    }
}
