//! The coordinator: its state, its volatile side, and the way of an input to the topic that decides
//! it.

use std::borrow::Borrow;
use std::collections::BTreeMap;

use ledger::{ReplayError, Run, State};
use schemas::event::{EventBody, LedgerEvent};
use schemas::member::{Posture, Session};
use schemas::{Code, Millis, PublicKey, Refusal, RunId, UnixMillis};

use crate::control::{Check, Drain};
use crate::deadline::{Timer, Timers};
use crate::denial::Denials;
use crate::effect::{Answer, Effect};
use crate::input::{ControlRequest, Input, Peer, ReplyId, ScreeningId, WorkerRequest};
use crate::live::{Fading, LiveRun, Traffic};
use crate::submit::Screening;

/// What the shell fixes at start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This build's release.
    pub release: String,
    /// The key that signs the ledger: no worker may join with it.
    pub audit_key: PublicKey,
    /// How openly the coordinator runs; a worker that relaxed more is refused.
    pub posture: Posture,
    /// How often workers shall send a heartbeat.
    pub heartbeat: Millis,
    /// Which process this is, drawn at random by the shell. Two that hold the same keys and start
    /// in the same millisecond would else begin with the same event, and the ledger would take each
    /// for the other.
    pub session: Session,
}

/// Every decision of the coordinator. Give it inputs one at a time, carry its effects out in order.
#[derive(Debug)]
pub struct Coordinator {
    pub(crate) settings: Settings,
    pub(crate) state: State,
    /// One entry for each run that is not complete.
    pub(crate) live: BTreeMap<RunId, LiveRun>,
    /// What workers say they moved since this coordinator started; it outlives their membership and
    /// the run.
    pub(crate) traffic: BTreeMap<RunId, Traffic>,
    pub(crate) timers: Timers,
    /// The latest time that was passed in; it never goes back.
    pub(crate) now: UnixMillis,
    /// Effects of the call that is being handled.
    pub(crate) out: Vec<Effect>,
    pub(crate) checks: BTreeMap<ReplyId, Check>,
    /// Operators whose uploads are being checked and promoted.
    pub(crate) commits: BTreeMap<ReplyId, PublicKey>,
    /// What each operator has had written to the ledger lately.
    pub(crate) orders: BTreeMap<PublicKey, Fading>,
    pub(crate) screenings: BTreeMap<ScreeningId, Screening>,
    pub(crate) screened: u64,
    pub(crate) denials: Denials,
    pub(crate) drain: Option<Drain>,
    pub(crate) stopped: bool,
}

impl Coordinator {
    /// A coordinator that continues where the ledger has led to. Call [`Coordinator::start`] before
    /// the first input.
    pub fn new(settings: Settings, state: State) -> Self {
        Self {
            settings,
            state,
            live: BTreeMap::new(),
            traffic: BTreeMap::new(),
            timers: Timers::default(),
            now: UnixMillis(0),
            out: Vec::new(),
            checks: BTreeMap::new(),
            commits: BTreeMap::new(),
            orders: BTreeMap::new(),
            screenings: BTreeMap::new(),
            screened: 0,
            denials: Denials::default(),
            drain: None,
            stopped: false,
        }
    }

    /// A coordinator that continues the ledger: `events` are the bodies of its chain from the first
    /// on.
    ///
    /// # Errors
    /// An event that does not follow on those before it, or is not of this chain.
    pub fn replay(
        settings: Settings,
        events: impl IntoIterator<Item = impl Borrow<EventBody>>,
    ) -> Result<Self, ReplayError> {
        let mut state = State::default();
        for body in events {
            state.follow(body.borrow())?;
        }
        Ok(Self::new(settings, state))
    }

    /// Takes the lead: every open lease runs on for one lease time from now, every unit that waits
    /// is offered again, and the weights of every run that is not complete are loaded.
    pub fn start(&mut self, now: UnixMillis, effects: &mut Vec<Effect>) {
        self.now = self.now.max(now).max(self.state.time());
        let Settings {
            release,
            posture,
            session,
            ..
        } = self.settings.clone();
        self.append(
            None,
            LedgerEvent::CoordinatorStarted {
                release,
                posture,
                session,
            },
        );
        let open: Vec<RunId> = self
            .state
            .runs()
            .filter(|(_, run)| !run.is_complete())
            .map(|(name, _)| name.clone())
            .collect();
        for run in &open {
            self.take_up(run);
        }
        self.fire_due();
        effects.append(&mut self.out);
    }

    /// Decides about one input. `now` is the shell's clock; when it goes back the last time counts
    /// on.
    pub fn handle(&mut self, now: UnixMillis, input: Input, effects: &mut Vec<Effect>) {
        self.now = self.now.max(now);
        if self.stopped {
            self.decline(input);
        } else {
            // Deadlines are looked at when the shell says so, after everything that came in before:
            // a renewal that waited while the process was busy still counts.
            self.dispatch(input);
            self.end_drain();
        }
        effects.append(&mut self.out);
    }

    /// When to call [`Coordinator::handle`] with [`Input::Tick`] at the latest.
    pub fn next_deadline(&self) -> Option<UnixMillis> {
        if self.stopped {
            None
        } else {
            self.timers.next()
        }
    }

    /// The durable state.
    pub fn state(&self) -> &State {
        &self.state
    }

    fn dispatch(&mut self, input: Input) {
        match input {
            Input::Request {
                peer,
                request,
                reply,
            } => self.request(peer, request, reply),
            Input::Control {
                operator,
                request,
                reply,
            } => self.control(operator, request, reply),
            Input::Heartbeat { peer, heartbeat } => self.heartbeat(&peer, heartbeat),
            Input::Denied {
                peer,
                verb,
                refusal,
            } => self.record_denial(&peer, &verb, &refusal),
            Input::Refused {
                peer,
                verb,
                refusal,
                reply,
            } => self.refuse(&peer, verb.token(), refusal, reply),
            Input::Offered {
                run,
                unit,
                delivery,
            } => self.offered(&run, unit, delivery),
            Input::RunChecked { reply, verdict } => self.run_checked(reply, verdict),
            Input::UploadsChecked { reply, verdict } => self.uploads_checked(reply, verdict),
            Input::Promoted { reply, outcome } => self.promoted(reply, outcome),
            Input::Screened { screening, verdict } => self.screened(screening, verdict),
            Input::Merged {
                run,
                round,
                outcome,
            } => self.merged(&run, round, outcome),
            Input::Saved {
                run,
                round,
                outcome,
            } => self.saved(&run, round, outcome),
            Input::DataLoaded { run, data } => self.data_loaded(&run, data),
            Input::Restored { run, outcome } => self.restored(&run, outcome),
            Input::Tick => self.fire_due(),
        }
    }

    fn request(&mut self, peer: Peer, request: WorkerRequest, reply: ReplyId) {
        self.heard(&peer);
        let verb = request.verb();
        let outcome = match request {
            WorkerRequest::Join(request) => self.join(&peer, request, reply),
            WorkerRequest::Leave(request) => self.leave(&peer, &request, reply),
            WorkerRequest::Claim(request) => self.claim(&peer, &request, reply),
            WorkerRequest::Renew(request) => self.renew(&peer, &request, reply),
            WorkerRequest::Release(request) => self.release(&peer, &request, reply),
            WorkerRequest::Put(request) => self.put(&peer, request, reply),
            WorkerRequest::Get(request) => self.get(&peer, request, reply),
            WorkerRequest::Stage(request) => self.stage(&peer, &request, reply),
            WorkerRequest::Submit(submission) => self.submit(&peer, submission, reply),
        };
        if let Err(refusal) = outcome {
            self.refuse(&peer, verb.token(), refusal, reply);
        }
    }

    fn refuse(&mut self, peer: &Peer, verb: &str, refusal: Refusal, reply: ReplyId) {
        self.record_denial(peer, verb, &refusal);
        self.reply(reply, Err(refusal));
    }

    fn control(&mut self, operator: PublicKey, request: ControlRequest, reply: ReplyId) {
        let outcome = match request {
            ControlRequest::RunNew(request) => self.run_new(operator, request.spec, reply),
            ControlRequest::View(request) => self.view(&request.query, reply),
            ControlRequest::BlobPut(request) => self.operator_put(operator, request, reply),
            ControlRequest::BlobCommit(request) => self.operator_commit(operator, request, reply),
            ControlRequest::BlobGet(request) => self.operator_get(request, reply),
            ControlRequest::Shutdown(request) => self.shut_down(operator, &request, reply),
        };
        if let Err(refusal) = outcome {
            self.reply(reply, Err(refusal));
        }
    }

    /// After the end: nothing changes any more, and whoever asks is told so.
    fn decline(&mut self, input: Input) {
        if let Input::Request { reply, .. }
        | Input::Control { reply, .. }
        | Input::Refused { reply, .. } = input
        {
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

    /// Writes an event: it is in the state at once, and in the ledger before any effect that
    /// follows.
    pub(crate) fn append(&mut self, run: Option<&RunId>, event: LedgerEvent) {
        let applied = self.state.apply(self.now, run, &event);
        applied.expect("the core appends only what follows from its state");
        debug_assert_eq!(
            run.and_then(|run| self.state.run(run))
                .map_or(Ok(()), Run::check),
            Ok(()),
            "{event:?}"
        );
        self.out.push(Effect::Append {
            time: self.now,
            run: run.cloned(),
            event: Box::new(event),
        });
        if let Some(run) = run {
            self.mark_changed(run);
        }
    }

    pub(crate) fn reply(&mut self, reply: ReplyId, answer: Result<Answer, Refusal>) {
        self.out.push(Effect::Reply { reply, answer });
    }

    /// A run and its volatile side; the refusal to give when it is unknown or over.
    pub(crate) fn open_run(&mut self, name: &RunId) -> Result<(&Run, &mut LiveRun), Refusal> {
        let run = self.state.run(name).ok_or_else(|| run_unknown(name))?;
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
