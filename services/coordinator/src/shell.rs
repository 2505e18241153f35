//! The decision loop. The core takes the waiting inputs one after another; the events of all its
//! decisions are appended together; then the effects are carried out in order. Work that takes time
//! runs beside the loop and comes back as an input. Nothing is decided here.

mod effects;
mod foundries;
mod input;
mod lead;
mod tables;

use std::collections::VecDeque;
use std::time::Duration;

use coordinator_core::{Answer, Coordinator, Effect, Input, Purging, Sent};
use identity::{EventKeyFiles, IssuedList};
use runtime::{Bus, Failure, clock};
use schemas::member::Posture;
use schemas::{Code, Refusal, RunId};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::answer::ReplyTo;
use crate::arrival::{ARRIVALS_MAX, Arrival};
use crate::foundry::Maker;
use crate::heads::LedgerHeads;
use crate::ledger::{Ledger, NewEvent};
use crate::mark::LedgerMark;
use crate::purge::Purges;
use crate::queue::Offers;
use crate::signer::ManifestSigner;
use crate::stopped::Waiting;
use crate::store::Store;
use crate::sweep::Sweeper;
use crate::telemetry;
use crate::workers::Workers;

pub(crate) use self::lead::tell_unfit;
pub(crate) use self::tables::Tables;

/// Time that an append may still take after the process is told to stop: less than service managers
/// wait.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// Time that the last answers may take to leave. They are short, and only a lost bus does not take
/// them.
const DECLINE_PATIENCE: Duration = Duration::from_secs(2);
/// Longest sleep without a deadline; it limits the time until a step of the wall clock is logged.
const IDLE_MAX: Duration = Duration::from_secs(5);
/// Most inputs that are decided on before their events are appended: as many as may wait. They
/// share one append, and so one wait for the disk.
const INPUTS_MAX: usize = ARRIVALS_MAX;

/// The loop's tools and its state.
pub(crate) struct Shell {
    pub(crate) bus: Bus,
    pub(crate) store: Store,
    pub(crate) ledger: Ledger,
    pub(crate) mark: LedgerMark,
    /// What is known of the log of all events.
    pub(crate) heads: LedgerHeads,
    /// The files of the key that signs the ledger.
    pub(crate) event_key: EventKeyFiles,
    pub(crate) signer: ManifestSigner,
    pub(crate) domain: String,
    pub(crate) maker: Maker,
    /// The records of issued credentials.
    pub(crate) issued: IssuedList,
    /// The layers that this coordinator relaxed.
    pub(crate) posture: Posture,
    pub(crate) arrivals: mpsc::Sender<Arrival>,
    pub(crate) sweeper: Sweeper,
    pub(crate) offers: Offers,
    pub(crate) tables: Tables,
    pub(crate) workers: Workers,
    pub(crate) purges: Purges<(ReplyTo, Purging)>,
    /// Orders to stop URLs whose operators wait for the store.
    pub(crate) waiting: Waiting,
    /// Position of the last message of the ledger's stream that this process knows.
    pub(crate) known: watch::Sender<u64>,
    /// The answers to claims that are granted in this step, in the order of their effects.
    pub(crate) signed: VecDeque<Result<Answer, Refusal>>,
}

/// The continuation of the loop after a step.
enum Flow {
    On,
    /// The core has ended.
    Stop(String),
}

impl Shell {
    /// Runs until the core stops, `shutdown` is cancelled, or a part fails that the process cannot
    /// do without.
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
        let waiting = self.waiting.clone();
        let declining = async {
            waiting.end().await;
            self.decline(&mut queue, fenced).await;
        };
        if tokio::time::timeout(DECLINE_PATIENCE, declining)
            .await
            .is_err()
        {
            tracing::warn!("the bus takes no more answers; senders that wait for one ask again");
        }
        // Once the server answers this round trip, all earlier answers have left. Without a server
        // nobody can be told.
        if let Err(error) = self.bus.round_trip().await {
            tracing::warn!(%error, "the last answers may not have left");
        }
        ended
    }

    /// The loop itself.
    async fn decide(
        &mut self,
        core: &mut Coordinator,
        queue: &mut mpsc::Receiver<Arrival>,
        shutdown: CancellationToken,
    ) -> Result<(), Failure> {
        let mut effects = Vec::new();
        let mut steps = clock::StepDetector::new();
        loop {
            if let Some(step) = steps.look() {
                tracing::warn!(code = %Code::ClockOff, "{step}; leases and the ledger go on by the time from before it, until a restart");
            }
            let gathered = tokio::select! {
                biased;
                () = shutdown.cancelled() => {
                    // Nothing is lost: the ledger holds every decision, and a restart continues
                    // from it.
                    tracing::info!("stopping; leases run on until they expire");
                    break;
                }
                gathered = self.gather(core, queue, &mut effects) => gathered?,
            };
            if !gathered {
                break;
            }
            let flow = tokio::select! {
                flow = self.carry_out(&mut effects) => flow?,
                () = overdue(&shutdown) => {
                    let detail = "the bus took no event while the coordinator was told to stop; a restart continues";
                    return Err(Failure::new(Code::LedgerUnwritable, detail));
                }
            };
            if let Flow::Stop(reason) = flow {
                tracing::info!(reason, "everything is in order; ending");
                // Each request that came meanwhile is answered; a failure that came meanwhile
                // changes nothing.
                while let Ok(arrival) = queue.try_recv() {
                    if let Ok(Some(input)) = self.input(core, arrival) {
                        handle(core, input, &mut effects);
                    }
                }
                self.carry_out(&mut effects).await?;
                break;
            }
        }
        Ok(())
    }

    /// Brings arrivals to the core, and a tick when a deadline is due: at most as many inputs as
    /// may share an append. The end of a deletion of uploads brings no input, since only operators'
    /// orders wait for it. Returns false when nothing arrives any more.
    ///
    /// When a deadline is due, the core first handles what was already queued, then the deadline,
    /// and then what arrived meanwhile.
    async fn gather(
        &mut self,
        core: &mut Coordinator,
        queue: &mut mpsc::Receiver<Arrival>,
        effects: &mut Vec<Effect>,
    ) -> Result<bool, Failure> {
        let wait = core.next_deadline().map_or(IDLE_MAX, |at| {
            clock::now().until(at).as_duration().min(IDLE_MAX)
        });
        if wait.is_zero() {
            // No more inputs can wait than may share an append.
            self.take(core, queue, queue.len(), effects)?;
            handle(core, Input::Tick, effects);
            return Ok(true);
        }
        tokio::select! {
            arrival = queue.recv() => {
                let Some(arrival) = arrival else { return Ok(false) };
                self.bring(core, arrival, effects)?;
                self.take(core, queue, INPUTS_MAX - 1, effects)?;
            }
            (orders, uploads, at_store) = self.purges.next() => {
                self.answer_orders(orders, uploads, at_store).await;
            }
            () = tokio::time::sleep(wait) => handle(core, Input::Tick, effects),
        }
        Ok(true)
    }

    /// Brings waiting arrivals to the core, at most `count` inputs.
    fn take(
        &mut self,
        core: &mut Coordinator,
        queue: &mut mpsc::Receiver<Arrival>,
        count: usize,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Failure> {
        for _ in 0..count {
            let Ok(arrival) = queue.try_recv() else { break };
            self.bring(core, arrival, effects)?;
        }
        telemetry::waiting(queue.len());
        Ok(())
    }

    /// Brings one arrival to the core.
    fn bring(
        &mut self,
        core: &mut Coordinator,
        arrival: Arrival,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Failure> {
        let reissued = input::newcomer(&arrival)
            .and_then(|key| input::reissued(&self.issued, core.state(), key));
        if let Some(input) = reissued {
            handle(core, input, effects);
        }
        if let Some(input) = self.input(core, arrival)? {
            handle(core, input, effects);
        }
        Ok(())
    }

    /// Starts the merges among the effects, appends the events, all together, and then carries out
    /// the others in their order: none leaves before the ledger holds what it rests on. A merge may
    /// run while the disk writes the seal: it makes an object that means nothing until a later
    /// event names it. When the seal is never stored, since the process dies, has lost the lead, or
    /// meets a foundry that has ended, the merge is forgotten with the step: the next process seals
    /// what its ledger has, and merges that.
    async fn carry_out(&mut self, effects: &mut Vec<Effect>) -> Result<Flow, Failure> {
        let (mut events, mut others) = (Vec::new(), Vec::with_capacity(effects.len()));
        for effect in effects.drain(..) {
            match effect {
                early if early.is_early() => self.perform_timed(early).await?,
                Effect::Append { time, run, event } => {
                    tracing::debug!(
                        kind = event.kind(),
                        run = run.as_ref().map(RunId::as_str),
                        "append"
                    );
                    let event = *event;
                    events.push(NewEvent { time, run, event });
                }
                other => others.push(other),
            }
        }
        // The leases are signed while the broker stores their grants. They leave after that, like
        // everything else; if the events are not stored, nobody sees them.
        let (signer, store) = (&mut self.signer, &self.store);
        let signing = async { effects::sign_leases(signer, store, &mut others) };
        if events.is_empty() {
            self.signed = signing.await;
        } else {
            let (count, since) = (events.len() as u64, Instant::now());
            self.ledger.know(self.heads.known());
            // The events are sent first.
            let (appended, signed) = tokio::join!(biased; self.ledger.append(events), signing);
            telemetry::appended(count, since.elapsed());
            self.signed = signed;
            self.mark.note(&self.ledger);
            if let Some((sequence, message)) = self.ledger.stored() {
                let message = message.to_vec();
                self.heads
                    .appended(clock::now(), Sent { sequence, message });
            }
            self.known.send_replace(self.ledger.stream_sequence());
            appended?;
        }
        let mut flow = Flow::On;
        for effect in others {
            match effect {
                Effect::Stop { reason } => flow = Flow::Stop(reason),
                effect => self.perform_timed(effect).await?,
            }
        }
        Ok(flow)
    }

    /// Carries out one effect, in a span and with its time in the metrics.
    async fn perform_timed(&mut self, effect: Effect) -> Result<(), Failure> {
        let (kind, since) = (effect.kind(), Instant::now());
        let span = telemetry::effect_span(&effect);
        self.perform(effect).instrument(span).await?;
        telemetry::carried_out(kind, since.elapsed());
        Ok(())
    }
}

/// Lets the core decide on one input.
fn handle(core: &mut Coordinator, input: Input, effects: &mut Vec<Effect>) {
    let (kind, since) = (input.kind(), Instant::now());
    telemetry::input_span(&input).in_scope(|| core.handle(clock::now(), input, effects));
    telemetry::decided(kind, since.elapsed());
}

/// Resolves when shutdown can no longer wait for the append in flight. The next reader sees if its
/// events are in the ledger, as after a crash.
async fn overdue(shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    tokio::time::sleep(STOP_PATIENCE).await;
}
