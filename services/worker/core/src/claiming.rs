//! Claiming: asking for a lease, and checking the one that is granted.

use std::sync::Arc;

use schemas::event::WorkerEvent;
use schemas::lease::{ClaimOutcome, ClaimReply, LeaseRef, Manifest};
use schemas::limits::CLAIM_WAIT_MAX;
use schemas::{Code, Millis, Refusal, UnixMillis};

use crate::effect::{Effect, Exit, WorkId};
use crate::held::HeldLease;
use crate::input::{Answer, NotVerified};
use crate::settings::{CLAIM_INTERVAL_MIN, CLAIM_LEASE_PART, CLAIM_MARGIN};
use crate::stage::{AfterRelease, Stage};
use crate::verdict::{Verdict, verdict};
use crate::worker::Worker;

impl Worker {
    /// Looks for work, or leaves if it was told to.
    pub(crate) fn claim(&mut self, now: UnixMillis, pause: Millis, effects: &mut Vec<Effect>) {
        match self.told_to_end() {
            Some(exit) => self.leave(now, exit, effects),
            None => self.enter(now, Stage::Claiming, pause),
        }
    }

    /// The time that the coordinator may hold a claim open, and the time that the worker waits for
    /// its answer.
    pub(crate) fn claim_spans(&self) -> (Millis, Millis) {
        let lease = self.member().spec.policy.lease;
        let part = Millis(lease.get() / CLAIM_LEASE_PART);
        let wait = self.settings.claim_wait.min(CLAIM_WAIT_MAX).min(part);
        (
            wait,
            Millis(wait.get().saturating_add(CLAIM_MARGIN.min(part).get())),
        )
    }

    pub(crate) fn claim_answered(
        &mut self,
        now: UnixMillis,
        sent_at: UnixMillis,
        outcome: Result<Answer, Refusal>,
        effects: &mut Vec<Effect>,
    ) {
        match outcome {
            Ok(Answer::Claim(reply)) => self.claim_accepted(now, sent_at, reply, effects),
            Ok(_) => self.answered_otherwise(now, effects),
            Err(refusal) => self.claim_refused(now, refusal, effects),
        }
    }

    fn claim_accepted(
        &mut self,
        now: UnixMillis,
        sent_at: UnixMillis,
        reply: ClaimReply,
        effects: &mut Vec<Effect>,
    ) {
        // An answered claim proves that the membership held. A join does not: a worker that is
        // evicted right after joining gets that far too.
        self.rejoins.reset();
        match reply.outcome {
            ClaimOutcome::Lease(document) => {
                let work = WorkId(self.number());
                self.enter(now, Stage::Verifying(work), Millis(0));
                effects.push(Effect::Verify { work, document });
            }
            ClaimOutcome::Nothing => {
                let earliest = sent_at.after(CLAIM_INTERVAL_MIN);
                self.enter(now, Stage::Claiming, now.until(earliest));
            }
            ClaimOutcome::Complete => self.leave(now, Exit::Complete, effects),
        }
    }

    fn claim_refused(&mut self, now: UnixMillis, refusal: Refusal, effects: &mut Vec<Effect>) {
        match verdict(refusal.code) {
            Verdict::Out => self.go(refusal, effects),
            Verdict::Fatal => self.give_up(now, refusal, effects),
            Verdict::RunOver => self.leave(now, Exit::Complete, effects),
            Verdict::Rejoin => self.rejoin(now, refusal, effects),
            Verdict::Wait | Verdict::LeaseLost | Verdict::Failed => {
                self.ask_again(now, refusal, effects)
            }
        }
    }

    pub(crate) fn verified(
        &mut self,
        now: UnixMillis,
        work: WorkId,
        outcome: Result<Box<Manifest>, NotVerified>,
        effects: &mut Vec<Effect>,
    ) {
        match outcome {
            Ok(manifest) => self.start(now, work, manifest, effects),
            Err(NotVerified { refusal, lease }) => {
                self.manifest_refused(now, refusal, lease, effects)
            }
        }
    }

    /// Starts the work on a verified lease.
    fn start(
        &mut self,
        now: UnixMillis,
        work: WorkId,
        manifest: Box<Manifest>,
        effects: &mut Vec<Effect>,
    ) {
        self.untimely.reset();
        let lease = self.member().spec.policy.lease;
        // Computed with the offset of the join. It is no longer than a lease of this run, since a
        // clock may have been set meanwhile.
        let ends_at = self
            .member()
            .local(manifest.expires_at)
            .min(now.after(lease));
        // After a join that was answered slowly, the careful offset would leave no time: then the
        // first renewal, at once, tells the real end.
        let ends_at = ends_at.max(now.after(Millis(lease.get() / 3)));
        let seed = self.settings.seed ^ work.0;
        let manifest: Arc<Manifest> = Arc::from(manifest);
        let held = HeldLease::new(work, Arc::clone(&manifest), (now, ends_at), lease, seed);
        effects.push(Effect::Emit(WorkerEvent::Started {
            lease: held.lease(),
        }));
        effects.push(Effect::Fetch { work, manifest });
        self.enter(now, Stage::Holding(Box::new(held)), Millis(0));
    }

    fn manifest_refused(
        &mut self,
        now: UnixMillis,
        refusal: Refusal,
        lease: Option<LeaseRef>,
        effects: &mut Vec<Effect>,
    ) {
        effects.push(Effect::Emit(WorkerEvent::Refused {
            code: refusal.code,
            detail: refusal.detail.clone(),
        }));
        if refusal.code == Code::ClockOff {
            return self.out_of_time(now, refusal, lease, effects);
        }
        let (pause, hopeless) = self.fault(refusal.code);
        effects.push(Effect::Waiting {
            refusal: refusal.clone(),
            pause,
        });
        if hopeless {
            return self.leave(now, Exit::Failed(refusal), effects);
        }
        match lease {
            Some(lease) => {
                self.release(
                    now,
                    lease,
                    refusal.to_string(),
                    AfterRelease::Claim { pause },
                );
            }
            None => self.claim(now, pause, effects),
        }
    }

    /// Gives back a lease that is not valid at this time, and asks for the coordinator's time
    /// again. Such a lease says nothing about trust or the unit, only that a clock is not where it
    /// was measured, so it is no failure of the unit.
    fn out_of_time(
        &mut self,
        now: UnixMillis,
        refusal: Refusal,
        lease: Option<LeaseRef>,
        effects: &mut Vec<Effect>,
    ) {
        let pause = self.untimely.pause();
        let reason = refusal.to_string();
        effects.push(Effect::Waiting { refusal, pause });
        match (self.told_to_end(), lease) {
            (Some(exit), None) => self.leave(now, exit, effects),
            (Some(exit), Some(lease)) => {
                self.release(now, lease, reason, AfterRelease::Leave(exit))
            }
            (None, None) => self.enter(now, Stage::Joining, pause),
            (None, Some(lease)) => self.release(now, lease, reason, AfterRelease::Join { pause }),
        }
    }
}
