//! The life of a worker: hands each input to the conversation that it belongs to, and sends the
//! requests of the present stage.

use schemas::event::WorkerEvent;
use schemas::lease::{ClaimRequest, ReleaseRequest};
use schemas::member::LeaveRequest;
use schemas::public::CommandVerb;
use schemas::telemetry::Phase;
use schemas::{Code, Millis, Refusal, Steps, UnixMillis, V};

use crate::answer_wait::AnswerWait;
use crate::effect::{Effect, Exit, Pulse, Request, RequestId, WorkId};
use crate::held::{HeldLease, WorkStep};
use crate::input::{Answer, Input};
use crate::joining::Membership;
use crate::pauses::RetryPauses;
use crate::settings::{
    ABSENCE_PAUSE_MAX, FAULT_PAUSE, PARTING_PATIENCE, PATIENCE, REFUSED_INTERVAL_MIN, REJOIN_PAUSE,
    RETRY_PAUSE, Settings,
};
use crate::stage::{Ending, PendingRequest, Stage};
use crate::verdict::is_absence;

/// One worker of one run.
#[derive(Clone, Debug)]
pub struct Worker {
    pub(crate) settings: Settings,
    pub(crate) stage: Stage,
    pub(crate) membership: Option<Membership>,
    /// The stage's request that waits for its answer.
    pub(crate) asked: Option<PendingRequest>,
    /// The time at which the stage's request is sent (again).
    pub(crate) ask_at: UnixMillis,
    /// Failed requests in a row.
    pub(crate) pauses: RetryPauses,
    /// The time to wait for the answer to the stage's request.
    pub(crate) patience: AnswerWait,
    /// Units in a row that this machine failed.
    pub(crate) faults: RetryPauses,
    /// Units in a row that failed for causes outside the workers.
    pub(crate) elsewhere: RetryPauses,
    /// Memberships in a row that were lost before a claim was answered.
    pub(crate) rejoins: RetryPauses,
    /// Leases in a row that were outside their window by the coordinator's time, as it was
    /// measured.
    pub(crate) untimely: RetryPauses,
    pub(crate) ending: Option<Ending>,
    /// The training unit whose inner state is still to be kept.
    pub(crate) unsaved: Option<WorkId>,
    pub(crate) heartbeat_at: UnixMillis,
    refused: RefusedCommands,
    numbers: u64,
}

#[derive(Clone, Debug, Default)]
struct RefusedCommands {
    next_event_at: UnixMillis,
    suppressed: u64,
}

/// Least time between heartbeats, whatever the coordinator asks for.
const HEARTBEAT_MIN: Millis = Millis(100);

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
            pauses: RetryPauses::new(RETRY_PAUSE, seed),
            patience: AnswerWait::new(PATIENCE),
            faults: RetryPauses::new(FAULT_PAUSE, seed.rotate_left(32)),
            elsewhere: RetryPauses::new(FAULT_PAUSE, seed.rotate_left(24)),
            rejoins: RetryPauses::new(REJOIN_PAUSE, seed.rotate_left(16)),
            untimely: RetryPauses::new(REJOIN_PAUSE, seed.rotate_left(48)),
            ending: None,
            unsaved: None,
            heartbeat_at: UnixMillis(0),
            refused: RefusedCommands::default(),
            numbers: 0,
        }
    }

    /// Handles an input that came at `now`, and pushes the effects. Pushes nothing after
    /// [`Effect::Exit`].
    pub fn handle(&mut self, now: UnixMillis, input: Input, effects: &mut Vec<Effect>) {
        if matches!(self.stage, Stage::Ended) {
            return;
        }
        match input {
            // A report may cross with a stop; the work or the step that it is about is over.
            report if self.is_overtaken(&report) => {}
            Input::Replied { id, outcome } => self.replied(now, id, outcome, effects),
            Input::Verified { work, outcome } => self.verified(now, work, outcome, effects),
            Input::Fetched { work, outcome } => self.fetched(now, work, outcome, effects),
            Input::Progress { steps_done, .. } => self.progressed(steps_done),
            Input::Recorded { work, outcome } => self.recorded(now, work, outcome, effects),
            Input::Trained { work, outcome } => self.trained(now, work, outcome, effects),
            Input::Evaluated { outcome, .. } => self.evaluated(now, outcome, effects),
            Input::Uploaded { outcome, .. } => self.uploaded(now, outcome, effects),
            Input::Command(CommandVerb::Drain) => self.drain(now, effects),
            Input::Command(CommandVerb::Stop) => self.stop(now, effects),
            Input::Command(CommandVerb::Quarantine) => {
                let detail = "the coordinator said so in a signed command";
                self.go(Refusal::new(Code::WorkerQuarantined, detail), effects);
            }
            Input::CommandRefused(refusal) => self.command_refused(now, refusal, effects),
            Input::Broken(refusal) => self.broken(now, refusal, effects),
            Input::Tick => {}
        }
        self.advance(now, effects);
    }

    /// True for a report on other work than the present, or on another step of this work.
    fn is_overtaken(&self, report: &Input) -> bool {
        if let Input::Recorded { work, .. } = report {
            let mut held = self.held().into_iter();
            return !held.any(|held| held.work == *work && held.unrecorded);
        }
        let (work, right): (_, fn(&WorkStep) -> bool) = match report {
            Input::Verified { work, .. } => {
                return !matches!(self.stage, Stage::Verifying(present) if present == *work);
            }
            Input::Fetched { work, .. } => (work, |step| *step == WorkStep::Fetching),
            Input::Progress { work, .. }
            | Input::Trained { work, .. }
            | Input::Evaluated { work, .. } => (work, |step| *step == WorkStep::Training),
            Input::Uploaded { work, .. } => (work, |step| matches!(step, WorkStep::Uploading(_))),
            Input::Replied { .. }
            | Input::Recorded { .. }
            | Input::Command(_)
            | Input::CommandRefused(_)
            | Input::Broken(_)
            | Input::Tick => {
                return false;
            }
        };
        !self
            .held()
            .is_some_and(|held| held.work == *work && right(&held.step))
    }

    /// The time at which [`Worker::handle`] must be called even if nothing happens.
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

    /// The stage, for heartbeats and status.
    pub fn phase(&self) -> Phase {
        match &self.stage {
            Stage::Joining => Phase::Joining,
            Stage::Claiming | Stage::Verifying(_) | Stage::Releasing { .. } => Phase::Claiming,
            Stage::Holding(held) => match held.step {
                WorkStep::Fetching => Phase::Fetching,
                WorkStep::Training => Phase::Training,
                WorkStep::Uploading(_) => Phase::Uploading,
                WorkStep::Submitting(_) => Phase::Submitting,
            },
            Stage::Leaving(_) | Stage::Ended => Phase::Leaving,
        }
    }

    /// Takes the steps that are due by time alone, in order of urgency.
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

    fn ask(&mut self, now: UnixMillis, effects: &mut Vec<Effect>) {
        if self.asked.is_some() || self.ask_at > now {
            return;
        }
        if let Some((request, patience)) = self.request() {
            let id = RequestId(self.number());
            self.asked = Some(PendingRequest { id, sent_at: now });
            effects.push(Effect::Send {
                id,
                request,
                patience,
            });
        }
    }

    /// The request of the present stage.
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
                WorkStep::Submitting(result) => {
                    Some((Request::Submit(result.clone()), self.patience.now()))
                }
                WorkStep::Fetching | WorkStep::Training | WorkStep::Uploading(_) => None,
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

    pub(crate) fn replied(
        &mut self,
        now: UnixMillis,
        id: RequestId,
        outcome: Result<Answer, Refusal>,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(asked) = self.asked.filter(|asked| asked.id == id) {
            self.answered(now, asked, outcome, effects);
        } else if let Some(renewal) = self
            .held()
            .and_then(|held| held.renewal)
            .filter(|renewal| renewal.id == id)
        {
            self.renewal_answered(now, renewal.sent_at, outcome, effects);
        }
        // Any other answer is for a question that no longer matters.
    }

    fn answered(
        &mut self,
        now: UnixMillis,
        asked: PendingRequest,
        outcome: Result<Answer, Refusal>,
        effects: &mut Vec<Effect>,
    ) {
        match &self.stage {
            Stage::Joining => self.join_answered(now, asked.sent_at, outcome, effects),
            Stage::Claiming => self.claim_answered(now, asked.sent_at, outcome, effects),
            Stage::Holding(_) => self.submit_answered(now, outcome, effects),
            Stage::Releasing { .. } => self.release_answered(now, outcome, effects),
            Stage::Leaving(_) => self.leave_answered(now, outcome, effects),
            Stage::Verifying(_) | Stage::Ended => {
                panic!("a stage without a request waits for an answer")
            }
        }
    }

    /// Asks again after an answer of the wrong kind.
    pub(crate) fn answered_otherwise(&mut self, now: UnixMillis, effects: &mut Vec<Effect>) {
        let detail = "an answer of another kind than the request";
        self.ask_again(now, Refusal::new(Code::MessageInvalid, detail), effects);
    }

    /// Changes the stage; its request, if it has one, is sent `pause` from now.
    pub(crate) fn enter(&mut self, now: UnixMillis, stage: Stage, pause: Millis) {
        self.stage = stage;
        self.asked = None;
        self.ask_at = now.after(pause);
        self.pauses.reset();
        self.patience.reset();
    }

    /// Repeats the stage's request later, and shows why the worker waits.
    pub(crate) fn ask_again(
        &mut self,
        now: UnixMillis,
        refusal: Refusal,
        effects: &mut Vec<Effect>,
    ) {
        let pause = if is_absence(refusal.code) {
            self.pauses.pause_up_to(ABSENCE_PAUSE_MAX)
        } else {
            self.pauses.pause()
        };
        if let Some(asked) = self.asked.take() {
            self.patience
                .failed_after(asked.sent_at.until(now).as_duration());
        }
        self.ask_at = now.after(pause);
        effects.push(Effect::Waiting { refusal, pause });
    }

    fn beat(&mut self, now: UnixMillis, effects: &mut Vec<Effect>) {
        let due = self
            .membership
            .as_ref()
            .filter(|_| self.heartbeat_at <= now && !matches!(self.stage, Stage::Ended))
            .map(|membership| membership.heartbeat);
        if let Some(interval) = due {
            self.heartbeat_at = now.after(interval.max(HEARTBEAT_MIN));
            effects.push(Effect::Heartbeat(self.pulse()));
        }
    }

    fn pulse(&self) -> Pulse {
        let (lease, steps_done) = self.held().map_or((None, Steps(0)), |held| {
            (Some(held.lease()), held.steps_done)
        });
        Pulse {
            session: self.settings.join.session,
            phase: self.phase(),
            lease,
            steps_done,
        }
    }

    /// Sends a heartbeat soon, to show the end of a unit before the next regular one.
    pub(crate) fn beat_now(&mut self, now: UnixMillis) {
        self.heartbeat_at = now;
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

    /// The present work, if there is any.
    pub(crate) fn work(&self) -> Option<WorkId> {
        match &self.stage {
            Stage::Holding(held) => Some(held.work),
            Stage::Verifying(work) => Some(*work),
            _ => None,
        }
    }

    /// The lease under which this worker works, if it does.
    pub(crate) fn held(&self) -> Option<&HeldLease> {
        match &self.stage {
            Stage::Holding(held) => Some(held),
            _ => None,
        }
    }

    /// The lease under which this worker works. The caller has a report or an answer that came only
    /// because a lease is held.
    pub(crate) fn present(&mut self) -> &mut HeldLease {
        match &mut self.stage {
            Stage::Holding(held) => held,
            stage => panic!("a lease's work was reported while the worker was {stage:?}"),
        }
    }

    /// The answer to the join, for code that runs only after one.
    pub(crate) fn member(&self) -> &Membership {
        self.membership
            .as_ref()
            .expect("a lease is granted only to a member")
    }

    /// The exit that was ordered.
    pub(crate) fn told_to_end(&self) -> Option<Exit> {
        self.ending.as_ref().map(|ending| ending.exit.clone())
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }
}
