//! The worker as a process: it brings messages and time to its core, and carries out the core's
//! effects. No decision about the run is made here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use identity::join::new_session;
use objects::{Cache, Transfer, TransferLimits};
use runtime::service::Finished;
use runtime::{Bus, Failure, clock};
use schemas::limits::CLAIM_WAIT_MAX;
use schemas::member::{JoinReply, JoinRequest, Session};
use schemas::public::CommandVerb;
use schemas::subject::heartbeat_subject;
use schemas::{Class, Code, Digest, Message as _, Millis, Refusal, Steps, UnixMillis, V, WorkerId};
use serde_bytes::ByteArray;
use tokio::sync::{OnceCell, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use worker_core::{Effect, Exit, Input, Request, Settings, WorkId, Worker};

use crate::asker::Asker;
use crate::commands::CommandListener;
use crate::config::Checked;
use crate::ending::EndingLimits;
use crate::engine::{self, Engine, RunningThread};
use crate::events::{Chain, Events};
use crate::meter::Meter;
use crate::object_client::ObjectClient;
use crate::outbox::Receipts;
use crate::replays::Leases;
use crate::shard_cache::ShardCache;
use crate::state::StateFolder;
use crate::time::CoordinatorTime;
use crate::unit::{Unit, UnitTools};
use crate::verify::{self, Expected};
use crate::witness::{Asking, Witnessing};

/// Most inputs that wait for the core; each of the few tasks has one at a time.
const INPUTS_MAX: usize = 64;
/// The time that an orderly end may take before the process ends without the coordinator's answers.
pub(crate) const STOP_PATIENCE: Millis = Millis::from_secs(8);
/// Time after which the same reason for waiting is logged again.
const WAITING_SHOWN: Duration = Duration::from_secs(30);

/// A worker that is connected and ready to join.
pub struct Service {
    core: Worker,
    inputs: mpsc::Receiver<Input>,
    progress: watch::Receiver<(WorkId, Steps)>,
    runner: EffectRunner,
    threads: (RunningThread, JoinHandle<()>),
}

/// Carries out the effects of the core.
struct EffectRunner {
    checked: Checked,
    worker: WorkerId,
    session: Session,
    bus: Bus,
    asker: Asker,
    object_client: ObjectClient,
    engine: Engine,
    events: Events,
    state: StateFolder,
    meter: Arc<Meter>,
    time: CoordinatorTime,
    inputs: mpsc::Sender<Input>,
    tasks: TaskTracker,
    /// Shares that are still to be revealed.
    reveals: TaskTracker,
    tools: Option<UnitTools>,
    unit: Option<Unit>,
    /// The leases of which a manifest was taken.
    leases: Leases,
    waiting: Option<(Refusal, Instant)>,
    /// Begins with the first join: until then the audit service knows of no such worker.
    witnessing: Option<Witnessing>,
    receipts: Option<Receipts>,
}

impl Service {
    /// Connects and prepares everything, but sends no request to the coordinator yet.
    ///
    /// # Errors
    /// The bus refuses this worker, or a folder or thread cannot be made.
    pub async fn build(checked: Checked) -> Result<Self, Failure> {
        let config = &checked.config;
        let state = StateFolder::open(&config.worker.state)?;
        let cache = Cache::open(&config.cache.folder, config.cache.limit.bytes())?;
        let transfer = Transfer::new(&checked.store_trust, TransferLimits::default())?;
        let started = clock::now();
        let bus = Bus::connect("diloco-worker", &config.bus, started).await?;
        let worker = own_id(&bus)?;
        let identity = (checked.run.clone(), worker.clone());
        let domain = checked.trust.domain.as_str();
        let chain = Chain::open(
            &state.events(),
            Arc::clone(&checked.audit_key),
            identity.0.clone(),
            identity.1.clone(),
        )?;
        let asker = Asker::new(
            bus.clone(),
            identity,
            Arc::clone(&checked.audit_key),
            domain,
            config.bus.credentials.clone(),
        );
        let meter = Arc::new(Meter::of(transfer.moved()));
        let object_client = ObjectClient::new(asker.clone(), transfer, Arc::new(cache));
        let (sender, inputs) = mpsc::channel(INPUTS_MAX);
        let time = CoordinatorTime::default();
        let (run, trust) = (checked.run.clone(), checked.trust_source.clone());
        let session = new_session();
        let listener = CommandListener {
            trust,
            run,
            worker: worker.clone(),
            session,
            time: time.clone(),
        };
        listener.listen(&bus, sender.clone()).await?;
        let (events, receipts, publishing) = Events::start(
            chain,
            bus.clone(),
            &checked.trust,
            config.worker.receipt_within.millis(),
        );
        let (told, progress) = watch::channel((WorkId(0), Steps(0)));
        let (engine, training) = Engine::start(config.training.clone(), Arc::clone(&meter), told)
            .map_err(|error| {
            Failure::new(Code::Internal, format!("no training thread: {error}"))
        })?;
        let core = Worker::new(settings(&checked, (worker.clone(), session), started));
        tracing::info!(%worker, run = %checked.run, device = checked.device, "worker is ready to join");
        let runner = EffectRunner {
            checked,
            worker,
            session,
            bus,
            asker,
            object_client,
            engine,
            events,
            state,
            meter,
            time,
            inputs: sender,
            tasks: TaskTracker::new(),
            reveals: TaskTracker::new(),
            tools: None,
            unit: None,
            leases: Leases::default(),
            waiting: None,
            witnessing: None,
            receipts: Some(receipts),
        };
        Ok(Self {
            core,
            inputs,
            progress,
            runner,
            threads: (training, publishing),
        })
    }

    /// Its connection.
    pub const fn bus(&self) -> &Bus {
        &self.runner.bus
    }

    /// Works until the run is complete, the worker is told to end, or cannot go on. From
    /// `succeeded` on it hands in the unit that it has, and leaves.
    ///
    /// # Errors
    /// The reason why it cannot go on.
    pub async fn run(
        mut self,
        shutdown: CancellationToken,
        succeeded: CancellationToken,
    ) -> Result<Finished, Failure> {
        let mut effects = Vec::new();
        let (mut told, mut broken, mut leaves) = (false, false, false);
        let mut input = Input::Tick;
        let mut steps = clock::StepDetector::new();
        let bus = self.runner.bus.clone();
        let exit = loop {
            if let Some(step) = steps.look() {
                tracing::warn!(code = %Code::ClockOff, "{step}; this worker goes on by the time from before it, until a restart");
            }
            self.core.handle(clock::now(), input, &mut effects);
            let exits = effects
                .drain(..)
                .find_map(|effect| self.runner.carry_out(effect));
            if let Some(exit) = exits {
                break exit;
            }
            let deadline = self
                .core
                .next_deadline()
                .map(|at| Instant::now() + clock::now().until(at).as_duration());
            input = tokio::select! {
                biased;
                () = shutdown.cancelled(), if !told => {
                    told = true;
                    Input::Command(CommandVerb::Stop)
                }
                () = succeeded.cancelled(), if !leaves => {
                    leaves = true;
                    Input::Command(CommandVerb::Drain)
                }
                () = self.threads.0.ended.cancelled(), if !broken => {
                    broken = true;
                    Input::Broken(engine::ended())
                }
                refusal = bus.refused(), if !broken => {
                    broken = true;
                    Input::Broken(refusal)
                }
                Some(input) = self.inputs.recv() => input,
                Ok(()) = self.progress.changed() => {
                    let (work, steps_done) = *self.progress.borrow_and_update();
                    Input::Progress { work, steps_done }
                }
                () = sleep_until(deadline) => Input::Tick,
            };
        };
        let drained = exit == Exit::Drained;
        Box::pin(self.end(exit)).await?;
        // Told to end meanwhile, it does not begin anew.
        Ok(Finished::told(
            leaves && drained && !shutdown.is_cancelled(),
        ))
    }

    /// Waits until events are delivered and the inner state is written, and then ends.
    async fn end(self, exit: Exit) -> Result<(), Failure> {
        let Self {
            runner,
            threads: (training, publishing),
            ..
        } = self;
        // The folder stays locked while the thread may write into it.
        let (bus, _state) = (runner.bus.clone(), runner.state.clone());
        if let Some(unit) = &runner.unit {
            unit.stop.cancel();
        }
        runner.reveals.close();
        runner.until_revealed(&exit).await;
        runner.tasks.close();
        // The thread and the publisher end when all their senders are dropped.
        drop(runner);
        let delivered = async move { publishing.await.is_ok() && bus.round_trip().await.is_ok() };
        let _ended = EndingLimits::default()
            .wait(training.thread, delivered)
            .await;
        tracing::info!(reason = exit.reason(), "worker ends");
        match exit {
            Exit::Complete | Exit::Drained | Exit::Stopped => Ok(()),
            Exit::Failed(refusal) => Err(refusal.into()),
        }
    }
}

impl EffectRunner {
    /// Starts the work of an effect; its end comes back as an input.
    fn carry_out(&mut self, effect: Effect) -> Option<Exit> {
        match effect {
            Effect::Send {
                id,
                mut request,
                patience,
            } => {
                if let Request::Renew(renewal) = &mut request {
                    renewal.bytes_moved = self.meter.moved();
                }
                let asker = self.asker.clone();
                self.then(async move {
                    Input::Replied {
                        id,
                        outcome: asker.ask(request, patience).await,
                    }
                });
            }
            Effect::Joined(reply) => self.joined(*reply),
            Effect::Clock { ahead_ms } => self.time.measured(ahead_ms),
            Effect::Verify { work, document } => {
                let outcome = self.verify(&document);
                self.then(async move {
                    Input::Verified {
                        work,
                        outcome: outcome.map(Box::new),
                    }
                });
            }
            Effect::Fetch { work, manifest } => {
                // A lease is verified only after a join, so the tools are there.
                let tools = self.tools.clone()?;
                tracing::info!(lease = %manifest.lease, "lease verified, fetching");
                let stop = CancellationToken::new();
                self.unit = Some(Unit {
                    work,
                    manifest,
                    tools,
                    stop,
                    text: Arc::default(),
                    part: Arc::default(),
                });
                self.step(work, |unit| async move {
                    Input::Fetched {
                        work,
                        outcome: Box::pin(unit.fetch()).await,
                    }
                });
            }
            Effect::Train { work } => {
                self.step(work, |unit| async move {
                    Input::Trained {
                        work,
                        outcome: unit.train().await,
                    }
                });
            }
            Effect::Evaluate { work } => {
                self.step(work, |unit| async move {
                    Input::Evaluated {
                        work,
                        outcome: unit.evaluate().await,
                    }
                });
            }
            Effect::Upload { work } => {
                self.step(work, |unit| async move {
                    Input::Uploaded {
                        work,
                        outcome: unit.upload().await,
                    }
                });
            }
            Effect::Stop { work } => {
                if let Some(unit) = self.unit.take_if(|unit| unit.work == work) {
                    unit.stop.cancel();
                }
            }
            Effect::KeepInner { work, end } => {
                let engine = self.engine.clone();
                self.tasks
                    .spawn(async move { engine.keep(work, end).await });
            }
            Effect::Emit(event) => self.events.emit(event),
            Effect::Record { work, event } => {
                let recorded = self.events.record(event);
                self.step(work, |_| async move {
                    let outcome = recorded.await;
                    Input::Recorded { work, outcome }
                });
            }
            // An old heartbeat is useless, so none is kept while there is no connection.
            Effect::Heartbeat(_) if !self.bus.is_connected() => {}
            Effect::Heartbeat(pulse) => {
                let subject = heartbeat_subject(&self.checked.run, &self.worker);
                let (bus, heartbeat) = (self.bus.clone(), self.meter.heartbeat(pulse));
                self.tasks.spawn(async move {
                    if let Err(error) = bus.publish(&subject, heartbeat.encode().into()).await {
                        tracing::debug!(%error, "a heartbeat was not sent");
                    }
                });
            }
            Effect::Waiting { refusal, pause } => self.show_waiting(refusal, pause),
            Effect::Exit(exit) => return Some(exit),
        }
        None
    }

    /// Lets a drained worker reveal its shares: without them the others may train their round
    /// again. The coordinator gives a sum up after the same time.
    async fn until_revealed(&self, exit: &Exit) {
        let drained = matches!(exit, Exit::Drained);
        let Some(tools) = self.tools.as_ref().filter(|_| drained) else {
            return;
        };
        let limit = Duration::from_millis(tools.spec.policy.silence_max.get());
        if tokio::time::timeout(limit, self.reveals.wait())
            .await
            .is_err()
        {
            tracing::warn!("ends before its shares for a sum were asked for");
        }
    }

    fn joined(&mut self, reply: JoinReply) {
        let JoinReply {
            spec, spec_digest, ..
        } = reply;
        tracing::info!(run = %spec.run, settings = %spec_digest, "joined");
        self.waiting = None;
        if let Some(receipts) = self.receipts.take() {
            let asking = Asking {
                bus: self.bus.clone(),
                run: self.checked.run.clone(),
                worker: self.worker.clone(),
                key: Arc::clone(&self.checked.audit_key),
                domain: self.checked.trust.domain.to_string(),
                events: self.events.clone(),
                receipts,
            };
            let trust = &self.checked.trust;
            self.witnessing = Some(Witnessing::begin(asking, &self.state, trust));
        }
        if self
            .tools
            .as_ref()
            .is_some_and(|tools| tools.spec_digest == spec_digest)
        {
            return;
        }
        self.tools = Some(UnitTools {
            asker: self.asker.clone(),
            object_client: self.object_client.clone(),
            shard_cache: ShardCache::default(),
            engine: self.engine.clone(),
            meter: Arc::clone(&self.meter),
            state: self.state.clone(),
            domain: self.checked.trust.domain.as_str().into(),
            trust: self.checked.trust_source.clone(),
            spec: Arc::new(spec),
            spec_digest,
            assets: Arc::new(OnceCell::new()),
            disclosed: Arc::default(),
            disclosures: Arc::default(),
            hints: self.tasks.clone(),
            reveals: self.reveals.clone(),
        });
    }

    fn verify(
        &mut self,
        document: &str,
    ) -> Result<schemas::lease::Manifest, worker_core::NotVerified> {
        let refused = |refusal| worker_core::NotVerified {
            refusal,
            lease: None,
        };
        let Some(tools) = &self.tools else {
            return Err(refused(Refusal::new(
                Code::NotJoined,
                "a lease came before the settings",
            )));
        };
        let Checked {
            trust_source, run, ..
        } = &self.checked;
        let trust = verify::trusted(trust_source).map_err(refused)?;
        let expected = Expected {
            trust: &trust,
            worker: &self.worker,
            session: self.session,
            run,
            now: self.time.now(),
        };
        let checked = verify::manifest(document, &expected, &tools.spec, tools.spec_digest);
        let checked = checked.and_then(|manifest| {
            self.leases.take(manifest.lease).map_err(refused)?;
            Ok(manifest)
        });
        checked.inspect_err(|error| {
            let refusal = &error.refusal;
            tracing::warn!(code = %refusal.code, detail = refusal.detail, "a lease is refused; nothing of it was executed");
        })
    }

    /// Does a step of the present unit. If the unit is stopped, the step ends without an input.
    fn step<F>(&self, work: WorkId, step: impl FnOnce(Unit) -> F)
    where
        F: Future<Output = Input> + Send + 'static,
    {
        let Some(unit) = self.unit.clone().filter(|unit| unit.work == work) else {
            return;
        };
        let (stop, inputs) = (unit.stop.clone(), self.inputs.clone());
        let step = step(unit);
        self.tasks.spawn(async move {
            if let Some(input) = stop.run_until_cancelled_owned(step).await {
                // The core is gone only at the end of the process.
                let _ = inputs.send(input).await;
            }
        });
    }

    fn then(&self, input: impl Future<Output = Input> + Send + 'static) {
        let inputs = self.inputs.clone();
        self.tasks.spawn(async move {
            // As above.
            let _ = inputs.send(input.await).await;
        });
    }

    fn show_waiting(&mut self, refusal: Refusal, pause: Millis) {
        let shown = self.waiting.as_ref().is_some_and(|(before, at)| {
            before.code == refusal.code && at.elapsed() < WAITING_SHOWN
        });
        if !shown {
            let (code, title) = (refusal.code, refusal.code.title());
            let (detail, again_in_ms) = (&refusal.detail, pause.get());
            match code.class() {
                // Nothing happens before somebody has done something.
                Class::Operator => {
                    tracing::warn!(%code, detail, again_in_ms, next = code.next_step(), "waiting: {title}");
                }
                _ => tracing::info!(%code, detail, again_in_ms, "waiting: {title}"),
            }
            self.waiting = Some((refusal, Instant::now()));
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// The key of this connection: the broker accepts only subjects with this name.
fn own_id(bus: &Bus) -> Result<WorkerId, Failure> {
    let public = bus.public().ok_or_else(|| {
        Failure::new(
            Code::CredentialMissing,
            "bus.credentials is not set; a worker's name is the key it connects with",
        )
    })?;
    public.as_str().parse().map_err(|error| {
        Failure::new(
            Code::CredentialMalformed,
            format!("bus.credentials: {error}"),
        )
    })
}

fn settings(
    checked: &Checked,
    (worker, session): (WorkerId, Session),
    now: UnixMillis,
) -> Settings {
    let proof = checked
        .audit_key
        .sign_join(checked.trust.domain.as_str(), &checked.run, &worker);
    let join = JoinRequest {
        v: V,
        session,
        audit_key: checked.audit_key.public().clone(),
        proof: ByteArray::new(proof),
        trainers: checked.trainers.clone(),
        device: checked.device.clone(),
        release: env!("CARGO_PKG_VERSION").to_owned(),
        posture: checked.posture.clone(),
    };
    // The seed differs for every worker and every process.
    let name = Digest::of(format!("{worker} {now}").as_bytes());
    let seed = name
        .as_bytes()
        .iter()
        .fold(0_u64, |seed, byte| seed.rotate_left(8) ^ u64::from(*byte));
    let run = checked.run.clone();
    Settings {
        run,
        domain: checked.trust.domain.as_str().to_owned(),
        worker,
        join,
        claim_wait: CLAIM_WAIT_MAX,
        stop_patience: STOP_PATIENCE,
        seed,
    }
}
