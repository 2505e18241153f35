//! The life of a worker.

use std::sync::Arc;

use schemas::event::WorkerEvent;
use schemas::lease::{ClaimRequest, LeaseRef, ReleaseRequest, RenewRequest};
use schemas::limits::{CLAIM_WAIT_MAX, LEASE_MIN};
use schemas::member::LeaveRequest;
use schemas::public::CommandVerb;
use schemas::run::RunSpec;
use schemas::telemetry::Phase;
use schemas::{Bytes, Code, Digest, Millis, Refusal, Steps, UnixMillis, V};

use crate::effect::{Effect, Exit, Pulse, Request, RequestId, WorkId};
use crate::held::{Held, Renewal, Step};
use crate::input::Input;
use crate::pace::Pace;
use crate::patience::Patience;
use crate::settings::{
    ABSENCE_PAUSE_MAX, CLAIM_LEASE_PART, CLAIM_MARGIN, FAULT_PAUSE, FAULTS_MAX, PARTING_PATIENCE,
    PARTING_TRIES, PATIENCE, REFUSED_INTERVAL_MIN, REJOIN_PAUSE, RETRY_PAUSE, Settings,
};
use crate::verdict::is_absence;

/// One worker of one run.
#[derive(Clone, Debug)]
pub struct Worker {
    pub(crate) settings: Settings,
    pub(crate) stage: Stage,
    pub(crate) membership: Option<Membership>,
    /// The stage's request that waits for its answer.
    pub(crate) asked: Option<Asked>,
    /// When the stage's request is sent (again).
    pub(crate) ask_at: UnixMillis,
    /// Requests that failed, one after another.
    pub(crate) pace: Pace,
    /// How long the answer to the stage's request is waited for.
    pub(crate) patience: Patience,
    /// Units that this machine failed, one after another.
    pub(crate) faults: Pace,
    /// Units that failed by what lies outside every worker, since one last counted.
    pub(crate) elsewhere: Pace,
    /// Memberships that were lost before they were of any use, one after another.
    pub(crate) rejoins: Pace,
    /// Leases that were not of this time by the coordinator's clock as it was measured, one after
    /// another.
    pub(crate) untimely: Pace,
    pub(crate) ending: Option<Ending>,
    /// The trainer's inner state is newer than the file.
    pub(crate) unsaved: bool,
    heartbeat_at: UnixMillis,
    refused: RefusedCommands,
    numbers: u64,
}

/// Where the worker stands.
#[derive(Clone, Debug)]
pub(crate) enum Stage {
    Joining,
    Claiming,
    Verifying(WorkId),
    Holding(Box<Held>),
    /// Giving a lease back; then this.
    Releasing {
        lease: LeaseRef,
        reason: String,
        next: Next,
    },
    Leaving(Exit),
    Ended,
}

/// What follows a release.
#[derive(Clone, Debug)]
pub(crate) enum Next {
    Claim {
        pause: Millis,
    },
    /// Ask to join again, to learn the coordinator's time.
    Join {
        pause: Millis,
    },
    Leave(Exit),
}

/// What a join gave.
#[derive(Clone, Debug)]
pub(crate) struct Membership {
    pub(crate) spec: RunSpec,
    pub(crate) spec_digest: Digest,
    /// Coordinator's clock minus ours, at most: measured from before the question to before the
    /// answer.
    pub(crate) clock_ahead_ms: i64,
    heartbeat: Millis,
}

/// A request that waits for its answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) id: RequestId,
    pub(crate) sent_at: UnixMillis,
}

/// The worker was told to end.
#[derive(Clone, Debug)]
pub(crate) struct Ending {
    pub(crate) exit: Exit,
    /// The process ends here, answered or not; none while a unit is finished first.
    deadline: Option<UnixMillis>,
}

#[derive(Clone, Debug, Default)]
struct RefusedCommands {
    next_event_at: UnixMillis,
    suppressed: u64,
}

impl Worker {
    /// A worker that will join with the first call of [`Worker::handle`].
    pub fn new(settings: Settings) -> Self {
        let seed = settings.seed;
        Self {
            settings,
            stage: Stage::Joining,
            membership: None,
            asked: None,
            ask_at: UnixMillis(0),
            pace: Pace::new(RETRY_PAUSE, seed),
            patience: Patience::new(PATIENCE),
            faults: Pace::new(FAULT_PAUSE, seed.rotate_left(32)),
            elsewhere: Pace::new(FAULT_PAUSE, seed.rotate_left(24)),
            rejoins: Pace::new(REJOIN_PAUSE, seed.rotate_left(16)),
            untimely: Pace::new(REJOIN_PAUSE, seed.rotate_left(48)),
            ending: None,
            unsaved: false,
            heartbeat_at: UnixMillis(0),
            refused: RefusedCommands::default(),
            numbers: 0,
        }
    }

    /// Takes in what happened at `now` and says what to do. After [`Effect::Exit`] it says nothing
    /// more.
    pub fn handle(&mut self, now: UnixMillis, input: Input, effects: &mut Vec<Effect>) {
        if matches!(self.stage, Stage::Ended) {
            return;
        }
        match input {
            Input::Replied { id, outcome } => self.replied(now, id, outcome, effects),
            Input::Verified { work, outcome } => self.verified(now, work, outcome, effects),
            Input::Fetched { work, outcome } => self.fetched(now, work, outcome, effects),
            Input::Progress { work, steps_done } => self.progressed(work, steps_done),
            Input::Trained { work, outcome } => self.trained(now, work, outcome, effects),
            Input::Evaluated { work, outcome } => self.evaluated(now, work, outcome, effects),
            Input::Uploaded { work, outcome } => self.uploaded(now, work, outcome, effects),
            Input::Command(CommandVerb::Drain) => self.drain(now, effects),
            Input::Command(CommandVerb::Stop) => self.stop(now, effects),
            Input::CommandRefused(refusal) => self.command_refused(now, refusal, effects),
            Input::Tick => {}
        }
        self.advance(now, effects);
    }

    /// When [`Worker::handle`] wants to be called although nothing happened.
    pub fn next_deadline(&self) -> Option<UnixMillis> {
        if matches!(self.stage, Stage::Ended) {
            return None;
        }
        let asks = self.asked.is_none() && self.request().is_some();
        let held = self.held();
        [
            asks.then_some(self.ask_at),
            held.map(|held| held.ends_at),
            held.filter(|held| held.renewal.is_none())
                .map(|held| held.renew_at),
            self.membership.as_ref().map(|_| self.heartbeat_at),
            self.ending.as_ref().and_then(|ending| ending.deadline),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Where the worker stands, for heartbeats and status.
    pub fn phase(&self) -> Phase {
        match &self.stage {
            Stage::Joining => Phase::Joining,
            Stage::Claiming | Stage::Verifying(_) | Stage::Releasing { .. } => Phase::Claiming,
            Stage::Holding(held) => match held.step {
                Step::Fetching => Phase::Fetching,
                Step::Training => Phase::Training,
                Step::Uploading(_) => Phase::Uploading,
                Step::Submitting(_) => Phase::Submitting,
            },
            Stage::Leaving(_) | Stage::Ended => Phase::Leaving,
        }
    }

    /// What time alone causes, in order of urgency.
    fn advance(&mut self, now: UnixMillis, effects: &mut Vec<Effect>) {
        if let Some(Ending {
            exit,
            deadline: Some(deadline),
        }) = &self.ending
            && *deadline <= now
        {
            let exit = exit.clone();
            return self.end(exit, effects);
        }
        if self.held().is_some_and(|held| held.ends_at <= now) {
            let detail = "the lease ran out before a renewal was answered";
            self.lose(now, Refusal::new(Code::LeaseLost, detail), effects);
        }
        self.renew(now, effects);
        self.ask(now, effects);
        self.beat(now, effects);
    }

    fn renew(&mut self, now: UnixMillis, effects: &mut Vec<Effect>) {
        let id = self.number();
        let Stage::Holding(held) = &mut self.stage else {
            return;
        };
        if held.renewal.is_some() || held.renew_at > now {
            return;
        }
        let id = RequestId(id);
        held.renewal = Some(Renewal { id, sent_at: now });
        // The shell counts bytes.
        let request = Request::Renew(RenewRequest {
            v: V,
            lease: held.lease(),
            steps_done: held.steps_done,
            bytes_moved: Bytes(0),
        });
        effects.push(Effect::Send {
            id,
            request,
            patience: held.renewal_patience(),
        });
    }

    fn ask(&mut self, now: UnixMillis, effects: &mut Vec<Effect>) {
        if self.asked.is_some() || self.ask_at > now {
            return;
        }
        let Some((request, patience)) = self.request() else {
            return;
        };
        let id = RequestId(self.number());
        self.asked = Some(Asked { id, sent_at: now });
        effects.push(Effect::Send {
            id,
            request,
            patience,
        });
    }

    /// The request that the stage consists of.
    fn request(&self) -> Option<(Request, Millis)> {
        match &self.stage {
            Stage::Joining => Some((
                Request::Join(self.settings.join.clone()),
                self.patience.now(),
            )),
            Stage::Claiming => {
                let (wait, patience) = self.claim_spans();
                let session = self.settings.join.session;
                Some((
                    Request::Claim(ClaimRequest {
                        v: V,
                        session,
                        wait,
                    }),
                    patience,
                ))
            }
            Stage::Holding(held) => match &held.step {
                Step::Submitting(statement) => {
                    Some((Request::Submit(statement.clone()), self.patience.now()))
                }
                Step::Fetching | Step::Training | Step::Uploading(_) => None,
            },
            Stage::Releasing { lease, reason, .. } => {
                let request = ReleaseRequest {
                    v: V,
                    lease: *lease,
                    reason: reason.clone(),
                };
                Some((Request::Release(request), PARTING_PATIENCE))
            }
            Stage::Leaving(exit) => {
                let reason = Refusal::new(Code::Internal, exit.reason()).detail;
                let session = self.settings.join.session;
                Some((
                    Request::Leave(LeaveRequest {
                        v: V,
                        session,
                        reason,
                    }),
                    PARTING_PATIENCE,
                ))
            }
            Stage::Verifying(_) | Stage::Ended => None,
        }
    }

    /// How long a claim may be held open, and how long its answer is waited for.
    fn claim_spans(&self) -> (Millis, Millis) {
        let lease = self
            .membership
            .as_ref()
            .map_or(LEASE_MIN, |membership| membership.spec.policy.lease);
        let part = Millis(lease.get() / CLAIM_LEASE_PART);
        let wait = self.settings.claim_wait.min(CLAIM_WAIT_MAX).min(part);
        (
            wait,
            Millis(wait.get().saturating_add(CLAIM_MARGIN.min(part).get())),
        )
    }

    fn beat(&mut self, now: UnixMillis, effects: &mut Vec<Effect>) {
        let Some(membership) = &self.membership else {
            return;
        };
        if self.heartbeat_at > now || matches!(self.stage, Stage::Ended) {
            return;
        }
        self.heartbeat_at = now.after(membership.heartbeat.max(HEARTBEAT_MIN));
        let (lease, steps_done) = self.held().map_or((None, Steps(0)), |held| {
            (Some(held.lease()), held.steps_done)
        });
        let (session, phase) = (self.settings.join.session, self.phase());
        effects.push(Effect::Heartbeat(Pulse {
            session,
            phase,
            lease,
            steps_done,
        }));
    }

    /// Goes to another stage; its request, if it has one, is sent `pause` from now.
    pub(crate) fn enter(&mut self, now: UnixMillis, stage: Stage, pause: Millis) {
        self.stage = stage;
        self.asked = None;
        self.ask_at = now.after(pause);
        self.pace.reset();
        self.patience.reset();
    }

    /// Asks the stage's question again, later and visibly.
    pub(crate) fn ask_again(
        &mut self,
        now: UnixMillis,
        refusal: Refusal,
        effects: &mut Vec<Effect>,
    ) {
        let pause = if is_absence(refusal.code) {
            self.pace.pause_up_to(ABSENCE_PAUSE_MAX)
        } else {
            self.pace.pause()
        };
        if let Some(asked) = self.asked.take() {
            self.patience
                .failed_after(asked.sent_at.until(now).as_duration());
        }
        self.ask_at = now.after(pause);
        effects.push(Effect::Waiting { refusal, pause });
    }

    /// Looks for work, or leaves if it was told to.
    pub(crate) fn claim(&mut self, now: UnixMillis, pause: Millis, effects: &mut Vec<Effect>) {
        match self.ending.as_ref().map(|ending| ending.exit.clone()) {
            Some(exit) => self.leave(now, exit, effects),
            None => self.enter(now, Stage::Claiming, pause),
        }
    }

    /// Says goodbye, then ends.
    pub(crate) fn leave(&mut self, now: UnixMillis, exit: Exit, effects: &mut Vec<Effect>) {
        self.save(effects);
        let deadline = Some(now.after(self.settings.stop_patience));
        let deadline = self
            .ending
            .as_ref()
            .and_then(|ending| ending.deadline)
            .or(deadline);
        self.ending = Some(Ending {
            exit: exit.clone(),
            deadline,
        });
        if self.membership.is_none() {
            return self.end(exit, effects);
        }
        effects.push(Effect::Emit(WorkerEvent::Stopped {
            reason: Refusal::new(Code::Internal, exit.reason()).detail,
        }));
        self.enter(now, Stage::Leaving(exit), Millis(0));
    }

    /// The end.
    pub(crate) fn end(&mut self, exit: Exit, effects: &mut Vec<Effect>) {
        if let Some(work) = self.work() {
            effects.push(Effect::Stop { work });
        }
        self.save(effects);
        self.stage = Stage::Ended;
        self.asked = None;
        effects.push(Effect::Exit(exit));
    }

    /// The lease is no longer ours: its work stops, the inner state stays.
    pub(crate) fn lose(&mut self, now: UnixMillis, refusal: Refusal, effects: &mut Vec<Effect>) {
        if self.drop_work(&refusal, effects).is_some() {
            self.claim(now, Millis(0), effects);
        }
    }

    /// The unit failed here: give it to another, and claim again after a pause that grows with
    /// every failure.
    pub(crate) fn fail(&mut self, now: UnixMillis, refusal: Refusal, effects: &mut Vec<Effect>) {
        let Some(lease) = self.drop_work(&refusal, effects) else {
            return;
        };
        let (pause, hopeless) = self.fault(refusal.code);
        let ending = self.ending.as_ref().map(|ending| ending.exit.clone());
        let next = match ending {
            Some(exit) => Next::Leave(exit),
            None if hopeless => Next::Leave(Exit::Failed(refusal.clone())),
            None => {
                effects.push(Effect::Waiting {
                    refusal: refusal.clone(),
                    pause,
                });
                Next::Claim { pause }
            }
        };
        self.enter(
            now,
            Stage::Releasing {
                lease,
                reason: refusal.to_string(),
                next,
            },
            Millis(0),
        );
    }

    /// Counts a unit that failed: the pause after it, and whether this machine has failed too many
    /// by now. What lies outside every worker has a count of its own, since it says nothing about
    /// this machine, however long it lasts.
    pub(crate) fn fault(&mut self, code: Code) -> (Millis, bool) {
        if code.passes() {
            return (self.elsewhere.pause(), false);
        }
        let pause = self.faults.pause();
        (pause, self.faults.tries() >= FAULTS_MAX)
    }

    /// This process cannot do such work: give the unit back and end.
    pub(crate) fn give_up(&mut self, now: UnixMillis, refusal: Refusal, effects: &mut Vec<Effect>) {
        let exit = Exit::Failed(refusal.clone());
        match self.drop_work(&refusal, effects) {
            Some(lease) => {
                let next = Next::Leave(exit);
                self.enter(
                    now,
                    Stage::Releasing {
                        lease,
                        reason: refusal.to_string(),
                        next,
                    },
                    Millis(0),
                );
            }
            None => self.leave(now, exit, effects),
        }
    }

    /// Another process is the worker now: this one stops and says nothing more in its name. Its
    /// lease is not its own any more, a goodbye would end the other's membership, and an event of
    /// its own would fork the chain.
    pub(crate) fn replaced(&mut self, refusal: Refusal, effects: &mut Vec<Effect>) {
        self.end(Exit::Failed(refusal), effects);
    }

    /// Stops what is being done under the present lease and says so; the stage is for the caller to
    /// change.
    pub(crate) fn drop_work(
        &mut self,
        refusal: &Refusal,
        effects: &mut Vec<Effect>,
    ) -> Option<LeaseRef> {
        let held = self.held()?;
        let (lease, work) = (held.lease(), held.work);
        effects.push(Effect::Stop { work });
        effects.push(Effect::Emit(WorkerEvent::Dropped {
            lease,
            code: refusal.code,
            detail: refusal.detail.clone(),
        }));
        self.save(effects);
        Some(lease)
    }

    /// Goes on after a release, whatever it was answered.
    pub(crate) fn released(&mut self, now: UnixMillis, next: Next, effects: &mut Vec<Effect>) {
        match next {
            Next::Claim { pause } => self.claim(now, pause, effects),
            Next::Join { pause } => self.enter(now, Stage::Joining, pause),
            Next::Leave(exit) => self.leave(now, exit, effects),
        }
    }

    /// Whether a parting word was said often enough.
    pub(crate) fn parted(&self) -> bool {
        self.pace.tries() + 1 >= PARTING_TRIES
    }

    fn drain(&mut self, now: UnixMillis, effects: &mut Vec<Effect>) {
        if self.ending.is_some() {
            return;
        }
        self.ending = Some(Ending {
            exit: Exit::Drained,
            deadline: None,
        });
        match &mut self.stage {
            Stage::Joining | Stage::Claiming => self.leave(now, Exit::Drained, effects),
            Stage::Releasing { next, .. } => *next = Next::Leave(Exit::Drained),
            Stage::Verifying(_) | Stage::Holding(_) | Stage::Leaving(_) | Stage::Ended => {}
        }
    }

    fn stop(&mut self, now: UnixMillis, effects: &mut Vec<Effect>) {
        if self
            .ending
            .as_ref()
            .is_some_and(|ending| ending.deadline.is_some())
        {
            return;
        }
        let exit = Exit::Stopped;
        let deadline = Some(now.after(self.settings.stop_patience));
        self.ending = Some(Ending {
            exit: exit.clone(),
            deadline,
        });
        match &mut self.stage {
            // The result may be on its way already: it is finished, and the deadline stands.
            Stage::Holding(held) if matches!(held.step, Step::Submitting(_)) => {}
            Stage::Holding(_) => {
                let refusal = Refusal::new(Code::Interrupted, exit.reason());
                let lease = self
                    .drop_work(&refusal, effects)
                    .expect("this arm holds a lease");
                let next = Next::Leave(exit.clone());
                self.enter(
                    now,
                    Stage::Releasing {
                        lease,
                        reason: exit.reason(),
                        next,
                    },
                    Millis(0),
                );
            }
            Stage::Joining | Stage::Claiming => self.leave(now, exit, effects),
            Stage::Verifying(work) => {
                effects.push(Effect::Stop { work: *work });
                self.leave(now, exit, effects);
            }
            Stage::Releasing { next, .. } => *next = Next::Leave(exit),
            Stage::Leaving(_) | Stage::Ended => {}
        }
    }

    fn command_refused(&mut self, now: UnixMillis, refusal: Refusal, effects: &mut Vec<Effect>) {
        if now < self.refused.next_event_at {
            self.refused.suppressed = self.refused.suppressed.saturating_add(1);
            return;
        }
        let suppressed = std::mem::take(&mut self.refused.suppressed);
        self.refused.next_event_at = now.after(REFUSED_INTERVAL_MIN);
        let detail = match suppressed {
            0 => refusal.detail,
            _ => {
                Refusal::new(
                    refusal.code,
                    format!("{suppressed} more before this; {}", refusal.detail),
                )
                .detail
            }
        };
        effects.push(Effect::Emit(WorkerEvent::Refused {
            code: refusal.code,
            detail,
        }));
    }

    pub(crate) fn save(&mut self, effects: &mut Vec<Effect>) {
        if std::mem::take(&mut self.unsaved) {
            effects.push(Effect::SaveInner);
        }
    }

    /// A membership begins or begins again.
    pub(crate) fn joined(&mut self, now: UnixMillis, membership: Membership) {
        self.membership = Some(membership);
        self.heartbeat_at = now;
    }

    /// Shows at once what a unit came to, rather than at the next regular heartbeat.
    pub(crate) fn beat_now(&mut self, now: UnixMillis) {
        self.heartbeat_at = now;
    }

    /// The present work, if there is any.
    fn work(&self) -> Option<WorkId> {
        match &self.stage {
            Stage::Holding(held) => Some(held.work),
            Stage::Verifying(work) => Some(*work),
            _ => None,
        }
    }

    pub(crate) fn held(&self) -> Option<&Held> {
        match &self.stage {
            Stage::Holding(held) => Some(held),
            _ => None,
        }
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// Starts on a verified lease.
    pub(crate) fn hold(&mut self, now: UnixMillis, held: Held, effects: &mut Vec<Effect>) {
        let (work, manifest) = (held.work, Arc::clone(&held.manifest));
        effects.push(Effect::Emit(WorkerEvent::Started {
            lease: held.lease(),
        }));
        effects.push(Effect::Fetch { work, manifest });
        self.enter(now, Stage::Holding(Box::new(held)), Millis(0));
    }
}

/// A difference between two measurements of the coordinator's clock that is more than the way of a
/// message: another coordinator answers, or the same one after a restart.
const CLOCK_MOVED_MIN: Millis = Millis::from_secs(5);
/// Shortest time between heartbeats, whatever the coordinator asks for.
const HEARTBEAT_MIN: Millis = Millis(100);

impl Membership {
    pub(crate) fn new(
        spec: RunSpec,
        spec_digest: Digest,
        clock_ahead_ms: i64,
        heartbeat: Millis,
    ) -> Self {
        Self {
            spec,
            spec_digest,
            clock_ahead_ms,
            heartbeat,
        }
    }

    /// Takes over a newer measurement; whether it tells anything new.
    pub(crate) fn measured(&mut self, ahead_ms: i64) -> bool {
        let moved = self.clock_ahead_ms.abs_diff(ahead_ms) > CLOCK_MOVED_MIN.get();
        if moved {
            self.clock_ahead_ms = ahead_ms;
        }
        moved
    }

    /// The coordinator's `instant` on our clock, or a little earlier.
    pub(crate) fn local(&self, instant: UnixMillis) -> UnixMillis {
        UnixMillis(
            instant
                .get()
                .saturating_add_signed(self.clock_ahead_ms.saturating_neg()),
        )
    }
}
