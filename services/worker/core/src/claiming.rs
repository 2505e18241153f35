//! Claiming: asking for a lease, and checking the one that is granted.

use std::sync::Arc;

use schemas::event::WorkerEvent;
use schemas::lease::{ClaimOutcome, ClaimReply, Manifest};
use schemas::limits::{CLAIM_WAIT_MAX, LEASE_MIN};
use schemas::{Code, Millis, Refusal, UnixMillis};

use crate::effect::{Effect, Exit, WorkId};
use crate::held::Held;
use crate::input::NotVerified;
use crate::settings::{CLAIM_INTERVAL_MIN, CLAIM_LEASE_PART, CLAIM_MARGIN};
use crate::stage::{Next, Stage};
use crate::verdict::{Verdict, verdict};
use crate::worker::Worker;

impl Worker {
    /// Looks for work, or leaves if it was told to.
    pub(crate) fn claim(&mut self, now: UnixMillis, pause: Millis, effects: &mut Vec<Effect>) {
        match self.ending.as_ref().map(|ending| ending.exit.clone()) {
            Some(exit) => self.leave(now, exit, effects),
            None => self.enter(now, Stage::Claiming, pause),
        }
    }

    /// How long a claim may be held open, and how long its answer is waited for.
    pub(crate) fn claim_spans(&self) -> (Millis, Millis) {
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

    pub(crate) fn claim_answered(
        &mut self,
        now: UnixMillis,
        sent_at: UnixMillis,
        reply: ClaimReply,
        effects: &mut Vec<Effect>,
    ) {
        // Only members are answered. The join alone proves nothing: whoever is thrown out each time
        // it joins got that far too.
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

    pub(crate) fn claim_refused(
        &mut self,
        now: UnixMillis,
        refusal: Refusal,
        effects: &mut Vec<Effect>,
    ) {
        match verdict(refusal.code) {
            Verdict::Replaced => self.replaced(refusal, effects),
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
        if !matches!(self.stage, Stage::Verifying(present) if present == work) {
            return;
        }
        match outcome {
            Ok(manifest) => self.start(now, work, manifest, effects),
            Err(NotVerified { refusal, lease }) => {
                self.manifest_refused(now, refusal, lease, effects)
            }
        }
    }

    pub(crate) fn start(
        &mut self,
        now: UnixMillis,
        work: WorkId,
        manifest: Box<Manifest>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(membership) = &self.membership else {
            return;
        };
        self.untimely.reset();
        let lease = membership.spec.policy.lease;
        // By the offset of the join; and no longer than a lease of this run lasts, should a clock
        // have been set since.
        let ends_at = membership.local(manifest.expires_at).min(now.after(lease));
        // A join that was answered slowly makes the offset so careful that nothing would be left:
        // then the renewal, at once, says how long there really is.
        let ends_at = ends_at.max(now.after(Millis(lease.get() / 3)));
        let seed = self.settings.seed ^ work.0;
        self.hold(
            now,
            Held::new(work, Arc::from(manifest), (now, ends_at), lease, seed),
            effects,
        );
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

    pub(crate) fn manifest_refused(
        &mut self,
        now: UnixMillis,
        refusal: Refusal,
        lease: Option<schemas::lease::LeaseRef>,
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
                let next = Next::Claim { pause };
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
            None => self.claim(now, pause, effects),
        }
    }

    /// A lease that is not of this time says nothing about trust or the unit: one of the clocks is
    /// not where it was measured. The lease goes back at once, and the coordinator's time is asked
    /// for again; that is no fault of a unit.
    pub(crate) fn out_of_time(
        &mut self,
        now: UnixMillis,
        refusal: Refusal,
        lease: Option<schemas::lease::LeaseRef>,
        effects: &mut Vec<Effect>,
    ) {
        let pause = self.untimely.pause();
        let reason = refusal.to_string();
        effects.push(Effect::Waiting { refusal, pause });
        match (
            self.ending.as_ref().map(|ending| ending.exit.clone()),
            lease,
        ) {
            (Some(exit), None) => self.leave(now, exit, effects),
            (Some(exit), Some(lease)) => {
                self.enter(
                    now,
                    Stage::Releasing {
                        lease,
                        reason,
                        next: Next::Leave(exit),
                    },
                    Millis(0),
                );
            }
            (None, None) => self.enter(now, Stage::Joining, pause),
            (None, Some(lease)) => {
                self.enter(
                    now,
                    Stage::Releasing {
                        lease,
                        reason,
                        next: Next::Join { pause },
                    },
                    Millis(0),
                );
            }
        }
    }
}
