//! The coordinator: its state, its volatile side, and the way of an input to the topic that decides it.

use std::borrow::Borrow;
use std::collections::BTreeMap;

use schemas::event::{Event, EventBody, LedgerEvent};
use schemas::member::Posture;
use schemas::{Code, Millis, Refusal, RunId, Sequence, UnixMillis};

use crate::apply::ApplyError;
use crate::control::{Check, Drain};
use crate::deadline::{Timer, Timers};
use crate::denial::Denials;
use crate::effect::{Answer, Effect};
use crate::input::{ControlRequest, Input, Peer, ReplyId, ScreeningId, WorkerRequest};
use crate::live::{LiveRun, Traffic};
use crate::state::{Run, State};
use crate::submit::Screening;

/// What the shell fixes at start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This build's release.
    pub release: String,
    /// How openly the coordinator runs; a worker that relaxed more is refused.
    pub posture: Posture,
    /// How often workers shall send a heartbeat.
    pub heartbeat: Millis,
}

/// Why a ledger does not give a state.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// An event does not follow on those before it.
    #[error("event {sequence} of the ledger does not fit: {source}")]
    Apply {
        /// Its position.
        sequence: Sequence,
        /// What is wrong.
        source: ApplyError,
    },
    /// The chain holds an event that is not the coordinator's.
    #[error("event {0} is no event of a ledger; replay the coordinator's chain only")]
    Foreign(Sequence),
}

/// Every decision of the coordinator. Give it inputs one at a time, carry its effects out in order.
#[derive(Debug)]
pub struct Coordinator {
    pub(crate) settings: Settings,
    pub(crate) state: State,
    /// One entry for each run that is not complete.
    pub(crate) live: BTreeMap<RunId, LiveRun>,
    /// What workers say they moved since this coordinator started; it outlives their membership and the run.
    pub(crate) traffic: BTreeMap<RunId, Traffic>,
    pub(crate) timers: Timers,
    /// The latest time that was passed in; it never goes back.
    pub(crate) now: UnixMillis,
    /// Effects of the call that is being handled.
    pub(crate) out: Vec<Effect>,
    pub(crate) checks: BTreeMap<ReplyId, Check>,
    pub(crate) screenings: BTreeMap<ScreeningId, Screening>,
    pub(crate) screened: u64,
    pub(crate) denials: Denials,
    pub(crate) drain: Option<Drain>,
    pub(crate) stopped: bool,
}

impl Coordinator {
    /// A coordinator with an empty ledger. Call [`Coordinator::start`] before the first input.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            state: State::default(),
            live: BTreeMap::new(),
            traffic: BTreeMap::new(),
            timers: Timers::default(),
            now: UnixMillis(0),
            out: Vec::new(),
            checks: BTreeMap::new(),
            screenings: BTreeMap::new(),
            screened: 0,
            denials: Denials::default(),
            drain: None,
            stopped: false,
        }
    }

    /// A coordinator that continues the ledger: `events` are the bodies of its chain from the first on.
    ///
    /// # Errors
    /// An event that does not follow on those before it, or is not of this chain.
    pub fn replay(
        settings: Settings,
        events: impl IntoIterator<Item = impl Borrow<EventBody>>,
    ) -> Result<Self, ReplayError> {
        let mut coordinator = Self::new(settings);
        for body in events {
            let body = body.borrow();
            let Event::Ledger(event) = &body.event else { return Err(ReplayError::Foreign(body.sequence)) };
            let applied = coordinator.state.apply(body.time, body.run.as_ref(), event);
            applied.map_err(|source| ReplayError::Apply { sequence: body.sequence, source })?;
        }
        Ok(coordinator)
    }

    /// Takes the lead: every open lease runs on for one lease time from now, every unit that waits is offered again, and
    /// the weights of every run that is not complete are loaded.
    pub fn start(&mut self, now: UnixMillis, effects: &mut Vec<Effect>) {
        self.now = self.now.max(now).max(self.state.time);
        let Settings { release, posture, .. } = self.settings.clone();
        self.append(None, LedgerEvent::CoordinatorStarted { release, posture });
        let open: Vec<RunId> =
            self.state.runs().filter(|(_, run)| !run.is_complete()).map(|(name, _)| name.clone()).collect();
        for run in &open {
            self.take_up(run);
        }
        self.fire_due();
        effects.append(&mut self.out);
    }

    /// Decides about one input. `now` is the shell's clock; when it goes back the last time counts on.
    pub fn handle(&mut self, now: UnixMillis, input: Input, effects: &mut Vec<Effect>) {
        self.now = self.now.max(now);
        if self.stopped {
            self.decline(input);
        } else {
            // The input comes first: a renewal that waited while the process was busy still counts.
            self.dispatch(input);
            self.fire_due();
            self.end_drain();
        }
        effects.append(&mut self.out);
    }

    /// When to call [`Coordinator::handle`] with [`Input::Tick`] at the latest.
    pub fn next_deadline(&self) -> Option<UnixMillis> {
        if self.stopped { None } else { self.timers.next() }
    }

    /// The durable state.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// What somebody should look at: runs that wait for workers, and merges, saves or restores that failed and are tried
    /// again. Empty when all is well.
    pub fn warnings(&self) -> Vec<(RunId, Refusal)> {
        let mut found = Vec::new();
        for (name, live) in &self.live {
            let Some(run) = self.state.run(name) else { continue };
            let (present, least) = (run.present(), run.spec.policy.workers_min);
            if present < least {
                let detail = format!("{present} of at least {least} workers are members");
                found.push((name.clone(), Refusal::new(Code::TooFewWorkers, detail)));
            }
            let troubles = [&live.executor.halted, &live.executor.trouble, &live.executor.save_trouble];
            found.extend(troubles.into_iter().flatten().map(|trouble| (name.clone(), trouble.clone())));
        }
        found
    }

    fn dispatch(&mut self, input: Input) {
        match input {
            Input::Request { peer, request, reply } => self.request(peer, request, reply),
            Input::Control { operator, request, reply } => self.control(operator, request, reply),
            Input::Heartbeat { peer, heartbeat } => self.heartbeat(&peer, heartbeat),
            Input::Denied { peer, verb, refusal } => self.record_denial(&peer, &verb, &refusal),
            Input::Offered { run, unit, delivery } => self.offered(&run, unit, delivery),
            Input::RunChecked { reply, verdict } => self.run_checked(reply, verdict),
            Input::Screened { screening, verdict } => self.screened(screening, verdict),
            Input::Merged { run, round, outcome } => self.merged(&run, round, outcome),
            Input::Saved { run, round, outcome } => self.saved(&run, round, outcome),
            Input::DataLoaded { run, data } => self.data_loaded(&run, data),
            Input::Restored { run, outcome } => self.restored(&run, outcome),
            Input::Tick => {}
        }
    }

    fn request(&mut self, peer: Peer, request: WorkerRequest, reply: ReplyId) {
        self.heard(&peer);
        let (verb, outcome) = match request {
            WorkerRequest::Join(request) => ("join", self.join(&peer, request, reply)),
            WorkerRequest::Leave(request) => ("leave", self.leave(&peer, &request, reply)),
            WorkerRequest::Claim(request) => ("lease.claim", self.claim(&peer, &request, reply)),
            WorkerRequest::Renew(request) => ("lease.renew", self.renew(&peer, &request, reply)),
            WorkerRequest::Release(request) => ("lease.release", self.release(&peer, &request, reply)),
            WorkerRequest::Put(request) => ("blob.put", self.put(&peer, request, reply)),
            WorkerRequest::Get(request) => ("blob.get", self.get(&peer, request, reply)),
            WorkerRequest::Stage(request) => ("contribution.stage", self.stage(&peer, &request, reply)),
            WorkerRequest::Submit(submission) => ("contribution.submit", self.submit(&peer, submission, reply)),
        };
        if let Err(refusal) = outcome {
            self.record_denial(&peer, verb, &refusal);
            self.reply(reply, Err(refusal));
        }
    }

    fn control(&mut self, operator: schemas::PublicKey, request: ControlRequest, reply: ReplyId) {
        let outcome = match request {
            ControlRequest::RunNew(request) => self.run_new(operator, request.spec, reply),
            ControlRequest::View(request) => self.view(&request.query, reply),
            ControlRequest::BlobPut(request) => self.operator_put(operator, request, reply),
            ControlRequest::BlobCommit(request) => self.operator_commit(operator, request, reply),
            ControlRequest::BlobGet(request) => self.operator_get(request, reply),
            ControlRequest::Shutdown(request) => {
                self.shut_down(operator, &request, reply);
                Ok(())
            }
        };
        if let Err(refusal) = outcome {
            self.reply(reply, Err(refusal));
        }
    }

    /// After the end: nothing changes any more, and whoever asks is told so.
    fn decline(&mut self, input: Input) {
        if let Input::Request { reply, .. } | Input::Control { reply, .. } = input {
            self.reply(reply, Err(draining()));
        }
    }

    fn fire_due(&mut self) {
        while let Some(timer) = self.timers.take_due(self.now) {
            match timer {
                Timer::Lease(run, unit) => self.lease_due(&run, unit),
                Timer::Silence(run, worker) => self.silence_due(&run, &worker),
                Timer::Claim(run, worker) => self.claim_due(&run, &worker),
                Timer::Offer(run, unit) => self.offer_due(&run, unit),
                Timer::Weights(run) => self.advance(&run),
                Timer::Status(run) => self.status_due(&run),
                // The end of a drain is looked for after every input.
                Timer::Drain => {}
            }
        }
    }

    /// Writes an event: it is in the state at once, and in the ledger before any effect that follows.
    pub(crate) fn append(&mut self, run: Option<&RunId>, event: LedgerEvent) {
        let applied = self.state.apply(self.now, run, &event);
        applied.expect("the core appends only what follows from its state");
        debug_assert_eq!(run.and_then(|run| self.state.run(run)).map_or(Ok(()), Run::check), Ok(()), "{event:?}");
        self.out.push(Effect::Append { time: self.now, run: run.cloned(), event: Box::new(event) });
        if let Some(run) = run {
            self.mark_changed(run);
        }
    }

    pub(crate) fn reply(&mut self, reply: ReplyId, answer: Result<Answer, Refusal>) {
        self.out.push(Effect::Reply { reply, answer });
    }

    /// A run and its volatile side; the refusal to give when it is unknown or over.
    pub(crate) fn open_run(&mut self, name: &RunId) -> Result<(&Run, &mut LiveRun), Refusal> {
        let run = self.state.runs.get(name).ok_or_else(|| run_unknown(name))?;
        let live = self.live.get_mut(name).ok_or_else(|| run_closed(name))?;
        Ok((run, live))
    }
}

pub(crate) fn run_unknown(run: &RunId) -> Refusal {
    Refusal::new(Code::RunUnknown, format!("run {run}"))
}

pub(crate) fn run_closed(run: &RunId) -> Refusal {
    Refusal::new(Code::RunClosed, format!("run {run} is complete"))
}

pub(crate) fn draining() -> Refusal {
    Refusal::new(Code::Draining, "the coordinator is shutting down")
}
