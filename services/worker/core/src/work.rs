//! What the shell reports about the work on a lease.

use std::sync::Arc;

use schemas::contribution::{Contribution, Evaluation, Outcome, Statement};
use schemas::event::WorkerEvent;
use schemas::lease::{Manifest, Work};
use schemas::limits::LOSS_MAX;
use schemas::{Code, Message as _, Millis, ObjectRef, Refusal, Steps, UnixMillis, V};

use crate::effect::{Effect, Exit, WorkId};
use crate::held::{Held, Step};
use crate::input::{NotVerified, Trained};
use crate::verdict::{Verdict, verdict};
use crate::worker::{Next, Stage, Worker};

impl Worker {
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

    fn start(
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

    fn manifest_refused(
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
    fn out_of_time(
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

    pub(crate) fn fetched(
        &mut self,
        now: UnixMillis,
        work: WorkId,
        outcome: Result<(), Refusal>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(held) = self.at(work, |step| *step == Step::Fetching) else {
            return;
        };
        if let Err(refusal) = outcome {
            return self.step_failed(now, refusal, effects);
        }
        held.step = Step::Training;
        match held.manifest.work {
            Work::Train { .. } => {
                self.unsaved = true;
                effects.push(Effect::Train { work });
            }
            Work::Evaluate { .. } => effects.push(Effect::Evaluate { work }),
        }
    }

    pub(crate) fn progressed(&mut self, work: WorkId, steps_done: Steps) {
        if let Some(held) = self.at(work, |step| *step == Step::Training) {
            held.steps_done = held.steps_done.max(steps_done);
        }
    }

    pub(crate) fn trained(
        &mut self,
        now: UnixMillis,
        work: WorkId,
        outcome: Result<Trained, Refusal>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(held) = self.at(work, |step| *step == Step::Training) else {
            return;
        };
        let trained = match outcome {
            Ok(trained) if (0.0..=LOSS_MAX).contains(&trained.loss) => trained,
            Ok(Trained { loss, .. }) => {
                let refusal =
                    Refusal::new(Code::TrainingFailed, format!("the mean loss is {loss}"));
                return self.step_failed(now, refusal, effects);
            }
            Err(refusal) => return self.step_failed(now, refusal, effects),
        };
        held.steps_done = trained.steps;
        held.step = Step::Uploading(trained);
        effects.push(Effect::Upload { work });
    }

    pub(crate) fn evaluated(
        &mut self,
        now: UnixMillis,
        work: WorkId,
        outcome: Result<Evaluation, Refusal>,
        effects: &mut Vec<Effect>,
    ) {
        if self.at(work, |step| *step == Step::Training).is_none() {
            return;
        }
        match outcome {
            Ok(evaluation)
                if (0.0..=LOSS_MAX * evaluation.tokens.get() as f64)
                    .contains(&evaluation.loss_sum) =>
            {
                self.submit(now, Outcome::Evaluation(evaluation))
            }
            Ok(Evaluation { loss_sum, .. }) => {
                let refusal = Refusal::new(
                    Code::TrainingFailed,
                    format!("the held-out loss is {loss_sum}"),
                );
                self.step_failed(now, refusal, effects);
            }
            Err(refusal) => self.step_failed(now, refusal, effects),
        }
    }

    pub(crate) fn uploaded(
        &mut self,
        now: UnixMillis,
        work: WorkId,
        outcome: Result<Vec<ObjectRef>, Refusal>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(held) = self.at(work, |step| matches!(step, Step::Uploading(_))) else {
            return;
        };
        let Step::Uploading(trained) = held.step else {
            return;
        };
        let chunks = match outcome {
            Ok(chunks) => chunks,
            Err(refusal) => return self.step_failed(now, refusal, effects),
        };
        let Some(membership) = &self.membership else {
            return;
        };
        let Trained {
            tokens,
            steps,
            loss,
            train_ms,
        } = trained;
        let (layout, codec) = (membership.spec.model.layout.digest, membership.spec.upload);
        let contribution = Contribution {
            layout,
            codec,
            chunks,
            tokens,
            steps,
            loss,
            train_ms,
        };
        self.submit(now, Outcome::Contribution(contribution));
    }

    fn submit(&mut self, now: UnixMillis, outcome: Outcome) {
        let Some(spec) = self
            .membership
            .as_ref()
            .map(|membership| membership.spec_digest)
        else {
            return;
        };
        let (run, worker) = (self.settings.run.clone(), self.settings.worker.clone());
        let Stage::Holding(held) = &mut self.stage else {
            return;
        };
        let statement = Statement {
            v: V,
            run,
            spec,
            worker,
            lease: held.lease(),
            outcome,
        };
        held.step = Step::Submitting(statement.encode());
        self.asked = None;
        self.ask_at = now;
        self.pace.reset();
        self.patience.reset();
    }

    /// A result counts: on to the next unit.
    pub(crate) fn unit_over(&mut self, now: UnixMillis, effects: &mut Vec<Effect>) {
        // The claim goes out first; the shell writes the inner state while it waits.
        self.claim(now, Millis(0), effects);
        self.save(effects);
        self.beat_now(now);
    }

    fn step_failed(&mut self, now: UnixMillis, refusal: Refusal, effects: &mut Vec<Effect>) {
        match verdict(refusal.code) {
            Verdict::LeaseLost => self.lose(now, refusal, effects),
            Verdict::Replaced => self.replaced(refusal, effects),
            Verdict::Fatal => self.give_up(now, refusal, effects),
            // The coordinator says the others itself, in answer to a renewal or claim.
            Verdict::Wait | Verdict::Rejoin | Verdict::RunOver | Verdict::Failed => {
                self.fail(now, refusal, effects)
            }
        }
    }

    /// The present work, if it is `work` and stands where `right` says.
    fn at(&mut self, work: WorkId, right: impl Fn(&Step) -> bool) -> Option<&mut Held> {
        match &mut self.stage {
            Stage::Holding(held) if held.work == work && right(&held.step) => Some(held),
            _ => None,
        }
    }
}
