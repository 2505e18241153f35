//! The decision loop: one input at a time goes through the core, its effects are carried out in
//! order. Appends are waited for; whatever else takes time runs beside and comes back as an input.
//! Nothing is decided here.

use std::collections::BTreeMap;
use std::time::Duration;

use coordinator_core::{
    Answer, Coordinator, Effect, Input, Peer, Quarantine, ReplyId, Settings, WorkerRequest,
};
use identity::ManifestKey;
use identity::join::verify_join;
use ledger::State;
use runtime::{Bus, Failure, clock};
use schemas::lease::{ClaimOutcome, ClaimReply, LeaseRef, MANIFEST_TYPE, Manifest};
use schemas::public::{COMMAND_TYPE, Command, CommandVerb, Status};
use schemas::snapshot::MergeInput;
use schemas::subject::{command_subject, status_subject};
use schemas::view::RunView;
use schemas::{
    AccountId, Code, Message as _, Millis, ObjectRef, Refusal, Round, RunId, UnixMillis, V,
    WorkerId,
};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::answer::ReplyTo;
use crate::arrival::Arrival;
use crate::check;
use crate::executor::{Handle, Order};
use crate::grants::{self, Granted};
use crate::guard::answered;
use crate::ledger::Ledger;
use crate::mark::{LedgerMark, StoreMark};
use crate::pointer::Pointer;
use crate::queue::{self, Deliveries};
use crate::screen::{self, KeptChunks, Source, Staged};
use crate::store::{Store, incoming_key};
use crate::sweep::Sweeper;

/// How long a command may be obeyed after it was signed: covers clocks that differ, not more.
const COMMAND_LIFE_SECONDS: u64 = 120;
/// How long an event may still take when the process is told to stop: less than service managers
/// wait.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// How long the last answers may take to leave: they are short, and only a bus that is gone takes
/// none.
const DECLINE_PATIENCE: Duration = Duration::from_secs(2);
/// Longest sleep without a deadline: how soon a step of the wall clock is told.
const IDLE_MAX: Duration = Duration::from_secs(5);

/// How far the ledger's newest event may lie ahead of this machine's clock for a start to wait
/// until it is past. Clocks of one site differ by less. Beyond it one of the two clocks was wrong,
/// and nobody can say which: the ledger's time goes on, since it never runs back, and no run stands
/// still for it.
const BEHIND_WAIT_MAX: Millis = Millis::from_secs(10);

/// Everything that the loop works with.
pub(crate) struct Shell {
    pub(crate) bus: Bus,
    pub(crate) store: Store,
    pub(crate) pointer: Pointer,
    pub(crate) ledger: Ledger,
    pub(crate) mark: LedgerMark,
    pub(crate) manifest_key: ManifestKey,
    pub(crate) domain: String,
    pub(crate) arrivals: mpsc::Sender<Arrival>,
    pub(crate) sweeper: Sweeper,
    pub(crate) tables: Tables,
}

/// What the shell remembers between a request and its answer. Losing it costs a repeat, never a
/// result.
#[derive(Default)]
pub(crate) struct Tables {
    replies: BTreeMap<ReplyId, (Asker, ReplyTo)>,
    replied: u64,
    deliveries: Deliveries,
    granted: Granted,
    executors: BTreeMap<RunId, Handle>,
    /// What holds each run up, as it was logged last.
    troubles: BTreeMap<RunId, Code>,
    staged: BTreeMap<(RunId, LeaseRef), Staged>,
    kept: BTreeMap<(RunId, LeaseRef), KeptChunks>,
}

/// Who waits for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asker {
    Worker,
    Operator,
}

/// What comes after a step of the loop.
enum Flow {
    On,
    /// The core is done.
    Stop(String),
}

impl Shell {
    /// Runs until the core stops, `shutdown` is asked for, or something fails that the process
    /// cannot go on without.
    ///
    /// # Errors
    /// The coded reason to stand down.
    pub(crate) async fn run(
        &mut self,
        core: &mut Coordinator,
        mut queue: mpsc::Receiver<Arrival>,
        shutdown: CancellationToken,
    ) -> Result<(), Failure> {
        let ended = self.decide(core, &mut queue, shutdown).await;
        let fenced = ended
            .as_ref()
            .is_err_and(|failure| failure.code() == Code::LedgerFenced);
        if tokio::time::timeout(DECLINE_PATIENCE, self.decline(&mut queue, fenced))
            .await
            .is_err()
        {
            tracing::warn!("the bus takes no more answers; who waits for one asks again later");
        }
        // What was answered last has left when the server has answered this; without a server there
        // is nobody to tell.
        if let Err(error) = self.bus.round_trip().await {
            tracing::warn!(%error, "the last answers may not have left");
        }
        ended
    }

    /// Tells who waits for an answer of this process that it gives none any more: they ask its
    /// successor at once, where silence would cost them the time for which they wait for an answer.
    /// Uploads that are being granted are answered by their own task, or not at all.
    ///
    /// When another coordinator has taken the lead (`fenced`), operators hear nothing from here:
    /// the other may have heard the same order and answer it, and `diloctl` takes the first answer
    /// for the last word. A worker asks again in any case, and what it is told twice has one
    /// effect.
    async fn decline(&mut self, queue: &mut mpsc::Receiver<Arrival>, fenced: bool) {
        while let Ok(arrival) = queue.try_recv() {
            match arrival {
                Arrival::Worker { reply, .. } => {
                    _ = self.tables.expect_reply(Asker::Worker, reply);
                }
                Arrival::Operator { reply, .. } => {
                    _ = self.tables.expect_reply(Asker::Operator, reply);
                }
                _ => {}
            }
        }
        let refusal = Refusal::new(
            Code::Draining,
            "this coordinator ends before it has an answer; ask again",
        );
        for (asker, to) in std::mem::take(&mut self.tables.replies).into_values() {
            if asker == Asker::Worker || !fenced {
                to.send(&self.bus, Err(refusal.clone())).await;
            }
        }
    }

    /// The loop itself.
    async fn decide(
        &mut self,
        core: &mut Coordinator,
        queue: &mut mpsc::Receiver<Arrival>,
        shutdown: CancellationToken,
    ) -> Result<(), Failure> {
        let mut effects = Vec::new();
        let mut backlog = None;
        let mut steps = clock::Steps::new();
        loop {
            if let Some(step) = steps.look() {
                tracing::warn!(code = %Code::ClockOff, "{step}; leases and the ledger go on by the time from before it, until a restart");
            }
            let wait = core.next_deadline().map_or(IDLE_MAX, |at| {
                clock::now().until(at).as_duration().min(IDLE_MAX)
            });
            // A deadline that has passed is looked at after what came in until then, and before
            // what came in since.
            let ahead = if wait.is_zero() {
                *backlog.get_or_insert(queue.len())
            } else {
                0
            };
            let input = tokio::select! {
                biased;
                () = shutdown.cancelled() => {
                    // Nothing is lost: the ledger holds every decision, and a restart continues
                    // from it.
                    tracing::info!("stopping; leases run on until they expire");
                    break;
                }
                arrival = queue.recv(), if !wait.is_zero() || ahead > 0 => match arrival {
                    Some(arrival) => {
                        backlog = backlog.map(|waiting: usize| waiting.saturating_sub(1));
                        self.input(arrival)?
                    }
                    None => break,
                },
                () = pause(wait) => {
                    backlog = None;
                    Input::Tick
                }
            };
            core.handle(clock::now(), input, &mut effects);
            let flow = tokio::select! {
                flow = self.carry_out(&mut effects) => flow?,
                () = overdue(&shutdown) => {
                    let detail = "the bus took no event while the coordinator was told to stop; a restart continues";
                    return Err(Failure::new(Code::LedgerUnwritable, detail));
                }
            };
            if let Flow::Stop(reason) = flow {
                tracing::info!(reason, "everything is in order; ending");
                // Who asked meanwhile is told.
                while let Ok(arrival) = queue.try_recv() {
                    if let Ok(input) = self.input(arrival) {
                        core.handle(clock::now(), input, &mut effects);
                    }
                }
                self.carry_out(&mut effects).await?;
                break;
            }
        }
        Ok(())
    }

    /// Takes the lead: its first append fences off whoever led before. A predecessor that still
    /// appends is read on and tried again for `patience`.
    ///
    /// # Errors
    /// The ledger cannot be followed or written, was lost, or the predecessor stays faster.
    pub(crate) async fn lead(
        &mut self,
        settings: &Settings,
        store_mark: &StoreMark,
        patience: Duration,
    ) -> Result<Coordinator, Failure> {
        let mut deadline = None;
        let mut state = State::default();
        loop {
            let Self { ledger, mark, .. } = &mut *self;
            let follow = |body| {
                mark.follow(&body);
                state.follow(&body)
            };
            ledger.catch_up(follow).await?;
            mark.agree(ledger)?;
            if ledger.is_empty() {
                store_mark.allow_beginning().await?;
            }
            meet(state.time()).await;
            let events = self.ledger.len();
            let mut core = Coordinator::new(settings.clone(), state.clone());
            let mut effects = Vec::new();
            core.start(clock::now(), &mut effects);
            match self.carry_out(&mut effects).await {
                Ok(_) => {
                    tracing::info!(events, "ledger verified and replayed");
                    return Ok(core);
                }
                // Once a first event was taken, to be fenced off is final.
                Err(failure)
                    if failure.code() == Code::LedgerFenced && self.ledger.len() == events =>
                {
                    let now = Instant::now();
                    if now >= *deadline.get_or_insert(now + patience) {
                        return Err(failure);
                    }
                    tracing::info!(
                        events,
                        "another coordinator has appended meanwhile; reading on"
                    );
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// An arrival as the core understands it.
    fn input(&mut self, arrival: Arrival) -> Result<Input, Failure> {
        Ok(match arrival {
            Arrival::Worker {
                peer,
                request,
                reply,
            } => {
                let reply = self.tables.expect_reply(Asker::Worker, reply);
                match proven(&self.domain, &peer, &request) {
                    Ok(()) => Input::Request {
                        peer,
                        request,
                        reply,
                    },
                    Err(refusal) => Input::Refused {
                        peer,
                        verb: request.verb(),
                        refusal,
                        reply,
                    },
                }
            }
            Arrival::Operator {
                operator,
                request,
                reply,
            } => Input::Control {
                operator,
                request,
                reply: self.tables.expect_reply(Asker::Operator, reply),
            },
            Arrival::Offer {
                run,
                unit,
                stream_sequence,
                ack,
            } => Input::Offered {
                run,
                unit,
                delivery: self.tables.deliveries.note(stream_sequence, ack),
            },
            Arrival::Screened {
                screening,
                run,
                lease,
                verdict,
            } => {
                let verdict = verdict.map(|(screened, kept)| {
                    self.tables.kept.insert((run, lease), kept);
                    screened
                });
                Input::Screened { screening, verdict }
            }
            Arrival::Input(input) => input,
            Arrival::Failed(failure) => return Err(failure),
        })
    }

    async fn carry_out(&mut self, effects: &mut Vec<Effect>) -> Result<Flow, Failure> {
        for effect in effects.drain(..) {
            match effect {
                Effect::Append { time, run, event } => {
                    tracing::debug!(
                        kind = event.kind(),
                        run = run.as_ref().map(RunId::as_str),
                        "append"
                    );
                    self.ledger.append(time, run.as_ref(), *event).await?;
                    self.mark.note(&self.ledger);
                }
                Effect::Stop { reason } => return Ok(Flow::Stop(reason)),
                effect => self.perform(effect).await?,
            }
        }
        Ok(Flow::On)
    }

    /// Everything but appends and the end.
    async fn perform(&mut self, effect: Effect) -> Result<(), Failure> {
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
            Effect::Merge { run, round, inputs } => self.merge(&run, round, inputs)?,
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

    fn merge(&mut self, run: &RunId, round: Round, inputs: Vec<MergeInput>) -> Result<(), Failure> {
        let kept = self.tables.take_kept(run, round, &inputs);
        self.order(
            run,
            Order::Merge {
                round,
                inputs,
                kept,
            },
        )
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
        tokio::spawn(async move {
            let arrival = work.await;
            let _ = arrivals.send(arrival).await;
        });
    }
}

impl Tables {
    fn expect_reply(&mut self, asker: Asker, to: ReplyTo) -> ReplyId {
        self.replied += 1;
        let reply = ReplyId(self.replied);
        self.replies.insert(reply, (asker, to));
        reply
    }

    /// The chunks in memory of a round's inputs; those of its other contributions are dropped.
    fn take_kept(
        &mut self,
        run: &RunId,
        round: Round,
        inputs: &[MergeInput],
    ) -> BTreeMap<LeaseRef, KeptChunks> {
        let take = |input: &MergeInput| {
            Some((input.lease, self.kept.remove(&(run.clone(), input.lease))?))
        };
        let kept = inputs.iter().filter_map(take).collect();
        self.kept
            .retain(|(of, lease), _| of != run || lease.unit.round > round);
        kept
    }

    /// Logs why a run does not get on, once for each reason.
    fn tell_trouble(&mut self, view: &RunView) {
        let run = &view.run;
        let Some(why) = view.halted.as_ref().or(view.trouble.as_ref()) else {
            if self.troubles.remove(run).is_some() {
                tracing::info!(%run, "nothing holds the run up any more");
            }
            return;
        };
        if self.troubles.insert(run.clone(), why.code) != Some(why.code) {
            let state = if view.halted.is_some() {
                "halted"
            } else {
                "held up"
            };
            tracing::warn!(%run, code = %why.code, next = why.code.next_step(), "the run is {state}: {}", why.detail);
        }
    }

    fn forget(&mut self, run: &RunId) {
        self.troubles.remove(run);
        self.executors.remove(run);
        self.staged.retain(|(of, _), _| of != run);
        self.kept.retain(|(of, _), _| of != run);
    }
}

/// A worker that joins shows that it holds the audit key it names: else a worker could join with
/// another's, or with the coordinator's, and that one's events would be taken for its own.
fn proven(domain: &str, peer: &Peer, request: &WorkerRequest) -> Result<(), Refusal> {
    let WorkerRequest::Join(join) = request else {
        return Ok(());
    };
    verify_join(
        domain,
        &join.audit_key,
        join.proof.as_slice(),
        &peer.run,
        &peer.worker,
    )
    .map_err(|error| {
        let detail = format!(
            "no proof that {} holds audit key {}: {error}",
            peer.worker, join.audit_key
        );
        Refusal::new(Code::AuditKeyRefused, detail)
    })
}

/// Resolves when it is time to end without what is being done. Whether an event that was under way
/// is in the ledger is for the next reader to see, as after a crash.
async fn overdue(shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    tokio::time::sleep(STOP_PATIENCE).await;
}

/// Sleeps; not at all when there is nothing to wait for, where a timer would take a millisecond.
async fn pause(wait: Duration) {
    if !wait.is_zero() {
        tokio::time::sleep(wait).await;
    }
}

/// Sees to it that this process's time is not before the ledger's newest event: waits, or goes on
/// from there.
async fn meet(newest: UnixMillis) {
    let now = clock::now();
    let behind = now.until(newest);
    let (event, machine) = (clock::text(newest), clock::text(now));
    if behind > BEHIND_WAIT_MAX {
        clock::continue_from(newest);
        tracing::warn!(
            code = %Code::ClockBehind,
            "the ledger's newest event is of {event}, this machine's clock says {machine}; the run goes on from the ledger's time"
        );
    } else if behind > Millis(0) {
        tracing::info!(
            "the ledger's newest event is of {event}, this machine's clock says {machine}; waiting until then"
        );
        tokio::time::sleep(behind.as_duration()).await;
    }
}
