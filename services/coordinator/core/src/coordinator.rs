//! The coordinator: its state, its rooms, and the router that brings each input to the room or the
//! topic that decides on it.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::sync::Arc;

use ledger::{ReplayError, State};
use schemas::event::{EventBody, LedgerEvent};
use schemas::foundry;
use schemas::member::{Posture, Session};
use schemas::subject::Verb;
use schemas::{AccountId, Code, Millis, PublicKey, Refusal, RunId, UnixMillis, WorkerId};

use crate::checkpoint::Checkpoints;
use crate::collection::{Collection, Committed};
use crate::control::{Drain, NewRun};
use crate::deadline::{Timer, Timers};
use crate::denial::Denials;
use crate::effect::{Answer, Effect};
use crate::input::{
    ControlRequest, Input, Peer, Recorded, ReplyId, Screened, ScreeningId, WorkerRequest,
};
use crate::restore::Restores;
use crate::run::live::{DecayingCount, LiveRun, Traffic};
use crate::run::objects::RefusedRead;
use crate::run::{RunRoom, closed};
use crate::turn::{Denied, Handled, Outcome, Screenings, Turn};

/// The settings that the shell fixes at start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This build's release.
    pub release: String,
    /// The account of the domain's own tenant, which has every run without a tenant in its name.
    pub home: AccountId,
    /// The keys that sign the ledger now, before or later; no worker may join with one.
    pub audit_keys: Vec<PublicKey>,
    /// The layers of protection that the coordinator relaxed; a worker that relaxed more is
    /// refused.
    pub posture: Posture,
    /// The time between two heartbeats of a worker.
    pub heartbeat: Millis,
    /// A random number that names this process, drawn by the shell. Without it, two processes with
    /// the same keys that start in the same millisecond would begin with the same event, and each
    /// would take the other's event in the ledger for its own.
    pub session: Session,
    /// Events between two checkpoints of the ledger.
    pub checkpoint_every: u64,
}

/// Makes every decision of the coordinator. Give it inputs one at a time, and carry its effects out
/// in order.
///
/// Matters of one run are decided in its room (`RunRoom`), which reaches nothing else. Matters of
/// all runs are decided here.
#[derive(Debug)]
pub struct Coordinator {
    pub(crate) settings: Settings,
    pub(crate) state: State,
    /// One entry for each run that is not complete.
    pub(crate) live: BTreeMap<RunId, LiveRun>,
    /// Bytes that workers reported as moved, for runs that completed during the life of this
    /// process.
    pub(crate) over: BTreeMap<RunId, Traffic>,
    pub(crate) timers: Timers,
    /// The latest time that was passed in; it never goes back.
    pub(crate) now: UnixMillis,
    /// Effects of the call that is being handled.
    pub(crate) out: Vec<Effect>,
    pub(crate) checks: BTreeMap<ReplyId, NewRun>,
    /// Snapshots that are to be restored and are being read back.
    pub(crate) restores: Restores,
    /// The collection of old objects under way: one at a time.
    pub(crate) collection: Option<Collection>,
    /// What operators have committed lately, which collections keep.
    pub(crate) committed: Committed,
    /// Operators whose uploads are being checked and promoted.
    pub(crate) commits: BTreeMap<ReplyId, PublicKey>,
    /// The recent orders of each operator that led to events in the ledger.
    pub(crate) orders: BTreeMap<PublicKey, DecayingCount>,
    screenings: Screenings,
    pub(crate) denials: Denials,
    /// The time at which each worker in quarantine was told to end.
    pub(crate) sent_away: BTreeMap<(RunId, WorkerId), UnixMillis>,
    pub(crate) drain: Option<Drain>,
    pub(crate) stopped: bool,
    pub(crate) checkpoints: Checkpoints,
}

impl Coordinator {
    /// A coordinator that continues from the state of the ledger. Call [`Coordinator::start`]
    /// before the first input.
    pub fn new(settings: Settings, state: State) -> Self {
        Self {
            settings,
            state,
            live: BTreeMap::new(),
            over: BTreeMap::new(),
            timers: Timers::default(),
            now: UnixMillis(0),
            out: Vec::new(),
            checks: BTreeMap::new(),
            restores: Restores::new(),
            collection: None,
            committed: Committed::default(),
            commits: BTreeMap::new(),
            orders: BTreeMap::new(),
            screenings: Screenings::default(),
            denials: Denials::default(),
            sent_away: BTreeMap::new(),
            drain: None,
            stopped: false,
            checkpoints: Checkpoints::default(),
        }
    }

    /// A coordinator that continues the ledger: `events` are the bodies of its chain from the first
    /// on.
    ///
    /// # Errors
    /// An event does not follow those before it, or is not of this chain.
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
        self.take_up_checkpoints();
        self.checkpoint_if_due();
        effects.append(&mut self.out);
    }

    /// Decides on one input. `now` is the shell's clock; if it goes back, the last time stays in
    /// force.
    pub fn handle(&mut self, now: UnixMillis, input: Input, effects: &mut Vec<Effect>) {
        self.now = self.now.max(now);
        if self.stopped {
            self.decline(input);
        } else {
            // The shell says when deadlines are due, after it has brought everything that came
            // before: a renewal that waited while the process was busy still counts.
            self.dispatch(input);
            self.collect_on();
            self.end_drain();
            self.checkpoint_if_due();
        }
        effects.append(&mut self.out);
    }

    /// The latest time at which the shell must call [`Coordinator::handle`] with [`Input::Tick`].
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
                recorded,
                request,
                reply,
            } => {
                let recorded = recorded.map(|recorded| *recorded).unwrap_or_default();
                self.request(&peer, recorded, request, reply);
            }
            Input::Control {
                operator,
                request,
                reply,
            } => self.control(operator, request, reply),
            Input::Heartbeat { peer, heartbeat } => {
                let session = heartbeat.session;
                let heard = |room: &mut RunRoom<'_>, turn: &mut Turn<'_>| {
                    room.heartbeat(turn, &peer, heartbeat)
                };
                if let Err(refusal) = self.check_tenant(&peer) {
                    self.record_denial(&peer, "heartbeat", &refusal);
                    return;
                }
                if let Some(refusal) = self.shut_out(&peer) {
                    // The command may have been lost, or the process has begun since.
                    if !self.send_away_again(&peer, session) {
                        self.record_denial(&peer, "heartbeat", &refusal);
                    }
                    return;
                }
                if let Some(refusal) = self.void(&peer.worker) {
                    self.record_denial(&peer, "heartbeat", &refusal);
                    return;
                }
                // A worker of a run that is over learns that from its next request.
                if let Some(Err(Denied(refusal))) = self.enter(&peer.run, heard) {
                    self.record_denial(&peer, "heartbeat", &refusal);
                }
            }
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
            } => self.conclude(&peer, verb, reply, Err(refusal.into())),
            Input::Reissued { key, issued } => self.reissued(key, issued),
            Input::RunChecked { reply, verdict } => self.run_checked(reply, verdict),
            Input::SnapshotChecked { run, verdict } => self.snapshot_checked(&run, verdict),
            Input::Looked { outcome } => self.looked(outcome),
            Input::Collected { outcome } => self.collected(outcome),
            Input::UploadsChecked { reply, verdict } => self.uploads_checked(reply, verdict),
            Input::Promoted { reply, outcome } => self.promoted(reply, outcome),
            Input::Offered {
                run,
                unit,
                delivery,
            } => {
                let offered = self.enter(&run, |room, turn| room.offered(turn, unit, delivery));
                if offered.is_none() {
                    // The unit is of a run that is over or unknown, so its offer must not come
                    // again.
                    self.out.push(Effect::Settle { delivery });
                }
            }
            Input::Foundry { run, answer } => self.foundry_answered(&run, answer),
            Input::CheckpointWritten { outcome } => self.checkpoint_written(outcome),
            Input::Tick => self.fire_due(),
        }
    }

    fn request(&mut self, peer: &Peer, recorded: Recorded, request: WorkerRequest, reply: ReplyId) {
        let verb = request.verb();
        let refused = self.check_tenant(peer).err();
        let refused = refused.or_else(|| self.shut_out(peer));
        let handled = match refused.or_else(|| self.void(&peer.worker)) {
            Some(refusal) => Err(refusal.into()),
            None => self.handled(peer, recorded, request, reply),
        };
        self.conclude(peer, verb, reply, handled);
    }

    fn handled(
        &mut self,
        peer: &Peer,
        recorded: Recorded,
        request: WorkerRequest,
        reply: ReplyId,
    ) -> Handled {
        if let WorkerRequest::Join(request) = &request {
            self.check_join(peer, &recorded, request)?;
        }
        match self.state.run(&peer.run) {
            None => Err(run_unknown(&peer.run).into()),
            Some(run) if run.is_complete() => {
                let (mut turn, state, _) = self.turn();
                let run = state.fold_run(&peer.run);
                let mut run = run.expect("a run that is complete is in the state");
                closed::request(&mut run, &mut turn, peer, &request, reply)
            }
            Some(_) => self
                .enter(&peer.run, |room, turn| {
                    room.request(turn, peer, recorded, request, reply)
                })
                .expect("a run that is not complete has a room"),
        }
    }

    /// Replies to a worker's request, and records the refusal where the ledger needs it.
    fn conclude(&mut self, peer: &Peer, verb: Verb, reply: ReplyId, handled: Handled) {
        match handled {
            Ok(Outcome::Now(answer)) => self.reply(reply, Ok(answer)),
            Ok(Outcome::Later) => {}
            Ok(Outcome::NotNow(refusal)) => self.reply(reply, Err(refusal)),
            Err(Denied(refusal)) => {
                self.record_denial(peer, verb.token(), &refusal);
                self.reply(reply, Err(refusal));
            }
        }
    }

    /// Carries an operator's request out. Refusals of operators are not recorded.
    fn control(&mut self, operator: PublicKey, request: ControlRequest, reply: ReplyId) {
        if let Some(refusal) = self.void_operator(&operator) {
            return self.reply(reply, Err(refusal));
        }
        let outcome = match request {
            ControlRequest::RunNew(request) => self.run_new(operator, request.spec, reply),
            ControlRequest::RunHold(request) => self.hold(operator, request, reply),
            ControlRequest::RunGc(request) => self.collect(operator, request, reply),
            ControlRequest::WorkerQuarantine(request) => self.quarantine(operator, request, reply),
            ControlRequest::LeasesEnd(request) => self.end_leases(operator, request),
            ControlRequest::SnapshotPromote(request) => self.promote(operator, request),
            ControlRequest::SnapshotRestore(request) => self.restore(operator, request, reply),
            ControlRequest::TenantSet(request) => self.set_tenant(operator, request),
            ControlRequest::TenantEnd(request) => self.end_tenant(operator, request, reply),
            ControlRequest::CredentialRevoke(request) => self.revoke_credentials(operator, request),
            ControlRequest::View(request) => self.view(&request),
            ControlRequest::Keys(_) => {
                self.out.push(Effect::ShowKeys { reply });
                Ok(Outcome::Later)
            }
            ControlRequest::BlobPut(request) => self.operator_put(operator, request, reply),
            ControlRequest::BlobCommit(request) => self.operator_commit(operator, request, reply),
            ControlRequest::BlobGet(request) => self.operator_get(request, reply),
            ControlRequest::Shutdown(request) => self.shut_down(operator, &request),
        };
        match outcome {
            Ok(Outcome::Now(answer)) => self.reply(reply, Ok(answer)),
            Ok(Outcome::Later) => {}
            Ok(Outcome::NotNow(refusal)) | Err(refusal) => self.reply(reply, Err(refusal)),
        }
    }

    /// Answers an input after the end: nothing changes any more, and each request is told so.
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
                Timer::Room(run, timer) => self.tell(&run, |room, turn| room.timer(turn, timer)),
                // The end of a drain is looked for after every input.
                Timer::Drain => {}
            }
        }
    }

    /// Takes the answer to an order to a run's foundry.
    fn foundry_answered(&mut self, run: &RunId, answer: foundry::Answer) {
        match answer {
            foundry::Answer::Screened { screening, verdict } => {
                self.screened(run, screening, verdict)
            }
            foundry::Answer::Merged { sync, outcome } => {
                self.tell(run, |room, turn| room.merged(turn, sync, outcome));
            }
            foundry::Answer::Compared { round, outcome } => {
                self.tell(run, |room, turn| room.compared(turn, round, outcome));
            }
            foundry::Answer::Saved { round, outcome } => {
                self.tell(run, |room, turn| room.saved(turn, round, outcome));
            }
            foundry::Answer::Restored { outcome } => {
                self.tell(run, |room, turn| room.restored(turn, outcome))
            }
            foundry::Answer::DataLoaded { data } => {
                let data = Arc::from(data);
                let refused = self.enter(run, |room, turn| room.data_loaded(turn, data));
                self.refuse_reads(refused);
            }
            foundry::Answer::ListRead { list, outcome } => {
                let refused = self.enter(run, |room, turn| room.list_read(turn, list, outcome));
                self.refuse_reads(refused);
            }
        }
    }

    fn refuse_reads(&mut self, refused: Option<Vec<RefusedRead>>) {
        for read in refused.into_iter().flatten() {
            let denied = Err(read.refusal.into());
            self.conclude(&read.peer, Verb::Get, read.reply, denied);
        }
    }

    fn screened(
        &mut self,
        run: &RunId,
        screening: ScreeningId,
        verdict: Result<Screened, Refusal>,
    ) {
        // An answer that was not asked for changes nothing.
        if self.screenings.end(run, screening) {
            self.tell(run, |room, turn| room.screened(turn, screening, verdict));
        }
    }

    /// Opens the room of a run that was created or that the ledger holds, and starts its work.
    pub(crate) fn take_up(&mut self, name: &RunId) {
        let run = self.state.run(name);
        let spec = &run.expect("a run that is taken up is in the state").spec;
        self.live.insert(name.clone(), LiveRun::new(spec));
        self.tell(name, |room, turn| room.take_up(turn));
    }

    /// Visits the room of a run; none when the run is unknown or over. A run that completes in this
    /// visit has no room after it.
    pub(crate) fn enter<T>(
        &mut self,
        name: &RunId,
        visit: impl FnOnce(&mut RunRoom<'_>, &mut Turn<'_>) -> T,
    ) -> Option<T> {
        let share = self.share(name);
        let (mut turn, state, live) = self.turn();
        let mut room = RunRoom {
            share,
            live: live.get_mut(name)?,
            run: state
                .fold_run(name)
                .expect("a room is of a run in the state"),
        };
        let value = visit(&mut room, &mut turn);
        if room.run.is_complete() {
            let moved = room.live.traffic;
            self.live.remove(name);
            self.over.insert(name.clone(), moved);
        }
        Some(value)
    }

    /// Visits the room of a run for something that only an open run waits for. A timer and the
    /// foundry's last answer may come after the end; they are dropped.
    pub(crate) fn tell(
        &mut self,
        name: &RunId,
        visit: impl FnOnce(&mut RunRoom<'_>, &mut Turn<'_>),
    ) {
        let _visited: Option<()> = self.enter(name, visit);
    }

    /// Splits the state into what a handler may touch and the two halves of the rooms.
    fn turn(&mut self) -> (Turn<'_>, &mut State, &mut BTreeMap<RunId, LiveRun>) {
        let turn = Turn {
            now: self.now,
            settings: &self.settings,
            draining: self.drain.is_some(),
            timers: &mut self.timers,
            screenings: &mut self.screenings,
            out: &mut self.out,
        };
        (turn, &mut self.state, &mut self.live)
    }

    /// Writes an event that concerns no single run, or that begins one.
    pub(crate) fn append(&mut self, run: Option<&RunId>, event: LedgerEvent) {
        let applied = self.state.apply(self.now, run, &event);
        applied.expect("the core appends only what follows from its state");
        self.out.push(Effect::Append {
            time: self.now,
            run: run.cloned(),
            event: Box::new(event),
        });
    }

    pub(crate) fn reply(&mut self, reply: ReplyId, answer: Result<Answer, Refusal>) {
        self.out.push(Effect::Reply { reply, answer });
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
